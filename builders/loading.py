# SPDX-License-Identifier: Apache-2.0
"""A packed folder or Hub repository -> `datasets` rows, with a clear word when the folder is not a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetInfo,
    Features,
    IterableDataset,
    ReadInstruction,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import (
    DataFilesNotFoundError,
    DatasetGenerationError,
    DatasetNotFoundError,
    SplitsVerificationError,
)

from sharegpt4o_image.errors import UserError

# Else `HfFileSystem` reads 5 MiB ahead after every column: 125 MB, not 0.3 MB, for two columns of text (docs/log.md).
NO_READING_AHEAD = {"hf": {"block_size": 1}}
_AGAIN = "pack or download it again"


def config_names(dataset: str) -> list[str]:
    """The configurations of a packed folder or Hub repository.

    Without its README, `datasets` would take all Parquet files of a folder for one configuration, rejections included.
    """
    if Path(dataset).is_dir() and not (Path(dataset) / "README.md").is_file():
        raise UserError(
            f"{dataset} has no README.md, so it is no finished data set; `sharegpt4o-image pack` writes one"
        )
    try:
        return get_dataset_config_names(dataset)
    except (DataFilesNotFoundError, EmptyDatasetError) as error:
        raise UserError(f"{dataset} holds no data files; `sharegpt4o-image pack` writes a data set") from error
    except ValueError as error:
        raise _lacking(dataset, _phrase(error)) from error
    except (DatasetNotFoundError, ConnectionError) as error:
        raise UserError(
            f"{dataset} is neither a folder here nor a repository that can be reached on the Hub; "
            "`sharegpt4o-image pack` writes a data set folder"
        ) from error


def load_rows(
    dataset: str,
    config: str,
    *,
    split: str = "train",
    columns: list[str] | None = None,
    filters: list[tuple[str, str, Any]] | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """`load_dataset(dataset, config, split=split)`, once it is clear that a local folder is a packed data set.

    Args:
        dataset (`str`):
            A folder that `pack` wrote, or the id of a repository on the Hub.
        config (`str`):
            `text_to_image` or `text_and_image_to_image`, with `_negatives` for the pictures that gates refused.
        split (`str`, *optional*, defaults to `"train"`):
            A split that the configuration has, or what `datasets` makes of several or of a part: `train+test`, `all`,
            `train[:100]`. A part cannot be streamed.
        columns (`list`, *optional*):
            The columns to read; pictures are not touched unless they are named.
        filters (`list`, *optional*):
            Conditions that a row has to meet, all of them:
            `[("edit_category", "==", "style transfer and artistic transformation")]`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows as they are asked for instead of preparing the whole data set first.
    """
    configs = config_names(dataset)
    if config not in configs:
        raise UserError(f"{dataset} has no rows for {config}, only for {' and '.join(configs)}; name one that it has")
    if columns == []:
        raise UserError("columns is an empty list, so no row would come; name at least one, or leave columns out")
    is_far = columns is not None and not Path(dataset).is_dir()
    storage = {"storage_options": NO_READING_AHEAD} if is_far else {}
    builder = _open_builder(dataset, config, storage)
    _check_split(dataset, config, builder.info, split, streaming)
    _check_columns(dataset, builder.info.features, columns or [])
    if filters is not None:
        _check_filters(dataset, builder.info.features, filters)
    try:
        return load_dataset(
            dataset,
            config,
            split=split,
            streaming=streaming,
            # `datasets` takes filtered rows for missing ones, since the card counts all of them
            verification_mode="no_checks" if filters else None,
            **storage,
            **({} if columns is None else {"columns": columns}),
            **({} if filters is None else {"filters": filters}),
        )
    except DatasetGenerationError as error:
        raise UserError(f"{dataset} cannot be read ({_phrase(error.__cause__ or error)}); {_AGAIN}") from error
    except SplitsVerificationError as error:
        raise UserError(f"{dataset} does not hold the rows that its README counts; {_AGAIN}") from error
    except ValueError as error:  # `datasets` makes no empty set
        if filters:
            raise UserError(f"no row in {split} of {config} meets the filters; give other ones") from error
        raise UserError(f"{split} of {config} cannot be read ({_phrase(error)}); name another part") from error


def _open_builder(dataset: str, config: str, storage: dict[str, Any]) -> DatasetBuilder:
    """What reads the data set, once each split that its README names has a file."""
    try:
        builder = load_dataset_builder(dataset, config, **storage)
    except (DataFilesNotFoundError, EmptyDatasetError, ValueError) as error:
        raise _lacking(dataset, _phrase(error)) from error
    lacking = [split for split, files in (builder.config.data_files or {}).items() if not files]
    if lacking:
        raise _lacking(dataset, f"of {config}, {' and '.join(lacking)}")
    return builder


def _lacking(dataset: str, what: str) -> UserError:
    return UserError(f"{dataset} lacks files that its README names ({what}); {_AGAIN}")


def _check_split(dataset: str, config: str, info: DatasetInfo, split: str, streaming: bool) -> None:
    sizes = {name: part.num_examples for name, part in (info.splits or {}).items()}
    if not sizes or split == "all":
        return
    try:
        ReadInstruction.from_spec(split).to_absolute(sizes)
    except ValueError as error:
        raise UserError(
            f"{dataset} has no split {split} of {config}, only {' and '.join(sizes)}; name one of them"
        ) from error
    if streaming and "[" in split:
        raise UserError(f"{split} is a part of a split, which cannot be streamed; stream all of it, or load it whole")


def _check_columns(dataset: str, features: Features | None, columns: Sequence[str]) -> None:
    for column in columns:
        if features and column not in features:
            raise UserError(f"{dataset} has no column {column}; the columns are {', '.join(features)}")


def _check_filters(dataset: str, features: Features | None, filters: list[tuple[str, str, Any]]) -> None:
    """Try the conditions on no rows, which finds operators that there are not and values of another type."""
    try:
        expression = pq.filters_to_expression(filters)
        _check_columns(dataset, features, [column for column, _, _ in filters])
        if features:
            features.arrow_schema.empty_table().filter(expression)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"the filters cannot be used ({_phrase(error)}); give a list of (column, operator, value), the operator "
            "one of ==, !=, <, >, <=, >=, in, not in"
        ) from error


def _phrase(error: BaseException) -> str:
    return " ".join(str(error).split())
