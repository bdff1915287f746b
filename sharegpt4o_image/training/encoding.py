# SPDX-License-Identifier: Apache-2.0
"""Pictures -> VQ codes, once, in fp32 and without gradient, so that training need not encode them each epoch."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from PIL import Image

from sharegpt4o_image.builders.loading import load_rows
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

_FINGERPRINT_KEY = b"sharegpt4o_image.image_tokenizer"


def encode_images(
    model: Janus4oForImageGeneration, processor: Janus4oProcessor, images: Iterable[Image.Image], batch_size: int = 64
) -> Iterator[np.ndarray]:
    """The codes of each picture in turn: uint16 `(P,)`."""
    for chunk in _batched(images, batch_size):
        pixels_BCHW = processor.source_pixels(list(chunk)).to(model.device)
        with torch.inference_mode():
            codes_BP = model.encode_image(pixels_BCHW)
        yield from codes_BP.cpu().numpy().astype(np.uint16)


def _batched(items: Iterable[Image.Image], size: int) -> Iterator[tuple[Image.Image, ...]]:
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk


# ------------------------------------------------------------------ a whole data set


def tokenizer_fingerprint(model: Janus4oForImageGeneration) -> str:
    """A hash of the image tokenizer's weights and of the picture size: codes are valid only with the same one."""
    digest = hashlib.sha256(str(model.config.vision_config.image_size).encode())
    for name, tensor in sorted(model.model.vqmodel.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def codes_path(dataset_dir: Path, config_name: str) -> Path:
    """Where the codes of one config of a data set lie."""
    return dataset_dir / "codes" / f"{config_name}.parquet"


def encode_dataset(
    dataset_dir: Path,
    config_name: str,
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encode every picture of one config.

    `on_progress` is called with the number of pictures read so far, and of all.

    Reads: `id`, `input_image`, `output_image` of the packed data set.
    Writes: `codes/<config>.parquet` with `id`, `target_codes` (P uint16) and `source_codes` (a list of P uint16 for
    each source), and the tokenizer's fingerprint in the file's metadata. Nothing is done when the file is there and
    fits.

    Returns:
        the number of rows encoded now: 0 when the codes were there.
    """
    path = codes_path(dataset_dir, config_name)
    fingerprint = tokenizer_fingerprint(model)
    rows = load_rows(str(dataset_dir), config_name)
    if path.is_file() and read_fingerprint(path) == fingerprint and _read_ids(path) == rows["id"][:]:
        return 0
    lengths = pc.list_value_length(rows.data.column("input_image"))  # without reading the pictures
    num_sources = [length or 0 for length in lengths.to_pylist()]
    counter, total = itertools.count(1), len(rows) + sum(num_sources)

    def counted(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
        for picture in pictures:
            if on_progress is not None:
                on_progress(next(counter), total)
            yield picture

    targets = list(encode_images(model, processor, counted(row["output_image"] for row in rows)))
    pictures = (picture for row in rows if row["input_image"] for picture in row["input_image"])
    sources = encode_images(model, processor, counted(pictures))
    columns = {
        "id": rows["id"][:],
        "target_codes": targets,
        "source_codes": [list(itertools.islice(sources, count)) for count in num_sources],
    }
    codes = pa.list_(pa.uint16())
    schema = pa.schema(
        [("id", pa.string()), ("target_codes", codes), ("source_codes", pa.list_(codes))],
        metadata={_FINGERPRINT_KEY: fingerprint},
    )
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), partial)
    partial.replace(path)
    return len(targets)


def _read_ids(path: Path) -> list[str]:
    ids: list[str] = pq.read_table(path, columns=["id"])["id"].to_pylist()
    return ids


def read_fingerprint(path: Path) -> str:
    """The fingerprint of the image tokenizer that made a codes file."""
    return (pq.read_schema(path).metadata or {}).get(_FINGERPRINT_KEY, b"").decode()


def load_rows_with_codes(dataset_dir: Path, config_name: str, model: Janus4oForImageGeneration) -> Dataset:
    """The rows of one config joined with their codes; the target picture itself is left out.

    Gives: `input_prompt`, `input_image`, `target_codes`, `source_codes`.
    """
    path = codes_path(dataset_dir, config_name)
    if not path.is_file():
        raise UserError(f"{path} is missing; run `sharegpt4o-image encode {dataset_dir}` first.")
    if read_fingerprint(path) != tokenizer_fingerprint(model):
        raise UserError(
            f"{path} was made with another image tokenizer; run `sharegpt4o-image encode {dataset_dir}` again."
        )
    rows = load_rows(str(dataset_dir), config_name)
    codes = pq.read_table(path)
    if rows["id"][:] != codes["id"].to_pylist():
        raise UserError(f"{path} belongs to other rows than {dataset_dir}; run `sharegpt4o-image encode` again.")
    rows = rows.select_columns(["input_prompt", "input_image"])
    for name in ("target_codes", "source_codes"):
        rows = rows.add_column(name, codes[name].combine_chunks())
    return rows
