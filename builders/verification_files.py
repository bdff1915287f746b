# SPDX-License-Identifier: Apache-2.0
"""A packed folder -> what is wrong with its card, its files, their columns and their counts; no row is read."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard

from sharegpt4o_image.builders.pack_plan import CONFIGS, NEGATIVES, REPEATED
from sharegpt4o_image.builders.packed_set import SOURCE_FACTS
from sharegpt4o_image.builders.packer import REJECTION_FEATURES, REJECTIONS
from sharegpt4o_image.builders.row_source import SourceFacts
from sharegpt4o_image.builders.verification_report import Check
from sharegpt4o_image.schema import LabelledRecord, Record, RejectedRecord, published_features

CARD = "README.md"
CROISSANT = "croissant.json"
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for files that are damaged or foreign

_SIDE_FOLDERS = ("card", "codes")
_KNOWN_FILES = re.compile(rf"{re.escape(CARD)}|{re.escape(CROISSANT)}|{re.escape(REJECTIONS)}|LICENSE.*|\..*")
_SHARD = re.compile(r"([a-z][a-z0-9_]*)-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class Shard:
    """A file with rows that can be read and has the published columns.

    Args:
        config (`str`): its folder.
        split (`str`): the first part of its name.
        path (`Path`): where it is.
        num_rows (`int`): as its footer says.
        row (type): what its rows are: `Record`, `RejectedRecord` or `LabelledRecord`.
    """

    config: str
    split: str
    path: Path
    num_rows: int
    row: type[Record]

    @property
    def name(self) -> str:
        """Its path within the data set."""
        return f"{self.config}/{self.path.name}"


@dataclass(frozen=True)
class Stated:
    """What `dataset_info` says of a configuration; sizes that it does not give are `None`."""

    features: Features | None
    num_rows: dict[str, int]  # split -> rows
    num_bytes: int  # of all splits
    dataset_size: int | None
    download_size: int | None


@dataclass
class Card:
    """What a README states.

    Args:
        patterns (`dict`): (configuration, split) -> pattern of its files.
        infos (`dict`): configuration -> columns and sizes.
        rows (`list`): the lines of the table of rows, header -> cell.
    """

    patterns: dict[tuple[str, str], str] = field(default_factory=dict)
    infos: dict[str, Stated] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        """Whether it names configurations that `pack` writes, so that the other files of `pack` are to be there."""
        return any(config in CONFIGS for config, _ in self.patterns)


# ------------------------------------------------------------------ card


def read_card(folder: Path, check: Check) -> Card:
    """The card, or an empty one and a failure."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        check.fail(f"{CARD} cannot be read: {error}")
        return Card()
    check.num_checked += 1
    try:
        data = DatasetCard(text).data
        patterns = dict(_iter_patterns(data.get("configs") or []))
        infos = dict(_iter_stated(DatasetInfosDict.from_dataset_card_data(data)))
    except Exception as error:  # YAML of anybody: the readers of huggingface_hub and datasets raise whatever comes
        check.fail(f"the YAML of {CARD} cannot be used: {error or type(error).__name__}")
        return Card(rows=_read_table(text))
    if not patterns:
        check.fail(f"the YAML of {CARD} names no configurations")
    if patterns and not infos:
        check.fail(f"the YAML of {CARD} has no dataset_info")
    return Card(patterns, infos, _read_table(text))


def _iter_patterns(configs: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], str]]:
    for config in configs:
        for files in config["data_files"]:
            names = config["config_name"], files["split"], files["path"]
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"data_files of {names[0]} are not one pattern for each split")
            yield (names[0], names[1]), names[2]


def _iter_stated(infos: dict[str, DatasetInfo]) -> Iterator[tuple[str, Stated]]:
    for config, info in infos.items():
        splits = info.splits or {}
        stated = Stated(
            features=info.features,
            num_rows={name: split.num_examples for name, split in splits.items()},
            num_bytes=sum(split.num_bytes for split in splits.values()),
            dataset_size=info.dataset_size,
            download_size=info.download_size,
        )
        numbers = [*stated.num_rows.values(), stated.num_bytes]
        numbers += [size for size in (stated.dataset_size, stated.download_size) if size is not None]
        names = [config, *stated.num_rows]
        if {type(name) for name in names} != {str} or {type(number) for number in numbers} != {int}:
            raise TypeError(f"dataset_info of {config} has names that are no text, or sizes that are no numbers")
        yield config, stated


