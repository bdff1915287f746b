# SPDX-License-Identifier: Apache-2.0
"""Rows -> what the card states about them. Counts of shards add up to the counts of the data set."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sharegpt4o_image.builders.row_source import ImageEncoding, SourceFacts
from sharegpt4o_image.schema import Record
from sharegpt4o_image.synthesis.journal import without_particulars

# Columns whose values are counted; a list counts once for each of its values.
COUNTED_COLUMNS = (
    "pipeline", "objects", "background", "style", "lighting", "camera", "composition", "document_type",
    "edit_category", "edit_task", "prompt_model", "image_model", "served_model", "template_version",
    "source_origin", "source_license", "origin", "license", "reject_reason",
    "label_objects", "label_style", "label_lighting", "label_camera", "label_composition", "label_document_type",
    "label_edit_category", "label_edit_task", "label_model",
)  # fmt: skip


@dataclass
class SplitCounts:
    """What one split of a configuration holds."""

    num_rows: int = 0
    num_shards: int = 0
    num_bytes: int = 0  # of the rows in memory
    file_bytes: int = 0  # of the Parquet files
    sha256: str = ""  # of the checksums of the files


@dataclass
class RowCounts:
    """What rows say, counted one by one.

    Args:
        values (`dict`): column -> value -> number of rows, for `COUNTED_COLUMNS`; what is null is not counted, and of
            `reject_reason` the particulars are left out.
        licenses (`Counter`): `origin` and `license` of a row as a JSON list -> number of rows.
        image_params (`Counter`): model and parameters of the image request as a JSON list -> number of rows.
        resolutions (`Counter`): `1024x1024` (width, height) of the output picture -> number of rows.
        num_photographs (`int`): rows whose picture is a photograph that is published as it is.
        num_photo_edits (`int`): rows with a source picture that no model of a run made.
    """

    num_rows: int = 0
    values: dict[str, Counter[str]] = field(default_factory=dict)
    licenses: Counter[str] = field(default_factory=Counter)
    image_params: Counter[str] = field(default_factory=Counter)
    resolutions: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    num_costs: int = 0
    num_photographs: int = 0
    num_photo_edits: int = 0
    first_created_at: str | None = None
    last_created_at: str | None = None

    def add(self, record: Record) -> None:
        """Count one row."""
        self.num_rows += 1
        for column in COUNTED_COLUMNS:
            value = getattr(record, column, None)
            for one in value if isinstance(value, list) else [] if value is None else [value]:
                counted = without_particulars(one) if column == "reject_reason" else one
                self.values.setdefault(column, Counter())[counted] += 1
        self.licenses[json.dumps([record.origin, record.license])] += 1
        if record.image_params is not None:
            self.image_params[json.dumps([record.image_model, record.image_params], sort_keys=True)] += 1
        self.resolutions["x".join(map(str, record.output_image_resolution))] += 1
        self.num_photographs += _is_photograph(record)
        self.num_photo_edits += _is_photo_edit(record)
        if record.cost_usd is not None and math.isfinite(record.cost_usd):
            self.cost_usd += record.cost_usd
            self.num_costs += 1
        if record.created_at is not None:
            self._span(record.created_at, record.created_at)

    def merge(self, other: "RowCounts") -> None:
        """Add the counts of other rows."""
        self.num_rows += other.num_rows
        for column, counter in other.values.items():
            self.values.setdefault(column, Counter()).update(counter)
        self.licenses.update(other.licenses)
        self.image_params.update(other.image_params)
        self.resolutions.update(other.resolutions)
        self.cost_usd += other.cost_usd
        self.num_costs += other.num_costs
        self.num_photographs += other.num_photographs
        self.num_photo_edits += other.num_photo_edits
        if other.first_created_at is not None and other.last_created_at is not None:
            self._span(other.first_created_at, other.last_created_at)

    def _span(self, first: str, last: str) -> None:
        self.first_created_at = min(self.first_created_at or first, first)
        self.last_created_at = max(self.last_created_at or last, last)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "RowCounts":
        """The counts that `json.dumps(vars(counts))` wrote."""
        counters = {name: Counter(content[name]) for name in ("licenses", "image_params", "resolutions")}
        values = {column: Counter(counter) for column, counter in content["values"].items()}
        return cls(**(content | counters | {"values": values}))


def _is_photograph(record: Record) -> bool:
    return record.image_model is None and record.origin == "synthesized"


def _is_photo_edit(record: Record) -> bool:
    if not record.input_image or record.source_origin is None:
        return False
    return any(origin != "synthesized" for origin in record.source_origin.split("; "))


@dataclass
class CardFacts:
    """All that a card is rendered from.

    Args:
        title (`str`): name of the data set.
        row (type): what a row is: `Record`, `RejectedRecord` or `LabelledRecord`.
        splits (`dict`): configuration -> split -> what it holds; the first configuration is the default.
        rows (`RowCounts`): of all configurations but those of negatives.
        negatives (`RowCounts`): of the negatives, where they were packed.
        rejections (`Counter`): reason -> rows kept out while packing.
        source (`SourceFacts`): where the rows come from.
        encoding (`ImageEncoding`, *optional*): of a light variant.
    """

    title: str
    row: type[Record]
    splits: dict[str, dict[str, SplitCounts]]
    rows: RowCounts
    negatives: RowCounts
    rejections: Counter[str]
    source: SourceFacts
    encoding: ImageEncoding | None = None
