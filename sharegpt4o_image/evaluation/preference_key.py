# SPDX-License-Identifier: Apache-2.0
"""The sealed key of a study: which model drew what. `unseal` joins the raters' votes with it.

STUDY/votes.jsonl + STUDY/key.json -> votes.csv, as `preference report` reads it
"""

import csv
import hashlib
import hmac
import io
import json
import os
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.preference_votes import REQUIRED_FIELDS, check_votes

KEY_FILE = "key.json"
VOTES_FILE = "votes.jsonl"
FORMAT = 1
SIDES = ("first", "second")
WINNERS = (*SIDES, "tie", "both_bad")
COLUMNS = (*REQUIRED_FIELDS, "is_repeat", "seconds", "at")
_NUM_SHOWN = 5


# ------------------------------------------------------------------ the key


def secret_hex(salt: str, *parts: str) -> str:
    """64 digits that only the key's owner can compute."""
    return hmac.new(bytes.fromhex(salt), json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def secret_rng(salt: str, *parts: str) -> random.Random:
    """Draws that the key's owner can repeat and nobody else can guess, though the seed is 0."""
    return random.Random(secret_hex(salt, *parts))


def read_key(study: Path) -> dict[str, Any] | None:
    """The key of a study; None if there is none."""
    path = study / KEY_FILE
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); bring back the file that `preference build` wrote") from error
    if not isinstance(key, dict) or key.get("format") != FORMAT:
        raise UserError(f"{path} is no key of format {FORMAT}; bring back the file that `preference build` wrote")
    return key


