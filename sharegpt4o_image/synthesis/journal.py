# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: `RUN/journal.sqlite`, one row per attempt, and what became of every item.

An attempt is written down before its request leaves, as `lost`; the answer turns it into something better. So an
attempt that is still `lost` was cut off between the two, and may have been paid for.

| status | meaning | asked again? |
|---|---|---|
| `ok` | answered, and the answer was of use | no |
| `blocked` | refused by the teacher's moderation | no |
| `invalid` | answered and perhaps paid, but of no use; the answer is kept | a few times |
| `retry` | refused for now: rate limit, server error, nobody there | yes |
| `quota` | refused because the quota is spent | by the next run |
| `lost` | the outcome is not known | yes |
"""

import fcntl
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import GeneratedImage, Task
from sharegpt4o_image.synthesis.blobs import BlobStore

Status = Literal["ok", "blocked", "retry", "quota", "invalid", "lost"]
Stage = Literal["prompt", "image", "instruction", "edit"]

FILE_NAME = "journal.sqlite"
_APPLICATION_ID = 0x5347_346F  # "SG4o": marks the file as ours
_VERSION = 1

_TABLES = """
CREATE TABLE attempts (
  number INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  stage TEXT NOT NULL,
  status TEXT NOT NULL,
  reason TEXT,
  model TEXT NOT NULL,
  served_model TEXT,
  request TEXT NOT NULL,
  http_status INTEGER,
  request_id TEXT,
  retry_after_seconds REAL,
  usage TEXT,
  cost_usd REAL NOT NULL DEFAULT 0,
  answer TEXT,
  blob TEXT,
  started_at TEXT NOT NULL,
  ended_at TEXT
);
CREATE INDEX attempts_of_key ON attempts (key, status);
CREATE UNIQUE INDEX one_answer_per_key ON attempts (key) WHERE status = 'ok';
CREATE TABLE items (
  item TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  position INTEGER NOT NULL,
  reason TEXT,
  image TEXT
);
CREATE INDEX items_in_order ON items (task, position, item);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Answer:
    """What a teacher sent back: `body` is its JSON (pictures left out), `picture` the sha256 of the picture's blob."""

    attempt: int
    body: dict[str, Any]
    picture: str | None
    served_model: str | None
    usage: dict[str, Any]
    cost_usd: float
    ended_at: str


@dataclass(frozen=True)
class Item:
    """What became of one sample: a picture, or the reason why there is none."""

    item: str
    task: Task
    position: int
    image: GeneratedImage | None
    reason: str | None


