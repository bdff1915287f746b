# SPDX-License-Identifier: Apache-2.0
"""Planned shard -> Parquet file, with a note beside it that says what is in it and that it is finished.

.work/text_to_image.train.00000.parquet    the file
.work/text_to_image.train.00000.json       the note, written last; a shard without one is written again
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Features

from sharegpt4o_image.builders.card_counts import RowCounts
from sharegpt4o_image.builders.light_variant import lighten
from sharegpt4o_image.builders.pack_plan import NEGATIVES, PackOptions, PlannedShard
from sharegpt4o_image.builders.parquet_shards import TEXT_BYTES, ParquetFile
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.row_source import RowFault, RowPlan, RowSource
from sharegpt4o_image.schema import Record, RejectedRecord, published_features
from sharegpt4o_image.synthesis.journal import without_particulars

WORK = ".work"
NUM_THREADS = 8  # rows that are read and decoded at once, which is also what is in memory of them; our choice


@dataclass(frozen=True)
class ShardNote:
    """What a finished shard holds.

    Args:
        fingerprint (`str`): of the plan that it was written for.
        num_rows (`int`): rows in the file; there is no file when all were kept out.
        num_bytes (`int`): of the rows in memory.
        file_bytes (`int`): size of the file.
        sha256 (`str`): of the file.
        counts (`RowCounts`): for the card.
        rejections (`list`): the rows that were kept out, as they stand in `rejections.parquet`.
    """

    fingerprint: str
    num_rows: int
    num_bytes: int
    file_bytes: int
    sha256: str
    counts: RowCounts
    rejections: list[dict[str, Any]]


class ShardWriter:
    """Writes the shards of a source into `folder/.work`, each once."""

    def __init__(self, folder: Path, source: RowSource, options: PackOptions, on_row: Callable[[int], None]):
        self._work = folder / WORK
        self._source = source
        self._options = options
        self._on_row = on_row
        self._work.mkdir(exist_ok=True)

    def path_of(self, shard: PlannedShard) -> Path:
        """Where the file of a shard lies."""
        return self._work / f"{shard.name}.parquet"

    def write(self, shard: PlannedShard) -> ShardNote:
        """Write a shard, unless an earlier run finished the same one."""
        row = RejectedRecord if shard.config.endswith(NEGATIVES) else self._source.row
        fingerprint = shard.fingerprint(self._options, row.__name__)
        note = self.find_note(shard, fingerprint)
        if note is not None:
            self._on_row(len(shard.rows))
            return note
        note = self._write_file(shard, published_features(row), fingerprint)
        _write_whole(
            self._note_path(shard), json.dumps(vars(note) | {"counts": vars(note.counts)}, ensure_ascii=False)
        )
        return note

    def find_note(self, shard: PlannedShard, fingerprint: str) -> ShardNote | None:
        """The note of a shard that is finished and fits the plan."""
        try:
            content = json.loads(self._note_path(shard).read_text(encoding="utf-8"))
            note = ShardNote(**(content | {"counts": RowCounts.from_dict(content["counts"])}))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return note if note.fingerprint == fingerprint and self._is_whole(shard, note) else None

    def _is_whole(self, shard: PlannedShard, note: ShardNote) -> bool:
        path = self.path_of(shard)
        return note.num_rows == 0 or (path.exists() and path.stat().st_size == note.file_bytes)

    def remove_others(self, shards: list[PlannedShard]) -> None:
        """Delete what an earlier run left that is no part of this plan."""
        names = {shard.name for shard in shards}
        for path in self._work.iterdir():
            if path.stem not in names:
                path.unlink()

    def remove_unfinished(self) -> None:
        """Delete what was being written; finished shards stay for the next run."""
        for path in self._work.glob("*.tmp"):
            path.unlink()
        if not any(self._work.iterdir()):
            self._work.rmdir()

    def _note_path(self, shard: PlannedShard) -> Path:
        return self._work / f"{shard.name}.json"

    def _write_file(self, shard: PlannedShard, features: Features, fingerprint: str) -> ShardNote:
        self._note_path(shard).unlink(missing_ok=True)
        path = self.path_of(shard)
        unfinished = path.with_suffix(".tmp")
        counts, rejections = RowCounts(), []
        file = ParquetFile(unfinished, features, self._options.row_group_bytes)
        for record in self._iter_loaded(shard.rows):
            if isinstance(record, dict):
                rejections.append(record)
            else:
                file.write(record.model_dump(), stored_bytes(record))
                counts.add(record)
            self._on_row(1)
        file.close()
        with unfinished.open("rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())  # the note must not survive a power cut that the file does not
        if file.num_rows:
            unfinished.replace(path)
        else:
            unfinished.unlink()
        file_bytes = path.stat().st_size if file.num_rows else 0
        return ShardNote(fingerprint, file.num_rows, file.num_bytes, file_bytes, sha256, counts, rejections)

    def _iter_loaded(self, plans: list[RowPlan]) -> Iterator[Record | dict[str, Any]]:
        """Rows in order, or their lines in the rejections; while one is written, the next ones are read."""
        pending: deque[Future[Record | dict[str, Any]]] = deque()
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            try:
                for plan in plans:
                    pending.append(pool.submit(self._load, plan))
                    if len(pending) == NUM_THREADS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, plan: RowPlan) -> Record | dict[str, Any]:
        """The row of a plan, or its line in the rejections."""
        try:
            record = self._source.load(plan)
        except RowFault as fault:
            return rejection_of(plan, fault.reason, input_prompt=fault.input_prompt)
        known = {name: getattr(record, name) for name in ("input_prompt", "output_sha256", "image_model")}
        reason = find_fault(record, decodes=not self._source.has_looked)
        if reason is not None:
            return rejection_of(plan, reason, **known)
        try:
            return record if self._options.encoding is None else lighten(record, self._options.encoding)
        except RowFault as fault:
            return rejection_of(plan, fault.reason, **known)


def rejection_of(plan: RowPlan, reason: str, **known: str | None) -> dict[str, Any]:
    """A row of `rejections.parquet`."""
    row = {"id": plan.id, "task": plan.task, "reason": reason, "location": plan.location}
    return row | {"input_prompt": plan.input_prompt} | known


def count_reasons(rejections: list[dict[str, Any]]) -> Counter[str]:
    """How often each reason was given, particulars left out."""
    return Counter(without_particulars(rejection["reason"]) for rejection in rejections)


def stored_bytes(record: Record) -> int:
    """About how many bytes a record takes: its pictures, and a round figure for the text beside them."""
    return len(record.output_image.bytes) + sum(len(image.bytes) for image in record.input_image) + TEXT_BYTES


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
