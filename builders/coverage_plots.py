# SPDX-License-Identifier: Apache-2.0
"""Counts of rows -> how often each value occurs: `card/<column>.png`, and the sections of the card beside them.

The same counts give the same bytes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sharegpt4o_image.builders.card_counts import RowCounts
from sharegpt4o_image.builders.card_text import count_table, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS_DIR = "card"

TAXONOMY_COLUMNS = {
    "objects": "Objects",
    "background": "Background",
    "style": "Style",
    "lighting": "Lighting",
    "camera": "Camera",
    "composition": "Composition",
    "document_type": "Document type",
    "edit_category": "Edit category",
    "edit_task": "Edit task",
}
LABEL_COLUMNS = {
    f"label_{column}": f"{title} (label)" for column, title in TAXONOMY_COLUMNS.items() if column != "background"
}
RESOLUTIONS = "resolutions"

MAX_TABLE = 14  # values of a column that are listed beside its plot: the tasks of editing fit

MAX_BARS = 40  # most frequent values that are shown; this and the looks below are our choice
_MAX_LABEL = 44  # characters
_MIN_VALUES = 2  # a single bar says nothing
_WIDTH = 8.0  # inches, as the four below
_BAR_HEIGHT = 0.24
_ABOVE, _BELOW, _RIGHT, _GAP = 0.45, 0.5, 0.75, 0.25
_DPI = 110
_FONT_SIZE = 9
_NUM_COLOURS = 32
_STYLE = {
    "figure.facecolor": "white",  # opaque, so that it is readable on a dark page
    "text.parse_math": False,  # `$` in a value is a dollar
    "figure.dpi": _DPI,
    "font.size": _FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
}


def plotted_columns(rows: RowCounts) -> dict[str, str]:
    """Name of each plot -> its title, for what has at least two values."""
    counters = rows.values | {RESOLUTIONS: rows.resolutions}
    titles = TAXONOMY_COLUMNS | LABEL_COLUMNS | {RESOLUTIONS: "Resolution of the output picture"}
    return {name: title for name, title in titles.items() if len(counters.get(name, ())) >= _MIN_VALUES}


def write_plots(folder: Path, rows: RowCounts) -> list[Path]:
    """Write the plots of the card.

    Writes: `card/<column>.png` in `folder`, and `card/resolutions.png`; no folder where there is nothing to show.
    """
    titles = plotted_columns(rows)
    if not titles:
        return []
    from matplotlib import style

    (folder / PLOTS_DIR).mkdir(exist_ok=True)
    counters = rows.values | {RESOLUTIONS: rows.resolutions}
    paths = []
    with style.context(["default", _STYLE]):  # whatever the user's own matplotlibrc says
        for name, title in titles.items():
            path = folder / PLOTS_DIR / f"{name}.png"
            _save(_draw(title, counters[name], rows.num_rows), path)
            paths.append(path)
    return paths


def _save(figure: "Figure", path: Path) -> None:
    """A PNG of few colours, without date and names of software."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(_NUM_COLOURS, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def _draw(title: str, counter: Counter[str], num_rows: int) -> "Figure":
    """Horizontal bars, the most frequent value on top; equally frequent ones by name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    bars = sorted(counter.items(), key=lambda bar: (-bar[1], bar[0]))
    shown, num_more = bars[:MAX_BARS], max(0, len(bars) - MAX_BARS)
    labels = readable_labels([value for value, _ in shown])
    height = _ABOVE + _BAR_HEIGHT * len(shown) + _BELOW
    left = _GAP + max(map(_inches, labels))
    figure = Figure(figsize=(_WIDTH, height))
    width, bars_height = _WIDTH - left - _RIGHT, height - _ABOVE - _BELOW
    axes = figure.add_axes((left / _WIDTH, _BELOW / height, width / _WIDTH, bars_height / height))
    places = range(len(shown), 0, -1)
    drawn = axes.barh(places, [count for _, count in shown], height=0.72, color="#4477aa")
    axes.bar_label(drawn, labels=[f"{count:,}" for _, count in shown], padding=3, fontsize=8, color="0.3")
    axes.set_yticks(places, labels)
    axes.set_ylim(0.4, len(shown) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(f"occurrences in {num_rows:,} rows")
    more = f": the {MAX_BARS} most frequent of {len(bars):,}" if num_more else f": {len(bars):,} values"
    figure.text(0.015, 1 - 0.3 / height, f"{title}{more}", fontsize=11, weight="bold")
    return figure


def readable_labels(values: Sequence[str]) -> list[str]:
    """Values as one short line each, in characters that the font has.

    >>> readable_labels(["a\\nb", "x" * 50])[0]
    'a b'
    """
    glyphs = _glyphs()
    labels = []
    for value in values:
        line = " ".join(value.split()) or "(empty)"
        known = "".join(letter if ord(letter) in glyphs else "\N{REPLACEMENT CHARACTER}" for letter in line)
        labels.append(known if len(known) <= _MAX_LABEL else known[: _MAX_LABEL - 1] + "…")
    return labels


def _inches(label: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(label, FontProperties(size=_FONT_SIZE), ismath=False)
    return float(width) / 72


def _glyphs() -> dict[int, int]:
    """Code points of the font that matplotlib brings."""
    from matplotlib import font_manager

    return dict(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


# ------------------------------------------------------------------ the card


def describe_coverage(rows: RowCounts) -> str:
    """The section of the card: tables of small vocabularies, plots of all."""
    sections = [*describe_values(rows, TAXONOMY_COLUMNS)]
    if not sections:
        sections = ["The rows name no objects, styles or other categories."]
    if rows.resolutions:
        sections.append(_one_column("Resolution", RESOLUTIONS, rows.resolutions, rows))
    return "\n\n".join(sections)


def describe_values(rows: RowCounts, titles: Mapping[str, str]) -> Iterator[str]:
    """A part of the card for each of the columns that has a value."""
    for column, title in titles.items():
        if rows.values.get(column):
            yield _one_column(f"{title} (`{column}`)", column, rows.values[column], rows)


def _one_column(heading: str, name: str, counter: Counter[str], rows: RowCounts) -> str:
    is_list = name.endswith("objects")
    extent = "occurrences" if is_list else f"of {counted(rows.num_rows, 'row')}"
    different = f"{len(counter):,} different value{'s' if len(counter) > 1 else ''} in {counter.total():,} {extent}."
    parts = [f"### {heading}", different]
    if len(counter) <= MAX_TABLE:
        parts.append(count_table("Value", counter, noun="Occurrences" if is_list else "Rows"))
    if name in plotted_columns(rows):
        parts.append(f"![How often each value of {name} occurs]({PLOTS_DIR}/{name}.png)")
    return "\n\n".join(parts)
