# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: `RUN/journal.sqlite`, one row per attempt, and what became of every item.

An attempt is written down before its request leaves, as `lost`; the answer turns it into something better. So an
attempt that is still `lost` was cut off between the two, and may have been paid for: it keeps the dollars that were
reserved for it (`reserved_usd`), while the answer of any other one settles them (`cost_usd`).

An item is one sample of the plan: a picture, or the reason why it was rejected, or both where a quality gate refused
the picture. Requests that were sent as a job of the Batch API name it (`submission`).

| status | meaning | asked again? |
|---|---|---|
| `ok` | answered, and the answer was of use | no |
| `blocked` | refused by the teacher's moderation | no |
| `invalid` | answered and perhaps paid, but of no use; the answer is kept | a few times |
| `retry` | refused for now: rate limit, server error, nobody there | yes |
| `quota` | refused because the quota is spent | by the next run |
| `lost` | the outcome is not known | yes |
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import GeneratedImage, Pipeline, Task
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.run_folder import FILE_NAME, check_run_dir, connect, has_tables, hold

Status = Literal["ok", "blocked", "retry", "quota", "invalid", "lost"]
Stage = Literal[
    "prompt", "image", "description", "content", "layout", "instruction", "control", "edit", "judge", "label"
]
SubmissionStatus = Literal["sending", "open", "done"]

Work = Pipeline | Literal["labelling"]  # what an item is made by; one of `labelling` is a row that gets labels
WORKS: tuple[Work, ...] = (*get_args(Pipeline), "labelling")

_ITEM_COLUMNS = "item, pipeline, task, position, image, reason, gates, decided_at"
_PIPELINE_ORDER = "CASE pipeline " + " ".join(f"WHEN '{name}' THEN {k}" for k, name in enumerate(WORKS)) + " END"


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
class Memory:
    """What a journal knows of a request.

    Args:
        answer ([`Answer`], *optional*): the one that was of use.
        block (`str`, *optional*): why the teacher's moderation refused it.
        num_useless (`int`): answers that were of no use.
    """

    answer: Answer | None
    block: str | None
    num_useless: int


@dataclass(frozen=True)
class Item:
    """What became of one sample.

    Args:
        image ([`GeneratedImage`], *optional*): its picture, also where a gate refused it.
        reason (`str`, *optional*): why it was rejected; a record has none.
        gates (`str`): hash of the gates that it was decided under.
    """

    item: str
    pipeline: Work
    task: Task
    position: int
    image: GeneratedImage | None
    reason: str | None
    gates: str
    decided_at: str

    @property
    def is_record(self) -> bool:
        """Whether it is to be published."""
        return self.reason is None


@dataclass(frozen=True)
class StageUsage:
    """What the answers of one stage took: their number, and the sums of tokens, US dollars and seconds."""

    answers: int
    text_input_tokens: float
    image_input_tokens: float
    output_tokens: float
    cost_usd: float
    seconds: float


@dataclass(frozen=True)
class Submission:
    """A job of the Batch API; `batch_id` is what the teacher calls it."""

    name: str
    route: str
    status: SubmissionStatus
    batch_id: str | None