def _read_table(text: str) -> list[dict[str, str]]:
    """The first table that has a column `Configuration` and one `Rows`."""
    header: list[str] = []
    rows: list[dict[str, str]] = []
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|"):
            if rows:
                break
            header = []
        elif not header:
            header = cells
        elif {"Configuration", "Rows"} <= {*header} and not set(line) <= set("|-: "):
            rows.append(dict(zip(header, cells, strict=False)))
    return rows


def check_features(card: Card, shards: Iterable[Shard], check: Check) -> None:
    """The columns that the card states are those of the files."""
    rows = {shard.config: shard.row for shard in shards}
    for config, row in rows.items():
        info = card.infos.get(config)
        if info is not None and (info.features is None or info.features != published_features(row)):
            check.fail(f"dataset_info of {config} does not state the columns of its files")
    for config in card.infos.keys() - {config for config, _ in card.patterns}:
        check.fail(f"dataset_info names {config}, which is no configuration")


# ------------------------------------------------------------------ files


def find_files(folder: Path, card: Card, check: Check) -> list[tuple[str, str, Path]]:
    """Configuration, split and path of every file with rows; what is missing or left over is a failure."""
    found = []
    configs = {config for config, _ in card.patterns}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            is_known = _KNOWN_FILES.fullmatch(entry.name) is not None
        else:
            is_known = entry.name in (*_SIDE_FOLDERS, *configs) or entry.name.startswith(".")
        if not is_known and not (entry.is_dir() and any(entry.glob("*.parquet"))):
            check.warn(f"{entry.name} is no part of a data set that `pack` writes")
        elif entry.is_dir() and entry.name not in _SIDE_FOLDERS and not entry.name.startswith("."):
            found += [(entry.name, path) for path in sorted(entry.glob("[!.]*"))]
    shards = [(config, split, path) for config, path in found if (split := _split_of(config, path, card, check))]
    check.num_checked += len(shards)
    _check_numbers(shards, check)
    names = [f"{config}/{path.name}" for config, _, path in shards]
    for (config, split), pattern in card.patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            check.fail(f"the card names {pattern} for {split} of {config}, but there is no such file")
    return shards


def _split_of(config: str, path: Path, card: Card, check: Check) -> str | None:
    """The split of a file, or a failure if it has none."""
    name = f"{config}/{path.name}"
    match = _SHARD.fullmatch(path.name)
    if match is None:
        check.fail(f"{name} is left over: it has no name of the form train-00000-of-00001.parquet")
        return None
    claims = [place for place, pattern in card.patterns.items() if fnmatchcase(name, pattern)]
    if card.patterns and claims != [(config, match[1])]:
        check.fail(f"{name} is left over: the card does not name it" if not claims else f"{name} is of {claims}")
    return match[1]


def _check_numbers(shards: list[tuple[str, str, Path]], check: Check) -> None:
    """`-00000-of-00002` and `-00001-of-00002` are both there, and nothing else."""
    numbers: dict[tuple[str, str], dict[str, set[int]]] = {}
    for config, split, path in shards:
        match = _SHARD.fullmatch(path.name)
        assert match is not None
        numbers.setdefault((config, split), {}).setdefault(match[3], set()).add(int(match[2]))
    for (config, split), by_total in numbers.items():
        if len(by_total) > 1:
            totals = " and ".join(str(int(total)) for total in by_total)
            check.fail(f"{config}/{split} has files of several sets, of {totals} files each")
            continue
        [(total, present)] = by_total.items()
        for index in sorted({*range(int(total))} - present):
            check.fail(f"{config}/{split}-{index:05d}-of-{total}.parquet is missing")
        for index in sorted(present - {*range(int(total))}):
            check.fail(f"{config}/{split}-{index:05d}-of-{total}.parquet is left over: its number is too large")


