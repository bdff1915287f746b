# SPDX-License-Identifier: Apache-2.0
"""Counts taken while packing -> README.md of the data set, from the template `dataset_card.md`.

It states what the rows say and nothing else: no row, no claim.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml
from datasets import DatasetInfo, Features, Image, Json, List, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict
from huggingface_hub import DatasetCardData

from sharegpt4o_image.schema import Record, RejectedRecord, published_features

TEMPLATE = Path(__file__).with_name("dataset_card.md")
MARKER = "<!-- written by `sharegpt4o-image pack`"  # how a later run knows the folder as its own

COUNTED = {
    "image_model": "Image model",
    "prompt_model": "Prompt model",
    "served_model": "Prompt model as its answer named it",
    "pipeline": "Pipeline",
    "edit_category": "Edit category",
    "origin": "Origin",
    "license": "Licence",
}

COLUMNS = {
    "id": "hash of the request that made the row",
    "task": "`text_to_image` or `text_and_image_to_image`",
    "input_prompt": "the prompt, or the edit instruction",
    "input_image": "source pictures of an edit; empty for text-to-image",
    "output_image": "the picture, as received",
    "output_image_resolution": "width and height of `output_image`, in pixels",
    "input_image_resolution": "width and height of the (first) source picture",
    "pipeline": "`prompt_first`, `image_first`, `document` or `editing`",
    "objects": "what the topic asked to be shown",
    "background": "background of the topic",
    "style": "style of the topic",
    "lighting": "lighting of the topic",
    "camera": "camera of the topic",
    "composition": "composition of the topic",
    "document_type": "kind of document, for document pictures",
    "edit_category": "category of the edit task",
    "edit_task": "what kind of edit was asked for",
    "prompt_model": "model asked for the prompt",
    "image_model": "model asked for the picture",
    "served_model": "model that the answer to the prompt request named; picture answers name none",
    "template_version": "version of the prompt template",
    "image_params": "parameters of the image request",
    "source_id": "id of the source picture",
    "source_origin": "where the source picture comes from",
    "source_license": "licence of the source picture",
    "output_sha256": "sha256 of the bytes of `output_image`",
    "output_phash": "perceptual hash of `output_image`",
    "usage": "tokens that the service counted",
    "cost_usd": "cost of prompt and picture, in US dollars",
    "created_at": "when the picture was made",
    "origin": "`synthesized`, or `upstream_release` for a row of the original ShareGPT-4o-Image",
    "license": "licence of the row",
    "reject_reason": "why a quality gate refused the picture",
}


@dataclass
class ConfigCounts:
    """What one configuration holds."""

    num_rows: int = 0
    num_shards: int = 0
    num_bytes: int = 0  # of the rows in memory
    file_bytes: int = 0  # of the Parquet files


@dataclass
class CardCounts:
    """What the card states, counted row by row while packing."""

    row: type[Record] = Record
    configs: dict[str, ConfigCounts] = field(default_factory=dict)
    values: dict[str, Counter[str]] = field(default_factory=lambda: {column: Counter() for column in COUNTED})
    cost_usd: float = 0.0
    num_costs: int = 0
    first_created_at: str | None = None
    last_created_at: str | None = None
    rejections: Counter[str] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        return sum(config.num_rows for config in self.configs.values())

    def add(self, record: Record) -> None:
        """Count one row that was packed."""
        for column, counter in self.values.items():
            value = getattr(record, column)
            if value is not None:
                counter[value] += 1
        if record.cost_usd is not None:
            self.cost_usd += record.cost_usd
            self.num_costs += 1
        if record.created_at is not None:
            self.first_created_at = min(self.first_created_at or record.created_at, record.created_at)
            self.last_created_at = max(self.last_created_at or record.created_at, record.created_at)


def render_card(title: str, counts: CardCounts) -> str:
    """The README of a data set: YAML for the Hub and for `load_dataset`, then the text for people."""
    configs = counts.configs
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=_metadata(title, counts),
        title=title,
        asked_for=" or ".join(_ASKED_FOR[name] for name in configs),
        default_config=next(iter(configs)),
        rows_table=_table(
            ("Configuration", "Rows", "Files", "Size"),
            ((f"`{name}`", c.num_rows, c.num_shards, f"{c.file_bytes / 1e6:,.2f} MB") for name, c in configs.items()),
        ),
        rejections=_rejections(counts),
        provenance_tables=_provenance(counts),
        cost_and_dates=_cost_and_dates(counts),
        columns_table=_columns_table(published_features(counts.row)),
        license_note=_license_note(counts),
    )


_TASK_CATEGORIES = {"text_to_image": "text-to-image", "text_and_image_to_image": "image-to-image"}
_ASKED_FOR = {"text_to_image": "it", "text_and_image_to_image": "the change to a source picture"}


def _metadata(title: str, counts: CardCounts) -> str:
    features = published_features(counts.row)
    licenses = counts.values["license"]
    is_one_license = len(licenses) == 1 and licenses.total() == counts.num_rows
    card = DatasetCardData(
        license=next(iter(licenses)) if is_one_license else None,
        pretty_name=title,
        task_categories=[_TASK_CATEGORIES[name] for name in counts.configs],
        size_categories=_size_category(counts.num_rows),
        annotations_creators=["machine-generated"],
        tags=["synthetic"],
    )
    card["configs"] = [
        {
            "config_name": name,
            "data_files": [{"split": "train", "path": f"{name}/train-*.parquet"}],
            **({"default": True} if index == 0 else {}),
        }
        for index, name in enumerate(counts.configs)
    ]
    infos = {name: _dataset_info(title, features, config) for name, config in counts.configs.items()}
    DatasetInfosDict(infos).to_dataset_card_data(card)
    return yaml.safe_dump(card.to_dict(), sort_keys=False, allow_unicode=True).rstrip()


def _dataset_info(title: str, features: Features, config: ConfigCounts) -> DatasetInfo:
    splits = SplitDict()
    splits.add(SplitInfo("train", num_bytes=config.num_bytes, num_examples=config.num_rows))
    return DatasetInfo(
        features=features,
        splits=splits,
        dataset_name=title,
        download_size=config.file_bytes,
        dataset_size=config.num_bytes,
    )


def _size_category(num_rows: int) -> str:
    """The Hub's name for a number of rows.

    >>> _size_category(999), _size_category(92_256)
    ('n<1K', '10K<n<100K')
    """
    limits = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
    return next((name for name, limit in limits if num_rows < limit), "n>10M")


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _rejections(counts: CardCounts) -> str:
    if counts.row is RejectedRecord:
        return (
            "**Every row here is a negative**: a quality gate of the pipeline refused its picture, and "
            "`reject_reason` says why. The rows that passed are published elsewhere."
        )
    if not counts.rejections:
        return "No row was kept out."
    reasons = _table(("Reason", "Rows"), counts.rejections.most_common(20))
    total = counts.rejections.total()
    return f"Kept out: {total:,}. `rejections.parquet` lists each record with its reason.\n\n{reasons}"


def _provenance(counts: CardCounts) -> str:
    tables = []
    for column, label in COUNTED.items():
        values = counts.values[column]
        if values:
            unknown = counts.num_rows - values.total()
            rows = [(f"`{value}`", count) for value, count in values.most_common()]
            tables.append(_table((f"{label} (`{column}`)", "Rows"), rows + ([("null", unknown)] if unknown else [])))
    return "\n\n".join(tables)


def _cost_and_dates(counts: CardCounts) -> str:
    sentences = []
    if counts.first_created_at and counts.last_created_at:
        sentences.append(f"The pictures were made between {counts.first_created_at} and {counts.last_created_at}.")
    if counts.num_costs:
        sentences.append(f"Recorded cost: {counts.cost_usd:,.2f} US dollars over {counts.num_costs:,} rows.")
    return " ".join(sentences) or "Neither dates nor costs were recorded."


def _columns_table(features: Features) -> str:
    rows = ((f"`{name}`", _type_name(feature), COLUMNS[name]) for name, feature in features.items())
    return _table(("Column", "Type", "What it holds"), rows)


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    return {Image: "image", Json: "JSON"}.get(type(feature)) or feature.dtype


def _license_note(counts: CardCounts) -> str:
    licenses = counts.values["license"]
    if not licenses:
        return "The rows name no licence. Whoever publishes this data has to choose one that the terms below allow."
    names = ", ".join(f"`{name}`" for name in licenses)
    unlicensed = counts.num_rows - licenses.total()
    rest = f" Rows that name none: {unlicensed:,}." if unlicensed else ""
    return f"The rows are under {names}; the column `license` says it for each.{rest}"
