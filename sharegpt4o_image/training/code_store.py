# SPDX-License-Identifier: Apache-2.0
"""VQ codes beside a data set: one Parquet file for each of its data files, under the fingerprint of what made them.

    codes/1f0c6a.../text_to_image/train-00000-of-00002.parquet
    codes/1f0c6a.../text_to_image/train-00001-of-00002.parquet
    codes/1f0c6a.../text_and_image_to_image/train-00000-of-00001.parquet

A codes file has the rows of its data file, in order; one with a picture that cannot be read has a `fault`, no codes:

    id   target_sha256  target_codes (P)  source_sha256     source_codes     fault
    a1   9f86d0...      [7, 5012, ...]    []                []               null
    b2   60303a...      [88, 3, ...]      [fd61a0...]       [[14, 9, ...]]   null
    c3   ab5df6...      null              [e3b0c4...]       null             an input image is not there
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharegpt4o_image.builders.packed_set import find_shards
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS

CODES = "codes"
FORMAT_VERSION = 1

_NEEDED_COLUMNS = {"id", "task", "input_prompt", "input_image", "output_image", "output_sha256"}
_METADATA_KEY = b"sharegpt4o_image.codes"
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)

_TEXT = pa.string()
_CODES = pa.list_(pa.uint16())
COLUMNS = {
    "id": _TEXT,
    "target_sha256": _TEXT,
    "target_codes": _CODES,
    "source_sha256": pa.list_(_TEXT),
    "source_codes": pa.list_(_CODES),
    "fault": _TEXT,
}


class Fingerprint(NamedTuple):
    """What codes depend on.

    Args:
        weights: hash of the encoder's weights.
        geometry: how pictures become square.
        digest: hash of both and of the other numbers of the preparation; the name of the folder.
    """

    weights: str
    geometry: str
    digest: str


@dataclass(frozen=True)
class DataFile:
    """A file with rows of one of the two trained configurations."""

    config: str
    split: str
    path: Path

    @property
    def name(self) -> str:
        """Its path within the data set."""
        return f"{self.config}/{self.path.name}"


def find_data_files(dataset_dir: Path) -> list[DataFile]:
    """All files with rows to train on; text to image first, since its targets may be the sources of edits."""
    found = [DataFile(*shard) for shard in find_shards(dataset_dir) if shard[0] in TASKS]
    return sorted(found, key=lambda file: TASKS.index(file.config))


def check_columns(files: Iterable[DataFile]) -> None:
    """Name what a data file lacks of what is encoded and trained."""
    for file in files:
        try:
            missing = _NEEDED_COLUMNS - set(pq.read_schema(file.path).names)
        except PARQUET_ERRORS as error:
            raise damaged(file, error) from error
        if missing:
            raise UserError(
                f"{file.path} has no column {', '.join(sorted(missing))}; `sharegpt4o-image pack` writes data sets "
                "that have all."
            )


class CodeStore:
    """The codes of one image tokenizer and geometry for the files of a data set."""

    def __init__(self, dataset_dir: Path, fingerprint: Fingerprint):
        self.fingerprint = fingerprint
        self.folder = dataset_dir / CODES / fingerprint.digest

    def path_of(self, file: DataFile) -> Path:
        """Where the codes of a data file lie."""
        return self.folder / file.config / file.path.name

    def write(self, file: DataFile, columns: dict[str, list[Any]]) -> None:
        """Write the codes of a data file, whole or not at all, also when two processes write the same."""
        schema = pa.schema(list(COLUMNS.items()), metadata={_METADATA_KEY: json.dumps(self._describe(file))})
        path = self.path_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as written:
                pq.write_table(pa.Table.from_pydict(columns, schema=schema), written)
                os.fsync(written.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def find_fault(self, file: DataFile) -> str | None:
        """Why the codes of a data file cannot be used, or `None`: they are there and belong to its rows."""
        path = self.path_of(file)
        if not path.is_file():
            return "there is no such file"
        if read_metadata(path) != self._describe(file):
            return f"it was made from another {file.name}"
        try:
            codes = pq.read_table(path, columns=["id", "target_sha256", "fault"])
        except PARQUET_ERRORS as error:
            return f"it cannot be read: {_phrase(error)}"
        rows = read_columns(file, ["id", "output_sha256"])
        if codes["id"] != rows["id"]:
            return f"its ids are not those of {file.name}"
        found = zip(*(column.to_pylist() for column in codes.columns), rows["output_sha256"].to_pylist(), strict=True)
        is_same = all(fault or stated in (None, encoded) for _, encoded, fault, stated in found)
        return None if is_same else f"{file.name} has other pictures now"

    def read(self, file: DataFile, columns: list[str]) -> pa.Table:
        """Columns of the codes of a data file."""
        return pq.read_table(self.path_of(file), columns=columns)

    def finished_paths(self) -> list[Path]:
        """All codes files that are there."""
        return sorted(self.folder.glob("*/[!.]*.parquet"))

    def _describe(self, file: DataFile) -> dict[str, Any]:
        return {
            "version": FORMAT_VERSION,
            **self.fingerprint._asdict(),
            "data_file": file.name,
            "data_file_bytes": file.path.stat().st_size,
        }


class CodeIndex:
    """sha256 of a picture -> its codes (P,), from all finished files of a store and what was added."""

    def __init__(self, store: CodeStore):
        self._store = store
        self._codes: dict[str, np.ndarray] = {}
        self._seen: set[Path] = set()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._codes

    def __getitem__(self, sha256: str) -> np.ndarray:
        return self._codes[sha256]

    def add(self, sha256: str, codes: np.ndarray) -> None:
        """Remember a picture's codes."""
        self._codes[sha256] = codes

    def refresh(self) -> None:
        """Read the files that were finished since, by this process or another."""
        for path in self._store.finished_paths():
            if path not in self._seen:
                self._seen.add(path)
                self._codes.update(_read_pairs(path, self._store.fingerprint))


