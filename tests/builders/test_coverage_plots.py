# SPDX-License-Identifier: Apache-2.0
"""Plots of the card: which there are, small, the same for the same counts, and proof against odd text."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharegpt4o_image.builders.card_counts import RowCounts
from sharegpt4o_image.builders.coverage_plots import MAX_BARS, plotted_columns, readable_labels, write_plots

ODD = ["a\nb\tc", "$x_2$ costs $", r"$\frac{$", "日本語", "", "W" * 300, "*_`|<b>", "e\u0301\u202eabc", "\x00\x07"]


def _counts(**values: dict[str, int]) -> RowCounts:
    return RowCounts(num_rows=100, values={column: Counter(counter) for column, counter in values.items()})


def _is_bar(path: Path) -> np.ndarray:
    """Which rows of pixels have the colour of the bars."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (abs(pixels - (0x44, 0x77, 0xAA)).sum(axis=2) < 12).any(axis=1)


def _num_bars(path: Path) -> int:
    is_bar = _is_bar(path)
    return int((is_bar[1:] & ~is_bar[:-1]).sum())


def test_only_columns_with_several_values_are_plotted(tmp_path: Path) -> None:
    rows = _counts(style={"a": 3, "b": 1}, camera={"a": 3}, image_model={"m": 1, "n": 1}, label_style={"a": 1, "c": 1})
    rows.resolutions = Counter({"16x16": 3, "32x16": 1})
    paths = write_plots(tmp_path, rows)
    names = ["card/style.png", "card/label_style.png", "card/resolutions.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names
    assert list(plotted_columns(rows)) == ["style", "label_style", "resolutions"]
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == sorted(Path(name).name for name in names)


def test_nothing_to_show_writes_nothing(tmp_path: Path) -> None:
    assert write_plots(tmp_path, RowCounts()) == []
    assert not any(tmp_path.iterdir())


def test_there_is_a_bar_for_each_value_up_to_a_limit(tmp_path: Path) -> None:
    many = {f"object {index}": 1000 - index for index in range(MAX_BARS + 25)}
    few, limited = write_plots(tmp_path, _counts(objects=many, style={"a": 50, "b": 40, "c": 5}))[::-1]
    assert _num_bars(few) == 3
    assert _num_bars(limited) == MAX_BARS


def test_the_length_of_a_bar_is_its_count(tmp_path: Path) -> None:
    [path] = write_plots(tmp_path, _counts(style={"a": 100, "b": 25}))
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    lengths = (abs(pixels - (0x44, 0x77, 0xAA)).sum(axis=2) < 12).sum(axis=1)
    long, short = sorted(Counter(lengths[lengths > 0].tolist()), reverse=True)[:2]
    assert short / long == pytest.approx(0.25, abs=0.02)


def test_the_same_counts_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    import matplotlib as mpl

    values = {"a": 3, "b": 3, "c": 1}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    [one] = write_plots(tmp_path / "one", _counts(style=values))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 10}):  # a user's own settings
        [two] = write_plots(tmp_path / "two", _counts(style=dict(reversed(values.items()))))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as picture:
        assert picture.info == {}


def test_plots_are_small_and_opaque(tmp_path: Path) -> None:
    labels = {f"a rather long description of a background, {index}": 10 + index for index in range(200)}
    [path] = write_plots(tmp_path, _counts(background=labels))
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        assert not picture.has_transparency_data
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("error")
def test_odd_text_is_drawn_as_text(tmp_path: Path) -> None:
    [path] = write_plots(tmp_path, _counts(label_style=dict.fromkeys(ODD, 5)))
    assert _num_bars(path) == len(ODD)


def test_labels_are_short_lines_of_known_characters() -> None:
    labels = readable_labels(ODD)
    assert labels[:2] == ["a b c", "$x_2$ costs $"]
    assert labels[3:5] == ["\N{REPLACEMENT CHARACTER}" * 3, "(empty)"]
    assert labels[5] == "W" * 43 + "…"
    assert not any("\n" in label for label in labels)
