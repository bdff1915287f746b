# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who may work on it, whether it is one at all, and the tables of its `journal.sqlite`."""

import fcntl
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import IO, Literal

from sharegpt4o_image.errors import UserError

FILE_NAME = "journal.sqlite"
_APPLICATION_ID = 0x5347_346F  # "SG4o": marks the file as ours
_VERSION = 2

_HOLD_TRIES, _HOLD_WAIT_SECONDS = 4, 0.05  # `is_held` of another process takes the lock for a moment

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
  submission TEXT,
  http_status INTEGER,
  request_id TEXT,
  retry_after_seconds REAL,
  usage TEXT,
  reserved_usd REAL NOT NULL DEFAULT 0,
  cost_usd REAL NOT NULL DEFAULT 0,
  answer TEXT,
  blob TEXT,
  started_at TEXT NOT NULL,
  ended_at TEXT,
  seconds REAL
);
CREATE INDEX attempts_of_key ON attempts (key, status);
CREATE UNIQUE INDEX one_answer_per_key ON attempts (key) WHERE status = 'ok';
CREATE INDEX attempts_in_sums ON attempts (status, cost_usd, reserved_usd);
CREATE INDEX attempts_of_submission ON attempts (submission) WHERE submission IS NOT NULL;
CREATE TABLE items (
  item TEXT PRIMARY KEY,
  pipeline TEXT NOT NULL,
  task TEXT NOT NULL,
  position INTEGER NOT NULL,
  reason TEXT,
  image TEXT,
  thumbnail BLOB,
  gates TEXT NOT NULL,
  decided_at TEXT NOT NULL
);
CREATE INDEX items_in_order ON items (task, pipeline, position, item);
CREATE INDEX items_in_counts ON items (pipeline, task, reason);
CREATE INDEX items_by_time ON items (decided_at);
CREATE TABLE submissions (
  name TEXT PRIMARY KEY,
  route TEXT NOT NULL,
  status TEXT NOT NULL,
  batch_id TEXT,
  created_at TEXT NOT NULL
);
CREATE TABLE uploads (endpoint TEXT, sha256 TEXT, file_id TEXT NOT NULL, PRIMARY KEY (endpoint, sha256));
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def hold(lock_file: IO[str], run_dir: Path) -> None:
    """Lock a run for this process."""
    for _ in range(_HOLD_TRIES):
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            time.sleep(_HOLD_WAIT_SECONDS)
    lock_file.close()
    raise UserError(f"another process is working on {run_dir}; wait for it to end or stop it")


def is_held(run_dir: Path) -> bool:
    """Whether a process is working on the run."""
    try:
        with (run_dir / "lock").open() as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def check_run_dir(run_dir: Path, option: str = "--output") -> None:
    """Refuse a path that is neither a run, nor absent, nor an empty directory; `option` is the one that named it."""
    remedy = f"choose another directory with {option}"
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; {remedy}")
    path = run_dir / FILE_NAME
    if path.exists():
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            has_tables(connection, path)
    elif run_dir.is_dir() and any(entry.name != "lock" for entry in run_dir.iterdir()):
        raise UserError(f"{run_dir} holds something else than a synthesis run; {remedy}")


def has_tables(connection: sqlite3.Connection, path: Path) -> bool:
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


def connect(path: Path, synchronous: Literal["NORMAL", "FULL"]) -> sqlite3.Connection:
    """Open a journal for writing, with its tables; what is written `FULL` survives a power cut."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchone():
        ids = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
        connection.executescript(f"BEGIN; {_TABLES} {ids} COMMIT;")
    return connection
