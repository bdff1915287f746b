# SPDX-License-Identifier: Apache-2.0
"""Pictures -> VQ codes, in fp32 and without gradient; and rows joined with the codes that `encode` stored."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image as PILImage
from torch import Tensor

from sharegpt4o_image.builders.loading import load_rows
from sharegpt4o_image.checkpoints import ASSETS_DIR
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.code_store import (
    CODES,
    FORMAT_VERSION,
    CodeStore,
    DataFile,
    Fingerprint,
    check_columns,
    find_data_files,
    read_metadata,
)
from sharegpt4o_image.training.training_rows import without_decoding

_ENCODER = ("encoder.", "quant_conv.", "quantize.")  # the parts of the image tokenizer that make codes
# What the image processor does to a square picture.
_PREPARATION = (
    "size", "min_size", "resample", "rescale_factor", "image_mean", "image_std", "do_resize", "do_rescale",
    "do_normalize",
)  # fmt: skip
_ROW_COLUMNS = ["id", "task", "input_prompt", "input_image"]
_CODE_COLUMNS = ["target_codes", "source_codes", "source_sha256"]


def encode_images(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    images: Iterable[PILImage.Image],
    batch_size: int = 64,
) -> Iterator[np.ndarray]:
    """The codes of each picture in turn: uint16 `(P,)`."""
    pictures = iter(images)
    while chunk := list(itertools.islice(pictures, batch_size)):
        yield from encode_pixels(model, [processor.source_pixels(chunk)])


def encode_pixels(model: Janus4oForImageGeneration, pixels: Sequence[Tensor]) -> np.ndarray:
    """Pixel values, some (n, 3, H, W) -> the codes of all, uint16 `(N, P)`."""
    with torch.inference_mode():
        codes_NP = model.encode_image(torch.cat(list(pixels)))
    return codes_NP.cpu().numpy().astype(np.uint16)


def tokenizer_fingerprint(model: Janus4oForImageGeneration, processor: Janus4oProcessor) -> Fingerprint:
    """What the codes of this model and processor depend on; with another one they are other codes.

    The weights count as they are in fp32: the same ones in bf16 on disk are the same, rounded ones are not.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(model.model.vqmodel.state_dict().items()):
        if name.startswith(_ENCODER):
            weights.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    prepared = processor.image_processor.to_dict()
    numbers = {name: prepared.get(name) for name in _PREPARATION}
    described = json.dumps([FORMAT_VERSION, weights.hexdigest(), processor.geometry, numbers], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()
    return Fingerprint(weights.hexdigest()[:16], processor.geometry, digest[:16])


# ------------------------------------------------------------------ rows with codes


def load_training_rows(
    dataset: str | Path,
    config_names: Sequence[str],
    split: str,
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
) -> Dataset:
    """The rows of a split of the given configurations joined with their codes; target pictures are left out.

    Gives: `id`, `task`, `input_prompt`, `input_image` (list of `{"bytes", "path"}`), `target_codes`, `source_codes`,
    `source_sha256`. A row without codes is one that has a picture that `encode` could not read.

    Args:
        dataset: a folder that `pack` and `encode` wrote.
        config_names: `text_to_image`, `text_and_image_to_image` or both.
        split: `train`, or another one that the data set has.
        model: the model to train; its image tokenizer must have made the codes.
        processor: the geometry, too, must be the one of the codes.
    """
    folder = Path(dataset)
    if not folder.is_dir():
        raise UserError(
            f"{dataset} is no folder; `sharegpt4o-image pack` writes one, `sharegpt4o-image encode` its codes"
        )
    store = CodeStore(folder, tokenizer_fingerprint(model, processor))
    every_file = [file for file in find_data_files(folder) if file.config in config_names]
    files = [file for file in every_file if file.split == split]
    if not files:
        splits = dict.fromkeys(file.split for file in every_file)
        raise UserError(
            f"{dataset} has no split {split} to train on, only {' and '.join(splits)}; name one that it has"
        )
    check_columns(files)
    command = f"`sharegpt4o-image encode {dataset} -m {_spoken_name(model)} --geometry {processor.geometry}`"
    _check_codes(folder, store, files, command)
    parts = []
    for config in config_names:
        members = [file for file in files if file.config == config]
        if members:
            codes = pa.concat_tables(store.read(file, ["id", *_CODE_COLUMNS]) for file in members)
            parts.append(_join(folder, config, split, codes, command))
    return concatenate_datasets(parts)


def _spoken_name(model: Janus4oForImageGeneration) -> str:
    """What to type for the model: of a shipped one its name instead of its folder."""
    path = Path(model.name_or_path)
    return path.name if path.parent == ASSETS_DIR else model.name_or_path or "MODEL"


def _check_codes(folder: Path, store: CodeStore, files: list[DataFile], command: str) -> None:
    """Each data file must have its codes, made with this image tokenizer and geometry."""
    faults = ((file, store.find_fault(file)) for file in files)
    file, fault = next(((file, fault) for file, fault in faults if fault), (None, None))
    if fault is None:
        return
    others = [found for path in sorted((folder / CODES).glob("*/*/*.parquet")) if (found := read_metadata(path))]
    if store.finished_paths():
        raise UserError(f"the codes in {store.path_of(file)} cannot be used ({fault}); run {command}")
    if not others:
        raise UserError(f"{folder} has no codes; run {command}")
    wanted = store.fingerprint
    geometries = sorted({str(found["geometry"]) for found in others if found["weights"] == wanted.weights})
    if geometries and wanted.geometry not in geometries:
        raise UserError(
            f"{folder} has codes for the geometry {' and '.join(geometries)}, and {wanted.geometry} is asked for; "
            f"run {command}, or ask for the geometry of the codes"
        )
    raise UserError(
        f"{folder} has codes that another image tokenizer made, or other settings of the processor; run {command}"
    )


def _join(folder: Path, config: str, split: str, codes: pa.Table, command: str) -> Dataset:
    """The rows of one configuration beside their codes."""
    rows = load_rows(str(folder), config, split=split, columns=_ROW_COLUMNS)
    if rows.data.column("id") != codes["id"]:
        raise UserError(f"the codes of {config} in {folder} are not in the order of its rows; run {command}")
    rows = without_decoding(rows)
    for name in _CODE_COLUMNS:
        rows = rows.add_column(name, codes[name].combine_chunks())
    return rows
