# SPDX-License-Identifier: Apache-2.0
"""Pictures side by side, with a line of text to each row."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_TILE = 128  # pixels of a picture's side
_GAP = 6
_TEXT_HEIGHT = 18
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]]) -> Image.Image:
    """One row of tiles for each `(text, pictures)`, the text above it; `columns` are the headings.

    Pictures are enlarged without smoothing, so that what a small model drew can be seen as it is.
    """
    width = _GAP + len(columns) * (_TILE + _GAP)
    row_height = _TEXT_HEIGHT + _TILE + _GAP
    sheet = Image.new("RGB", (width, _TEXT_HEIGHT + len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for column, heading in enumerate(columns):
        draw.text((_GAP + column * (_TILE + _GAP), 2), heading, _INK, font)
    for index, (text, pictures) in enumerate(rows):
        top = _TEXT_HEIGHT + index * row_height
        draw.text((_GAP, top + 2), text, _INK, font)
        for column, picture in enumerate(pictures):
            if picture is not None:
                tile = picture.convert("RGB").resize((_TILE, _TILE), Image.Resampling.NEAREST)
                sheet.paste(tile, (_GAP + column * (_TILE + _GAP), top + _TEXT_HEIGHT))
    return sheet
