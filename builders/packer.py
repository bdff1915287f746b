# SPDX-License-Identifier: Apache-2.0
"""Rows of a source -> a folder that `load_dataset` reads and that can be uploaded to the Hub as it is.

`sharegpt4o-image/` holds

    README.md                                              card; its YAML names configurations and splits
    text_to_image/train-00000-of-00002.parquet             one folder for each task that has rows
    text_and_image_to_image/train-00000-of-00001.parquet
    text_to_image_negatives/train-00000-of-00001.parquet   where asked for: pictures that a quality gate refused
    rejections.parquet                                     only when rows were kept out: which, and why
    card/                                                  plots that the card shows, and what the source said
    croissant.json                                         the same as metadata, with the checksum of every file

`encode` may add `codes/`; packing again removes it, since codes belong to the rows they were made from.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import Features, Value

from sharegpt4o_image.builders.card_counts import CardFacts, RowCounts, SplitCounts
from sharegpt4o_image.builders.card_text import counted
from sharegpt4o_image.builders.coverage_plots import write_plots
from sharegpt4o_image.builders.croissant import write_croissant
from sharegpt4o_image.builders.dataset_card import MARKER, render_card
from sharegpt4o_image.builders.pack_plan import CONFIGS, NEGATIVES, PackOptions, PackPlan, PlannedShard, make_plan
from sharegpt4o_image.builders.packed_set import REJECTIONS, SOURCE_FACTS
from sharegpt4o_image.builders.parquet_shards import ROW_GROUP_BYTES, SHARD_BYTES, ParquetFile
from sharegpt4o_image.builders.row_source import ImageEncoding, RowSource, SourceFacts
from sharegpt4o_image.builders.shard_writer import WORK, ShardNote, ShardWriter, count_reasons, rejection_of
from sharegpt4o_image.builders.staging import require_place, staged_folder
from sharegpt4o_image.errors import UserError

OnProgress = Callable[[int, int], None]

REJECTION_COLUMNS = ("id", "task", "reason", "location", "input_prompt", "output_sha256", "image_model")
REJECTION_FEATURES = Features({name: Value("string") for name in REJECTION_COLUMNS})


@dataclass(frozen=True)
class PackSummary:
    """What `pack` wrote.

    Args:
        out_dir (`Path`): where.
        splits (`dict`): configuration -> split -> what it holds.
        rejections (`Counter`): reason -> rows that were kept out.
        num_left_out (`int`): refused pictures that were not asked for.
    """

    out_dir: Path
    splits: dict[str, dict[str, SplitCounts]]
    rejections: Counter[str]
    num_left_out: int = 0

    @property
    def configs(self) -> dict[str, SplitCounts]:
        """The counts of each configuration, its splits together."""
        return {name: _total(splits.values()) for name, splits in self.splits.items()}

    def to_json(self) -> str:
        """The summary as one line of JSON."""
        configs = {
            name: asdict(total) | {"splits": {split: asdict(counts) for split, counts in self.splits[name].items()}}
            for name, total in self.configs.items()
        }
        own = {"out_dir": str(self.out_dir), "rejections": self.rejections, "left_out": self.num_left_out}
        return json.dumps(own | {"configs": configs})

    def to_text(self) -> str:
        """The summary for people, ending with the line of Python that loads the data set."""
        lines = [
            f"{name}{'' if list(splits) == ['train'] else f' ({split})'}: {counted(counts.num_rows, 'row')} in "
            f"{counted(counts.num_shards, 'file')}, {counts.file_bytes / 1e6:,.2f} MB"
            for name, splits in self.splits.items()
            for split, counts in splits.items()
        ]
        if self.rejections:
            lines.append(f"{counted(self.rejections.total(), 'row')} kept out, see {self.out_dir / REJECTIONS}")
        if self.num_left_out:
            lines.append(f"{counted(self.num_left_out, 'refused picture')} left out; --include-negatives packs them")
        config, splits = next(iter(self.splits.items()))
        lines.append(f'load_dataset("{self.out_dir}", "{config}", split="{next(iter(splits))}")')
        return "\n".join(lines)


def _total(counts: Iterable[SplitCounts]) -> SplitCounts:
    total = SplitCounts()
    for one in counts:
        total.num_rows += one.num_rows
        total.num_shards += one.num_shards
        total.num_bytes += one.num_bytes
        total.file_bytes += one.file_bytes
    return total


def pack(
    source: RowSource,
    out_dir: Path,
    *,
    splits: Mapping[str, float] | None = None,
    includes_negatives: bool = False,
    encoding: ImageEncoding | None = None,
    shard_bytes: int = SHARD_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
    on_progress: OnProgress | None = None,
) -> PackSummary:
    """Write the rows of a source as a data set folder; the same rows give the same files.

    The folder appears whole or not at all, and replaces one that an earlier run wrote. Until then the shards that are
    finished lie beside it in `.<name>.partial`, and a run that follows a killed one goes on from them. A row with a
    fault is kept out and listed in `rejections.parquet`. The source is closed.

    Reads: `source`; in memory are the list of all rows without their pictures, one row group, and the rows that are
    being decoded (`shard_writer.NUM_THREADS`).
    Writes: `out_dir`, as shown at the top of this module.

    Args:
        source (`RowSource`):
            Where the rows come from: a run, an upstream release or a packed set.
        out_dir (`Path`):
            An absent or empty folder, or one that `pack` wrote.
        splits (`dict`, *optional*):
            Name -> share of the rows, for splits beside `train`.
        includes_negatives (`bool`, *optional*, defaults to `False`):
            Pack also the pictures that quality gates refused, as configurations of their own.
        encoding (`ImageEncoding`, *optional*):
            Make the pictures smaller; without it, they are stored byte for byte as they were received.
        shard_bytes (`int`, *optional*, defaults to 500 MiB):
            A Parquet file is closed before its rows would hold more than this; the first one of a split is smaller.
        row_group_bytes (`int`, *optional*, defaults to 32 MiB):
            A row group is closed before its rows would hold more than this.
        on_progress (callable, *optional*):
            Called with the number of rows dealt with, and of all.
    """
    target = out_dir.resolve()
    options = PackOptions(splits or {}, includes_negatives, encoding, shard_bytes, row_group_bytes)
    with closing(source):
        refuse_foreign(target)
        _refuse_source(source, target)
        plan = make_plan(source.plan(), options)
        with staged_folder(target, keeps_unfinished=True) as folder:
            facts = _write_set(source, plan, options, folder, target.name, on_progress)
            refuse_foreign(target)  # nobody may have added anything meanwhile
            shutil.rmtree(folder / WORK)
    return PackSummary(out_dir, facts.splits, facts.rejections, plan.num_left_out)


def _write_set(
    source: RowSource,
    plan: PackPlan,
    options: PackOptions,
    folder: Path,
    title: str,
    on_progress: OnProgress | None,
) -> CardFacts:
    progress = _Progress(plan.num_rows, on_progress)
    writer = ShardWriter(folder, source, options, progress.advance)
    try:
        writer.remove_others(plan.shards)
        notes = [writer.write(shard) for shard in plan.shards]
    except BaseException:
        writer.remove_unfinished()
        raise
    rejections = [rejection_of(row, reason) for row, reason in plan.rejected]
    rejections += [rejection for note in notes for rejection in note.rejections]
    splits, digests = _publish(plan.shards, notes, writer, folder)
    source_facts = _with_steps(source.facts(), options.encoding)
    facts = CardFacts(
        title=title,
        row=source.row,
        splits=splits,
        rows=_merged(plan.shards, notes, is_negative=False),
        negatives=_merged(plan.shards, notes, is_negative=True),
        rejections=count_reasons(rejections),
        source=source_facts,
        encoding=source_facts.encoding,
    )
    if not facts.splits:
        shutil.rmtree(folder / WORK)
        raise UserError(_nothing_to_pack(facts.rejections))
    _write_rejections(folder / REJECTIONS, rejections)
    write_plots(folder, facts.rows)
    (folder / SOURCE_FACTS).parent.mkdir(exist_ok=True)
    (folder / SOURCE_FACTS).write_text(source_facts.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(render_card(facts), encoding="utf-8")
    write_croissant(folder, digests=digests)
    return facts


def _with_steps(facts: SourceFacts, encoding: ImageEncoding | None) -> SourceFacts:
    """The facts of the new set: how its pictures were encoded last, and a note on what was done to them before."""
    if encoding is None:
        return facts
    notes = facts.notes if facts.encoding is None else (*facts.notes, f"Before, the pictures were {facts.encoding}.")
    return replace(facts, encoding=encoding, notes=notes)


class _Progress:
    def __init__(self, num_rows: int, on_progress: OnProgress | None):
        self._done, self._num_rows, self._on_progress = 0, num_rows, on_progress

    def advance(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None:
            self._on_progress(self._done, self._num_rows)


def _publish(
    shards: list[PlannedShard], notes: list[ShardNote], writer: ShardWriter, folder: Path
) -> tuple[dict[str, dict[str, SplitCounts]], dict[str, str]]:
    """Give all files their published names, which state how many there are; count what they hold.

    Returns:
        configuration -> split -> counts, and name of a file -> its sha256.
    """
    for entry in folder.iterdir():  # of a run that was killed further on
        if entry.name != WORK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    splits: dict[str, dict[str, SplitCounts]] = {}
    digests: dict[str, str] = {}
    filled = [(shard, note) for shard, note in zip(shards, notes, strict=True) if note.num_rows]
    for (config, split), group in groupby(filled, key=lambda pair: (pair[0].config, pair[0].split)):
        members = list(group)
        counts = splits.setdefault(config, {}).setdefault(split, SplitCounts(num_shards=len(members)))
        (folder / config).mkdir(exist_ok=True)
        for index, (shard, note) in enumerate(members):
            path = folder / config / f"{split}-{index:05d}-of-{len(members):05d}.parquet"
            _link(writer.path_of(shard), path)
            digests[path.relative_to(folder).as_posix()] = note.sha256
            counts.sha256 = hashlib.sha256((counts.sha256 + note.sha256).encode()).hexdigest()
            counts.num_rows += note.num_rows
            counts.num_bytes += note.num_bytes
            counts.file_bytes += path.stat().st_size
    return splits, digests


def _link(shard: Path, published: Path) -> None:
    """A second name for a shard, so that a run that is killed from here on finds it under the first."""
    try:
        published.hardlink_to(shard)
    except OSError:  # a file system without hard links
        shard.rename(published)


def _merged(shards: list[PlannedShard], notes: list[ShardNote], is_negative: bool) -> RowCounts:
    total = RowCounts()
    for shard, note in zip(shards, notes, strict=True):
        if shard.config.endswith(NEGATIVES) == is_negative:
            total.merge(note.counts)
    return total


def _write_rejections(path: Path, rejections: list[dict[str, Any]]) -> None:
    """`rejections.parquet`, which comes into being with the first rejected row."""
    if not rejections:
        return
    file = ParquetFile(path, REJECTION_FEATURES)
    for rejection in rejections:
        row = {name: rejection.get(name) for name in REJECTION_COLUMNS}
        file.write(row, 200 + len(row["input_prompt"] or ""))
    file.close()


def _nothing_to_pack(rejections: Counter[str]) -> str:
    if not rejections:
        return "there is no finished record to pack; `sharegpt4o-image synthesize` finishes some"
    [(reason, count)] = rejections.most_common(1)
    return f"every record has a fault, {count:,} of {rejections.total():,} this one: {reason}; look at the source"


def _refuse_source(source: RowSource, target: Path) -> None:
    """The folder that is read must outlive the one that is replaced."""
    folder = source.folder and source.folder.resolve()
    if folder is not None and (target == folder or target in folder.parents):
        raise UserError(f"{target} holds what is packed; choose another folder with --output")


def refuse_foreign(out_dir: Path) -> None:
    """Only an absent folder, an empty one, or one that `pack` wrote and nobody added to may be replaced."""
    elsewhere = "choose another folder with --output"
    if not require_place(out_dir):
        return
    foreign = next((path for path in sorted(out_dir.rglob("*")) if not _is_ours(path, out_dir)), None)
    if foreign is not None:
        raise UserError(f"{out_dir} holds something else ({foreign.relative_to(out_dir)}); move it, or {elsewhere}")
    if any(out_dir.iterdir()) and not (out_dir / "README.md").exists():
        raise UserError(f"{out_dir} holds Parquet files without the card that pack writes; move it, or {elsewhere}")


_CONFIG = f"({'|'.join(CONFIGS)})"
_OWN_FILES = re.compile(
    rf"{_CONFIG}(/[a-z][a-z0-9_]*-\d+-of-\d+\.parquet)?"
    rf"|{re.escape(REJECTIONS)}"
    r"|card(/[a-z_]+\.png|/source\.json)?|croissant\.json"
    # made from the rows by `training.encoding`; void once the rows change
    rf"|codes(/[0-9a-f]{{16}}(/{_CONFIG}(/[^/]+\.(parquet|tmp))?)?)?"
)


def _is_ours(path: Path, out_dir: Path) -> bool:
    name = path.relative_to(out_dir).as_posix()
    if name == "README.md":
        return MARKER in path.read_text(encoding="utf-8", errors="replace")
    return _OWN_FILES.fullmatch(name) is not None
