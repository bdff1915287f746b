# SPDX-License-Identifier: Apache-2.0
"""Page -> pixels: titles and lines in Pillow's own font, in the layout of each document type."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sharegpt4o_image.offline_teacher.documents import ACCENTS, INKS, PAPERS, Page

_SUPERSAMPLING = 2
_MARGIN = 0.08  # of the side, as all lengths here
_WIDTH = 1 - 2 * _MARGIN
_TITLE_HEIGHT = 0.105
_LINE_HEIGHT = 0.058
_LEADING = 1.25  # distance of two lines of text in font sizes
_SHRINKING = 0.93  # a font that is too large is tried again at this share of its size
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Color = tuple[int, int, int]


def _mixed(color: Color, other: Color, share: float) -> Color:
    """`color` with a share of `other` mixed in."""
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


class _Sheet:
    """A square canvas that is measured in shares of its side; it is drawn large and shrunk to smooth the edges."""

    def __init__(self, page: Page, side: int):
        self.ink, self.accent, self.paper = INKS[page.ink], ACCENTS[page.accent], PAPERS[page.paper]
        self._side = side * _SUPERSAMPLING
        self._canvas = Image.new("RGB", (self._side, self._side), self.paper)
        self._draw = ImageDraw.Draw(self._canvas)

    def finish(self) -> Image.Image:
        """The picture at the side that was asked for."""
        return self._canvas.reduce(_SUPERSAMPLING)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, radius: float = 0.0) -> None:
        """A filled rectangle."""
        corners = [round(value * self._side) for value in (left, top, right, bottom)]
        self._draw.rounded_rectangle((*corners[:2], corners[2] - 1, corners[3] - 1), radius * self._side, color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """A filled circle."""
        self._draw.circle((x * self._side, y * self._side), radius * self._side, color)

    def title(self, words: str, top: float, height: float, color: Color, *, is_centered: bool = False) -> float:
        """Bold words in at most two lines; returns where they end."""
        stroke = height * self._side / 40
        width = _WIDTH * self._side - 2 * stroke
        font = self._font(height)
        while len(_wrap(words, font, width)) > 2 or max(map(font.getlength, words.split())) > width:
            height *= _SHRINKING
            font = self._font(height)
        for line in _wrap(words, font, width):
            self._write(line, _MARGIN, top, font, color, is_centered, stroke)
            top += height * _LEADING
        return top

    def line(self, words: str, left: float, top: float, height: float, *, is_centered: bool = False) -> float:
        """One line of text; returns where it ends."""
        self._write(words, left, top, self._font(height), self.ink, is_centered, 0.0)
        return top + height * _LEADING

    def line_height(self, lines: Sequence[str], width: float = _WIDTH) -> float:
        """The height at which each of the lines is no wider than `width`."""
        height = _LINE_HEIGHT
        while any(self._font(height).getlength(line) > width * self._side for line in lines):
            height *= _SHRINKING
        return height

    def _font(self, height: float) -> ImageFont.FreeTypeFont:
        font = ImageFont.load_default(height * self._side)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font

    def _write(
        self,
        words: str,
        left: float,
        top: float,
        font: ImageFont.FreeTypeFont,
        color: Color,
        is_centered: bool,
        stroke: float,
    ) -> None:
        x, anchor = (0.5, "ma") if is_centered else (left, "la")
        self._draw.text((x * self._side, top * self._side), words, color, font, anchor, stroke_width=stroke)


def _wrap(words: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_page(page: Page, side: int) -> Image.Image:
    """Draw `page` as an RGB picture of `side` x `side` pixels."""
    sheet = _Sheet(page, side)
    if page.type == "poster":
        _draw_poster(sheet, page)
    elif page.type in ("infographic", "chart"):
        _draw_bars(sheet, page)
    elif page.type == "slide":
        _draw_slide(sheet, page)
    else:
        _draw_text(sheet, page)
    return sheet.finish()


def _draw_slide(sheet: _Sheet, page: Page) -> None:
    sheet.box(0, 0, 0.03, 1, sheet.accent)
    end = sheet.title(page.title, 0.1, _TITLE_HEIGHT, sheet.ink)
    sheet.box(_MARGIN, end + 0.02, _MARGIN + 0.2, end + 0.034, sheet.accent)
    top, indent = end + 0.11, 0.06
    height, step = sheet.line_height(page.lines, _WIDTH - indent), (0.95 - top) / max(1, len(page.lines))
    for line in page.lines:
        sheet.disc(_MARGIN + 0.016, top + height * 0.55, 0.014, sheet.accent)
        sheet.line(line, _MARGIN + indent, top, height)
        top += step


def _draw_text(sheet: _Sheet, page: Page) -> None:
    """A paper or a document: each line heads a section, whose text is hinted at by pale strokes."""
    is_paper = page.type == "paper"
    end = sheet.title(page.title, 0.07, _TITLE_HEIGHT * 0.85, sheet.ink, is_centered=is_paper)
    sheet.box(_MARGIN, end + 0.015, 1 - _MARGIN, end + 0.021, sheet.accent)
    names = page.lines if is_paper else [f"{number}. {line}" for number, line in enumerate(page.lines, start=1)]
    height, pale = sheet.line_height(names), _mixed(sheet.paper, sheet.ink, 0.22)
    top = end + 0.055
    step = (0.95 - top) / max(1, len(names))
    for name in names:
        below = sheet.line(name, _MARGIN, top, height) + 0.012
        for right in (1.0, 0.96, 0.6):
            if below + 0.014 <= top + step - 0.03:
                sheet.box(_MARGIN, below, _MARGIN + _WIDTH * right, below + 0.014, pale, radius=0.007)
                below += 0.034
        top += step


def _draw_bars(sheet: _Sheet, page: Page) -> None:
    """A chart: lines with a number get a bar, the others stand below the title."""
    top = sheet.title(page.title, 0.07, _TITLE_HEIGHT, sheet.ink)
    values = {line: float(match[0]) for line in page.lines if (match := _NUMBER.search(line))}
    height, pale = sheet.line_height(page.lines), _mixed(sheet.paper, sheet.ink, 0.1)
    for line in page.lines:
        if line not in values:
            top = sheet.line(line, _MARGIN, top, height)
    top += 0.05
    step = (0.96 - top) / max(1, len(values))
    for number, (line, value) in enumerate(values.items()):
        color = sheet.accent if number % 2 == 0 else _mixed(sheet.accent, sheet.ink, 0.35)
        below = sheet.line(line, _MARGIN, top, height)
        bottom = min(below + 0.075, top + step - 0.035)
        sheet.box(_MARGIN, below, 1 - _MARGIN, bottom, pale, radius=0.012)
        share = value / max(*values.values(), 100.0 if "%" in line else 1.0)
        sheet.box(_MARGIN, below, _MARGIN + max(_WIDTH * share, 0.03), bottom, color, radius=0.012)
        top += step


def _draw_poster(sheet: _Sheet, page: Page) -> None:
    sheet.box(0, 0, 1, 0.52, sheet.accent)
    for radius, share in ((0.24, 0.12), (0.16, 0.22)):  # a sun behind the title
        sheet.disc(0.5, 0.26, radius, _mixed(sheet.accent, sheet.paper, share))
    sheet.title(page.title, 0.12, 0.12, (255, 255, 255), is_centered=True)
    top, height = 0.59, sheet.line_height(page.lines)
    for line in page.lines:
        top = sheet.line(line, _MARGIN, top, height, is_centered=True) + 0.03