def read_footers(files: list[tuple[str, str, Path]], check: Check) -> list[Shard]:
    """The files that can be read and have the published columns; all others are failures."""
    shards = []
    for config, split, path in files:
        check.num_checked += 1
        try:
            with pq.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except PARQUET_ERRORS as error:
            check.fail(f"{config}/{path.name} cannot be read: {error}")
            continue
        row = _row_type(config, schema)
        fault = _schema_fault(schema, published_features(row).arrow_schema)
        if fault is not None:
            check.fail(f"{config}/{path.name} {fault}")
            continue
        shards.append(Shard(config, split, path, num_rows, row))
    for config in {shard.config for shard in shards}:
        kinds = sorted({shard.row.__name__ for shard in shards if shard.config == config})
        if len(kinds) > 1:
            check.fail(f"the files of {config} have different columns: {' and '.join(kinds)}")
    return shards


def _row_type(config: str, schema: pa.Schema) -> type[Record]:
    if config.endswith(NEGATIVES) or "reject_reason" in schema.names:
        return RejectedRecord
    return LabelledRecord if "label_model" in schema.names else Record


def _schema_fault(schema: pa.Schema, published: pa.Schema) -> str | None:
    """How columns differ from the published ones; how `datasets` is told to take them counts, too."""
    if schema.equals(published):
        return None if _is_described_alike(schema, published) else "does not tell `datasets` the published columns"
    missing = [name for name in published.names if name not in schema.names]
    if missing:
        return f"lacks the columns {', '.join(missing)}"
    unknown = [name for name in schema.names if name not in published.names]
    if unknown:
        return f"has the columns {', '.join(unknown)}, which are not published"
    for name in published.names:
        if len(schema.get_all_field_indices(name)) > 1:
            return f"has the column {name} twice"
        if schema.field(name).type != published.field(name).type:
            return f"has {name} as {schema.field(name).type}, published is {published.field(name).type}"
    return "has its columns in another order"


def _is_described_alike(schema: pa.Schema, published: pa.Schema) -> bool:
    try:
        return bool(Features.from_arrow_schema(schema) == Features.from_arrow_schema(published))
    except Exception:  # JSON of anybody in the footer: whatever `datasets` raises on it is a finding
        return False


# ------------------------------------------------------------------ counts


def check_counts(card: Card, files: list[tuple[str, str, Path]], shards: list[Shard], check: Check) -> None:
    """Rows and bytes that the card states; a split with files that cannot be read is left out."""
    readable = {shard.path for shard in shards}
    unread = {(config, split) for config, split, path in files if path not in readable}
    rows: Counter[tuple[str, str]] = Counter()
    for shard in shards:
        rows[shard.config, shard.split] += shard.num_rows
    for config, info in card.infos.items():
        sizes = {(config, split): count for split, count in info.num_rows.items()}
        places = {place for place in {*rows, *sizes} if place[0] == config} - unread
        for place in sorted(places):
            check.num_checked += 1
            if rows.get(place) != sizes.get(place):
                check.fail(f"{'/'.join(place)} has {rows.get(place, 0):,} rows, dataset_info says {sizes.get(place)}")
        if not any(config == name for name, _ in unread):
            _check_sizes(config, info, files, check)
    for config in {config for config, _ in rows} - card.infos.keys() if card.infos else ():
        check.fail(f"dataset_info lacks {config}")
    if unread:
        check.note = f"not compared: {', '.join('/'.join(place) for place in sorted(unread))}, which cannot be read"
    else:
        _check_table(card, rows, Counter((config, split) for config, split, _ in files), check)


def _check_sizes(config: str, info: Stated, files: list[tuple[str, str, Path]], check: Check) -> None:
    file_bytes = sum(path.stat().st_size for name, _, path in files if name == config)
    if info.download_size not in (None, file_bytes):
        check.fail(f"the files of {config} have {file_bytes:,} bytes, dataset_info says {info.download_size:,}")
    if info.dataset_size not in (None, info.num_bytes):
        check.fail(f"the splits of {config} sum to {info.num_bytes:,} bytes, dataset_info says {info.dataset_size:,}")


