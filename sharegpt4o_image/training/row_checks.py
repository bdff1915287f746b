# SPDX-License-Identifier: Apache-2.0
"""What must hold for all training rows, found out before the first step from Arrow's columns, without a picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oProcessor
from sharegpt4o_image.training.training_rows import check_columns, without_decoding

# Of `: prompt\n\n`: what the prompt's tokens may be merged with.
_TEMPLATE_BYTES = 4


def checked_rows(rows: Any, name: str, config: Janus4oConfig, processor: Janus4oProcessor) -> Dataset:
    """The rows, their pictures not decoded; raises a `UserError` where they cannot be trained."""
    if not isinstance(rows, Dataset):
        raise UserError(
            f"{name} is a {type(rows).__name__}; give a datasets.Dataset: rows are drawn by number, so that a run can "
            "be resumed exactly."
        )
    if not len(rows):
        raise UserError(f"{name} has no rows; give a data set with some.")
    check_columns(rows)
    check_codes(rows, config)
    max_length: int = config.text_config.max_position_embeddings  # type: ignore[union-attr]
    check_lengths(rows, number_of_sources(rows), processor, max_length)
    return without_decoding(rows)


def number_of_sources(rows: Dataset) -> list[int]:
    """How many sources each row has, without reading pictures: 0 for text to image."""
    if "input_image" not in rows.column_names:
        return [0] * len(rows)
    counts = pc.list_value_length(rows.data.column("input_image"))  # of the table, before rows were chosen
    if rows._indices is not None:
        counts = counts.take(rows._indices.column(0))
    return [count or 0 for count in counts.to_pylist()]


def check_codes(rows: Dataset, config: Janus4oConfig) -> None:
    """Say which row's codes do not fit the model, if any."""
    num_codes = config.num_image_tokens
    codebook_size: int = config.vq_config.num_embeddings  # type: ignore[union-attr]
    for name, blocks, row_numbers in _code_blocks(rows):
        lengths = pc.list_value_length(blocks).fill_null(num_codes).to_numpy(zero_copy_only=False)
        if (wrong := lengths != num_codes).any():
            first = int(wrong.argmax())
            raise UserError(
                f"The row {_name(rows, row_numbers[first])} has {lengths[first]} {name}; the model's pictures have "
                f"{num_codes}: run `sharegpt4o-image encode` with this model."
            )
        codes_NP = blocks.flatten().to_numpy(zero_copy_only=False).reshape(-1, num_codes)
        if (wrong := (codes_NP < 0) | (codes_NP >= codebook_size)).any():
            first, place = (int(index) for index in np.argwhere(wrong)[0])
            row_number = row_numbers[blocks.is_valid().to_numpy(zero_copy_only=False)][first]
            raise UserError(
                f"The row {_name(rows, row_number)} has {codes_NP[first, place]} among its {name}; the codebook has "
                f"0 to {codebook_size - 1}: run `sharegpt4o-image encode` with this model."
            )


def _code_blocks(rows: Dataset) -> Iterator[tuple[str, pa.ListArray, np.ndarray]]:
    """The codes of each picture (`null` where there are none), and the number of its row, for both columns."""
    for name in ("target_codes", "source_codes"):
        if name not in rows.column_names:
            continue
        blocks = _column(rows, name)
        row_numbers = np.arange(len(rows))
        if name == "source_codes":
            row_numbers = pc.list_parent_indices(blocks).to_numpy(zero_copy_only=False)
            blocks = blocks.flatten()
        if not pa.types.is_null(blocks.type):
            yield name, blocks, row_numbers


def check_lengths(rows: Dataset, num_sources: list[int], processor: Janus4oProcessor, max_length: int) -> None:
    """Say which row is longer than the model's `max_length` tokens, if any.

    A byte-level tokenizer makes no more tokens than there are bytes, so that almost no prompt is tokenized.
    """
    num_bytes = pc.binary_length(_column(rows, "input_prompt").cast(pa.large_binary())).to_numpy(zero_copy_only=False)
    empty = [sample_length(processor, "", count) for count in range(max(num_sources) + 1)]
    bounds = num_bytes + np.array(empty)[num_sources] + _TEMPLATE_BYTES
    for row_number in np.flatnonzero(bounds > max_length).tolist():
        length = sample_length(processor, rows[row_number]["input_prompt"], num_sources[row_number])
        if length > max_length:
            raise UserError(
                f"The row {_name(rows, row_number)} has {length} tokens with its image codes; the model has room for "
                f"{max_length}: shorten its prompt or take it out."
            )


def sample_length(processor: Janus4oProcessor, prompt: str, num_sources: int) -> int:
    """Tokens of a sample with its target codes, the last one left out."""
    return len(processor.image_generation_ids(prompt, num_sources)) + processor.num_image_tokens - 1


def _column(rows: Dataset, name: str) -> Any:
    column = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _name(rows: Dataset, row_number: int) -> str:
    row_number = int(row_number)
    return str(rows.select_columns(["id"])[row_number]["id"]) if "id" in rows.column_names else str(row_number)
