# SPDX-License-Identifier: Apache-2.0
"""Pictures side by side, with a text to each row."""

from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

_TILE = 128  # pixels of a picture's side
_GAP = 6
_LINE_HEIGHT = 18
_MIN_WIDTH = 640  # so that a text has room above one picture, too
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_FONT_SIZE = 12
_LONGEST_LINE = 400  # letters: a word is not measured further (our choice)
_MAX_LETTERS = 3_000  # of a row's text (our choice)


def contact_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]]) -> Image.Image:
    """One row of tiles for each `(text, pictures)`, the text above it; `columns` are the headings.

    Small pictures are enlarged without smoothing, so that what a small model drew can be seen as it is.
    """
    font = ImageFont.load_default(size=_FONT_SIZE)
    width = max(_GAP + len(columns) * (_TILE + _GAP), _MIN_WIDTH)
    texts = [_wrapped(text, width - 2 * _GAP, font) for text, _ in rows]
    heights = [
        len(lines) * _LINE_HEIGHT + (_TILE if pictures else 0) + _GAP
        for lines, (_, pictures) in zip(texts, rows, strict=True)
    ]
    sheet = Image.new("RGB", (width, _LINE_HEIGHT + sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(columns):
        draw.text((_GAP + column * (_TILE + _GAP), 2), heading, _INK, font)
    top = _LINE_HEIGHT
    for lines, (_, pictures), height in zip(texts, rows, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((_GAP, top + number * _LINE_HEIGHT + 2), line, _INK, font)
        for column, picture in enumerate(pictures):
            if picture is not None:
                sheet.paste(_tile(picture), (_GAP + column * (_TILE + _GAP), top + len(lines) * _LINE_HEIGHT))
        top += height
    return sheet


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines that fit; a word that is longer than a line is cut."""
    lines, line = [], ""
    for word in _cut(text).split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        while font.getlength(longer[:_LONGEST_LINE]) > width:
            fitting = _num_fitting(longer, width, font)
            lines.append(longer[:fitting])
            longer = longer[fitting:]
        line = longer
    return [*lines, line]


def _num_fitting(word: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """How many letters of a word a line takes."""
    ends = range(1, min(len(word), _LONGEST_LINE))
    return max(1, bisect_right(ends, float(width), key=lambda end: float(font.getlength(word[:end]))))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]} ..."


def _tile(picture: Image.Image) -> Image.Image:
    """The picture in a square, whole and in its own shape."""
    is_small = max(picture.size) <= _TILE
    how = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return ImageOps.pad(picture.convert("RGB"), (_TILE, _TILE), how, _PAPER)