class Journal:
    """The journal of one run, held by one process at a time.

    Use [`Journal.create_or_resume`] to write and [`Journal.open`] to read. `secrets` are cut out of every text that is
    written, should a server repeat one.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_dir: Path,
        secrets: tuple[str, ...] = (),
        durable: sqlite3.Connection | None = None,
    ):
        self._connection = connection
        self._durable = durable or connection  # what is written through it survives a power cut
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
        hold(lock_file, run_dir)
        path = run_dir / FILE_NAME
        journal = cls(connect(path, "NORMAL"), run_dir, secrets, connect(path, "FULL"))
        journal._lock_file = lock_file
        journal.blobs.remove_unfinished()
        return journal

    @classmethod
    def open(cls, run_dir: Path) -> "Journal":
        """Open an existing run for reading, from several threads, also while another process writes to it."""
        path = run_dir / FILE_NAME
        if not path.is_file():
            raise UserError(f"{run_dir} is not a run directory; `sharegpt4o-image synthesize -o {run_dir}` starts one")
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        if not has_tables(connection, path):
            raise UserError(f"{run_dir} has not begun; run `sharegpt4o-image synthesize -o {run_dir}` again")
        return cls(connection, run_dir)

    def close(self) -> None:
        """Close the file and let another process have the run."""
        self._connection.close()
        self._durable.close()
        if self._lock_file is not None:
            self._lock_file.close()

    # ----------------------------------------------------------------------- attempts

    def begin(
        self,
        key: str,
        stage: Stage,
        model: str,
        request: Mapping[str, Any],
        reserved_usd: float = 0.0,
        submission: str | None = None,
    ) -> int:
        """Write down that a request is about to be sent; returns the attempt's number."""
        cursor = self._connection.execute(
            "INSERT INTO attempts (key, stage, status, model, request, reserved_usd, submission, started_at)"
            " VALUES (?, ?, 'lost', ?, ?, ?, ?, ?)",
            (
                key,
                stage,
                model,
                self.clean(json.dumps(request, ensure_ascii=False)),
                reserved_usd,
                submission,
                utc_now(),
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, attempt: int, status: Status, **columns: Any) -> str:
        """Write down how an attempt ended, with further columns of its row; returns the time.

        A row with a picture survives a power cut from here on, and so does everything that was written before it.
        """
        ended_at = utc_now()
        values: dict[str, Any] = {"status": status, "ended_at": ended_at, **columns}
        names = ", ".join(f"{name} = ?" for name in values)
        cleaned = [self.clean(value) if isinstance(value, str) else value for value in values.values()]
        connection = self._durable if values.get("blob") else self._connection
        connection.execute(f"UPDATE attempts SET {names} WHERE number = ?", (*cleaned, attempt))
        return ended_at

    def mark(self, attempt: int, status: Status, reason: str) -> None:
        """Change what was thought of an answer, once it has been read."""
        row = (status, self.clean(reason), attempt)
        self._connection.execute("UPDATE attempts SET status = ?, reason = ? WHERE number = ?", row)

    def recall(self, key: str) -> "Memory":
        """What is known of a request."""
        query = (
            "SELECT status, reason, http_status, number, answer, blob, served_model, usage, cost_usd, ended_at"
            " FROM attempts WHERE key = ? AND status IN ('ok', 'blocked', 'invalid')"
        )
        answer, block, num_useless = None, None, 0
        for status, reason, http_status, number, body, *rest in self._connection.execute(query, (key,)):
            if status == "ok":
                picture, served_model, usage, cost_usd, ended_at = rest
                answer = Answer(
                    number, json.loads(body), picture, served_model, json.loads(usage or "{}"), cost_usd, ended_at
                )
            elif status == "blocked":
                block = str(reason)
            else:
                num_useless += http_status == 200  # a refusal is no answer
        return Memory(answer, block, num_useless)

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

    # ----------------------------------------------------------------------- the Batch API

    def begin_submission(self, name: str, route: str) -> None:
        """Write down that a job is about to be created; its attempts, written down before, name it."""
        row = (name, route, utc_now())
        self._durable.execute(
            "INSERT INTO submissions (name, route, status, created_at) VALUES (?, ?, 'sending', ?)", row
        )

    def update_submission(self, name: str, status: SubmissionStatus, batch_id: str | None = None) -> None:
        """Write down what became of a job."""
        query = "UPDATE submissions SET status = ?, batch_id = coalesce(?, batch_id) WHERE name = ?"
        self._durable.execute(query, (status, batch_id, name))

    def pending_submissions(self) -> list[Submission]:
        """The jobs whose answers were not fetched yet."""
        query = "SELECT name, route, status, batch_id FROM submissions WHERE status != 'done' ORDER BY created_at"
        return [Submission(*row) for row in self._connection.execute(query)]

    def attempts_of(self, submission: str) -> dict[str, tuple[int, Stage, str, float]]:
        """Key -> number, stage, model and reservation of every attempt of a job that has no answer yet."""
        query = "SELECT key, number, stage, model, reserved_usd FROM attempts WHERE submission = ? AND status = 'lost'"
        return {key: (number, *rest) for key, number, *rest in self._connection.execute(query, (submission,))}

    def find_upload(self, endpoint: str, sha256: str) -> str | None:
        """The name that the teacher at `endpoint` gave to an uploaded picture."""
        query = "SELECT file_id FROM uploads WHERE endpoint = ? AND sha256 = ?"
        row = self._connection.execute(query, (endpoint, sha256)).fetchone()
        return row[0] if row else None

    def write_upload(self, endpoint: str, sha256: str, file_id: str) -> None:
        """Remember an uploaded picture."""
        self._connection.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (endpoint, sha256, file_id))

    def forget_uploads(self) -> None:
        """Have every picture uploaded again: the teacher does not know one any more."""
        self._connection.execute("DELETE FROM uploads")

    # ----------------------------------------------------------------------- items

    def decide(self, item: Item, thumbnail: bytes | None = None) -> None:
        """Write down what became of a sample; a later decision replaces an earlier one.

        Args:
            item ([`Item`]): the decision.
            thumbnail (`bytes`, *optional*): the picture's colours, for the search for similar ones.
        """
        image = self.clean(item.image.model_dump_json()) if item.image else None
        reason = self.clean(item.reason) if item.reason else None
        row = (item.item, item.pipeline, item.task, item.position, image, reason, item.gates, item.decided_at)
        self._connection.execute(
            f"INSERT OR REPLACE INTO items ({_ITEM_COLUMNS}, thumbnail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, thumbnail),
        )

    def undecide(self, items: Iterable[str]) -> None:
        """Forget what became of samples, so that the next run sees to them."""
        self._connection.executemany("DELETE FROM items WHERE item = ?", [(item,) for item in items])

    def find_item(self, item: str) -> Item | None:
        """What became of a sample, or `None` when it is still to do."""
        query = f"SELECT {_ITEM_COLUMNS} FROM items WHERE item = ?"
        row = self._connection.execute(query, (item,)).fetchone()
        return _as_item(row) if row else None

    def iter_items(self, task: Task | None = None, is_rejected: bool = False) -> Iterator[Item]:
        """The records of a task, or of all, in the order of the run's plan; or the samples that were rejected."""
        query = (
            f"SELECT {_ITEM_COLUMNS} FROM items WHERE (reason IS NOT NULL) = ? AND (task = ? OR ? IS NULL)"
            f" ORDER BY task = 'text_and_image_to_image', {_PIPELINE_ORDER}, position, item"
        )
        with closing(self._connection.execute(query, (is_rejected, task, task))) as cursor:
            yield from map(_as_item, cursor)

    def iter_signatures(self, gates: str) -> Iterator[tuple[str, str, str, bytes]]:
        """Item, sha256, phash and thumbnail of every record that was decided under these gates."""
        query = (
            "SELECT item, json_extract(image, '$.sha256'), json_extract(image, '$.phash'), thumbnail FROM items"
            " WHERE reason IS NULL AND thumbnail IS NOT NULL AND gates = ?"
        )
        with closing(self._connection.execute(query, (gates,))) as cursor:
            yield from cursor

    # ----------------------------------------------------------------------- the whole run

    def write_fact(self, name: str, value: str) -> None:
        """Remember something of the run, such as the licence of its rows."""
        self._connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def read_fact(self, name: str) -> str | None:
        """What was remembered under `name`."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def count_records(self) -> Counter[str]:
        """Task -> number of its records."""
        return self._count("SELECT task, count(*) FROM items WHERE reason IS NULL GROUP BY 1")

    def count_items(self) -> Counter[str]:
        """Pipeline -> number of its samples that were decided, rejected ones included."""
        return self._count("SELECT pipeline, count(*) FROM items GROUP BY 1")

    def count_rejections(self) -> Counter[str]:
        """Reason -> number of samples that were rejected for it; particulars (": ...", " (...)") are left out."""
        counts = self._count("SELECT reason, count(*) FROM items WHERE reason IS NOT NULL GROUP BY 1")
        summed: Counter[str] = Counter()
        for reason, count in counts.items():
            summed[without_particulars(reason)] += count
        return summed

    def count_attempts(self) -> Counter[str]:
        """Status -> number of attempts."""
        return self._count("SELECT status, count(*) FROM attempts GROUP BY 1")

    def count_requests(self) -> Iterator[tuple[str, str, str, int]]:
        """Stage, model, status, and the number of attempts of that kind."""
        yield from self._connection.execute(
            "SELECT stage, model, status, count(*) FROM attempts GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )

    def _count(self, query: str) -> Counter[str]:
        return Counter(dict(self._connection.execute(query)))

    def count_decided_since(self, moment: str) -> int:
        """How many samples were decided after a moment that is written as in [`utc_now`]."""
        query = "SELECT count(*) FROM items WHERE decided_at > ?"
        return int(self._connection.execute(query, (moment,)).fetchone()[0])

    def spent_usd(self) -> float:
        """What all answers together cost."""
        return self._sum("cost_usd")

    def reserved_usd(self) -> float:
        """What the requests of unknown outcome may cost at most, those in flight included."""
        return self._sum("reserved_usd")

    def _sum(self, column: str) -> float:
        return float(self._connection.execute(f"SELECT coalesce(sum({column}), 0) FROM attempts").fetchone()[0])

    def dearest_answers(self) -> dict[tuple[str, str], float]:
        """Stage and model -> US dollars of the dearest answer so far, jobs of the Batch API left out."""
        query = (
            "SELECT stage, model, max(cost_usd) FROM attempts WHERE usage IS NOT NULL AND submission IS NULL"
            " GROUP BY 1, 2"
        )
        return {(stage, model): cost for stage, model, cost in self._connection.execute(query)}

    def measure_stages(self) -> dict[tuple[Stage, str], StageUsage]:
        """Stage and model -> what its useful answers took, of the whole run."""
        text = "coalesce(usage ->> 'prompt_tokens', usage ->> 'input_tokens', 0)"
        picture = "coalesce(usage ->> '$.input_tokens_details.image_tokens', 0)"
        output = "coalesce(usage ->> 'completion_tokens', usage ->> 'output_tokens', 0)"
        # Answers of the Batch API have no seconds of their own; they count as the mean of the others.
        query = (
            f"SELECT stage, model, count(*), sum({text} - {picture}), sum({picture}), sum({output}), sum(cost_usd),"
            " coalesce(avg(seconds), 0) * count(*) FROM attempts WHERE status = 'ok' AND usage IS NOT NULL"
            " GROUP BY stage, model"
        )
        return {(stage, model): StageUsage(*sums) for stage, model, *sums in self._connection.execute(query)}


def _as_item(row: tuple[Any, ...]) -> Item:
    item, pipeline, task, position, image, reason, gates, decided_at = row
    opened = GeneratedImage.model_validate_json(image) if image else None
    return Item(item, pipeline, task, position, opened, reason, gates, decided_at)


def without_particulars(reason: str) -> str:
    """A reason as it is counted: without what stands behind a colon or in brackets."""
    return re.split(r": | \(", reason, maxsplit=1)[0]


def printable(text: str) -> str:
    """What a teacher said, for the terminal: control and bidirectional characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def utc_now() -> str:
    """The time as it is written into the journal: `2026-11-23T09:43:00.123456+00:00`."""
    return datetime.now(UTC).isoformat()
