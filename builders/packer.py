# SPDX-License-Identifier: Apache-2.0
"""Records -> a folder that `load_dataset` reads and that can be uploaded to the Hub as it is.

`sharegpt4o-image/` holds

    README.md                                              card; its YAML names the configurations; written last
    text_to_image/train-00000-of-00002.parquet             one folder for each task that has rows
    text_and_image_to_image/train-00000-of-00001.parquet
    rejections.parquet                                     only when rows were kept out: which, and why

`encode` may add `codes/`; packing again removes it, since codes belong to the rows they were made from.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Features, Value

from sharegpt4o_image.builders.dataset_card import MARKER, CardCounts, ConfigCounts, render_card
from sharegpt4o_image.builders.parquet_shards import (
    ROW_GROUP_BYTES,
    SHARD_BYTES,
    ParquetFile,
    ShardedParquet,
)
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.staging import staged_folder
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, Record, published_features

REJECTIONS = "rejections.parquet"
REJECTION_FEATURES = Features(
    {name: Value("string") for name in ("id", "task", "reason", "input_prompt", "output_sha256", "image_model")}
)


@dataclass(frozen=True)
class PackSummary:
    """What `pack` wrote."""

    out_dir: Path
    configs: dict[str, ConfigCounts]
    rejections: Counter[str]

    def to_json(self) -> str:
        """The summary as one line of JSON."""
        configs = {name: asdict(config) for name, config in self.configs.items()}
        return json.dumps({"out_dir": str(self.out_dir), "configs": configs, "rejections": self.rejections})

    def to_text(self) -> str:
        """The summary for people, ending with the line of Python that loads the data set."""
        lines = [
            f"{name}: {_count(config.num_rows, 'row')} in {_count(config.num_shards, 'file')}, "
            f"{config.file_bytes / 1e6:,.2f} MB"
            for name, config in self.configs.items()
        ]
        if self.rejections:
            lines.append(f"{_count(self.rejections.total(), 'row')} kept out, see {self.out_dir / REJECTIONS}")
        lines.append(f'load_dataset("{self.out_dir}", "{next(iter(self.configs))}", split="train")')
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pack(
    records: Iterable[Record],
    out_dir: Path,
    *,
    row: type[Record] = Record,
    shard_bytes: int = SHARD_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> PackSummary:
    """Write records as a data set folder; the same records give the same files.

    The folder appears whole or not at all, and replaces one that an earlier run wrote. A record with a fault is kept
    out and listed in `rejections.parquet`.

    Reads: `records`, once and in order; at most one row group per task is in memory.
    Writes: `out_dir`, as shown at the top of this module.

    Args:
        records (iterable of `Record`):
            The rows, of both tasks and in any order; pictures are stored byte for byte as they are given.
        out_dir (`Path`):
            An absent or empty folder, or one that `pack` wrote.
        row (type, *optional*, defaults to `Record`):
            What the records are; `RejectedRecord` for a set of negatives, whose card says so.
        shard_bytes (`int`, *optional*, defaults to 500 MiB):
            A Parquet file is closed when its rows hold this much.
        row_group_bytes (`int`, *optional*, defaults to 32 MiB):
            A row group is closed when its rows hold this much.
    """
    target = out_dir.resolve()
    _refuse_foreign(target)
    with staged_folder(target) as folder:
        counts = _write_rows(records, row, folder, shard_bytes, row_group_bytes)
        (folder / "README.md").write_text(render_card(target.name, counts), encoding="utf-8")
    return PackSummary(out_dir, counts.configs, counts.rejections)


def _write_rows(
    records: Iterable[Record], row: type[Record], folder: Path, shard_bytes: int, row_group_bytes: int
) -> CardCounts:
    features = published_features(row)
    counts = CardCounts(row)
    writers: dict[str, ShardedParquet] = {}
    rejected = _Rejections(folder / REJECTIONS, counts.rejections)
    seen: set[str] = set()
    for record in records:
        reason = "id occurs twice" if record.id in seen else find_fault(record)
        if reason is not None:
            rejected.write(record, reason)
            continue
        seen.add(record.id)
        if record.task not in writers:
            writers[record.task] = ShardedParquet(folder / record.task, features, shard_bytes, row_group_bytes)
        writers[record.task].write(record)
        counts.add(record)
    rejected.close()
    if not writers:
        raise UserError(_nothing_to_pack(counts.rejections))
    for task in TASKS:
        if task in writers:
            counts.configs[task] = _finish(writers[task])
    return counts


def _finish(writer: ShardedParquet) -> ConfigCounts:
    shards = writer.finish()
    file_bytes = sum(shard.stat().st_size for shard in shards)
    return ConfigCounts(writer.num_rows, len(shards), writer.num_bytes, file_bytes)


class _Rejections:
    """`rejections.parquet`, which comes into being with the first rejected record."""

    def __init__(self, path: Path, reasons: Counter[str]):
        self._path = path
        self._reasons = reasons
        self._file: ParquetFile | None = None

    def write(self, record: Record, reason: str) -> None:
        self._reasons[reason] += 1
        self._file = self._file or ParquetFile(self._path, REJECTION_FEATURES)
        known = record.model_dump(include=set(REJECTION_FEATURES))
        self._file.write({**known, "reason": reason}, len(record.input_prompt) + 200)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _nothing_to_pack(rejections: Counter[str]) -> str:
    if not rejections:
        return "there is no finished record to pack; let `sharegpt4o-image synthesize` finish some first"
    [(reason, count)] = rejections.most_common(1)
    return (
        f"every record has a fault, {count:,} of {rejections.total():,} this one: {reason}; "
        "look at the run's pictures and synthesize again"
    )


def _refuse_foreign(out_dir: Path) -> None:
    """Only an absent folder, an empty one, or one that `pack` wrote and nobody added to may be replaced."""
    elsewhere = "choose another folder with --output"
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; {elsewhere}")
    if out_dir == Path.cwd() or out_dir.is_mount():
        raise UserError(f"{out_dir} cannot be replaced as a whole; name a folder inside it with --output")
    foreign = next((path for path in sorted(out_dir.rglob("*")) if not _is_ours(path, out_dir)), None)
    if foreign is not None:
        raise UserError(f"{out_dir} holds something else ({foreign.relative_to(out_dir)}); move it, or {elsewhere}")
    if any(out_dir.iterdir()) and not (out_dir / "README.md").exists():
        raise UserError(f"{out_dir} holds Parquet files without the card that pack writes; move it, or {elsewhere}")


_TASK = f"({'|'.join(TASKS)})"
_OWN_FILES = re.compile(
    rf"{_TASK}(/train-\d+-of-\d+\.parquet)?"
    rf"|{re.escape(REJECTIONS)}"
    rf"|codes(/{_TASK}\.(parquet|tmp))?"  # made from the rows by `training.encoding`; void once the rows change
)


def _is_ours(path: Path, out_dir: Path) -> bool:
    name = path.relative_to(out_dir).as_posix()
    if name == "README.md":
        return MARKER in path.read_text(encoding="utf-8", errors="replace")
    return _OWN_FILES.fullmatch(name) is not None
