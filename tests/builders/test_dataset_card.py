# SPDX-License-Identifier: Apache-2.0
"""The rendered card: valid for the Hub, complete, and silent about what the rows do not say."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard
from picture_records import make_record

from sharegpt4o_image.builders.dataset_card import COLUMNS, MARKER, TEMPLATE, CardCounts, ConfigCounts, render_card
from sharegpt4o_image.schema import Record, RejectedRecord, published_features


def _card(*records: Record) -> str:
    counts = CardCounts()
    for record in records:
        counts.add(record)
        counts.configs.setdefault(record.task, ConfigCounts(num_shards=1)).num_rows += 1
    return render_card("sharegpt4o-image", counts)


def test_the_metadata_names_configurations_and_counts() -> None:
    metadata = yaml.safe_load(_card(make_record(0), make_record(1), make_record(3)).split("---")[1])
    assert [config["config_name"] for config in metadata["configs"]] == ["text_to_image", "text_and_image_to_image"]
    assert [config.get("default") for config in metadata["configs"]] == [True, None]
    assert metadata["task_categories"] == ["text-to-image", "image-to-image"]
    assert metadata["size_categories"] == "n<1K"
    counts = {info["config_name"]: info["splits"][0]["num_examples"] for info in metadata["dataset_info"]}
    assert counts == {"text_to_image": 1, "text_and_image_to_image": 2}


def test_the_hub_library_reads_the_card() -> None:
    card = DatasetCard(_card(make_record(0)))
    assert card.data.to_dict()["pretty_name"] == "sharegpt4o-image"
    assert card.text.startswith("\n" + MARKER) or card.text.startswith(MARKER)


def test_the_columns_table_equals_the_features() -> None:
    assert list(COLUMNS) == list(published_features(RejectedRecord))
    table = _card(make_record(0)).split("## Columns")[1].split("## How")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(published_features())


def test_it_names_the_models_of_the_rows_and_no_other() -> None:
    text = _card(make_record(0), make_record(1))
    assert "| `offline-painter` | 2 |" in text
    assert not re.search("gpt-image|gemini|served_model`\\) ", text, flags=re.IGNORECASE)


def test_unknown_values_are_counted_as_null() -> None:
    text = _card(make_record(0), make_record(1))
    assert "| `Object-level` | 1 |\n| null | 1 |" in text


@pytest.mark.parametrize(
    ("licenses", "stated", "sentence"),
    [
        ((None, None), None, "The rows name no licence"),
        (("cc-by-4.0", "cc-by-4.0"), "cc-by-4.0", "The rows are under `cc-by-4.0`"),
        (("cc-by-4.0", None), None, "Rows that name none: 1."),
        (("cc-by-4.0", "cc0-1.0"), None, "`cc-by-4.0`, `cc0-1.0`"),
    ],
)
def test_the_licence_is_the_rows_licence(licenses: tuple[str | None, ...], stated: str | None, sentence: str) -> None:
    text = _card(*(make_record(i).model_copy(update={"license": name}) for i, name in enumerate(licenses)))
    assert yaml.safe_load(text.split("---")[1]).get("license") == stated
    assert sentence in text


def test_dates_and_costs_are_those_of_the_rows() -> None:
    assert "between 2026-11-01T00:00:00Z and 2026-11-03T00:00:00Z" in _card(make_record(2), make_record(0))
    assert "0.50 US dollars over 2 rows" in _card(make_record(2), make_record(0))
    unknown = make_record(0).model_copy(update={"created_at": None, "cost_usd": None})
    assert "Neither dates nor costs were recorded." in _card(unknown)


def test_text_from_outside_cannot_break_a_table() -> None:
    text = _card(make_record(0).model_copy(update={"image_model": "a|b\nc"}))
    assert "| `a\\|b c` | 1 |" in text


def test_the_template_at_the_root_is_the_packaged_one() -> None:
    assert (Path(__file__).parents[2] / "dataset_card.md").read_text() == TEMPLATE.read_text()
