# SPDX-License-Identifier: Apache-2.0
"""Counts -> the YAML at the top of a data set's README, for the Hub and for `load_dataset`."""

import re
from collections import Counter

import yaml
from datasets import DatasetInfo, Features, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict
from huggingface_hub import DatasetCardData

from sharegpt4o_image.builders.card_counts import CardFacts, SplitCounts
from sharegpt4o_image.builders.pack_plan import NEGATIVES
from sharegpt4o_image.schema import RejectedRecord, published_features

UPSTREAM = "FreedomIntelligence/ShareGPT-4o-Image"

# Names of licences that the Hub knows and that data and models like these are published under; it refuses a card with
# any other one, unless that says `other`.
HUB_LICENSES = frozenset(
    ("apache-2.0", "mit", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
     "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
     "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
     "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "unlicense", "openrail", "unknown")
)  # fmt: skip

_TASK_CATEGORIES = {"text_to_image": "text-to-image", "text_and_image_to_image": "image-to-image"}
_SOURCES = {"synthesized": "original", "upstream_release": f"extended|{UPSTREAM}"}


def render_metadata(facts: CardFacts) -> str:
    """The YAML without its fences."""
    num_rows = sum(counts.num_rows for splits in facts.splits.values() for counts in splits.values())
    origins = sorted(facts.rows.values.get("origin", Counter()) | facts.negatives.values.get("origin", Counter()))
    tasks = [task for task in _TASK_CATEGORIES if any(name.startswith(task) for name in facts.splits)]
    card = DatasetCardData(
        language=["en"],  # the templates of the prompts, and the prompts of the upstream release
        pretty_name=facts.title,
        task_categories=[_TASK_CATEGORIES[task] for task in tasks] or None,
        size_categories=size_category(num_rows),
        annotations_creators=["machine-generated"],
        source_datasets=[_SOURCES[origin] for origin in origins] or None,
        tags=["synthetic", "image-generation", *(["image-editing"] if "text_and_image_to_image" in tasks else [])],
    )
    for name, value in license_fields(only_license(facts)).items():
        card[name] = value
    card["configs"] = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits],
            **({"default": True} if index == 0 else {}),
        }
        for index, (name, splits) in enumerate(facts.splits.items())
    ]
    infos = {name: _dataset_info(facts, name, splits) for name, splits in facts.splits.items()}
    DatasetInfosDict(infos).to_dataset_card_data(card)
    return yaml.safe_dump(card.to_dict(), sort_keys=False, allow_unicode=True).rstrip()


def features_of(facts: CardFacts, config: str) -> Features:
    """The columns of a configuration."""
    return published_features(RejectedRecord if config.endswith(NEGATIVES) else facts.row)


def only_license(facts: CardFacts) -> str | None:
    """The licence that every row names, those of negatives included."""
    counts = facts.rows.values.get("license", Counter()) + facts.negatives.values.get("license", Counter())
    is_one = len(counts) == 1 and counts.total() == facts.rows.num_rows + facts.negatives.num_rows
    return next(iter(counts)) if is_one else None


def size_category(num_rows: int) -> str:
    """The Hub's name for a number of rows.

    >>> size_category(999), size_category(92_256)
    ('n<1K', '10K<n<100K')
    """
    limits = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
    return next((name for name, limit in limits if num_rows < limit), "n>10M")


def license_fields(stated: str | None) -> dict[str, str]:
    """`license` as the Hub wants it; one that it does not know goes by `license_name`.

    >>> license_fields("CC-BY-4.0"), license_fields("DeepSeek Model License")
    ({'license': 'cc-by-4.0'}, {'license': 'other', 'license_name': 'deepseek-model-license'})
    """
    if stated is None:
        return {}
    if stated.lower() in HUB_LICENSES:
        return {"license": stated.lower()}
    name = re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-.")
    return {"license": "other", "license_name": name or "other"}


def _dataset_info(facts: CardFacts, config: str, splits: dict[str, SplitCounts]) -> DatasetInfo:
    infos = SplitDict()
    for split, counts in splits.items():
        infos.add(SplitInfo(split, num_bytes=counts.num_bytes, num_examples=counts.num_rows))
    return DatasetInfo(
        features=features_of(facts, config),
        splits=infos,
        dataset_name=facts.title,
        download_size=sum(counts.file_bytes for counts in splits.values()),
        dataset_size=sum(counts.num_bytes for counts in splits.values()),
    )
