# SPDX-License-Identifier: Apache-2.0
"""Files and folders -> what was measured: score records and reports of preference studies, each checked.

Below a folder these are `**/scores/*.json`, which `evaluate` writes, and `**/preference*.json`, the saved output of
`preference report --json`. A file that is named itself may have any name.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord, read_scores

_PATTERNS = ("**/scores/*.json", "**/preference*.json")
_STUDY_KEYS = {"pairs", "bradley_terry_groups", "votes"}
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?#]*)[?#][^\s\"')\]]*")  # may hold a key
_FOLDERS = re.compile(  # of an absolute path within a text
    r"(?<![^\s\"'(\[=,:])(?:file://)?(?:~[^\s/]*/|/|[A-Za-z]:[\\/])(?:[^\s\"'/\\]+[/\\])+(?=[^\s/\\])"
)


@dataclass(frozen=True)
class ScoreFile:
    """A score record, and the file that it was read from."""

    path: Path
    record: ScoreRecord


@dataclass(frozen=True)
class StudyFile:
    """The numbers of a preference study (see `preference_report.report`), and their file."""

    path: Path
    numbers: Mapping[str, Any]


def read_measurements(paths: Sequence[Path]) -> tuple[list[ScoreFile], list[StudyFile]]:
    """Read files, and those below folders; each once, in the order given."""
    scores: list[ScoreFile] = []
    studies: list[StudyFile] = []
    for path in _files(paths):
        numbers = _study_numbers(path)
        if numbers is None:
            scores.append(ScoreFile(path, read_record(path)))
        else:
            studies.append(StudyFile(path, numbers))
    return scores, studies


def read_score_files(paths: Sequence[Path]) -> list[ScoreFile]:
    """As `read_measurements`, where scores alone are wanted."""
    scores, studies = read_measurements(paths)
    if studies:
        raise UserError(f"{studies[0].path} is a preference report, which has no scores; leave it out")
    return scores


def _files(paths: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        below = [path]
        if path.is_dir():
            below = sorted({file for pattern in _PATTERNS for file in path.glob(pattern) if file.is_file()})
            if not below:
                raise UserError(
                    f"{path} holds no scores; give a folder that `evaluate` wrote (it has scores/NAME.json), "
                    "or name files"
                )
        for file in below:
            found.setdefault(file.resolve(), file)
    if not found:
        raise UserError("no files of scores were given; name those that `evaluate` wrote, or their folder")
    return list(found.values())


def _study_numbers(path: Path) -> Mapping[str, Any] | None:
    """The numbers of a preference report; None for anything else, which `read_record` tells about."""
    try:
        text = path.read_text(encoding="utf-8")
        if not all(f'"{key}"' in text for key in _STUDY_KEYS):  # so that a file of scores is parsed only once
            return None
        data = json.loads(text, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and data.keys() >= _STUDY_KEYS else None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# ------------------------------------------------------------------ one record


def read_record(path: Path) -> ScoreRecord:
    """Read a file of scores; a value of the wrong kind, or no finite number, is refused by name."""
    try:
        record = read_scores(path)
    except RecursionError as error:
        raise UserError(
            f"{path} is not a file of scores (nested too deeply); give one that `evaluate` wrote"
        ) from error
    fault = _fault(record)
    if fault:
        raise UserError(f"{path} cannot be used: {fault}; run `evaluate` again")
    return record


def _fault(record: ScoreRecord) -> str | None:
    for name in ("benchmark", "name", "created_at"):
        if not isinstance(getattr(record, name), str):
            return f"`{name}` is {getattr(record, name)!r}, not a text"
    if not record.benchmark or not record.name:
        return "it does not name its benchmark"
    if record.created_at and not _is_date(record.created_at):
        return f"`created_at` is {record.created_at!r}, not a date"
    if not isinstance(record.model, str | None) or not isinstance(record.command, str | None):
        return "`model` or `command` is not a text"
    if not all(isinstance(part, Mapping) for part in (record.generator, record.judge, record.details)):
        return "`generator`, `judge` or `details` is not an object"
    if not _is_number(record.unit) or record.unit <= 0:
        return f"`unit` is {record.unit!r}"
    counts = (record.num_expected, record.num_scored)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return f"`num_expected` and `num_scored` are {counts}"
    if record.num_scored > record.num_expected:
        return f"it has {record.num_scored} scored of {record.num_expected} items"
    if not all(isinstance(text, str) for missing in record.missing for text in (missing.item, missing.reason)):
        return "an entry of `missing` has no text"
    return next(filter(None, map(_line_fault, record.scores)), None)


def _line_fault(line: ScoreLine) -> str | None:
    if not isinstance(line.name, str):
        return f"a score is named {line.name!r}"
    if not _is_number(line.value):
        return f"the score {line.name} is {line.value!r}, not a finite number"
    limits = (line.low, line.high)
    if limits != (None, None) and not (all(map(_is_number, limits)) and line.low <= line.high):  # type: ignore[operator]
        return f"the interval of {line.name} is {limits}"
    if not isinstance(line.count, int | None):
        return f"the count of {line.name} is {line.count!r}"
    return None


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_variant(record: ScoreRecord) -> bool:
    """Whether the record may not be called by the benchmark's plain name."""
    return record.name != record.benchmark