class Journal:
    """The journal of one run, held by one process at a time.

    Use [`Journal.create_or_resume`] to write and [`Journal.open`] to read. `secrets` are cut out of every text that is
    written, should a server repeat one.
    """

    def __init__(self, connection: sqlite3.Connection, run_dir: Path, secrets: tuple[str, ...] = ()):
        self._connection = connection
        self._secrets = tuple(secret for secret in secrets if secret)
        self.run_dir = run_dir
        self.blobs = BlobStore(run_dir / "blobs")
        self._lock_file: Any = None

    @classmethod
    def create_or_resume(cls, run_dir: Path, secrets: tuple[str, ...] = ()) -> "Journal":
        """Open the run for writing; an absent or empty directory becomes a new run."""
        check_run_dir(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock_file = (run_dir / "lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {run_dir}: {error.strerror}; choose another directory") from error
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.close()
            raise UserError(f"another process is working on {run_dir}; wait for it to end or stop it") from error
        connection = _connect(run_dir / FILE_NAME)
        journal = cls(connection, run_dir, secrets)
        journal._lock_file = lock_file
        journal.blobs.remove_unfinished()
        return journal

    @classmethod
    def open(cls, run_dir: Path) -> "Journal":
        """Open an existing run for reading, also while another process writes to it."""
        path = run_dir / FILE_NAME
        if not path.is_file():
            raise UserError(f"{run_dir} is not a run directory; `sharegpt4o-image synthesize -o {run_dir}` starts one")
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        if not _has_tables(connection, path):
            raise UserError(f"{run_dir} has not begun; run `sharegpt4o-image synthesize -o {run_dir}` again")
        return cls(connection, run_dir)

    def close(self) -> None:
        """Close the file and let another process have the run."""
        self._connection.close()
        if self._lock_file is not None:
            self._lock_file.close()

    # ----------------------------------------------------------------------- attempts

    def begin(self, key: str, stage: Stage, model: str, request: Mapping[str, Any]) -> int:
        """Write down that a request is about to be sent; returns the attempt's number."""
        cursor = self._connection.execute(
            "INSERT INTO attempts (key, stage, status, model, request, started_at) VALUES (?, ?, 'lost', ?, ?, ?)",
            (key, stage, model, self.clean(json.dumps(request, ensure_ascii=False)), utc_now()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, attempt: int, status: Status, **columns: Any) -> str:
        """Write down how an attempt ended, with further columns of its row; returns the time."""
        ended_at = utc_now()
        values: dict[str, Any] = {"status": status, "ended_at": ended_at, **columns}
        names = ", ".join(f"{name} = ?" for name in values)
        cleaned = [self.clean(value) if isinstance(value, str) else value for value in values.values()]
        self._connection.execute("PRAGMA synchronous = FULL")  # an answer that was paid for survives a power cut
        self._connection.execute(f"UPDATE attempts SET {names} WHERE number = ?", (*cleaned, attempt))
        self._connection.execute("PRAGMA synchronous = NORMAL")
        return ended_at

    def mark(self, attempt: int, status: Status, reason: str) -> None:
        """Change what was thought of an answer, once it has been read."""
        row = (status, self.clean(reason), attempt)
        self._connection.execute("UPDATE attempts SET status = ?, reason = ? WHERE number = ?", row)

    def find_answer(self, key: str) -> Answer | None:
        """The answer that was received for a request, if there is one."""
        row = self._connection.execute(
            "SELECT number, answer, blob, served_model, usage, cost_usd, ended_at FROM attempts"
            " WHERE key = ? AND status = 'ok'",
            (key,),
        ).fetchone()
        if row is None:
            return None
        number, answer, blob, served_model, usage, cost_usd, ended_at = row
        return Answer(number, json.loads(answer), blob, served_model, json.loads(usage), cost_usd, ended_at)

    def find_block(self, key: str) -> str | None:
        """Why the teacher's moderation refused a request, if it did."""
        row = self._connection.execute(
            "SELECT reason FROM attempts WHERE key = ? AND status = 'blocked' LIMIT 1", (key,)
        ).fetchone()
        return row[0] if row else None

    def count_invalid(self, key: str) -> int:
        """How many useless answers a request has had."""
        query = "SELECT count(*) FROM attempts WHERE key = ? AND status = 'invalid'"
        return int(self._connection.execute(query, (key,)).fetchone()[0])

    def clean_bytes(self, content: bytes) -> bytes:
        """An answer without the secrets that a teacher may repeat in it."""
        for secret in self._secrets:
            content = content.replace(secret.encode(), b"[secret]")
        return content

    def clean(self, text: str) -> str:
        """A text without the secrets that a teacher may repeat in it."""
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text

    # ----------------------------------------------------------------------- items

    def finish_item(self, item: str, task: Task, position: int, image: GeneratedImage) -> None:
        """Write down that a sample has its picture."""
        self._write_item(item, task, position, None, image.model_dump_json())

    def reject_item(self, item: str, task: Task, position: int, reason: str) -> None:
        """Write down that a sample gets no picture, and why."""
        self._write_item(item, task, position, self.clean(reason), None)

    def _write_item(self, item: str, task: Task, position: int, reason: str | None, image: str | None) -> None:
        row = (item, task, position, reason, image)
        self._connection.execute("INSERT INTO items (item, task, position, reason, image) VALUES (?, ?, ?, ?, ?)", row)

    def find_item(self, item: str) -> Item | None:
        """What became of a sample, or `None` when it is still to do."""
        query = "SELECT item, task, position, reason, image FROM items WHERE item = ?"
        row = self._connection.execute(query, (item,)).fetchone()
        return _as_item(row) if row else None

    def iter_finished(self, task: Task) -> Iterator[Item]:
        """The samples of a task that have a picture, in the order of the run's plan."""
        query = (
            "SELECT item, task, position, reason, image FROM items"
            " WHERE task = ? AND image IS NOT NULL ORDER BY position, item"
        )
        with closing(self._connection.execute(query, (task,))) as cursor:
            yield from map(_as_item, cursor)

    # ----------------------------------------------------------------------- the whole run

    def write_fact(self, name: str, value: str) -> None:
        """Remember something of the run, such as the licence of its rows."""
        self._connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def read_fact(self, name: str) -> str | None:
        """What was remembered under `name`."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def count_records(self) -> Counter[str]:
        """Task -> number of its finished samples."""
        query = "SELECT task, count(*) FROM items WHERE image IS NOT NULL GROUP BY task"
        return Counter(dict(self._connection.execute(query)))

    def count_rejections(self) -> Counter[str]:
        """Reason -> number of samples that were rejected for it."""
        return Counter(
            dict(self._connection.execute("SELECT reason, count(*) FROM items WHERE image IS NULL GROUP BY 1"))
        )

    def count_attempts(self) -> Counter[str]:
        """Status -> number of attempts."""
        return Counter(dict(self._connection.execute("SELECT status, count(*) FROM attempts GROUP BY status")))

    def spent_usd(self) -> float:
        """What all answers together cost."""
        return float(self._connection.execute("SELECT coalesce(sum(cost_usd), 0) FROM attempts").fetchone()[0])


def _as_item(row: tuple[str, Task, int, str | None, str | None]) -> Item:
    item, task, position, reason, image = row
    return Item(item, task, position, GeneratedImage.model_validate_json(image) if image else None, reason)


def utc_now() -> str:
    """The time as it is written into the journal: `2026-11-23T09:43:00.123456+00:00`."""
    return datetime.now(UTC).isoformat()


def check_run_dir(run_dir: Path) -> None:
    """Refuse a path that is neither a run, nor absent, nor an empty directory."""
    remedy = "choose another directory with --output"
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; {remedy}")
    path = run_dir / FILE_NAME
    if path.exists():
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            _has_tables(connection, path)
    elif run_dir.is_dir() and any(entry.name != "lock" for entry in run_dir.iterdir()):
        raise UserError(f"{run_dir} holds something else than a synthesis run; {remedy}")


def _has_tables(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the journal has its tables, which one that was killed at once has not; a foreign file is refused."""
    try:
        [application_id] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        is_empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not a journal ({error}); choose another directory") from error
    if not is_empty and (application_id, version) != (_APPLICATION_ID, _VERSION):
        raise UserError(f"{path} is not a journal that this version can read; choose another directory")
    return not is_empty


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchone():
        ids = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
        connection.executescript(f"BEGIN; {_TABLES} {ids} COMMIT;")
    return connection