def _read_pairs(path: Path, fingerprint: Fingerprint) -> Iterator[tuple[str, np.ndarray]]:
    """sha256 and codes of all pictures of a codes file; nothing where it is damaged or of another format."""
    metadata = read_metadata(path)
    if metadata.get("digest") != fingerprint.digest or metadata.get("version") != FORMAT_VERSION:
        return
    try:
        table = pq.read_table(path, columns=list(COLUMNS)[1:5])
    except PARQUET_ERRORS:
        return
    whole = table.filter(table["target_codes"].is_valid()).combine_chunks()
    for kind in ("target", "source"):
        for chunk_of_names, chunk in zip(whole[f"{kind}_sha256"].chunks, whole[f"{kind}_codes"].chunks, strict=True):
            names, codes = (chunk_of_names, chunk) if kind == "target" else (chunk_of_names.flatten(), chunk.flatten())
            if len(names):
                numbers = codes.flatten().to_numpy().reshape(len(names), -1)
                yield from zip(names.to_pylist(), numbers, strict=True)


# ------------------------------------------------------------------ reading


def read_columns(file: DataFile, columns: list[str]) -> pa.Table:
    """Columns of a data file."""
    try:
        return pq.read_table(file.path, columns=columns)
    except PARQUET_ERRORS as error:
        raise damaged(file, error) from error


def count_rows(file: DataFile) -> int:
    """How many rows a data file has."""
    try:
        num_rows: int = pq.read_metadata(file.path).num_rows
        return num_rows
    except PARQUET_ERRORS as error:
        raise damaged(file, error) from error


def damaged(file: DataFile, error: BaseException) -> UserError:
    """What to say of a data file that cannot be read."""
    return UserError(f"{file.path} cannot be read ({_phrase(error)}); download it again, or pack the data set again")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a codes file says of itself; empty where it is none, or is damaged."""
    try:
        metadata: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[_METADATA_KEY])
        return metadata
    except (KeyError, *PARQUET_ERRORS):
        return {}


def _phrase(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
