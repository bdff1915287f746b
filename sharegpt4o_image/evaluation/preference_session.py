# SPDX-License-Identifier: Apache-2.0
"""A study and a rater's name -> the order of the pairs, which picture is on the left, and the votes, kept at once.

What a rater sees is computed from the names of the pairs and of the rater alone: after a reload of the page or a
restart of the server the rater goes on where they were. The key of the study is never opened here.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_key import FORMAT, SIDES, VOTES_FILE, read_blind_votes
from sharegpt4o_image.evaluation.preference_pairs import PAIRS_FILE, PICTURES_DIR, STUDY_FILE

MAX_NAME_LENGTH = 64  # of a rater; our choice
_FIRST, _SECOND = SIDES
_OUT_OF_DATE = "The page is out of date; please reload it."
_PICTURE_NAME = re.compile(r"[0-9a-f]{16,64}\.png")


# ------------------------------------------------------------------ the study


@dataclass(frozen=True)
class Picture:
    """A file below `pictures/`, and the size that the page keeps free for it."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class StudyPair:
    """A line of `pairs.jsonl`."""

    name: str
    block: str
    prompt: str
    source: Picture | None
    first: Picture
    second: Picture


@dataclass(frozen=True)
class Study:
    """What raters may know of a study."""

    folder: Path
    title: str
    criteria: str
    allows_both_bad: bool
    repeats: float
    pairs: tuple[StudyPair, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """What a rater can answer, as seen on the screen."""
        return ("left", "tie", "right", "both_bad") if self.allows_both_bad else ("left", "tie", "right")


def read_study(folder: Path) -> Study:
    """Read `study.json` and `pairs.jsonl`, and the size of every picture."""
    try:
        shown = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
        lines = (folder / PAIRS_FILE).read_text(encoding="utf-8").split("\n")
        if shown["format"] != FORMAT:
            raise ValueError(f"its format is {shown['format']}, not {FORMAT}")
        pairs = tuple(_read_pair(json.loads(line), folder / PICTURES_DIR) for line in lines if line)
        if not 0 < len(pairs) == shown["num_pairs"] == len({pair.name for pair in pairs}):
            raise ValueError(f"{PAIRS_FILE} holds {len(pairs)} of {shown['num_pairs']} pairs")
        return Study(
            folder=folder,
            title=str(shown["title"]),
            criteria=str(shown["criteria"]),
            allows_both_bad=bool(shown["allows_both_bad"]),
            repeats=float(shown["repeats"]),
            pairs=pairs,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no finished study ({error}); make it by `preference build`") from error


def _read_pair(row: dict[str, Any], pictures: Path) -> StudyPair:
    return StudyPair(
        name=str(row["pair"]),
        block=str(row["block"]),
        prompt=str(row["prompt"]),
        source=None if row["source"] is None else _read_picture(row["source"], pictures),
        first=_read_picture(row["first"], pictures),
        second=_read_picture(row["second"], pictures),
    )


def _read_picture(name: str, pictures: Path) -> Picture:
    if not _PICTURE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a picture")
    with Image.open(pictures / name) as picture:
        return Picture(name, *picture.size)


# ------------------------------------------------------------------ what a rater sees


@dataclass(frozen=True)
class Showing:
    """A pair as one rater sees it; `shown_left` is "first" or "second"."""

    pair: StudyPair
    shown_left: str
    is_repeat: bool = False

    @property
    def left(self) -> Picture:
        """The picture on the left."""
        return self.pair.first if self.shown_left == _FIRST else self.pair.second

    @property
    def right(self) -> Picture:
        """The picture on the right."""
        return self.pair.second if self.shown_left == _FIRST else self.pair.first

    def winner(self, answer: str) -> str:
        """`left` -> the side of the pair that stood there; a tie stays one."""
        right = _SECOND if self.shown_left == _FIRST else _FIRST
        return {"left": self.shown_left, "right": right}.get(answer, answer)

    def answer(self, winner: str) -> str:
        """The inverse of `winner`."""
        if winner not in SIDES:
            return winner
        return "left" if winner == self.shown_left else "right"


def rater_order(study: Study, rater: str) -> tuple[Showing, ...]:
    """All pairs in the rater's own order, half of the blocks with `second` on the left, then the repeats.

    A block holds two pairs of the same two models, one the other way round: swapped together, they show each model
    once on the left, so each rater sees each model on the left in half of its pairs, though no model is known here.

    Repeats show the pictures with sides swapped. They are drawn from the first half of the order where that is
    enough, so that at least half of the study lies between the two showings.
    """

    def drawn(what: str, pairs: Sequence[StudyPair]) -> list[StudyPair]:
        # Ranks by digest and not by a generator: the same in every version of Python.
        return sorted(pairs, key=lambda pair: _digest(what, rater, pair.name))

    order = drawn("order", study.pairs)
    blocks = sorted({pair.block for pair in order}, key=lambda block: _digest("side", rater, block))
    odd_one = int(_digest("odd", rater, order[0].name), 16) % 2
    first_left = set(blocks[: (len(blocks) + odd_one) // 2])
    showings = [Showing(pair, _FIRST if pair.block in first_left else _SECOND) for pair in order]
    num_repeats = round(study.repeats * len(order))
    again = {pair.name for pair in drawn("repeat", order[: max(num_repeats, len(order) // 2)])[:num_repeats]}
    repeats = [
        Showing(one.pair, _SECOND if one.shown_left == _FIRST else _FIRST, is_repeat=True)
        for one in showings
        if one.pair.name in again
    ]
    return (*showings, *repeats)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_rater(name: str) -> str:
    """The name without blanks around it and with single ones within; raises a `UserError` if it is none."""
    words = unicodedata.normalize("NFC", " ".join(name.split()))
    if not words or len(words) > MAX_NAME_LENGTH or not words.isprintable():
        raise UserError(f"Please give a name of 1 to {MAX_NAME_LENGTH} printable characters.")
    return words


# ------------------------------------------------------------------ votes


@dataclass(frozen=True)
class Ticket:
    """What a page shows, sent back with the vote: the place in the rater's order, and the answer stored till then.

    A vote counts only if that answer still stands: so a double click, or a second window, stores nothing twice, and a
    vote that is taken back replaces exactly the vote that was shown.
    """

    rater: str
    position: int
    pair: str | None
    answer: str | None

    def to_json(self) -> str:
        """As the page keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ticket":
        """Raises a `UserError` if the page sends something else."""
        try:
            ticket = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(_OUT_OF_DATE) from error
        is_answer = ticket.answer is None or isinstance(ticket.answer, str)
        if not isinstance(ticket.rater, str) or type(ticket.position) is not int or not is_answer:
            raise UserError(_OUT_OF_DATE)
        return replace(ticket, rater=check_rater(ticket.rater), position=max(0, ticket.position))


class PreferenceSession:
    """All raters' votes on a study, appended to `votes.jsonl` one by one; one process at a time holds the file.

    Args:
        study (`Study`): what is compared.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._lock = threading.Lock()
        self._order = lru_cache(maxsize=64)(partial(rater_order, study))
        self._shown_at: dict[tuple[str, str, bool], float] = {}
        self._file = open_votes(study.folder / VOTES_FILE)
        try:
            votes, _ = read_blind_votes(study.folder)
        except UserError:
            self.close()
            raise
        self._winners = {(vote.rater, vote.pair, vote.is_repeat): vote.winner for vote in votes}
        # Names that differ in case alone are one rater, under the spelling that came first.
        self._spellings: dict[str, str] = {}
        for vote in votes:
            self._spellings.setdefault(vote.rater.casefold(), vote.rater)

    def close(self) -> None:
        """Let go of `votes.jsonl`."""
        os.close(self._file)

    @property
    def num_votes(self) -> int:
        """Pairs that have an answer, over all raters."""
        return len(self._winners)

    def enter(self, name: str) -> Ticket:
        """The rater's first pair without an answer."""
        checked = check_rater(name)
        with self._lock:
            rater = self._spellings.setdefault(checked.casefold(), checked)
        return self._ticket(rater, None)

    def showing(self, ticket: Ticket) -> Showing | None:
        """The pair that the ticket stands for; None past the last one."""
        order = self._order(ticket.rater)
        return order[ticket.position] if ticket.position < len(order) else None

    def num_showings(self) -> int:
        """How many pairs each rater sees, repeats included."""
        return len(self.study.pairs) + round(self.study.repeats * len(self.study.pairs))

    def back(self, ticket: Ticket) -> Ticket:
        """The pair before, to be answered anew; its answer stands until then."""
        return self._ticket(ticket.rater, max(0, min(ticket.position, self.num_showings()) - 1))

    def vote(self, ticket: Ticket, answer: str) -> Ticket:
        """Store an answer to what the ticket shows, on disk when this returns; returns the next pair without one.

        Raises:
            UserError: if there is no such answer, or the vote could not be written; then it is not stored at all.
        """
        showing = self.showing(ticket)
        if showing is None or showing.pair.name != ticket.pair or answer not in self.study.answers:
            raise UserError(_OUT_OF_DATE)
        place = (ticket.rater, showing.pair.name, showing.is_repeat)
        winner = showing.winner(answer)
        with self._lock:
            stored = self._winners.get(place)
            seen = None if ticket.answer is None else showing.winner(ticket.answer)
            if stored == seen and winner != stored:
                self._append(_vote_line(ticket.rater, showing, winner, self._seconds(place)))
                self._winners[place] = winner
        return self._ticket(ticket.rater, None)

    def _ticket(self, rater: str, position: int | None) -> Ticket:
        """For a position, or for the first pair without an answer."""
        order = self._order(rater)
        places = [(rater, showing.pair.name, showing.is_repeat) for showing in order]
        with self._lock:
            if position is None:
                position = next((at for at, place in enumerate(places) if place not in self._winners), len(order))
            if position == len(order):
                return Ticket(rater, position, None, None)
            self._shown_at[places[position]] = time.monotonic()
            winner = self._winners.get(places[position])
        showing = order[position]
        return Ticket(rater, position, showing.pair.name, None if winner is None else showing.answer(winner))

    def _seconds(self, place: tuple[str, str, bool]) -> float | None:
        """Since the pair was last shown; None if that was before this process began."""
        shown_at = self._shown_at.get(place)
        return None if shown_at is None else round(time.monotonic() - shown_at, 3)

    def _append(self, line: str) -> None:
        """Write a line whole and through to the disk, or not at all."""
        size = os.fstat(self._file).st_size
        data = line.encode()
        try:
            if not os.path.samestat(os.fstat(self._file), os.stat(self.study.folder / VOTES_FILE)):
                raise OSError("the file was replaced: what is written now would be lost")
            if os.write(self._file, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError("Your vote could not be stored. Please tell whoever runs this study.") from error


def _vote_line(rater: str, showing: Showing, winner: str, seconds: float | None) -> str:
    vote = {
        "pair": showing.pair.name,
        "rater": rater,
        "winner": winner,
        "shown_left": showing.shown_left,
        "is_repeat": showing.is_repeat,
        "seconds": seconds,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(vote, ensure_ascii=False) + "\n"


def open_votes(path: Path) -> int:
    """Open `votes.jsonl` for this process alone, with what a killed process left of a last line taken off."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; votes are stored there, so make it writable"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _mend_last_line(file)
    except BlockingIOError as error:
        os.close(file)
        raise UserError(f"another process is serving {path.parent}; stop it first") from error
    return file


def _mend_last_line(file: int) -> None:
    data = os.pread(file, os.fstat(file).st_size, 0)
    last = data.rpartition(b"\n")[2]
    if not last.strip():
        return
    try:
        json.loads(last)
        os.write(file, b"\n")
    except ValueError:
        os.ftruncate(file, len(data) - len(last))
