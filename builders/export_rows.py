# SPDX-License-Identifier: Apache-2.0
"""A packed folder or Hub repository -> rows with their pictures as stored, one after the other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Features, Image, IterableDataset, List, get_dataset_split_names
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError
from pyarrow import ArrowException

from sharegpt4o_image.builders.loading import config_names, load_rows
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS

PICTURE_COLUMNS = ("input_image", "output_image")

# How the files of each format begin.
_SIGNATURES = {"png": rb"\x89PNG\r\n\x1a\n", "jpg": rb"\xff\xd8\xff", "gif": rb"GIF8", "webp": rb"RIFF....WEBP"}
_PLAIN_ID = re.compile(r"[0-9A-Za-z_-]{1,80}")


class RowRefused(Exception):
    """Why a row cannot be exported, as a phrase: `output_image has no bytes`."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture as stored, and the file extension of the format that it truly has."""

    data: bytes
    extension: str


@dataclass(frozen=True)
class ExportRow:
    """A row to be exported.

    Args:
        id (`str`): safe as a file name.
        metadata (`dict`): all columns but the pictures.
        sources (`tuple`): what was edited.
        output (`Picture`): the result.
    """

    id: str
    metadata: dict[str, Any]
    sources: tuple[Picture, ...]
    output: Picture

    @property
    def pictures(self) -> dict[str, Picture]:
        """Role -> picture: `output`, and `source` or `source0`, `source1`, ..."""
        if len(self.sources) == 1:
            return {"output": self.output, "source": self.sources[0]}
        return {"output": self.output} | {f"source{k}": picture for k, picture in enumerate(self.sources)}


@dataclass(frozen=True)
class StoredRows:
    """The rows of one configuration; `raw` holds pictures as `{"bytes", "path"}`."""

    config: str
    raw: IterableDataset
    metadata_features: Features
    num_rows: int | None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self.raw
        except (ArrowException, OSError, DatasetGenerationError) as error:
            raise UserError(
                f"{self.config} cannot be read ({_in_a_line(error)}); download or pack it again"
            ) from error


def open_rows(dataset: str, config: str | None, split: str, limit: int | None) -> list[StoredRows]:
    """The configurations to export, to be read as a stream.

    Args:
        dataset (`str`): folder that `pack` wrote, or repository on the Hub.
        config (`str`, *optional*): only this one; without it, all but those of refused pictures.
        split (`str`): what to read of each; a configuration that lacks it is left out unless it was named.
        limit (`int`, *optional*): rows of each.
    """
    known = config_names(dataset)
    if config is not None and config not in known:
        raise UserError(f"{dataset} has no rows for {config}, only for {' and '.join(known)}; name one that it has")
    names = [name for name in known if name in TASKS] if config is None else [config]
    if not names:
        raise UserError(f"{dataset} has none of the configurations {' and '.join(TASKS)}; name one with --config")
    splits = {name: get_dataset_split_names(dataset, name) for name in names}
    chosen = [name for name in names if split in splits[name]]
    if not chosen:
        found = " and ".join(dict.fromkeys(split for name in names for split in splits[name]))
        raise UserError(f"{dataset} has no split {split}, only {found}; name one of them with --split")
    return [_open_config(dataset, name, split, limit) for name in chosen]


def _open_config(dataset: str, config: str, split: str, limit: int | None) -> StoredRows:
    try:
        rows = load_rows(dataset, config, split=split, streaming=True)
    except DataFilesNotFoundError as error:
        raise UserError(f"{dataset} lacks files of {config}; download or pack it again") from error
    assert isinstance(rows, IterableDataset)
    features = rows.features or Features({})
    missing = [name for name in ("id", "task", "input_prompt", *PICTURE_COLUMNS) if name not in features]
    if missing:
        raise UserError(f"{dataset} has no column {missing[0]} in {config}; give a set that `pack` wrote")
    metadata = Features({name: feature for name, feature in features.items() if name not in PICTURE_COLUMNS})
    num_rows = rows.info.splits[split].num_examples if rows.info.splits else None
    rows = rows.cast_column("input_image", List(Image(decode=False)))
    rows = rows.cast_column("output_image", Image(decode=False))
    if limit is not None:
        rows = rows.take(limit)
        num_rows = None if num_rows is None else min(limit, num_rows)
    return StoredRows(config, rows, metadata, num_rows)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]


def read_row(raw: dict[str, Any]) -> ExportRow:
    """A stored row with its pictures recognised; raises [`RowRefused`]."""
    row_id = raw["id"]
    if not isinstance(row_id, str) or not _PLAIN_ID.fullmatch(row_id):
        raise UserError(
            f"the id {row_id!r} cannot name a file; ids are 1 to 80 letters, digits, - and _, so pack the set again"
        )
    return ExportRow(
        id=row_id,
        metadata={name: value for name, value in raw.items() if name not in PICTURE_COLUMNS},
        sources=tuple(_recognise("input_image", picture) for picture in raw["input_image"] or ()),
        output=_recognise("output_image", raw["output_image"]),
    )


def _recognise(column: str, picture: dict[str, Any] | None) -> Picture:
    data = picture["bytes"] if picture else None
    if not data:
        raise RowRefused(f"{column} has no bytes")
    for extension, signature in _SIGNATURES.items():
        if re.match(signature, data, re.DOTALL):
            return Picture(data, extension)
    raise RowRefused(f"{column} is no PNG, JPEG, GIF or WebP")