def _check_table(
    card: Card, rows: Counter[tuple[str, str]], num_files: Counter[tuple[str, str]], check: Check
) -> None:
    """The table that people read; where it has no column `Split`, a line is a configuration."""
    if not card.rows:
        check.warn("the card has no table of configurations with their rows")
        return
    has_splits = "Split" in card.rows[0]
    for name, counts in (("Rows", rows), ("Files", num_files)):
        actual: Counter[str] = Counter()
        for (config, split), count in counts.items():
            actual[f"{config}/{split}" if has_splits else config] += count
        stated = {
            f"{line['Configuration']}/{line['Split']}" if has_splits else line["Configuration"]: line[name]
            for line in card.rows
            if name in line
        }
        for place in sorted({*actual, *stated}) if stated else ():
            check.num_checked += 1
            if stated.get(place, "none").replace(",", "") != str(actual[place]):
                check.fail(
                    f"{place} has {actual[place]:,} {name.lower()}, the table says {stated.get(place, 'nothing')}"
                )


# ------------------------------------------------------------------ beside the rows


def iter_rejected_ids(folder: Path, check: Check) -> Iterator[str]:
    """The ids of rows that were kept out, save those whose id another row has, which is why they were."""
    path = folder / REJECTIONS
    if not path.is_file():
        return
    try:
        with pq.ParquetFile(path) as file:
            fault = _schema_fault(file.schema_arrow, REJECTION_FEATURES.arrow_schema)
            if fault is not None:
                check.fail(f"{REJECTIONS} {fault}")
                return
            for batch in file.iter_batches(columns=["id", "reason"]):
                for row in batch.to_pylist():
                    check.num_checked += 1
                    if row["reason"] is None:
                        check.fail(f"{REJECTIONS} gives no reason for {row['id']}")
                    if row["id"] is not None and row["reason"] != REPEATED:
                        yield row["id"]
    except PARQUET_ERRORS as error:
        check.fail(f"{REJECTIONS} cannot be read: {error}")


def check_source(folder: Path, card: Card, check: Check) -> None:
    """What says how the set was made can be read; else its taxonomy and a smaller encoding are not known."""
    path = folder / SOURCE_FACTS
    if not path.is_file():
        _warn_of_missing(SOURCE_FACTS, card, check)
        return
    try:
        SourceFacts.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        check.warn(f"{SOURCE_FACTS} cannot be used: {type(error).__name__}: {error}")


def _warn_of_missing(name: str, card: Card, check: Check) -> None:
    if card.is_ours:
        check.warn(f"{name} is missing, which `pack` writes")


def check_croissant(
    folder: Path, card: Card, files: list[tuple[str, str, Path]], check: Check, reads_files: bool
) -> None:
    """The files that `croissant.json` lists are there, with its sizes and checksums; no file with rows lacks."""
    path = folder / CROISSANT
    if not path.is_file():
        _warn_of_missing(CROISSANT, card, check)
        return
    try:
        listed = dict(_iter_listed(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        check.fail(f"{CROISSANT} cannot be used: {type(error).__name__}: {error}")
        return
    if not reads_files:
        check.note = "sizes only: a sample leaves out the sha256 of whole files"
    for name, entry in listed.items():
        check.num_checked += 1
        fault = _listed_fault(folder, name, entry, reads_files)
        if fault is not None:
            check.fail(f"{name} {fault}")
    for config, _, file in files:
        if f"{config}/{file.name}" not in listed:
            check.fail(f"{CROISSANT} does not list {config}/{file.name}")


def _iter_listed(metadata: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and entry of every file of the data set itself; what has the address of a repository is none."""
    for entry in metadata["distribution"]:
        url = str(entry.get("contentUrl", ""))
        if entry.get("sha256") and url and "://" not in url:
            yield url, entry


def _listed_fault(folder: Path, name: str, entry: dict[str, Any], reads_files: bool) -> str | None:
    path = folder / name
    if name.startswith("/") or ".." in Path(name).parts:
        return "lies outside of the data set"
    if not path.is_file():
        return f"is listed in {CROISSANT}, but is not there"
    stated = str(entry.get("contentSize", "")).removesuffix("B").strip()
    if stated and stated != str(path.stat().st_size):
        return f"has {path.stat().st_size} bytes, {CROISSANT} says {stated}"
    if reads_files:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"does not have the sha256 that {CROISSANT} says"
    return None
