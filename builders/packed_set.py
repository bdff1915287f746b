# SPDX-License-Identifier: Apache-2.0
"""A packed data set as a source of rows: to make a light variant of it, or to give it labels."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import metadata_load
from pyarrow import ArrowInvalid

from sharegpt4o_image.builders.pack_plan import CONFIGS, NEGATIVES
from sharegpt4o_image.builders.row_source import RowFault, RowPlan, SourceFacts
from sharegpt4o_image.builders.splits import SPLIT_NAME
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import LabelledRecord, Record, RejectedRecord, content_id

SOURCE_FACTS = "card/source.json"  # what `pack` writes down of the source
_JSON_COLUMNS = ("image_params", "usage")
_IMAGE_COLUMNS = ("input_image", "output_image")


class PackedSet:
    """The rows of a folder that `pack` wrote, in the order of its files.

    At most two row groups are in memory; rows are best loaded in the order of the plan.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards = list(_find_shards(folder))
        self.row = _row_type(pq.read_schema(self._shards[0][2]))
        self._lock = Lock()
        self._groups: dict[tuple[int, int], list[dict[str, Any]]] = {}  # the last two: threads overlap at the seam

    def plan(self) -> Iterator[RowPlan]:
        """Every row; no picture is read."""
        for number, (config, split, path) in enumerate(self._shards):
            with pq.ParquetFile(path) as file:
                stamp = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
                columns = [name for name in file.schema_arrow.names if name not in _IMAGE_COLUMNS]
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=columns).to_pylist()
                    size = file.metadata.row_group(group).total_byte_size // max(1, len(rows))
                    for index, row in enumerate(rows):
                        yield self._plan_of(row, config, split, size, stamp, (number, group, index))

    def _plan_of(
        self, row: Mapping[str, Any], config: str, split: str, size: int, stamp: list[Any], locator: tuple[int, ...]
    ) -> RowPlan:
        sources = (row["source_id"] or "").split("; ")
        return RowPlan(
            id=row["id"],
            task=row["task"],
            digest=content_id(row=row, stamp=stamp, locator=locator),
            num_bytes=size,
            location=f"{config}/{stamp[0]}, row group {locator[1]}, row {locator[2]}",
            locator=locator,
            pictures=(*(source for source in sources if source), row["id"]),
            split=split,
            is_negative=config.endswith(NEGATIVES),
        )

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
        path = self._shards[number][2]
        try:
            with pq.ParquetFile(path) as file:
                rows: list[dict[str, Any]] = file.read_row_group(group).to_pylist()
                return rows
        except (ArrowInvalid, OSError) as error:
            raise RowFault(f"{path.name} is damaged: {' '.join(str(error).split())[:200]}") from error

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
    except (OSError, ValueError, TypeError, KeyError):
        return SourceFacts(kind="data_set", name=folder.resolve().name)


def is_packed_set(folder: Path) -> bool:
    """Whether a folder has the card and a configuration of a packed set."""
    return (folder / "README.md").is_file() and any((folder / config).is_dir() for config in CONFIGS)


def _find_shards(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Configuration, split and path of every file that the card names."""
    try:
        configs = (metadata_load(folder / "README.md") or {})["configs"]
        names = [(c["config_name"], d["split"]) for c in configs for d in c["data_files"]]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is no data set that `sharegpt4o-image pack` wrote; pack it again") from error
    shards = [
        (config, split, path)
        for config, split in names
        if config in CONFIGS and SPLIT_NAME.fullmatch(split)
        for path in sorted((folder / config).glob(f"{split}-*.parquet"))
    ]
    if not shards:
        raise UserError(f"{folder} holds no data files; `sharegpt4o-image pack` writes a data set")
    yield from shards


def _row_type(schema: pa.Schema) -> type[Record]:
    if "label_model" in schema.names:
        return LabelledRecord
    return RejectedRecord if "reject_reason" in schema.names else Record


def _as_record(row: dict[str, Any]) -> Record:
    texts = {name: row[name] for name in _JSON_COLUMNS if isinstance(row[name], str)}
    opened = {name: json.loads(text) for name, text in texts.items()}
    kind = LabelledRecord if "label_model" in row else RejectedRecord if "reject_reason" in row else Record
    return kind.model_validate({**row, **opened})