def num_missing(record: ScoreRecord) -> int:
    """How many items have no score, be they named or only not counted."""
    return max(len(record.missing), record.num_expected - record.num_scored)


def unnamed_missing(record: ScoreRecord) -> tuple[MissingItem, ...]:
    """The missing items, with a last line for those that the record does not name."""
    more = num_missing(record) - len(record.missing)
    return (*record.missing, *([MissingItem(f"{more:,} more", "not named in the file")] if more else []))


# ------------------------------------------------------------------ what may be shown


def model_name(record: ScoreRecord) -> str:
    """What drew the pictures, without the folders of this machine."""
    return "pictures of a folder" if record.model is None else shown(record.model)


def drawn_by(record: ScoreRecord) -> str:
    """Identity and recipe of what drew the pictures, or that nobody recorded them."""
    facts = facts_text(record.generator)
    if record.model is not None:
        return facts or "what was not recorded"
    return "an unknown model, as only their folder was given" + (f" ({facts})" if facts else "")


def judged_by(record: ScoreRecord) -> str:
    """Identity of what judged the pictures, or that nobody recorded it."""
    return facts_text(record.judge) or "what was not recorded"


def date_of(record: ScoreRecord) -> str:
    """When it was measured, to the second."""
    if not _is_date(record.created_at):
        return shown_text(record.created_at) or "a date that was not recorded"
    return datetime.fromisoformat(record.created_at).isoformat(timespec="seconds")


def shown_command(record: ScoreRecord) -> str | None:
    """The command, without the folders of this machine."""
    if record.command is None:
        return None
    try:
        words = shlex.split(record.command)
    except ValueError:  # a quote that is not closed
        words = record.command.split()
    return shlex.join(map(_shown_word, words))


def _shown_word(word: str) -> str:
    """A word of a command: `--output=/a/b` holds a path, too."""
    option, equals, value = word.partition("=")
    return f"{option}={shown(value)}" if equals and option.startswith("-") else shown(word)


def shown(text: str) -> str:
    """A value without credentials in addresses; of an absolute path, its last part.

    >>> shown("/home/me/runs/tiny"), shown("https://me:secret@host/v1?key=1"), shown("org/model")
    ('tiny', 'https://host/v1', 'org/model')
    """
    if text.startswith(("/", "~")) or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name or text  # takes both kinds of slashes
    return shown_text(text)


def shown_text(text: str) -> str:
    """A sentence without credentials, and without the folders of the absolute paths in it.

    >>> shown_text("/home/me/out/1.png is damaged (see /tmp/a/log)")
    '1.png is damaged (see log)'
    """
    return _FOLDERS.sub("", _QUERY.sub(r"\1", _CREDENTIALS.sub("", text)))


def facts_text(facts: Mapping[str, Any]) -> str:
    """An identity or recipe in one line; what is null is left out.

    >>> facts_text({"model": "a", "sampling": {"seed": 42, "top_k": None}})
    'model a, sampling seed 42'
    """
    return ", ".join(f"{name} {value}" for name, value in _flat(facts, ""))


def _flat(facts: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name} ")
        elif value is not None:
            lines.append((f"{prefix}{name}", _value_text(value)))
    return lines


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return f"({facts_text(value)})"
    return " + ".join(map(_value_text, value)) if isinstance(value, list | tuple) else json.dumps(value)
