# SPDX-License-Identifier: Apache-2.0
"""The question file of DPG-Bench -> items, each with its questions and their dependency graph."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Literal

from sharegpt4o_image.errors import UserError

# `dpg_bench.csv` of TencentQQGYLab/ELLA@3c228f1; those that scoring reads must be there.
COLUMNS_READ = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")

# Level-1 categories of the paper's table (DPG-Bench columns); the file names them in lower case.
LEVEL_1_CATEGORIES = ("global", "entity", "attribute", "relation", "other")

# Ids of a column that pandas made floating: it writes 3 as "3.0". Those of 64 bits, which pandas reads as such.
_WHOLE_NUMBER = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")
_END_OF_FILE = "<end of file>"  # a line of our own behind the file's last: in quotes that were not closed, it is text

_SHOWN_CHARACTERS = 80  # of a cell, in a message (our choice)

# "drop" is what the official loader does: it skips the first data row as if that were the header.
FirstRow = Literal["keep", "drop"]


@dataclass(frozen=True)
class Question:
    """One yes/no question; `parents` are numbers of questions that must hold for this one to count."""

    number: int
    parents: tuple[int, ...]
    level_1: str  # "entity"
    level_2: str  # "entity - whole"
    text: str


@dataclass(frozen=True)
class Item:
    """One prompt and its questions, in file order; of those that share a number only the last is left."""

    id: str
    text: str
    questions: tuple[Question, ...]
    repeated_numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Row:
    line: int
    cells: dict[str, str]


def read_questions(path: Path, first_row: FirstRow = "keep") -> list[Item]:
    """Read the items of an official question file.

    Reads: the columns `COLUMNS_READ`. Categories come from `tuple`, as in the official script: of
    `attribute - color (ball, red)`, level 2 is `attribute - color` and level 1 is `attribute`.

    Args:
        path: CSV with the official columns, UTF-8.
        first_row: `"drop"` loses the first data row, as the official loader does.
    """
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: there are no questions below the header; fetch the file again.")
    if first_row == "drop" or _repeats_header(rows[0]):
        return [_item(path, block) for block in _blocks(path, rows[1:])]
    _check_first_row(path, rows[0])
    return [_item(path, block) for block in _blocks(path, rows)]


def _repeats_header(row: _Row) -> bool:
    """Whether the header is there twice, so that the official loader loses nothing."""
    return all(row.cells[name] == name for name in COLUMNS_READ)


def _check_first_row(path: Path, row: _Row) -> None:
    try:
        _question(row, _where(path, row))
    except UserError as error:
        raise UserError(f"{error} The official loader skips this row; --first-row drop does so, too.") from None


def missing_parents(items: Sequence[Item]) -> dict[str, str]:
    """Item -> which of its questions depend on questions that the file lacks."""
    missing = {}
    for item in items:
        known = {0} | {question.number for question in item.questions}
        faults = [f"question {q.number} depends on {p}" for q in item.questions for p in q.parents if p not in known]
        if faults:
            missing[item.id] = ", ".join(faults) + ", not in the question file"
    return missing


def repeated_questions(items: Sequence[Item]) -> dict[str, str]:
    """Item -> which of its question numbers the file has more than once."""
    return {
        item.id: f"question {', '.join(map(str, item.repeated_numbers))} is there more than once; the last one counts"
        for item in items
        if item.repeated_numbers
    }


def unknown_categories(items: Sequence[Item]) -> dict[str, int]:
    """Number of questions for each level-1 category that DPG-Bench does not have."""
    names = Counter(question.level_1 for item in items for question in item.questions)
    return {name: count for name, count in sorted(names.items()) if name not in LEVEL_1_CATEGORIES}


def _rows(path: Path) -> Iterator[_Row]:
    """Data rows with the line on which each begins (a quoted text may span lines)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(chain(file, [_END_OF_FILE]))  # lenient, as pandas is: a quote within a field is text
            header = _header(path, reader)
            line = reader.line_num + 1
            for cells in reader:
                if cells == [_END_OF_FILE]:
                    return
                if cells:
                    _check_width(path, line, header, cells)
                    yield _Row(line, dict(zip(header, cells, strict=True)))
                line = reader.line_num + 1
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the question file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not valid CSV ({error}); check its quotes.") from error


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    header = next(reader, [])
    missing = [column for column in COLUMNS_READ if column not in header]
    if missing:
        raise UserError(f"{path}: lacks the columns {missing}, has {header[:10]}; give the official `dpg_bench.csv`.")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: a column is there twice in {header}; each name may occur once.")
    return header


def _check_width(path: Path, line: int, header: list[str], cells: list[str]) -> None:
    if cells[-1].endswith(_END_OF_FILE):
        raise UserError(f"{path}, line {line}: is not valid CSV (a quote is not closed); check its quotes.")
    if len(cells) != len(header):
        raise UserError(
            f"{path}, line {line} (item {cells[0]!r}): has {len(cells)} fields, the header {len(header)}; "
            "put texts with commas in double quotes."
        )


def _blocks(path: Path, rows: list[_Row]) -> Iterator[list[_Row]]:
    """The rows of each item, which must be contiguous."""
    seen = set()
    for item, block in groupby(rows, key=lambda row: row.cells["item_id"]):
        block_rows = list(block)
        if not item:
            raise UserError(f"{path}, line {block_rows[0].line}: `item_id` is empty; each question names its item.")
        if item in seen:
            raise UserError(
                f"{_where(path, block_rows[0])}: the rows of this item are not in one block, and the official loader "
                "would keep only the last block; put them together without changing their order."
            )
        seen.add(item)
        yield block_rows


def _item(path: Path, rows: list[_Row]) -> Item:
    """As the official loader does: a question takes the place of an earlier one with its number."""
    questions = [_question(row, _where(path, row)) for row in rows]
    last = {question.number: question for question in questions}
    counts = Counter(question.number for question in questions)
    repeated = tuple(number for number, count in counts.items() if count > 1)
    return Item(rows[0].cells["item_id"], rows[0].cells["text"], tuple(last.values()), repeated)


def _where(path: Path, row: _Row) -> str:
    return f"{path}, line {row.line}, item {row.cells['item_id']!r}"


def _question(row: _Row, where: str) -> Question:
    level_2 = row.cells["tuple"].split("(")[0].strip()
    if not level_2:
        raise UserError(f"{where}: `tuple` names no category; expected for example `entity - whole (ball)`.")
    return Question(
        number=_number(row.cells["proposition_id"], "proposition_id", where),
        parents=tuple(_number(part, "dependency", where) for part in row.cells["dependency"].split(",")),
        level_1=level_2.split("-")[0].strip(),
        level_2=level_2,
        text=row.cells["question_natural_language"],
    )


def _number(text: str, column: str, where: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"{where}: `{column}` is {text[:_SHOWN_CHARACTERS]!r}; expected whole numbers, 0 for no parent."
        )
    return int(match[1])
