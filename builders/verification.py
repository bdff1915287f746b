# SPDX-License-Identifier: Apache-2.0
"""A packed data set -> a report on whether it is what its card and its columns say.

    report = verify_dataset(Path("sharegpt4o-image"))
    report.is_sound, report.to_json(), report.to_table()

Everything is read once, row group by row group; of a sample, the values of all rows and the pictures of some.
"""

import random
import warnings
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from sharegpt4o_image.builders.packed_set import read_facts
from sharegpt4o_image.builders.verification_files import (
    PARQUET_ERRORS,
    Shard,
    check_counts,
    check_croissant,
    check_features,
    check_source,
    find_files,
    iter_rejected_ids,
    read_card,
    read_footers,
)
from sharegpt4o_image.builders.verification_report import Check, VerificationReport
from sharegpt4o_image.builders.verification_rows import ColumnWords, RowChecks, SeenPicture, SeenRow, see_picture
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.taxonomy import EMBEDDED, load_taxonomy

NUM_THREADS = 8  # rows whose pictures are decoded at once; our choice
BATCH_ROWS = 16  # rows with pictures that are taken from a file at once, and so held in memory; our choice
VALUE_BATCH_ROWS = 1024  # the same of rows without pictures

OnProgress = Callable[[int, int], None]

_DEMANDS = {
    "card": "README.md can be read and states the columns of the files",
    "files": "the files that the card names are there, and no others",
    "schema": "every file can be read and has the published columns",
    "counts": "the card states the rows and bytes that are there",
    "rows": "values have their types, and a row's task is that of its configuration",
    "ids": "ids are well-formed and differ",
    "pictures": "every picture is embedded, decodes to its last pixel and has the recorded size",
    "checksums": "sha256 and perceptual hash of outputs are the recorded ones",
    "sources": "edits carry their sources, which are those that they name",
    "splits": "no picture, of any column, is in two splits",
    "duplicates": "outputs of a split differ",
    "categories": "words are those of the taxonomy, and edit tasks belong to their category",
    "rejections": "what was kept out is not among the rows",
    "croissant": "croissant.json lists the files with their sizes and sha256",
}


def verify_dataset(
    dataset: Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    taxonomy: str | None = None,
    on_progress: OnProgress | None = None,
) -> VerificationReport:
    """Check a packed folder against its own claims.

    Reads: all of it; with `sample`, the values of all rows, and row groups with pictures only where one was drawn.

    Args:
        dataset (`Path`):
            A folder that `pack` wrote, or that was downloaded from the Hub.
        sample (`int`, *optional*):
            Decode the pictures of this many rows only, drawn at random from all. Pictures of other rows are compared
            with one another by their recorded sha256.
        seed (`int`, *optional*, defaults to 0):
            Of the sample.
        taxonomy (`str`, *optional*):
            A taxonomy of the package, or the path of a YAML file; by default the one that the set was made with, or
            `paper` where that is not known.
        on_progress (callable, *optional*):
            Called with the number of rows read, and of all.
    """
    if not dataset.is_dir():
        raise UserError(f"there is no folder {dataset}; give one that `pack` wrote, or download the data set first")
    checks = {name: Check(name, demand) for name, demand in _DEMANDS.items()}
    vocabularies = _find_vocabularies(dataset, taxonomy, checks["categories"])
    card = read_card(dataset, checks["card"])
    files = find_files(dataset, card, checks["files"])
    if not files:
        raise UserError(f"{dataset} holds no data files; `sharegpt4o-image pack` writes a data set")
    shards = read_footers(files, checks["schema"])
    check_features(card, shards, checks["card"])
    check_counts(card, files, shards, checks["counts"])
    check_source(dataset, card, checks["files"])
    is_light = read_facts(dataset).encoding is not None
    if is_light:
        checks["checksums"].note = "perceptual hashes are not compared: those of a light variant are the originals'"
    report = VerificationReport(str(dataset), sum(shard.num_rows for shard in shards), 0, 0, list(checks.values()))
    drawn = None if sample is None else _draw(report.num_rows, sample, seed)
    row_checks = RowChecks(shards, checks, vocabularies, has_own_phash=not is_light)
    for row in _iter_seen(shards, drawn, checks["schema"]):
        row_checks.see(row)
        report.num_rows_read += 1
        report.num_rows_decoded += row.pictures is not None
        if on_progress is not None:
            on_progress(report.num_rows_read, report.num_rows)
    row_checks.finish(iter_rejected_ids(dataset, checks["rejections"]))
    check_croissant(dataset, card, files, checks["croissant"], reads_files=sample is None)
    return report


