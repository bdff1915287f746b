# SPDX-License-Identifier: Apache-2.0
"""A `datasets.Dataset` -> samples for the collator: pictures decoded late, so that a broken one costs one sample."""

import hashlib
import io
from typing import Any, NamedTuple

import torch.utils.data
from datasets import Dataset, Image, List
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o.processing_janus4o import read_picture

_PICTURES = ("input_image", "output_image")


class SampleKey(NamedTuple):
    """Which sample of which epoch; what a sampler yields, so that worker processes need no state.

    Args:
        epoch: from 0.
        row: its number; `None` for a blank that fills a process's batch up and that no loss counts.
        repetition: how often the row came before in this epoch.
    """

    epoch: int
    row: int | None
    repetition: int = 0


class TrainingRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows by [`SampleKey`] (or by number, as of epoch 0), for [`DataCollatorForImageGeneration`].

    A row that cannot be used, because its pictures cannot be read or are not those that were encoded, comes as
    `is_blank`, with the reason in `skipped`.

    Args:
        rows: with `input_prompt` and `target_codes` or `output_image`; edits with `input_image`, a list of pictures or
            a single one. A picture may be a path. `id`, `source_codes` and `source_sha256` (a list) are used where
            they are there.
    """

    def __init__(self, rows: Dataset):
        check_columns(rows)
        self._rows = without_decoding(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        key = key if isinstance(key, SampleKey) else SampleKey(0, key)
        if key.row is None:
            return {"id": "blank", "epoch": key.epoch, "input_prompt": "", "is_blank": True}
        row = self._rows[key.row]
        row |= {"id": id_of(row, key.row), "epoch": key.epoch, "repetition": key.repetition}
        row["input_image"] = _as_list(row.get("input_image"))
        try:
            _check_conditions(row)
            row |= _read_pictures(row)
        except ValueError as error:
            row |= {"is_blank": True, "skipped": " ".join(str(error).split())}
        return row


def check_columns(rows: Dataset) -> None:
    """Say which columns are missing, if any."""
    columns = set(rows.column_names)
    if "input_prompt" not in columns or not columns & {"target_codes", "output_image"}:
        raise UserError(
            f"The training rows have the columns {', '.join(sorted(columns))}; needed are input_prompt and either "
            "output_image or target_codes, and input_image for edits. `sharegpt4o-image pack` writes such a data set."
        )


def without_decoding(rows: Dataset) -> Dataset:
    """The rows with pictures as `{"bytes", "path"}`: reading a row cannot fail on a broken picture.

    Both are views of the same Arrow table; `cast_column` would write a copy of every list of pictures to the disk.
    """
    undecoded = rows.with_format(None)
    features = undecoded.features
    for name in set(_PICTURES) & set(features):
        feature = features[name]
        if isinstance(feature, Image):
            features[name] = Image(decode=False)
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            features[name] = List(Image(decode=False), length=feature.length)
    undecoded.info.features = features
    return undecoded


def id_of(row: dict[str, Any], number: int) -> str:
    """The row's `id`; its number where it has none."""
    row_id = row.get("id")
    return str(number if row_id is None else row_id)


def _as_list(stored: Any) -> list[Any]:
    if isinstance(stored, list):
        return stored
    return [stored] if stored else []


def _check_conditions(row: dict[str, Any]) -> None:
    num_sources, codes = len(row["input_image"]), row.get("source_codes")
    if row["input_prompt"] is None:
        raise ValueError("it has no prompt")
    if codes is not None and len(codes) != num_sources:
        raise ValueError(f"{len(codes)} blocks of source codes for {num_sources} input images")


def _read_pictures(row: dict[str, Any]) -> dict[str, Any]:
    """The row's pictures decoded; the target only if the data set has no codes."""
    sources = row["input_image"]
    expected = row.get("source_sha256") or [None] * len(sources)
    read: dict[str, Any] = {
        "input_image": [_picture(one, sha256) for one, sha256 in zip(sources, expected, strict=True)]
    }
    if "target_codes" not in row:
        read["output_image"] = _picture(row["output_image"])
    elif row["target_codes"] is None:
        raise ValueError("it has no target codes")
    return read


def _picture(stored: Any, sha256: str | None = None) -> PILImage.Image:
    if stored is None:
        raise ValueError("a picture is missing")
    if isinstance(stored, PILImage.Image | str):
        return read_picture(stored)
    if stored["bytes"] is None:
        return read_picture(stored["path"])
    if sha256 is not None and hashlib.sha256(stored["bytes"]).hexdigest() != sha256:
        raise ValueError("an input image is not the one that was encoded; run `sharegpt4o-image encode` again")
    try:
        return read_picture(PILImage.open(io.BytesIO(stored["bytes"])))
    except UnidentifiedImageError as error:
        raise ValueError("cannot identify image file") from error  # Pillow names an address in memory
    except Exception as error:  # damaged files make Pillow raise almost anything, a TypeError, too
        raise ValueError(str(error) or type(error).__name__) from error
