# SPDX-License-Identifier: Apache-2.0
"""A data file -> its codes file; pictures whose codes are known already are not encoded again."""

import hashlib
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.code_store import COLUMNS, PARQUET_ERRORS, CodeIndex, CodeStore, DataFile, damaged
from sharegpt4o_image.training.encoding import encode_pixels

_ROW_COLUMNS = ["id", "input_image", "output_image", "output_sha256"]
_PICTURE_ERRORS = (
    ValueError,
    OSError,
    SyntaxError,
    Image.DecompressionBombError,
)  # what Pillow raises for broken ones


@dataclass(frozen=True)
class FileNote:
    """What was done for a data file.

    Args:
        num_encoded: pictures that went through the encoder.
        num_copied: pictures whose codes were there, be it from another file or from another row.
    """

    num_encoded: int
    num_copied: int


class _Row(NamedTuple):
    """A row whose pictures are named by their sha256; `stated` is what the data set says of its target."""

    id: str
    stated: str | None
    target: str
    sources: list[str]


@dataclass
class _Seen:
    """The rows of a file so far, the pictures that had no codes, and why some of them cannot be read."""

    rows: list[_Row] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)


class FileEncoder:
    """Encodes data files one after the other.

    Args:
        store: where codes go.
        model: with the image tokenizer in fp32.
        processor: with the geometry of the store.
        batch_size: pictures that are encoded at once.
        num_threads: threads that decode and resize pictures meanwhile.
        on_row: called for each row that is read.
    """

    def __init__(
        self,
        store: CodeStore,
        model: Janus4oForImageGeneration,
        processor: Janus4oProcessor,
        batch_size: int,
        num_threads: int,
        on_row: Callable[[], None],
    ):
        self._store = store
        self._model = model
        self._processor = processor
        self._batch_size = batch_size
        self._num_threads = num_threads
        self._on_row = on_row
        self._known = CodeIndex(store)

    def encode(self, file: DataFile) -> FileNote:
        """Write the codes of a data file.

        Reads: `id`, `input_image`, `output_image`, `output_sha256`.
        Writes: the columns of `code_store.py`.
        """
        self._known.refresh()
        seen = _Seen()
        prepared = self._prepare_ahead(self._iter_new(file, seen), seen)
        while batch := list(itertools.islice(prepared, self._batch_size)):
            names, pixels = zip(*batch, strict=True)
            for name, codes in zip(names, encode_pixels(self._model, pixels), strict=True):
                self._known.add(name, codes)
        self._store.write(file, self._columns(seen))
        num_pictures = sum(1 + len(row.sources) for row in seen.rows)
        return FileNote(len(seen.new) - len(seen.faults), num_pictures - len(seen.new))

    def _iter_new(self, file: DataFile, seen: _Seen) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each picture that has no codes yet; one row group is in memory."""
        for row in _iter_rows(file):
            target, *sources = map(_stored_bytes, (row["output_image"], *(row["input_image"] or ())))
            names = [hashlib.sha256(data).hexdigest() for data in (target, *sources)]
            for name, data in zip(names, (target, *sources), strict=True):
                if name not in self._known and name not in seen.new:
                    seen.new.add(name)
                    yield name, data
            seen.rows.append(_Row(row["id"], row["output_sha256"], names[0], names[1:]))
            self._on_row()

    def _prepare_ahead(self, pictures: Iterable[tuple[str, bytes]], seen: _Seen) -> Iterator[tuple[str, Tensor]]:
        """Pixels of the pictures in order; up to two batches are prepared before they are asked for."""
        pending: deque[tuple[str, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(self._num_threads) as pool:
            for name, data in pictures:
                pending.append((name, pool.submit(self._prepare, data)))
                if len(pending) == 2 * self._batch_size:
                    yield from _finish(pending, seen)
            while pending:
                yield from _finish(pending, seen)

    def _prepare(self, data: bytes) -> Tensor:
        """Pixels (1, 3, H, W) of an encoded picture."""
        if not data:
            raise ValueError("is not there")
        try:
            with Image.open(io.BytesIO(data)) as picture:
                return self._processor.source_pixels([picture])
        except UnidentifiedImageError as error:  # its text tells an address in memory
            raise ValueError("is no picture, or a damaged one") from error

    def _columns(self, seen: _Seen) -> dict[str, list[Any]]:
        """The codes file's columns: rows in order, without codes where a picture cannot be read."""
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for row in seen.rows:
            fault = _fault_of(row, seen.faults)
            columns["id"].append(row.id)
            columns["target_sha256"].append(row.target)
            columns["source_sha256"].append(row.sources)
            columns["target_codes"].append(None if fault else self._known[row.target])
            columns["source_codes"].append(None if fault else [self._known[name] for name in row.sources])
            columns["fault"].append(fault)
        return columns


def _finish(pending: deque[tuple[str, Future[Tensor]]], seen: _Seen) -> Iterator[tuple[str, Tensor]]:
    """The next picture, unless it cannot be read."""
    name, future = pending.popleft()
    try:
        pixels = future.result()
    except _PICTURE_ERRORS as error:
        seen.faults[name] = " ".join(str(error).split()).removeprefix("The source image ")
        return
    yield name, pixels


def _fault_of(row: _Row, faults: dict[str, str]) -> str | None:
    """Why a row gets no codes."""
    if row.target in faults:
        return f"the output image {faults[row.target]}"
    if row.stated not in (None, row.target):
        return "the output image is not the one that output_sha256 states"
    return next((f"an input image {faults[name]}" for name in row.sources if name in faults), None)


def _iter_rows(file: DataFile) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            for group in range(parquet.num_row_groups):
                yield from parquet.read_row_group(group, columns=_ROW_COLUMNS).to_pylist()
    except PARQUET_ERRORS as error:
        raise damaged(file, error) from error


def _stored_bytes(picture: dict[str, Any] | None) -> bytes:
    return (picture or {}).get("bytes") or b""
