# SPDX-License-Identifier: Apache-2.0
"""A packed folder or Hub repository -> `datasets` rows, with a clear word when the folder is not a data set."""

from pathlib import Path

from datasets import Dataset, IterableDataset, get_dataset_config_names, load_dataset
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


def load_rows(dataset: str, config: str, *, streaming: bool = False) -> Dataset | IterableDataset:
    """`load_dataset(dataset, config, split="train")`, once it is clear that a local folder is a packed data set.

    Args:
        dataset (`str`):
            A folder that `pack` wrote, or the id of a repository on the Hub.
        config (`str`):
            `text_to_image` or `text_and_image_to_image`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows as they are asked for instead of preparing the whole data set first.
    """
    configs = config_names(dataset)
    if config not in configs:
        raise UserError(f"{dataset} has no rows for {config}, only for {' and '.join(configs)}; name one that it has")
    try:
        return load_dataset(dataset, config, split="train", streaming=streaming)
    except (DatasetGenerationError, EmptyDatasetError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{dataset} cannot be read ({reason}); pack or download it again") from error
