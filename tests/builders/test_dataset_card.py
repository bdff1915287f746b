# SPDX-License-Identifier: Apache-2.0
"""The rendered card: valid for the Hub, complete, and silent about what the rows do not say."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import get_dataset_config_names, load_dataset
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData
from markdown_it import MarkdownIt
from picture_records import ListSource, make_record

from sharegpt4o_image.builders.card_counts import CardFacts, ImageEncoding, RowCounts, SplitCounts
from sharegpt4o_image.builders.card_metadata import COLUMNS, license_fields
from sharegpt4o_image.builders.dataset_card import MARKER, TEMPLATE, render_card
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.row_source import SourceFacts
from sharegpt4o_image.schema import (
    LabelConfidence,
    LabelledRecord,
    Record,
    RejectedRecord,
    content_id,
    published_features,
)

MARKER_END = "; the next run over this folder replaces it -->\n"
HOSTILE = "a|b\n---\n`x` <script>alert(1)</script> ](http://x.y) $title --> \\"


def _facts(records: Iterable[Record], negatives: Iterable[RejectedRecord] = (), **changes: Any) -> CardFacts:
    facts = CardFacts(
        title="sharegpt4o-image",
        row=Record,
        splits={},
        rows=RowCounts(),
        negatives=RowCounts(),
        rejections=Counter(),
        source=SourceFacts(kind="run", name="pilot"),
    )
    for counts, rows, ending in ((facts.rows, records, ""), (facts.negatives, negatives, "_negatives")):
        for record in rows:
            counts.add(record)
            split = facts.splits.setdefault(record.task + ending, {}).setdefault("train", SplitCounts(num_shards=1))
            split.num_rows += 1
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


def _card(*records: Record, **changes: Any) -> str:
    return render_card(_facts(records, **changes))


def _metadata(card: str) -> dict[str, Any]:
    metadata: dict[str, Any] = yaml.safe_load(re.split(r"^---$", card, flags=re.MULTILINE)[1])
    return metadata


def _section(card: str, heading: str) -> str:
    return re.split(r"^## ", card.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def _rejected(index: int, reason: str) -> RejectedRecord:
    return RejectedRecord(**dict(make_record(index)), reject_reason=reason)


def _labelled(index: int) -> LabelledRecord:
    return LabelledRecord(
        **dict(make_record(index)),
        label_style="watercolour",
        label_model="labeller",
        label_confidence=LabelConfidence(style=0.5),
    )


# ------------------------------------------------------------------ metadata


def test_the_metadata_names_configurations_and_counts() -> None:
    metadata = _metadata(_card(make_record(0), make_record(1), make_record(3)))
    assert [config["config_name"] for config in metadata["configs"]] == ["text_to_image", "text_and_image_to_image"]
    assert [config.get("default") for config in metadata["configs"]] == [True, None]
    assert metadata["task_categories"] == ["text-to-image", "image-to-image"]
    assert metadata["size_categories"] == "n<1K"
    assert metadata["language"] == ["en"]
    assert metadata["source_datasets"] == ["original"]
    counts = {info["config_name"]: info["splits"][0]["num_examples"] for info in metadata["dataset_info"]}
    assert counts == {"text_to_image": 1, "text_and_image_to_image": 2}


def test_the_hub_library_reads_the_card_and_writes_the_same() -> None:
    text = _card(make_record(0), make_record(1))
    card = DatasetCard(text)
    data = card.data.to_dict()
    assert isinstance(card.data, DatasetCardData)
    assert data["pretty_name"] == "sharegpt4o-image"
    assert card.text.lstrip().startswith(MARKER)
    assert DatasetCard(str(card)).data.to_dict() == data == _metadata(text)


def test_datasets_reads_the_features_and_splits_of_every_configuration() -> None:
    facts = _facts([_labelled(0)], [_rejected(2, "blurry")], row=LabelledRecord)
    facts.splits["text_to_image"]["test"] = SplitCounts(num_rows=2, num_shards=1, num_bytes=7, file_bytes=5)
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCard(render_card(facts)).data)
    assert infos["text_to_image"].features == published_features(LabelledRecord)
    assert infos["text_to_image_negatives"].features == published_features(RejectedRecord)
    splits = infos["text_to_image"].splits
    assert splits is not None
    assert {name: split.num_examples for name, split in splits.items()} == {"train": 1, "test": 2}
    [config, _] = _metadata(render_card(facts))["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "text_to_image/train-*.parquet"},
        {"split": "test", "path": "text_to_image/test-*.parquet"},
    ]


def test_a_packed_set_loads_by_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    pack(
        ListSource([make_record(index) for index in range(6)], [_rejected(10, "blurry")]),
        folder,
        includes_negatives=True,
    )
    configs = ["text_to_image", "text_and_image_to_image", "text_to_image_negatives"]
    assert get_dataset_config_names(str(folder)) == configs
    rows = load_dataset(str(folder), "text_and_image_to_image", split="train", cache_dir=tmp_path / "cache")
    assert rows.column_names == list(published_features())


def test_the_examples_of_the_card_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(ListSource([make_record(index) for index in range(6)]), tmp_path / "set")
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "set" / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["rows"].num_rows == 3
    assert code.count("\n# load_dataset(") == 1
    edits = [make_record(index) for index in (1, 3, 5)]
    assert [*names["labels"]] == [{"id": edit.id, "edit_category": "Object-level"} for edit in edits]
    assert next(iter(names["stream"]))["id"] == edits[0].id


@pytest.mark.parametrize(
    ("licenses", "stated"),
    [
        ((None, None), None),
        (("cc-by-4.0", "cc-by-4.0"), "cc-by-4.0"),
        (("cc-by-4.0", None), None),
        (("cc-by-4.0", "cc0-1.0"), None),
    ],
)
def test_a_licence_is_stated_only_where_all_rows_agree(licenses: tuple[str | None, ...], stated: str | None) -> None:
    text = _card(*(make_record(i).model_copy(update={"license": name}) for i, name in enumerate(licenses)))
    assert _metadata(text).get("license") == stated
    for name, count in Counter(licenses).items():
        line = "The rows name no licence" if licenses == (None, None) else f"| {count} |"
        assert line in _section(text, "Licence and terms")
        assert name is None or f"| `synthesized` | `{name}` | {count} |" in text


def test_negatives_have_a_say_in_the_licence() -> None:
    row = make_record(0).model_copy(update={"license": "cc-by-4.0"})
    assert _metadata(render_card(_facts([row]))).get("license") == "cc-by-4.0"
    assert _metadata(render_card(_facts([row], [_rejected(2, "blurry")]))).get("license") is None


def test_a_licence_that_the_hub_does_not_know_is_called_other() -> None:
    assert license_fields("My Licence, v2") == {"license": "other", "license_name": "my-licence-v2"}
    assert license_fields("???") == {"license": "other", "license_name": "other"}


def test_imported_rows_extend_the_upstream_release() -> None:
    text = _card(_upstream(0))
    assert _metadata(text)["source_datasets"] == ["extended|FreedomIntelligence/ShareGPT-4o-Image"]
    assert "made by the authors of ShareGPT-4o-Image" in text
    assert "The recipe is that of" not in text


# ------------------------------------------------------------------ text


def _upstream(index: int) -> Record:
    """A row of which nothing is known but what the upstream release says."""
    record = make_record(index)
    known = ("id", "task", "input_prompt", "input_image", "output_image", "output_image_resolution")
    return Record(**{name: getattr(record, name) for name in known}, origin="upstream_release")


@pytest.mark.parametrize("row", [Record, RejectedRecord, LabelledRecord])
def test_the_columns_table_equals_the_features(row: type[Record]) -> None:
    table = _section(_card(make_record(0), row=row), "Columns")
    lines = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.+) \|$", table, flags=re.MULTILINE)
    assert [name for name, _, _ in lines] == list(published_features(row))
    types = {name: kind for name, kind, _ in lines}
    assert types["input_image"] == "list of image"
    assert types["usage"] == "JSON"
    assert types["cost_usd"] == "float64"


def test_every_column_is_described() -> None:
    names = {name: None for row in (RejectedRecord, LabelledRecord) for name in published_features(row)}
    assert list(COLUMNS) == list(names)


def test_columns_of_negatives_are_told_apart() -> None:
    facts = _facts([make_record(0)], [_rejected(2, "blurry")])
    assert "`text_to_image_negatives` has `reject_reason` (why a quality gate refused the picture) besides." in (
        render_card(facts)
    )


def test_it_names_the_models_of_the_rows_and_no_other() -> None:
    text = _card(make_record(0), make_record(1).model_copy(update={"served_model": "offline-writer-2"}))
    assert "| `offline-painter` | 2 |" in text
    assert "| `offline-writer-2` | 1 |\n| null | 1 |" in text
    assert '| `offline-painter` | `size="16x16"` | 2 |' in text
    assert not re.search("gpt-image|gemini", text, flags=re.IGNORECASE)


def test_a_set_of_which_nothing_is_known_claims_nothing() -> None:
    text = _card(_upstream(0), _upstream(1), source=SourceFacts(kind="upstream_release", name="org/release"))
    assert "Neither dates nor costs were recorded." in text
    assert "The rows name no licence." in text
    assert "The rows name no objects, styles or other categories." in text
    assert "None" not in text
    assert not re.search(r"requests to its models|rejected|US dollars over|## Labels|\n\n\n|card/", text)


def test_a_set_without_rows_still_renders() -> None:
    text = _card()
    assert "There is nothing to load yet." in text
    assert DatasetCard(text).data.to_dict()["size_categories"] == "n<1K"


def test_dates_and_costs_are_those_of_the_rows_and_of_the_run() -> None:
    source = SourceFacts(kind="run", name="pilot", spent_usd=8.25, possibly_spent_usd=0.14)
    text = _card(make_record(2), make_record(0), source=source)
    assert "between 2026-11-01T00:00:00Z and 2026-11-03T00:00:00Z" in text
    assert "0.50 US dollars over 2 rows, 0.25 a row" in text
    assert "The whole run cost 8.25 US dollars, and at most 0.14 more that is not known" in text


def test_a_cost_that_is_no_number_is_not_counted() -> None:
    text = _card(make_record(0), make_record(2).model_copy(update={"cost_usd": float("nan")}))
    assert "0.25 US dollars over 1 row, 0.25 a row" in text
    assert "nan" not in _section(text, "How it was made")


def test_failures_of_a_run_and_of_packing_are_counted() -> None:
    source = SourceFacts(
        kind="run",
        name="pilot",
        requests={"image": {"painter": {"ok": 1100, "blocked": 3}}, "judge": {"critic": {"ok": 100, "lost": 1}}},
        rejections={"moderation": 3},
    )
    text = _card(make_record(0), source=source, rejections=Counter({"sha256 differs": 2}))
    assert "The run `pilot` sent 1,204 requests to its models; 4 of them got no answer of use." in text
    assert "| What was asked for | Model | `ok` | `blocked` | `lost` |" in text
    assert "| picture (`image`) | `painter` | 1,100 | 3 | 0 |" in text
    assert "| opinion on a picture (`judge`) | `critic` | 100 | 0 | 1 |" in text
    assert "- `blocked`: refused by the moderation of the service" in text
    assert "The run rejected 3 samples. None of them is part of this set." in text
    assert "| `moderation` | 3 |" in text
    assert "Packing kept out 2 rows, each listed with its reason" in text
    assert "| `sha256 differs` | 2 |" in text
    assert "Packing kept no row out." in _card(make_record(0))


def test_small_vocabularies_are_tables_and_large_ones_plots() -> None:
    records = [make_record(0).model_copy(update={"style": f"style {index}"}) for index in range(20)]
    coverage = _section(_card(*records), "What it shows")
    assert "20 different values in 20 of 20 rows." in coverage
    assert "](card/style.png)" in coverage
    assert "`style 7`" not in coverage
    assert "| `circle` | 20 |" in coverage
    assert "2 different values in 40 occurrences." in coverage


def test_a_light_variant_does_not_claim_the_bytes_that_were_received() -> None:
    plain = _card(make_record(0))
    light = _card(make_record(0), encoding=ImageEncoding(512, "webp", 90))
    assert "byte for byte as they were received" in plain
    assert "are still in them" in plain
    assert "byte for byte" not in light
    assert "are still in them" not in light
    assert "the pictures of the run `pilot` were decoded, turned upright and encoded anew" in light
    assert "(at most 512 pixels a side, stored as webp of quality 90)" in light
    assert "(C2PA) are gone" in light


def test_a_set_packed_from_another_refers_to_it() -> None:
    text = _card(make_record(0), source=SourceFacts(kind="data_set", name="full"))
    assert "byte for byte those of the data set `full`" in text
    assert "as they were received" not in text


def test_labels_tell_their_model_and_their_agreement() -> None:
    source = SourceFacts(kind="data_set", name="full", agreement={"style": [3, 4], "camera": [0, 0]})
    labels = _section(_card(_labelled(0), _labelled(1), row=LabelledRecord, source=source), "Labels")
    assert "| `labeller` | 2 |" in labels
    assert "| `style` | 4 | 3 | 75.0% |" in labels
    assert "camera" not in labels
    unknown = _card(_labelled(0), row=LabelledRecord)
    assert "How far the labels agree with what was known was not measured." not in unknown
    assert "how good the labels are is not known" in unknown
    known = _labelled(0).model_copy(update={"style": "ink"})
    assert "How far the labels agree with what was known was not measured." in _card(known, row=LabelledRecord)


def test_the_run_that_labelled_is_told() -> None:
    run = SourceFacts(
        kind="run",
        name="labels",
        requests={"label": {"labeller": {"ok": 9, "invalid": 1}}},
        rejections={"the reply is no JSON": 1},
        spent_usd=0.5,
        taxonomy="paper",
    )
    source = SourceFacts(kind="run", name="pilot", labelling=run)
    labels = _section(_card(_labelled(0), row=LabelledRecord, source=source), "Labels")
    assert "among the words of the taxonomy `paper`" in labels
    assert "| labels (`label`) | `labeller` | 9 | 1 |" in labels
    assert "| `the reply is no JSON` | 1 |" in labels
    assert "Labelling cost 0.50 US dollars." in labels
    assert "opinion of that model" in labels


# ------------------------------------------------------------------ photographs, pipelines, settings


def _photograph(index: int) -> Record:
    changes = {
        "pipeline": "image_first",
        "image_model": None,
        "source_origin": "a museum",
        "source_license": "cc0-1.0",
    }
    return make_record(2 * index).model_copy(update=changes | {"image_params": {"target": "original"}})


def test_photographs_are_not_called_synthetic() -> None:
    text = _card(_photograph(0), _photograph(1))
    assert "Photographs, each with a description that a language model wrote. No model made them." in text
    assert "- `image_first`: a language model describes a photograph; the picture of the row is the photograph" in text
    assert "may show real people" in _section(text, "Ethics")
    assert "Pictures made by" not in text
    assert "are synthetic" not in text
    assert "synthetic" not in _metadata(text)["tags"]
    assert "The rows were made between" in text


def test_photographs_among_other_pictures_are_counted() -> None:
    edit = make_record(1).model_copy(update={"source_origin": "synthesized; a museum"})
    text = _card(make_record(0), _photograph(1), edit, make_record(3))
    assert "Pictures made by image-generation models, each with the text that asked for it or for the change" in text
    assert "; and 1 photograph that no model made, each with a description" in text
    assert "In 1 of 2 rows a source picture is a photograph." in text
    assert "Pictures that a model made are synthetic" in text
    assert "may show real people" not in _card(make_record(0), make_record(1))


def test_only_the_pipelines_that_are_present_are_described() -> None:
    text = _section(_card(make_record(0)), "How it was made")
    assert "`prompt_first`: a topic is drawn" in text
    assert not re.search("`(document|editing|image_first)`", text)
    assert "Documents are meant" not in _card(make_record(0))
    document = make_record(0).model_copy(update={"pipeline": "document"})
    assert "`document`: a language model writes the content" in _card(document)
    assert "Documents are meant" in _card(document)


def test_the_settings_of_a_run_are_told() -> None:
    gates = {"blank": True, "similar_within": None, "judge": {"model": "critic", "threshold": 7}}
    settings = {"seed": 0, "prompt_params": {"temperature": 0.5, "seed": None}, "image_params": {}, "gates": gates}
    text = _card(make_record(0), source=SourceFacts(kind="run", name="a", taxonomy="paper", settings=settings))
    assert "| Taxonomy | `paper` |\n| Seed | `0` |" in text
    assert "| Parameters of text requests | `temperature=0.5` |" in text
    assert "| Refuse pictures of one colour | yes |" in text
    assert "| Model that judges every picture, from 0 to 10 | `critic` |" in text
    assert "| Refuse pictures that it gives less than | `7` |" in text
    assert "bits" not in _section(text, "How it was made")


def test_a_light_variant_of_a_release_is_none_of_a_run() -> None:
    source = SourceFacts(kind="upstream_release", name="org/release", notes=("1. Before, the pictures were larger.",))
    text = _card(_upstream(0), source=source, encoding=ImageEncoding(64, None, None))
    assert "the pictures of the release `org/release` were decoded" in text
    assert "- &#49;. Before, the pictures were larger." in text


def test_the_upstream_release_is_told_from_what_the_paper_says_of_it() -> None:
    text = _card(_upstream(0), source=SourceFacts(kind="upstream_release", name="org/release"))
    assert "image generation of GPT-4o, and the texts from Gemini 2.5 Pro" in text
    assert (
        "The licence of FreedomIntelligence/ShareGPT-4o-Image is not known. The terms of OpenAI and of Google" in text
    )
    assert "models named above" not in text
    assert "checksum compared" not in text
    assert "and checksum." not in text
    assert "byte for byte those of the release `org/release`" in text


def test_tables_end() -> None:
    records = [
        make_record(0).model_copy(update={"image_params": {"n": index}, "license": f"licence {index}"})
        for index in range(45)
    ]
    text = _card(*records)
    assert text.count("| 5 more |  | 5 |") == 2


def test_the_paper_is_cited() -> None:
    assert "arXiv preprint arXiv:2506.18095" in _section(_card(make_record(0)), "Citation")


def test_a_set_of_negatives_says_so() -> None:
    assert "Every row here is a negative" in _card(_rejected(0, "blurry"), row=RejectedRecord)
    text = render_card(_facts([make_record(0)], [_rejected(2, "blurry"), _rejected(4, "blurry")]))
    assert "| `blurry` | 2 |" in text
    assert "| `offline-painter` | 1 |" in text
    assert "published elsewhere" not in text


def test_reasons_of_negatives_are_counted_without_particulars() -> None:
    reason = "the run has a picture that looks the same"
    negatives = [_rejected(2 * index, f"{reason} ({index:04x})") for index in range(1, 4)]
    text = render_card(_facts([make_record(0)], negatives))
    assert f"| `{reason}` | 3 |" in text
    assert "(0001)" not in text


def test_what_became_of_rejected_samples_is_told_by_case() -> None:
    source = SourceFacts(kind="run", name="pilot", rejections={"blurry": 1})
    negative = _rejected(2, "blurry")
    assert "The run rejected 1 sample. None of them is part" in _card(make_record(0), source=source)
    with_negatives = render_card(_facts([make_record(0)], [negative], source=source))
    assert "The run rejected 1 sample. Those of which there is a picture are in the configurations" in with_negatives
    of_negatives = _card(negative, row=RejectedRecord, source=source)
    assert "The run rejected 1 sample. Those of which there is a picture are the rows of this set." in of_negatives
    assert "became no row" not in re.sub("answers that became no row", "", with_negatives + of_negatives)


def test_text_from_outside_cannot_break_out() -> None:
    changed = dict.fromkeys(("image_model", "prompt_model", "style", "edit_task", "license", "created_at"), HOSTILE)
    record = make_record(0).model_copy(update=changed | {"objects": [HOSTILE], "image_params": {HOSTILE: HOSTILE}})
    source = SourceFacts(
        kind="run",
        name=HOSTILE,
        requests={HOSTILE: {HOSTILE: {HOSTILE: 1}}},
        settings={"prompt_params": {HOSTILE: HOSTILE}, "gates": {"judge": {"model": HOSTILE, "threshold": 7}}},
        taxonomy=HOSTILE,
        rejections={HOSTILE: 1},
        notes=(HOSTILE, "- " + HOSTILE, "# heading"),
    )
    text = _card(record, title=HOSTILE, source=source, rejections=Counter({HOSTILE: 1}))
    card = DatasetCard(text)
    assert card.data.to_dict()["pretty_name"] == HOSTILE
    body = card.text
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    spans = [span for token in tokens for span in token.children or []]
    assert [token.content for token in tokens if token.type == "html_block"] == [MARKER + MARKER_END]
    assert {span.attrs["href"] for span in spans if span.type == "link_open"} == {"https://arxiv.org/abs/2506.18095"}
    assert {span.content for span in spans if span.type == "html_inline"} == {"<code>", "</code>"}
    assert not [token for token in tokens if token.type == "hr"]
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    assert "alert(1)" in "".join(span.content for span in spans if span.type == "text")
    for block in re.findall(r"(?:^\|.*\|\n)+", body, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    [code] = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    compile(code, "card", "exec")


def test_the_card_is_the_same_for_the_same_counts() -> None:
    records = [make_record(index) for index in range(4)]
    facts = _facts(records)
    facts.rows = RowCounts.from_dict(json.loads(json.dumps(vars(facts.rows))))
    assert render_card(facts) == _card(*records) == _card(*reversed(records), splits=facts.splits)


def test_ids_stay_out_of_the_card() -> None:
    assert content_id(index=0) not in _card(make_record(0))


def test_the_template_at_the_root_is_the_packaged_one() -> None:
    assert (Path(__file__).parents[2] / "dataset_card.md").read_text() == TEMPLATE.read_text()
