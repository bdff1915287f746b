# SPDX-License-Identifier: Apache-2.0
"""A packed data set as a source of rows: to make a light variant of it, or to give it labels."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import metadata_load
from pydantic import ValidationError

from sharegpt4o_image.builders.pack_plan import CONFIGS, NEGATIVES
from sharegpt4o_image.builders.row_source import RowFault, RowPlan, SourceFacts
from sharegpt4o_image.builders.splits import SPLIT_NAME
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import LabelledRecord, Record, RejectedRecord, Task, content_id

SOURCE_FACTS = "card/source.json"  # what `pack` writes down of the source
REJECTIONS = "rejections.parquet"
_JSON_COLUMNS = ("image_params", "usage")
_IMAGE_COLUMNS = ("input_image", "output_image")


class PackedSet:
    """The rows of a folder that `pack` wrote, in the order of its files; what was kept out then is kept out again.

    At most two row groups are in memory; rows are best loaded in the order of the plan.

    Args:
        folder (`Path`): the set; `shards` has configuration, split and path of all its files.
    """

    has_looked = False

    def __init__(self, folder: Path):
        self.folder: Path | None = folder
        self._folder = folder
        self.shards = list(find_shards(folder))
        self._schemas = [_read_schema(path) for _, _, path in self.shards]
        self.row = _row_type(self._schemas[0])
        self._lock = Lock()
        self._groups: dict[tuple[int, int], list[dict[str, Any]]] = {}  # the last two: threads overlap at the seam

    def plan(self) -> Iterator[RowPlan]:
        """Every row, and every row that was kept out; no picture is read."""
        for number in range(len(self.shards)):
            with _damage(self.shards[number][2]):
                yield from self._plan_shard(number)
        yield from _plan_rejections(self._folder / REJECTIONS)

    def _plan_shard(self, number: int) -> Iterator[RowPlan]:
        config, split, path = self.shards[number]
        stamp = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name not in _IMAGE_COLUMNS]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=columns).to_pylist()
                size = file.metadata.row_group(group).total_byte_size // max(1, len(rows))
                for index, row in enumerate(rows):
                    yield _plan_of(row, config, split, size, stamp, (number, group, index))

    def load(self, plan: RowPlan) -> Record:
        """The row of a plan; its pictures are the bytes that are stored."""
        number, group, index = plan.locator
        with self._lock:
            if (number, group) not in self._groups:
                kept = list(self._groups.items())[-1:]
                self._groups = dict(kept) | {(number, group): self._read_group(number, group)}
            row = self._groups[number, group][index]
        return _as_record(row)

    def _read_group(self, number: int, group: int) -> list[dict[str, Any]]:
        path = self.shards[number][2]
        try:
            with pq.ParquetFile(path) as file:
                rows: list[dict[str, Any]] = file.read_row_group(group).to_pylist()
                return rows
        except (pa.ArrowException, OSError) as error:
            raise RowFault(f"its file is damaged: {path.name}, {' '.join(str(error).split())[:200]}") from error

    def facts(self) -> SourceFacts:
        """What the source said that it was packed from, or its name."""
        return read_facts(self._folder)

    def close(self) -> None:
        """Let go of the row groups in memory."""
        self._groups = {}


def read_facts(folder: Path) -> SourceFacts:
    """What the source said that a set was packed from; where that is not there, the name of the set."""
    try:
        return SourceFacts.from_json((folder / SOURCE_FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return SourceFacts(kind="data_set", name=folder.resolve().name)


def is_packed_set(folder: Path) -> bool:
    """Whether a folder has the card and a configuration of a packed set."""
    return (folder / "README.md").is_file() and any((folder / config).is_dir() for config in CONFIGS)


# --------------------------------------------------------------------------- files


def find_shards(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Configuration, split and path of every file that the card names; all of them must be there."""
    try:
        configs = (metadata_load(folder / "README.md") or {})["configs"]
        names = [(str(c["config_name"]), str(d["split"])) for c in configs for d in c["data_files"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is no data set that `sharegpt4o-image pack` wrote; pack it again") from error
    for config, split in names:
        if config not in CONFIGS or not SPLIT_NAME.fullmatch(split):
            raise UserError(
                f"the card of {folder} names {config!r} ({split!r}), which `pack` does not write; pack it again"
            )
        yield from ((config, split, path) for path in _complete(folder / config, split))


def _complete(folder: Path, split: str) -> list[Path]:
    paths = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    wanted = [f"{split}-{index:05d}-of-{len(paths):05d}.parquet" for index in range(len(paths))]
    if not paths or [path.name for path in paths] != wanted:
        raise UserError(f"{folder} lacks files of the split {split}; download or pack the data set again")
    return paths


def _read_schema(path: Path) -> pa.Schema:
    with _damage(path):
        schema = pq.read_schema(path)
    missing = Record.model_fields.keys() - set(schema.names)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}; pack the data set again")
    return schema


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); download it again") from error


# --------------------------------------------------------------------------- rows


def _plan_of(
    row: Mapping[str, Any], config: str, split: str, size: int, stamp: list[Any], locator: tuple[int, ...]
) -> RowPlan:
    sources = (row["source_id"] or "").split("; ")
    return RowPlan(
        id=str(row["id"]),
        task=_task_of(config),
        digest=content_id(row=row, stamp=stamp, locator=locator),
        num_bytes=size,
        location=f"{config}/{stamp[0]}, row group {locator[1]}, row {locator[2]}",
        locator=locator,
        pictures=(*(source for source in sources if source), str(row["id"])),
        split=split,
        is_negative=config.endswith(NEGATIVES),
    )


def _plan_rejections(path: Path) -> Iterator[RowPlan]:
    """The rows that were kept out, with the reasons."""
    if not path.is_file():
        return
    with _damage(path):
        rows = pq.read_table(path).to_pylist()
    for row in rows:
        yield RowPlan(
            id=str(row.get("id")),
            task=_task_of(str(row.get("task"))),
            digest="",
            num_bytes=0,
            location=str(row.get("location")),
            fault=str(row.get("reason")),
            input_prompt=row.get("input_prompt"),
        )


def _task_of(config: str) -> Task:
    return "text_to_image" if config.removesuffix(NEGATIVES) == "text_to_image" else "text_and_image_to_image"


def _row_type(schema: pa.Schema) -> type[Record]:
    if "label_model" in schema.names:
        return LabelledRecord
    return RejectedRecord if "reject_reason" in schema.names else Record


def _as_record(row: dict[str, Any]) -> Record:
    kind = LabelledRecord if "label_model" in row else RejectedRecord if "reject_reason" in row else Record
    try:
        texts = {name: row[name] for name in _JSON_COLUMNS if isinstance(row[name], str)}
        return kind.model_validate({**row, **{name: json.loads(text) for name, text in texts.items()}})
    except ValidationError as error:
        first = error.errors()[0]
        raise RowFault(f"a column has no valid value: {first['loc'][0]}, {first['msg']}") from error
    except ValueError as error:
        raise RowFault(f"a column has no valid value: {error}") from error
