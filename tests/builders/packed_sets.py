# SPDX-License-Identifier: Apache-2.0
"""Small packed sets to break in one place, and what the checks of `verify` then say."""

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from picture_records import ListSource, make_record, png
from PIL import Image

from sharegpt4o_image.builders import packer
from sharegpt4o_image.builders.verification_report import Check, VerificationReport
from sharegpt4o_image.schema import Record
from sharegpt4o_image.synthesis.pictures import difference_hash

EDITS = "text_and_image_to_image"
PICTURES = "text_to_image"

Row = dict[str, Any]


def record(index: int, **update: Any) -> Record:
    """A record whose words are in the paper's taxonomy."""
    words = {"edit_category": "image editing and manipulation", "edit_task": "background modification"}
    picture = Image.open(io.BytesIO(png(index)))
    known = {"output_phash": difference_hash(picture), **(words if index % 2 else {})}
    return make_record(index).model_copy(update={**known, **update})


def pack(records: Iterable[Record], folder: Path, **options: Any) -> None:
    row = options.pop("row", Record)
    negatives = options.pop("negatives", ())
    packer.pack(ListSource(records, negatives, row), folder, **options)


def shard(folder: Path, config: str = PICTURES, split: str = "train") -> Path:
    [path] = (folder / config).glob(f"{split}-*.parquet")
    return path


def rewrite(path: Path, change: Callable[[list[Row]], object]) -> None:
    """Change the rows of a file, and the size of the files in the card."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    restate(path, lambda: pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=2))


def restate(path: Path, write: Callable[[], object]) -> None:
    """Write a file; its new size goes into the card, too."""
    folder = path.parent.parent
    before, after = sum_sizes(path.parent), (write(), sum_sizes(path.parent))[1]
    edit_card(folder, f"download_size: {before}", f"download_size: {after}")


def sum_sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


def edit_card(folder: Path, old: str, new: str) -> None:
    text = (folder / "README.md").read_text()
    assert old in text
    (folder / "README.md").write_text(text.replace(old, new, 1))


def failing(report: VerificationReport) -> set[str]:
    return {check.name for check in report.checks if check.verdict == "failure"}


def found(report: VerificationReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def replace_output(row: Row, data: bytes | None) -> None:
    """Another picture, with its true sha256."""
    row["output_image"]["bytes"] = data
    row["output_sha256"] = None if data is None else hashlib.sha256(data).hexdigest()
    row["output_phash"] = None


def pack_plain(folder: Path) -> Path:
    """Six rows of each task, without the checksums of files, so that they may be rewritten."""
    pack([record(index) for index in range(12)], folder)
    (folder / "croissant.json").unlink(missing_ok=True)
    return folder
