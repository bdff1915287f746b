# SPDX-License-Identifier: Apache-2.0
"""What a report consists of: tables of rows of cells, in plain text, with footnotes and what is missing."""

from dataclasses import asdict, dataclass
from typing import Any

from sharegpt4o_image.evaluation.published_scores import PublishedGroup, PublishedTable

NOT_PUBLISHED = "not published"
NO_INTERVAL = "no interval"


@dataclass(frozen=True)
class Cell:
    """A number of a table, its 95 % interval, and of how many it is the mean; `text` and `interval` are shown."""

    text: str = "-"
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        label (`str`): the model, or the pair of models.
        detail (`str`): what it is a row of, smaller.
        cells (`tuple`): one for each column.
        notes (`tuple`): numbers of the footnotes of the table.
        kind (`str`): `ours`, `published` or `difference`.
    """

    label: str
    detail: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...] = ()
    kind: str = "ours"


@dataclass(frozen=True)
class Group:
    """Rows of one source."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Missing:
    """What has no score in a row: `items` are the first ones, each with its reason."""

    label: str
    number: int
    expected: int
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Protocol:
    """How to measure a row again: pairs of what and how."""

    label: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A benchmark: its rows, and what there is to know about them.

    Args:
        title (`str`): of the benchmark.
        columns (`tuple`): headings of the numbers.
        groups (`tuple`): ours first, then the published ones.
        footnotes (`tuple`): what rows refer to, by number from 1.
        notes (`tuple`): about the whole table.
        missing (`tuple`): of every row of ours.
        protocols (`tuple`): of every row of ours.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    footnotes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    protocols: tuple[Protocol, ...] = ()


@dataclass(frozen=True)
class Report:
    """A whole page; `warnings` are to be read first."""

    title: str
    tables: tuple[Table, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


class Footnotes:
    """Texts by number; the same text has one number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def refer(self, *texts: str | None) -> tuple[int, ...]:
        """The numbers of texts; None is left out."""
        return tuple(sorted(self._numbers.setdefault(text, len(self._numbers) + 1) for text in texts if text))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._numbers)


def published_group(group: PublishedGroup, table: PublishedTable, footnotes: Footnotes) -> Group:
    rows = tuple(
        Row(
            row.model,
            "",
            tuple(_published_cell(row.scores.get(name), table.decimals) for name in table.columns),
            footnotes.refer(row.note),
            "published",
        )
        for row in group.rows
    )
    return Group(f"{group.source}. 95 % intervals: {NOT_PUBLISHED}", rows)


def _published_cell(value: float | None, decimals: int) -> Cell:
    return Cell() if value is None else Cell(f"{value:.{decimals}f}", "", value)