def write_key(study: Path, key: Mapping[str, Any]) -> None:
    """Write the key, for its owner's eyes only from the first byte on."""
    path = study / KEY_FILE
    unfinished = path.with_name(f".unfinished-{uuid.uuid4().hex}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(key, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


# ------------------------------------------------------------------ votes


@dataclass(frozen=True)
class BlindVote:
    """A line of `votes.jsonl`; `line` is its number."""

    pair: str
    rater: str
    winner: str
    shown_left: str
    is_repeat: bool
    seconds: float | None
    at: str
    line: int


@dataclass
class LeftOut:
    """Lines of `votes.jsonl` that are no votes of the report, by reason."""

    unknown_pair: list[int] = field(default_factory=list)
    replaced_by_a_later_vote: list[int] = field(default_factory=list)
    repeat_without_first_vote: list[int] = field(default_factory=list)
    torn_last_line: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Unsealed:
    """Rows for `preference report`; of each rater, how many checks were answered right and how many there were."""

    rows: list[dict[str, Any]]
    checks: dict[str, tuple[int, int]]
    left_out: LeftOut

    def to_json(self) -> dict[str, Any]:
        """What `unseal --json` prints."""
        return {
            "votes": len(self.rows),
            "raters": len({row["rater"] for row in self.rows}),
            "checks": {rater: {"passed": passed, "of": n} for rater, (passed, n) in self.checks.items()},
            "left_out": asdict(self.left_out),
        }

    def to_text(self) -> str:
        """What `unseal` prints."""
        numbers = self.to_json()
        lines = [f"{numbers['votes']} votes of {numbers['raters']} raters."]
        for rater, (passed, n) in self.checks.items():
            lines.append(f"Checks: {rater} preferred the good picture in {passed} of {n}.")
        for reason, places in numbers["left_out"].items():
            if places:
                shown = ", ".join(map(str, places[:_NUM_SHOWN])) + (", ..." if len(places) > _NUM_SHOWN else "")
                lines.append(f"Left out, {reason.replace('_', ' ')}: {len(places)} (lines {shown} of {VOTES_FILE}).")
        return "\n".join(lines)


def unseal(study: Path) -> Unsealed:
    """Votes with the models' names, the left picture's as `model_a`; checks apart; what does not count, by line."""
    key = read_key(study)
    if key is None:
        raise UserError(f"{study / KEY_FILE} is missing; put back the key that `preference build` wrote")
    votes, left_out = read_blind_votes(study)
    known = [vote for vote in votes if vote.pair in key["pairs"]]
    left_out.unknown_pair = [vote.line for vote in votes if vote.pair not in key["pairs"]]
    last = {(vote.rater, vote.pair, vote.is_repeat): vote for vote in known}
    left_out.replaced_by_a_later_vote = [
        vote.line for vote in known if last[vote.rater, vote.pair, vote.is_repeat] is not vote
    ]
    of_check = [vote for vote in last.values() if "degraded" in key["pairs"][vote.pair]]
    rows, lines = [], []
    for vote in sorted(last.values(), key=lambda vote: vote.line):
        entry = key["pairs"][vote.pair]
        if "degraded" in entry:
            continue
        if vote.is_repeat and (vote.rater, vote.pair, False) not in last:
            left_out.repeat_without_first_vote.append(vote.line)
            continue
        rows.append(_row(vote, entry))
        lines.append(vote.line)
    if not rows:
        raise UserError(
            f"{study / VOTES_FILE} holds no vote that counts; let raters vote first: preference serve {study}"
        )
    check_votes(list(zip(lines, rows, strict=True)), study / VOTES_FILE)
    return Unsealed(rows, _checks(of_check, key), left_out)


def _row(vote: BlindVote, entry: Mapping[str, str]) -> dict[str, Any]:
    right = SIDES[1 - SIDES.index(vote.shown_left)]
    winners = {vote.shown_left: "model_a", right: "model_b"}
    return {
        "prompt_id": entry["prompt_id"],
        "rater": vote.rater,
        "model_a": entry[f"{vote.shown_left}_model"],
        "model_b": entry[f"{right}_model"],
        "winner": winners.get(vote.winner, vote.winner),
        "is_repeat": str(vote.is_repeat).lower(),
        "seconds": vote.seconds,
        "at": vote.at,
    }


def _checks(votes: Sequence[BlindVote], key: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for vote in votes:
        passed, n = counts.get(vote.rater, (0, 0))
        is_right = vote.winner in SIDES and vote.winner != key["pairs"][vote.pair]["degraded"]
        counts[vote.rater] = (passed + is_right, n + 1)
    return dict(sorted(counts.items()))


def write_votes(unsealed: Unsealed, path: Path) -> None:
    """`votes.csv` for `preference report`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(unsealed.rows)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --output") from error


def read_blind_votes(study: Path) -> tuple[list[BlindVote], LeftOut]:
    """The votes of `votes.jsonl` as they stand there; a last line that a killed server left unfinished is named."""
    path = study / VOTES_FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], LeftOut()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check who may read it") from error
    votes, left_out = [], LeftOut()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            votes.append(_blind_vote(json.loads(line), number))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # lines are ended by a line feed: this one was not
                left_out.torn_last_line.append(number)
                continue
            raise UserError(f"{path}, line {number}, is no vote ({error}); mend the line or delete it") from error
    return votes, left_out


def _blind_vote(row: Any, line: int) -> BlindVote:
    """Raises a `ValueError` that names the field."""
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    for name in ("pair", "rater"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{name} is {row.get(name)!r}")
    for name, values in (("winner", WINNERS), ("shown_left", SIDES)):
        if row.get(name) not in values:
            raise ValueError(f"{name} is {row.get(name)!r}; it is one of {', '.join(values)}")
    if not isinstance(row.get("is_repeat"), bool):
        raise ValueError(f"is_repeat is {row.get('is_repeat')!r}; it is true or false")
    return BlindVote(
        pair=row["pair"],
        rater=row["rater"].strip(),
        winner=row["winner"],
        shown_left=row["shown_left"],
        is_repeat=row["is_repeat"],
        seconds=row.get("seconds"),
        at=str(row.get("at", "")),
        line=line,
    )
