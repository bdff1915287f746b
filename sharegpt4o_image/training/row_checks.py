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
from sharegpt4o_image.training.training_rows import check_columns, id_of, without_decoding

TEXT_TO_IMAGE = "text_to_image"
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
    if rows.format["type"] == "custom":
        raise UserError(f"{name} has a transform, which is not applied here; use `map` instead of `with_transform`.")
    rows = without_decoding(rows)
    check_types(rows)
    check_ids(rows)
    num_sources = number_of_sources(rows)
    check_tasks(rows, num_sources)
    check_codes(rows, config)
    max_length: int = config.text_config.max_position_embeddings  # type: ignore[union-attr]
    check_lengths(rows, num_sources, processor, max_length)
    return rows


def number_of_sources(rows: Dataset) -> list[int]:
    """How many sources each row has, without reading pictures: 0 for text to image."""
    if "input_image" not in rows.column_names:
        return [0] * len(rows)
    column = rows.data.column("input_image")  # of the table, before rows were chosen
    if _is_list(column.type):
        counts = pc.list_value_length(column)
    elif _is_text(column.type):
        counts = pc.greater(pc.binary_length(column), 0)
    else:
        counts = column.is_valid()
    if rows._indices is not None:
        counts = counts.take(rows._indices.column(0))
    return [int(count or 0) for count in counts.to_pylist()]


def check_types(rows: Dataset) -> None:
    """Say which column holds something else than what is read from it, if any."""
    expected = {
        "input_prompt": (_is_text, "give strings"),
        "input_image": (_is_pictures, "give pictures (Image) or their paths, or lists of them"),
        "output_image": (_is_picture, "give pictures (Image) or their paths"),
        "target_codes": (_is_codes, "give lists of whole numbers, as `sharegpt4o-image encode` does"),
        "source_codes": (_is_blocks, "give lists of lists of whole numbers, as `sharegpt4o-image encode` does"),
    }
    for field in rows.features.arrow_schema:
        fits, remedy = expected.get(field.name, (None, ""))
        if fits is not None and not (pa.types.is_null(field.type) or fits(field.type)):
            raise UserError(f"The column {field.name} is of the type {rows.features[field.name]}; {remedy}.")


def _is_list(kind: pa.DataType) -> bool:
    return any(one(kind) for one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_picture(kind: pa.DataType) -> bool:
    is_stored = pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}
    return is_stored or _is_text(kind)


def _is_pictures(kind: pa.DataType) -> bool:
    of_list = kind.value_type if _is_list(kind) else kind
    return _is_picture(of_list) or pa.types.is_null(of_list)  # rows without a source have empty lists


def _is_codes(kind: pa.DataType) -> bool:
    return _is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type))


def _is_blocks(kind: pa.DataType) -> bool:
    return _is_list(kind) and (_is_codes(kind.value_type) or pa.types.is_null(kind.value_type))


def check_ids(rows: Dataset) -> None:
    """Say which `id` comes twice, if any: what is dropped of a sample follows from it."""
    if "id" not in rows.column_names:
        return
    counted = pc.value_counts(_column(rows, "id").drop_null())
    for one in counted.filter(pc.greater(counted.field("counts"), 1)):
        raise UserError(
            f"The id {one['values']} comes {one['counts']} times; give each row an id of its own, or take the column "
            "out."
        )


def check_tasks(rows: Dataset, num_sources: list[int]) -> None:
    """Say which row's `task` contradicts its number of sources, if any."""
    if "task" not in rows.column_names:
        return
    tasks = _column(rows, "task").to_pylist()
    wrong = [
        number
        for number, (task, count) in enumerate(zip(tasks, num_sources, strict=True))
        if task is not None and (task == TEXT_TO_IMAGE) != (count == 0)
    ]
    if wrong:
        first = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"The row {_name(rows, first)} is a {tasks[first]} row with {num_sources[first]} input images{more}; "
            "mend its task or its input_image."
        )


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
        codes = blocks.flatten()
        if codes.null_count:
            raise UserError(f"One of the {name} has an empty place; run `sharegpt4o-image encode` with this model.")
        codes_NP = codes.to_numpy(zero_copy_only=False).reshape(-1, num_codes)
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
    prompts = _column(rows, "input_prompt").cast(pa.large_string()).fill_null("")  # rows without one are skipped
    num_bytes = pc.binary_length(prompts).to_numpy(zero_copy_only=False)
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
    return id_of(rows.select_columns(["id"])[row_number] if "id" in rows.column_names else {}, row_number)
