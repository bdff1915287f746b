# SPDX-License-Identifier: Apache-2.0
"""A file of votes -> checked `Vote`s. CSV or JSONL with the names of LMArena's vote files.

    prompt_id,rater,model_a,model_b,winner
    14,r3,model-y,model-w,tie
    3,r0,model-x,model-w,model_b

`model_a` was shown on the left. `winner` is read in LMArena's spellings, too (`tie (bothbad)`). A column `is_repeat`
is read where there is one; others are ignored.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError

REQUIRED_FIELDS = ("prompt_id", "rater", "model_a", "model_b", "winner")
WINNERS = ("model_a", "model_b", "tie", "both_bad")
_WINNER_ALIASES = {"tie (bothbad)": "both_bad", "bothbad": "both_bad"}  # as LMArena's vote files write them
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "")
_FLAGS = dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False)


@dataclass(frozen=True)
class Vote:
    """One answer of one rater. `is_repeat` marks an item that was shown again to measure consistency."""

    prompt_id: str
    rater: str
    model_a: str
    model_b: str
    winner: str
    is_repeat: bool = False
    line: int = 0  # of the file

    @property
    def pair(self) -> tuple[str, str]:
        """Both models by name, whatever side they were shown on."""
        return (min(self.model_a, self.model_b), max(self.model_a, self.model_b))

    @property
    def item(self) -> tuple[str, str, str]:
        """What was judged: the prompt and the pair."""
        return (self.prompt_id, *self.pair)

    @property
    def left_score(self) -> float:
        """1 where the left picture wins, 0 where the right one does, 0.5 for a tie and for "both bad"."""
        return {"model_a": 1.0, "model_b": 0.0}.get(self.winner, 0.5)

    @property
    def score(self) -> float:
        """`left_score` with the sides undone: 1 where the first model of `pair` wins."""
        return self.left_score if self.model_a == self.pair[0] else 1 - self.left_score


def read_votes(path: Path) -> list[Vote]:
    """All votes of a `.csv` or `.jsonl` file, in its order; raises a `UserError` that names line and field.

    A second vote of the same rater on the same item must be marked by `is_repeat` if the file has this column. A file
    without it cannot mark repeats: there second votes are kept, and `second_votes` finds them.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither a .csv nor a .jsonl file; give votes in one of these formats.")
    rows = _read(path, readers[path.suffix.lower()])
    return check_votes(rows, path)


def check_votes(rows: Sequence[tuple[int, Mapping[str, Any]]], source: Path | str) -> list[Vote]:
    """The votes of rows, each with the number of its line, checked; `source` names them in errors."""
    if not rows:
        raise UserError(f"{source} has no votes; give at least one.")
    votes = [_vote(row, line, source) for line, row in rows]
    _check_repeats(votes, source, can_mark=any("is_repeat" in row for _, row in rows))
    return votes


def first_votes(votes: Iterable[Vote]) -> dict[tuple[str, tuple[str, str, str]], Vote]:
    """The vote of each rater on each item that is no repeat, the earliest if there are several."""
    first: dict[tuple[str, tuple[str, str, str]], Vote] = {}
    for vote in votes:
        if not vote.is_repeat:
            first.setdefault((vote.rater, vote.item), vote)
    return first


def second_votes(votes: Iterable[Vote]) -> list[Vote]:
    """Votes that a rater gave on an item again without a mark: nothing tells a repeat from a slip."""
    seen = set()
    again = []
    for vote in votes:
        if (vote.rater, vote.item) in seen and not vote.is_repeat:
            again.append(vote)
        elif not vote.is_repeat:
            seen.add((vote.rater, vote.item))
    return again


# ------------------------------------------------------------------ files


def _read(path: Path, reader: Any) -> list[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(reader(file, path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; give the file of votes.") from error
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}; write it with a CSV library.") from error


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    for field in REQUIRED_FIELDS:
        if field not in (reader.fieldnames or ()):
            raise UserError(f"{path}, line 1: no column {field}; the first line names {', '.join(REQUIRED_FIELDS)}.")
    for row in reader:
        if None in row:
            raise UserError(f"{path}, line {reader.line_num}: more values than columns; quote values with a comma.")
        yield reader.line_num, row


def _jsonl_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}); write one object a line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: no JSON object; write one object a line.")
        yield number, row


# ------------------------------------------------------------------ checks


def _vote(row: Mapping[str, Any], line: int, source: Path | str) -> Vote:
    where = f"{source}, line {line}"
    values = {field: _text(row.get(field), field, where) for field in REQUIRED_FIELDS}
    winner = values["winner"].lower()
    winner = _WINNER_ALIASES.get(winner, winner)
    if winner not in WINNERS:
        raise UserError(f"{where}: winner is {values['winner']!r}; it is one of {', '.join(WINNERS)}.")
    if values["model_a"] == values["model_b"]:
        raise UserError(f"{where}: model_a and model_b are both {values['model_a']!r}; a vote compares two models.")
    given = row.get("is_repeat")
    flag = "" if given is None else str(given).strip().lower()
    if flag not in _FLAGS:
        raise UserError(f"{where}: is_repeat is {given!r}; it is true or false.")
    return Vote(**(values | {"winner": winner}), is_repeat=_FLAGS[flag], line=line)


def _text(value: Any, field: str, where: str) -> str:
    """The value as text without blanks around it; numbers may name prompts and raters, NaN may not."""
    is_named = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value).strip() if is_named else ""
    if not text or text.lower() == "nan":
        shown = "empty" if value is None or value == "" else repr(value)
        raise UserError(f"{where}: {field} is {shown}; fill it in or take the line out.")
    return text


def _check_repeats(votes: list[Vote], source: Path | str, can_mark: bool) -> None:
    first = first_votes(votes)
    for vote in votes:
        if vote.is_repeat and (vote.rater, vote.item) not in first:
            raise UserError(
                f"{source}, line {vote.line}: is_repeat is set, but {_described(vote)} has no first vote; "
                "give the whole file or take the mark away."
            )
    again = second_votes(votes) if can_mark else []
    if again:
        earlier = first[(again[0].rater, again[0].item)].line
        raise UserError(
            f"{source}, line {again[0].line}: {_described(again[0])} was voted on in line {earlier} already; "
            "take one of them out or mark the later one by is_repeat."
        )


def _described(vote: Vote) -> str:
    return f"prompt {vote.prompt_id}, {' against '.join(vote.pair)}, rater {vote.rater}"
