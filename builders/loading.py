# SPDX-License-Identifier: Apache-2.0
"""A packed folder or Hub repository -> `datasets` rows, with a clear word when the folder is not a data set."""

from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetInfo,
    IterableDataset,
    get_dataset_config_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from sharegpt4o_image.errors import UserError


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
            A split that the configuration has.
        columns (`list`, *optional*):
            The columns to read; pictures are not touched unless they are named.
        filters (`list`, *optional*):
            Conditions that a row has to meet, all of them: `[("edit_category", "==", "creative ideation")]`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows as they are asked for instead of preparing the whole data set first.
    """
    configs = config_names(dataset)
    if config not in configs:
        raise UserError(f"{dataset} has no rows for {config}, only for {' and '.join(configs)}; name one that it has")
    try:
        builder = load_dataset_builder(dataset, config)
        _check_names(dataset, config, builder.info, split, [*(columns or []), *(name for name, *_ in filters or [])])
        return load_dataset(
            dataset,
            config,
            split=split,
            streaming=streaming,
            # `datasets` takes filtered rows for missing ones, since the card counts all of them
            verification_mode="no_checks" if filters else None,
            **({} if columns is None else {"columns": columns}),
            **({} if filters is None else {"filters": filters}),
        )
    except (DatasetGenerationError, EmptyDatasetError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{dataset} cannot be read ({reason}); pack or download it again") from error


def _check_names(dataset: str, config: str, info: DatasetInfo, split: str, columns: list[str]) -> None:
    splits = list(info.splits or [])
    if splits and split not in splits:
        raise UserError(f"{dataset} has no split {split} of {config}, only {' and '.join(splits)}; name one of them")
    for column in columns:
        if info.features and column not in info.features:
            raise UserError(f"{dataset} has no column {column}; the columns are {', '.join(info.features)}")
