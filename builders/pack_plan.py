# SPDX-License-Identifier: Apache-2.0
"""Planned rows -> planned files: which row goes into which shard, before a picture is read.

The plan follows from the source and the options alone, so that a run that was killed finds the shards it has finished.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow

from sharegpt4o_image import __version__
from sharegpt4o_image.builders.light_variant import planned_bytes
from sharegpt4o_image.builders.parquet_shards import FIRST_SHARD_BYTES, TEXT_BYTES
from sharegpt4o_image.builders.row_source import ImageEncoding, RowPlan
from sharegpt4o_image.builders.splits import TRAIN, assign_splits
from sharegpt4o_image.schema import TASKS, content_id

NEGATIVES = "_negatives"  # ending of the configurations with rows that a quality gate refused
CONFIGS = (*TASKS, *(f"{task}{NEGATIVES}" for task in TASKS))
REPEATED = "id occurs twice"


@dataclass(frozen=True)
class PackOptions:
    """What `pack` was asked for.

    Args:
        splits (`dict`): name -> share of the rows, for other splits than `train`.
        includes_negatives (`bool`): pack the pictures that quality gates refused, as configurations of their own.
        encoding (`ImageEncoding`, *optional*): make the pictures smaller.
        shard_bytes (`int`): a file is closed before its rows would hold more than this; the first one of a split
            earlier, see `FIRST_SHARD_BYTES`.
        row_group_bytes (`int`): a row group is closed before its rows would hold more than this.
    """

    splits: Mapping[str, float]
    includes_negatives: bool
    encoding: ImageEncoding | None
    shard_bytes: int
    row_group_bytes: int


@dataclass
class PlannedShard:
    """A file to come; shards are numbered within their configuration and split."""

    config: str
    split: str
    index: int
    rows: list[RowPlan] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called while other shards are still missing."""
        return f"{self.config}.{self.split}.{self.index:05d}"

    def fingerprint(self, options: PackOptions, row_name: str) -> str:
        """Changes when anything changes that the file depends on."""
        return content_id(
            row=row_name,
            writer=[__version__, pyarrow.__version__],
            encoding=repr(options.encoding),
            row_group_bytes=options.row_group_bytes,
            rows=[[plan.id, plan.digest] for plan in self.rows],
        )


@dataclass
class PackPlan:
    """All files to come, and the rows that are known to be kept out, with the reasons."""

    shards: list[PlannedShard] = field(default_factory=list)
    rejected: list[tuple[RowPlan, str]] = field(default_factory=list)
    num_left_out: int = 0  # negatives that were not asked for

    @property
    def num_rows(self) -> int:
        return sum(len(shard.rows) for shard in self.shards)


def make_plan(rows: Iterable[RowPlan], options: PackOptions) -> PackPlan:
    """Deal rows out to shards, in their order."""
    plan = PackPlan()
    kept = []
    seen: set[str] = set()
    for row in rows:
        if row.is_negative and not options.includes_negatives:
            plan.num_left_out += 1
            continue
        reason = row.fault or (REPEATED if row.id in seen else None)
        if reason is not None:
            plan.rejected.append((row, reason))
            continue
        seen.add(row.id)
        kept.append(row)
    plan.shards = _deal_out(kept, assign_splits(kept, options.splits), options)
    return plan


def _deal_out(rows: list[RowPlan], splits: list[str], options: PackOptions) -> list[PlannedShard]:
    shards: dict[tuple[str, str], list[PlannedShard]] = {}
    filled: dict[tuple[str, str], int] = {}
    for row, split in zip(rows, splits, strict=True):
        key = (row.task + NEGATIVES if row.is_negative else row.task, split)
        size = row_bytes(row, options.encoding)
        group = shards.setdefault(key, [])
        limit = options.shard_bytes if len(group) > 1 else min(options.shard_bytes, FIRST_SHARD_BYTES)
        if not group or filled[key] + size > limit:
            group.append(PlannedShard(*key, index=len(group)))
            filled[key] = 0
        group[-1].rows.append(row)
        filled[key] += size
    ranked = sorted(shards, key=lambda key: (CONFIGS.index(key[0]), key[1] != TRAIN, key[1]))
    return [shard for key in ranked for shard in shards[key]]


def _count_pictures(row: RowPlan) -> int:
    """At least those that the task has."""
    return max(len(row.pictures), 1 if row.task == "text_to_image" else 2)


def row_bytes(row: RowPlan, encoding: ImageEncoding | None) -> int:
    """About how much a row takes in a file."""
    pictures = row.num_bytes if encoding is None else planned_bytes(row.num_bytes, _count_pictures(row), encoding)
    return pictures + TEXT_BYTES