def _find_vocabularies(dataset: Path, taxonomy: str | None, check: Check) -> list[ColumnWords]:
    """The words that rows and labels are checked against; none where a set was made with a taxonomy of its own."""
    facts = read_facts(dataset)
    labelling = facts.labelling
    names = {"": taxonomy or facts.taxonomy or "paper"}
    names["label_"] = taxonomy or (labelling and labelling.taxonomy) or names[""]
    known = {prefix: name for prefix, name in names.items() if taxonomy is not None or name in EMBEDDED}
    if len(known) < len(names):
        check.note = "the set was made with a taxonomy of its own; give its file by --taxonomy"
    return [ColumnWords(load_taxonomy(name), prefix) for prefix, name in known.items()]


def _draw(num_rows: int, sample: int, seed: int) -> list[int]:
    """Numbers of rows, counted through all files."""
    return sorted(random.Random(seed).sample(range(num_rows), min(sample, num_rows)))


def _iter_seen(shards: list[Shard], drawn: Sequence[int] | None, check: Check) -> Iterator[SeenRow]:
    """Rows in order; while one is checked, the pictures of the next ones are decoded."""
    pending: deque[tuple[int, int, dict[str, Any], Future[list[SeenPicture]] | None]] = deque()
    first = 0
    with warnings.catch_warnings(), ThreadPoolExecutor(NUM_THREADS) as pool:
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, on odd but readable pictures
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # they are refused by their size
        for index, shard in enumerate(shards):
            wanted = None if drawn is None else _slice(drawn, first, shard.num_rows)
            first += shard.num_rows
            for number, values in _iter_values(shard, wanted, check):
                has_pictures = wanted is None or _slice(wanted, number, 1) != []
                pending.append((index, number, values, pool.submit(_see_pictures, values) if has_pictures else None))
                if len(pending) == NUM_THREADS:
                    yield _settle(*pending.popleft())
        while pending:
            yield _settle(*pending.popleft())


def _slice(numbers: Sequence[int], first: int, count: int) -> list[int]:
    """Those of sorted numbers that lie in `first..first+count-1`, counted from `first`."""
    part = numbers[bisect_left(numbers, first) : bisect_left(numbers, first + count)]
    return [number - first for number in part]


def _settle(shard: int, number: int, values: dict[str, Any], pictures: Future[list[SeenPicture]] | None) -> SeenRow:
    return SeenRow(shard, number, values, None if pictures is None else pictures.result())


def _see_pictures(values: dict[str, Any]) -> list[SeenPicture]:
    """Source pictures first; their bytes are let go of."""
    pictures = [see_picture(image) for image in [*(values["input_image"] or []), values["output_image"]]]
    values["output_image"] = None
    values["input_image"] = [None] * (len(pictures) - 1)
    return pictures


def _iter_values(shard: Shard, wanted: Sequence[int] | None, check: Check) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values of every row; bytes of pictures only in row groups with a row that is wanted."""
    number = 0
    try:
        with pq.ParquetFile(shard.path) as file:
            leaves = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
            without_bytes = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                is_wanted = wanted is None or _slice(wanted, number, num_rows) != []
                columns, batch_rows = (None, BATCH_ROWS) if is_wanted else (without_bytes, VALUE_BATCH_ROWS)
                for batch in file.iter_batches(batch_rows, [group], columns):
                    for values in batch.to_pylist():
                        yield number, values
                        number += 1
        if number != shard.num_rows:
            check.fail(f"{shard.name} has {number:,} rows, its footer says {shard.num_rows:,}")
    except PARQUET_ERRORS as error:
        check.fail(f"{shard.name} cannot be read after row {number}: {error}")
