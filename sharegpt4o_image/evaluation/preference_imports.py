# SPDX-License-Identifier: Apache-2.0
"""What raters answered in Argilla or Label Studio -> lines of the study's `votes.jsonl`.

argilla        the file that `dataset.records(...).to_json(path)` wrote
label-studio   the export "JSON" of the project
"""

import json
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_exports import QUESTION, Item, answers_of, read_study
from sharegpt4o_image.evaluation.preference_key import VOTES_FILE, read_blind_votes
from sharegpt4o_image.evaluation.preference_session import open_votes


@dataclass(frozen=True)
class Answer:
    """One answer of one rater; `answer` is None where there is none, or more than one."""

    item_id: str
    rater: str
    answer: str | None
    seconds: float | None
    at: str


@dataclass
class Imported:
    """What became of the answers: votes added, votes that were there, and the reasons of those left out."""

    added: int = 0
    known: int = 0
    left_out: list[str] = field(default_factory=list)


def import_votes(study: Path, path: Path, tool: str) -> Imported:
    """Append to `votes.jsonl` what is not in it yet; running it again adds nothing."""
    readers: dict[str, Callable[[Any], Iterator[Answer]]] = {"argilla": _argilla, "label-studio": _label_studio}
    shown, items = read_study(study)
    answers = _answers(path, readers[tool], tool)
    with os.fdopen(open_votes(study / VOTES_FILE), "ab") as file:  # a server that writes there is refused
        imported, lines = _new_votes(answers, {item.item_id: item for item in items}, answers_of(shown), study)
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    return imported


def _new_votes(
    answers: list[Answer], item_of: Mapping[str, Item], offered: Container[str], study: Path
) -> tuple[Imported, list[str]]:
    old, _ = read_blind_votes(study)
    known = {(vote.pair, vote.rater, vote.is_repeat): (vote.winner, vote.shown_left) for vote in old}
    imported, lines = Imported(), []
    for answer in answers:
        where = f"item {answer.item_id}, rater {answer.rater}"
        if answer.item_id not in item_of:
            imported.left_out.append(f"{where}: not of this study")
        elif answer.answer is None or answer.answer not in offered:
            imported.left_out.append(f"{where}: no answer, or more than one")
        else:
            vote = _vote(answer, item_of[answer.item_id])
            place = (vote["pair"], vote["rater"], vote["is_repeat"])
            if known.get(place) == (vote["winner"], vote["shown_left"]):
                imported.known += 1
                continue
            known[place] = (vote["winner"], vote["shown_left"])
            lines.append(json.dumps(vote, ensure_ascii=False))
    imported.added = len(lines)
    return imported, lines


def _answers(path: Path, reader: Callable[[Any], Iterator[Answer]], tool: str) -> list[Answer]:
    try:
        return list(reader(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the file that {tool} exported") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON export of {tool} ({error!r}); export it again") from error


def _argilla(records: Any) -> Iterator[Answer]:
    for record in records:
        for response in record["responses"].get(QUESTION, []):
            value = response["value"]
            answer = value if isinstance(value, str) else None
            yield Answer(str(record["id"]), f"argilla-{response['user_id']}", answer, None, _now())


def _label_studio(tasks: Any) -> Iterator[Answer]:
    for task in tasks:
        for annotation in sorted(task["annotations"], key=lambda one: one.get("created_at") or ""):
            by = annotation["completed_by"]
            number = by["id"] if isinstance(by, dict) else by  # not the address of who it was
            was_skipped = annotation.get("was_cancelled", False)
            yield Answer(
                str(task["data"]["item"]),
                f"label-studio-{number}",
                None if was_skipped else _result(annotation["result"]),
                annotation.get("lead_time"),
                annotation.get("created_at") or _now(),
            )


def _result(results: Any) -> str | None:
    answers = []
    for result in results:
        if result["type"] == "pairwise":
            answers.append(result["value"]["selected"])
        if result["type"] == "choices":
            answers += result["value"]["choices"]
    return answers[0] if len(answers) == 1 and isinstance(answers[0], str) else None


def _vote(answer: Answer, item: Item) -> dict[str, Any]:
    other = "first" if item.is_repeat else "second"
    winner = {"left": item.shown_left, "right": other}.get(str(answer.answer), answer.answer)
    return {
        "pair": item.pair,
        "rater": answer.rater,
        "winner": winner,
        "shown_left": item.shown_left,
        "is_repeat": item.is_repeat,
        "seconds": answer.seconds,
        "at": answer.at,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_text(imported: Imported) -> str:
    """What `import` prints."""
    lines = [f"{imported.added} votes added, {imported.known} were there already."]
    return "\n".join([*lines, *(f"Left out: {reason}" for reason in imported.left_out)])


def to_json(imported: Imported) -> Mapping[str, Any]:
    """What `import --json` prints."""
    return {"added": imported.added, "known": imported.known, "left_out": imported.left_out}
