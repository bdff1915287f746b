# SPDX-License-Identifier: Apache-2.0
"""`enrich`: every row gets labels through the engine, what was known stays as it was, and nothing is paid twice."""

import json
import os
import signal
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from picture_records import ListSource, make_record
from PIL import Image
from starlette.responses import JSONResponse, Response
from synthesis.loopback_teacher import LoopbackTeacher

from sharegpt4o_image.builders.enrichment import (
    LABEL_COLUMNS,
    EnrichmentSummary,
    enrich_dataset,
    plan_enrichment,
)
from sharegpt4o_image.builders.packed_set import PackedSet
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.row_labelling import NOT_ASKED, label_rows
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import (
    ImageFile,
    LabelledRecord,
    RejectedRecord,
    published_features,
)
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.labelling import (
    EDIT_LABELS,
    NONE,
    PICTURE_LABELS,
    Vocabulary,
)
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.status import read_status
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy

KEY = "sk-test-0123456789"
WORDS = Vocabulary.of(load_taxonomy("offline"))
NUM_PICTURES, NUM_DOCUMENTS, NUM_EDITS = 22, 6, 22
NUM_ROWS = NUM_PICTURES + NUM_DOCUMENTS + NUM_EDITS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed run of the offline teacher."""
    folder = tmp_path_factory.mktemp("sets")
    counts = {"num_topics": NUM_PICTURES, "num_documents": NUM_DOCUMENTS, "num_edits": NUM_EDITS}
    synthesize(folder / "run", SynthesisConfig(**counts))
    pack(RunSource(folder / "run"), folder / "set", splits={"validation": 0.2})
    return folder / "set"


@pytest.fixture(scope="module")
def enriched(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EnrichmentSummary, Path]:
    """That set with labels of the offline teacher."""
    folder = tmp_path_factory.mktemp("labels")
    return enrich_dataset(dataset, folder / "out", folder / "run"), folder


def read_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """File -> its rows."""
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist() for path in sorted(folder.glob("*/*.parquet"))
    }


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for rows in read_rows(folder).values() for row in rows]


def without_labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in LABEL_COLUMNS} for row in rows]


def config_for(teacher: LoopbackTeacher, **keys: Any) -> SynthesisConfig:
    return SynthesisConfig(base_url=teacher.base_url, **{"num_workers": 1, **keys})


def completion(content: dict[str, Any] | None, **message: Any) -> Response:
    said = {"role": "assistant", "content": json.dumps(content), **message}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return JSONResponse({"model": "other-1", "choices": [{"message": said, "finish_reason": "stop"}], "usage": usage})


def reply(is_edit: bool = False, **labels: Any) -> dict[str, Any]:
    """A whole answer in which no word fits, but for `labels`."""
    names = ("objects", *PICTURE_LABELS, *(EDIT_LABELS if is_edit else ()))
    said: dict[str, Any] = dict.fromkeys(names, NONE) | {f"{name}_confidence": 0.5 for name in names}
    return said | {"objects": []} | labels


# --------------------------------------------------------------------------- what is written


def test_all_rows_have_labels_beside_all_that_they_had(
    dataset: Path, enriched: tuple[EnrichmentSummary, Path]
) -> None:
    summary, folder = enriched
    before, after = read_rows(dataset), read_rows(folder / "out")
    assert list(after) == list(before)  # the same splits and files
    for name, rows in after.items():
        assert without_labels(rows) == before[name]
    rows = all_rows(folder / "out")
    assert len(rows) == NUM_ROWS == summary.labelling.new_attempts
    for row in rows:
        is_edit = row["task"] == "text_and_image_to_image"
        assert row["label_model"] == "offline-writer-1"
        named = {name for name, value in row["label_confidence"].items() if value is not None}
        assert named == {"objects", *PICTURE_LABELS, *(EDIT_LABELS if is_edit else ())}
        assert all(0 <= row["label_confidence"][name] <= 1 for name in named)
        for name, words in WORDS.words.items():
            assert row[f"label_{name}"] in (None, *words)
    assert json.loads(summary.to_json())["labelled"] == {
        "text_to_image": NUM_PICTURES + NUM_DOCUMENTS,
        "text_and_image_to_image": NUM_EDITS,
    }


def test_files_have_the_published_schema_and_load_as_labelled_rows(enriched: tuple[EnrichmentSummary, Path]) -> None:
    folder = enriched[1] / "out"
    for path in folder.glob("*/*.parquet"):
        assert pq.read_schema(path).names == list(published_features(LabelledRecord))
    with closing(PackedSet(folder)) as source:
        assert source.row is LabelledRecord
        record = source.load(next(source.plan()))
    assert isinstance(record, LabelledRecord)
    assert record.label_confidence is not None


def test_agreement_is_what_can_be_seen(enriched: tuple[EnrichmentSummary, Path]) -> None:
    """Recounted from the files; the offline teacher reads its own scenes without a fault."""
    summary, folder = enriched
    rows = all_rows(folder / "out")
    said = json.loads(summary.to_json())["agreement"]
    for name in WORDS.words:
        known = [row for row in rows if row[name] is not None]
        agree = sum(row[name] == row[f"label_{name}"] for row in known)
        assert (said[name]["agree"], said[name]["compared"]) == (agree, len(known))
    known = [row for row in rows if row["objects"]]
    assert said["objects"]["compared"] == len(known) == NUM_PICTURES
    assert all(set(row["objects"]) == set(row["label_objects"]) for row in known)
    assert said["objects"]["jaccard"] == said["objects"]["recall"] == 1
    for name in ("style", "lighting", "camera", "document_type"):
        assert said[name]["agree"] == said[name]["compared"] > 0, name
    assert said["edit_task"]["kappa"] > 0.8
    assert f"objects: {NUM_PICTURES} of {NUM_PICTURES} rows agree (100.0 %)" in summary.to_text()
    card = summary.labelling.agreement.for_card()
    assert card["objects"] == [NUM_PICTURES, NUM_PICTURES]
    with closing(PackedSet(folder / "out")) as source:
        assert source.facts().agreement == card


def test_the_set_says_how_it_was_labelled(dataset: Path, enriched: tuple[EnrichmentSummary, Path]) -> None:
    with closing(PackedSet(dataset)) as before, closing(PackedSet(enriched[1] / "out")) as after:
        source, facts = before.facts(), after.facts()
    assert replace(facts, agreement={}, labelling=None) == source
    assert facts.labelling is not None
    assert (facts.labelling.name, facts.labelling.taxonomy) == ("run", "offline")
    assert facts.labelling.requests == {"label": {"offline-writer-1": {"ok": NUM_ROWS}}}
    assert facts.labelling.settings == {
        "prompt_params": SynthesisConfig().prompt_params.model_dump(mode="json"),
        "template": "label.v1",
        "shown_pictures": {"max_side": 512, "format": "webp", "quality": 85},
    }


def test_the_model_is_shown_pictures_and_prompt_and_nothing_that_was_known(
    enriched: tuple[EnrichmentSummary, Path],
) -> None:
    run_dir, rows = enriched[1] / "run", {row["input_prompt"] for row in all_rows(enriched[1] / "out")}
    with closing(Journal.open(run_dir)) as journal:
        written = [json.loads(text) for (text,) in journal._connection.execute("SELECT request FROM attempts")]
        shown = [Image.open(journal.blobs.path_of(name)) for request in written for name in request["pictures"]]
    assert len(written) == NUM_ROWS
    assert len(shown) == NUM_PICTURES + NUM_DOCUMENTS + 2 * NUM_EDITS
    assert {picture.format for picture in shown} == {"WEBP"}
    for request in written:
        [message] = request["body"]["messages"]
        task = json.loads(message["content"].split("Task:\n")[1].split("\n\nAnswer")[0])
        said_of = {"text_to_image": "prompt", "text_and_image_to_image": "instruction"}[task["label"]]
        assert set(task) == {"label", said_of}
        assert task[said_of] in rows
        assert len(request["pictures"]) == (1 if said_of == "prompt" else 2)


# --------------------------------------------------------------------------- going on


def test_nothing_is_asked_twice(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = config_for(teacher, num_workers=4)
        first = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=2)
        assert teacher.num_requests == first.labelling.new_attempts == 4
        rows = all_rows(tmp_path / "out")
        assert Counter(row["task"] for row in rows if row["label_model"]) == dict.fromkeys(first.labelling.rows, 2)
        assert len(rows) == NUM_ROWS
        assert all(row["label_confidence"] is None for row in rows if row["label_model"] is None)
        enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=5)
        assert teacher.num_requests == 10
        again = label_rows(PackedSet(dataset), tmp_path / "run", config, limit=5)
        assert (teacher.num_requests, again.new_attempts) == (10, 0)
        assert set(teacher.served.values()) == {1}
    assert sum(row["label_model"] is not None for row in all_rows(tmp_path / "out")) == 10
    assert read_status(tmp_path / "run").decided == {"labelling": 10}


def test_another_vocabulary_asks_anew(dataset: Path, tmp_path: Path) -> None:
    label_rows(PackedSet(dataset), tmp_path / "run", limit=2)
    done = label_rows(PackedSet(dataset), tmp_path / "run", SynthesisConfig(taxonomy="paper"), limit=2)
    assert done.new_attempts == 4
    assert done.agreement.objects.num_outside == 2  # no shapes in the paper's taxonomy
    assert done.agreement.objects.compared == 0
    assert all(labels.values["objects"] for labels in done.labels.values() if "edit_task" in labels.values)


def test_a_smaller_limit_drops_no_label_that_the_run_has(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = config_for(teacher)
        label_rows(PackedSet(dataset), tmp_path / "run", config, limit=4)
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=1)
        assert teacher.num_requests == 8
    assert sum(row["label_model"] is not None for row in all_rows(tmp_path / "out")) == 8
    assert summary.labelling.rows == summary.labelling.labelled == dict.fromkeys(summary.labelling.rows, 4)
    assert summary.labelling.unfinished == {}


def test_rows_past_the_limit_are_not_read_where_nothing_can_have_labels(dataset: Path, tmp_path: Path) -> None:
    records = [make_record(index) for index in range(6)]
    source = ListSource(records)
    label_rows(source, tmp_path / "run", limit=1)
    assert source.loaded == [records[0].id, records[1].id]


def test_interrupted_it_keeps_the_answers_and_writes_no_set(dataset: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with LoopbackTeacher() as teacher:
        config = config_for(teacher)
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=6, on_progress=interrupt)
        assert summary.is_interrupted
        assert "interrupted" in summary.to_text()
        assert not (tmp_path / "out").exists()
        assert 3 <= teacher.num_requests <= 5
        assert not label_rows(PackedSet(dataset), tmp_path / "run", config, limit=6).is_interrupted
        assert teacher.num_requests == 12
        assert set(teacher.served.values()) == {1}


def test_progress_counts_labels_and_then_rows(dataset: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", limit=2, on_progress=note)
    assert [done for done, _ in steps][:4] == [1, 2, 3, 4]
    assert steps[-1] == (4 + NUM_ROWS, 4 + NUM_ROWS)
    assert sorted(steps) == steps


# --------------------------------------------------------------------------- money


def test_budget_ends_the_asking_and_a_larger_one_goes_on(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = config_for(teacher, prices={"offline-writer-1": Price(text_input=10, output=10)}, num_workers=4)
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=8, budget_usd=0.09)
        done = summary.labelling
        assert done.end_of_budget is not None
        assert not summary.is_interrupted
        assert 0 < done.labelled.total() < 16
        assert 0 < done.spent_usd <= 0.09
        rows = all_rows(tmp_path / "out")
        assert sum(row["label_model"] is not None for row in rows) == done.labelled.total()
        assert "a larger --budget goes on" in summary.to_text()
        assert sum(done.unfinished.values()) == 16 - done.labelled.total()
        final = label_rows(PackedSet(dataset), tmp_path / "run", config, limit=8, budget_usd=50)
        assert final.labelled.total() == 16
        assert set(teacher.served.values()) == {1}
        tokens = teacher.tokens["text_input"] + teacher.tokens["output"]
    assert final.spent_usd == pytest.approx(tokens * 10 / 1e6)


def test_a_spent_budget_drops_no_label_that_the_run_has(dataset: Path, tmp_path: Path) -> None:
    """The first row is to be asked for anew, which the budget does not allow; the rows behind it have labels."""
    with LoopbackTeacher() as teacher:
        config = config_for(teacher, prices={"offline-writer-1": Price(text_input=10, output=10)})
        label_rows(PackedSet(dataset), tmp_path / "run", config, limit=3)
        with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
            [first, *_] = journal.iter_items()
            journal.undecide([first.item])
            journal._connection.execute("UPDATE attempts SET status = 'lost' WHERE key = ?", (first.item,))
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=4, budget_usd=0.001)
        assert teacher.num_requests == 6
    assert summary.labelling.end_of_budget is not None
    assert summary.labelling.labelled.total() == 5
    assert summary.labelling.unfinished == {NOT_ASKED: 3}  # the first one, and the fourth of each task
    assert sum(row["label_model"] is not None for row in all_rows(tmp_path / "out")) == 5


def test_a_budget_needs_a_price(dataset: Path, tmp_path: Path) -> None:
    config = SynthesisConfig(prompt_model="unheard-of")
    with pytest.raises(UserError, match="price of unheard-of"):
        enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, budget_usd=1)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_asks_and_writes_nothing(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = config_for(teacher, prices={"offline-writer-1": Price(text_input=2, output=4)})
        plan = plan_enrichment(dataset, tmp_path / "run", config, limit=6)
        assert teacher.num_requests == 0
        assert plan.rows == {"text_to_image": 6, "text_and_image_to_image": 6}
        assert plan.stage.requests == 12
        dollars = (plan.stage.text_input_tokens * 2 + plan.stage.output_tokens * 4) / 1e6
        assert plan.stage.usd == pytest.approx(dollars)
        assert json.loads(plan.to_json())["requests"] == 12
        assert "assumptions" in plan.to_text()
        assert not (tmp_path / "run").exists()
        label_rows(PackedSet(dataset), tmp_path / "run", config, limit=6)
        rest = plan_enrichment(dataset, tmp_path / "run", config)
        assert (rest.stage.requests, rest.stage.measured_answers) == (NUM_ROWS - 12, 12)


# --------------------------------------------------------------------------- answers of no use


def test_a_blocked_row_keeps_its_reason_and_is_not_asked_again(dataset: Path, tmp_path: Path) -> None:
    def block(number: int, path: str) -> Response | None:
        if number == 2:
            return JSONResponse({"error": {"message": "no", "code": "content_policy_violation"}}, 400)
        return completion(None, refusal="I cannot look at this") if number == 3 else None

    with LoopbackTeacher(block) as teacher:
        config = config_for(teacher)
        done = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config, limit=3).labelling
        assert done.labelled == {"text_to_image": 1, "text_and_image_to_image": 3}
        assert sum(done.unlabelled.values()) == 2
        assert done.unlabelled["refused"] == 1
        again = label_rows(PackedSet(dataset), tmp_path / "run", config, limit=3)
        assert (again.new_attempts, again.unlabelled) == (0, done.unlabelled)
    with closing(Journal.open(tmp_path / "run")) as journal:
        reasons = [item.reason for item in journal.iter_items(is_rejected=True)]
    assert len(reasons) == 2
    assert "refused: I cannot look at this" in reasons
    first = [row for row in all_rows(tmp_path / "out") if row["task"] == "text_to_image"][:3]
    assert len(all_rows(tmp_path / "out")) == NUM_ROWS
    assert sum(row["label_model"] is None for row in first) <= 2


def test_a_word_outside_of_the_vocabulary_is_asked_again(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher(lambda number, path: completion(reply(style="cubism")) if number == 2 else None) as teacher:
        done = label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher), limit=2)
        assert done.labelled.total() == 4
        assert teacher.num_requests == done.new_attempts == 5
    assert read_status(tmp_path / "run").by_status == {"ok": 4, "invalid": 1}


def test_nothing_but_useless_answers_for_a_row_leaves_it_without_labels(dataset: Path, tmp_path: Path) -> None:
    bad = completion(reply(style="cubism"))
    with LoopbackTeacher(lambda number, path: bad if number in (2, 3, 4) else None) as teacher:
        done = label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher), limit=2)
    assert (done.labelled.total(), done.new_attempts) == (3, 6)
    assert list(done.unlabelled.values()) == [1]
    [reason] = done.unlabelled
    assert reason == "the chat answer does not fit"


@pytest.mark.parametrize(
    "labels",
    [
        {"style_confidence": 1.5},
        {"camera_confidence": "high"},
        {"objects": "a cat"},
        {"mood": "gay"},
        {"edit_task": "element manipulation", "edit_category": "content augmentation and extension"},
        {"edit_task": "element manipulation"},
    ],
)
def test_answers_that_do_not_fit_are_of_no_use(dataset: Path, tmp_path: Path, labels: dict[str, Any]) -> None:
    is_edit = "edit_task" in labels
    number_of_bad = 2 if is_edit else 1

    def answer(number: int, path: str) -> Response | None:
        return completion(reply(is_edit, **labels)) if number == number_of_bad else None

    with LoopbackTeacher(answer) as teacher:
        done = label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher), limit=1)
        assert (done.labelled.total(), teacher.num_requests) == (2, 3)


def test_an_endpoint_that_says_nothing_of_use_rejects_no_row(dataset: Path, tmp_path: Path) -> None:
    with LoopbackTeacher(lambda number, path: completion(reply(style="cubism"))) as teacher:
        with pytest.raises(UserError, match="run stopped"):
            label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher))
        teacher.fault = None
        done = label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher), limit=4)
    assert done.labelled.total() == 8


def test_what_a_model_says_reaches_the_terminal_escaped(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evil = "x\u202e\x1b[31m"

    def answer(number: int, path: str) -> Response:
        if number > 1:
            return JSONResponse({"error": {"message": evil, "code": "strange"}}, 400)
        said = completion(reply())
        return JSONResponse(json.loads(bytes(said.body)) | {"model": evil})

    with LoopbackTeacher(answer) as teacher, pytest.raises(UserError, match="run stopped") as caught:
        label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher))
    assert str(caught.value).isprintable()
    assert r"\x1b" in str(caught.value)
    assert r"answered by x\u202e\x1b[31m" in caplog.text


def test_what_was_rejected_while_the_endpoint_failed_is_asked_again(dataset: Path, tmp_path: Path) -> None:
    bad = completion(reply(style="cubism"))
    with LoopbackTeacher(lambda number, path: bad if number > 1 else None) as teacher:
        with pytest.raises(UserError, match="run stopped"):
            label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher))
        teacher.fault = None
        done = label_rows(PackedSet(dataset), tmp_path / "run", config_for(teacher), limit=2)
    assert (done.labelled.total(), done.unlabelled) == (4, {})


def test_objects_are_free_words(dataset: Path, tmp_path: Path) -> None:
    said = reply(
        objects=["A Red Circle", "red circle", "blue stars", "a unicorn", "Unicorn", "evil\u202e\x1b[31m"],
        objects_confidence=0.75,
    )
    with LoopbackTeacher(lambda number, path: completion(said) if number == 1 else None) as teacher:
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config_for(teacher), limit=1)
    [row] = [row for row in all_rows(tmp_path / "out") if row["label_model"] == "other-1"]
    assert row["label_objects"] == ["red circle", "blue stars", "unicorn"]
    assert row["label_confidence"]["objects"] == 0.75
    assert row["label_style"] is None
    assert row["label_confidence"]["style"] == 0.5
    assert summary.labelling.dropped == {"evil\u202e\x1b[31m": 1}
    assert r"such as evil\u202e\x1b[31m" in summary.to_text()
    assert all(line.isprintable() for line in (*summary.to_text().splitlines(), summary.to_json()))


# --------------------------------------------------------------------------- rows that cannot be shown


def test_a_picture_that_cannot_be_read_is_not_sent(tmp_path: Path) -> None:
    broken = make_record(0).model_copy(update={"output_image": ImageFile(bytes=b"no picture", path="0.png")})
    with LoopbackTeacher() as teacher:
        source = ListSource([broken, make_record(1)])
        done = label_rows(source, tmp_path / "run", config_for(teacher))
        assert teacher.num_requests == 1
    assert done.labelled == {"text_and_image_to_image": 1}
    assert done.unlabelled == {"a picture cannot be read": 1}


def test_negatives_are_passed_on_without_labels(tmp_path: Path) -> None:
    records = [make_record(index) for index in range(4)]
    refused = [RejectedRecord(**dict(make_record(index)), reject_reason="too dark") for index in range(4, 6)]
    pack(ListSource(records, refused), tmp_path / "set", includes_negatives=True)
    summary = enrich_dataset(tmp_path / "set", tmp_path / "out", tmp_path / "run")
    assert summary.labelling.rows == {"text_to_image": 2, "text_and_image_to_image": 2}
    before, after = read_rows(tmp_path / "set"), read_rows(tmp_path / "out")
    assert list(after) == list(before)
    negatives = [name for name in after if "_negatives/" in name]
    assert len(negatives) == 2
    assert all(after[name] == before[name] for name in negatives)


def test_labels_of_an_earlier_model_stay_where_there_are_no_new_ones(dataset: Path, tmp_path: Path) -> None:
    enrich_dataset(dataset, tmp_path / "one", tmp_path / "run", limit=3)
    other = completion(reply(style="outline style"))
    with LoopbackTeacher(lambda number, path: other if number == 1 else None) as teacher:
        enrich_dataset(tmp_path / "one", tmp_path / "two", tmp_path / "run two", config_for(teacher), limit=1)
    rows = all_rows(tmp_path / "two")
    models = Counter(row["label_model"] for row in rows)
    assert models == {None: NUM_ROWS - 6, "offline-writer-1": 5, "other-1": 1}
    with closing(PackedSet(tmp_path / "two")) as source:
        facts = source.facts()
    for name in ("edit_task", "objects"):
        compared = [row for row in rows if row["label_model"] and row[name]]
        agree = sum(set(row[name]) == set(row[f"label_{name}"]) for row in compared)
        assert facts.agreement[name] == [agree, len(compared)]
        assert len(compared) == 3
    assert facts.labelling is not None
    assert facts.labelling.name == "run two"
    assert facts.notes[-1:] == ("Where the run run two gave no labels, rows keep those of the run run.",)


def test_new_labels_replace_all_old_ones(tmp_path: Path) -> None:
    """The new vocabulary has no words for most columns; nothing of the old one stays."""
    pack(ListSource([make_record(0), make_record(2)]), tmp_path / "set")
    with LoopbackTeacher(lambda number, path: completion(reply(style="outline style"))) as teacher:
        enrich_dataset(tmp_path / "set", tmp_path / "one", tmp_path / "run", config_for(teacher))
    assert [row["label_style"] for row in all_rows(tmp_path / "one")] == ["outline style"] * 2
    narrow = tmp_path / "narrow.yaml"
    narrow.write_text("name: narrow\nobject_count: {max: 1}\nobjects: {all: [kite]}\n")
    said = {"objects": ["kite"], "objects_confidence": 0.5}
    with LoopbackTeacher(lambda number, path: completion(said)) as teacher:
        config = config_for(teacher, taxonomy=str(narrow))
        enrich_dataset(tmp_path / "one", tmp_path / "two", tmp_path / "run two", config)
    for row in all_rows(tmp_path / "two"):
        filled = {name for name in LABEL_COLUMNS if row[name] is not None}
        assert filled == {"label_objects", "label_model", "label_confidence"}
        assert {name for name, value in row["label_confidence"].items() if value is not None} == {"objects"}


# --------------------------------------------------------------------------- folders and secrets


@pytest.mark.parametrize(("out", "run"), [("set", "run"), ("set/out", "run"), ("out", "set/run"), ("run/out", "run")])
def test_folders_must_not_overlap(dataset: Path, tmp_path: Path, out: str, run: str) -> None:
    (tmp_path / "set").symlink_to(dataset)
    before = sorted(dataset.rglob("*"))
    with pytest.raises(UserError, match="choose another folder"):
        enrich_dataset(tmp_path / "set", tmp_path / out, tmp_path / run)
    assert sorted(dataset.rglob("*")) == before


def test_what_is_no_run_is_named_by_its_option(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "photo.png").touch()
    with pytest.raises(UserError, match="choose another directory with --run"):
        enrich_dataset(dataset, tmp_path / "out", tmp_path / "run")


@pytest.mark.parametrize("names", [("o\udcff", "run"), ("out", "r\udcff")])
def test_names_that_are_not_utf8_are_refused_before_anything_is_asked(
    dataset: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    out, run = (tmp_path / name for name in names)
    with LoopbackTeacher() as teacher:
        with pytest.raises(UserError, match="is not UTF-8") as caught:
            enrich_dataset(dataset, out, run, config_for(teacher), limit=1)
        assert teacher.num_requests == 0
    assert str(caught.value).encode()
    assert not any(path.exists() for path in (out, run))


def test_labels_and_samples_have_runs_of_their_own(
    dataset: Path, enriched: tuple[EnrichmentSummary, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds samples; choose another directory with --run"):
        enrich_dataset(dataset, tmp_path / "out", dataset.parent / "run")
    with pytest.raises(UserError, match="holds labels; choose another directory with --output"):
        synthesize(enriched[1] / "run", SynthesisConfig(num_topics=1, num_edits=0))


def test_only_a_set_of_records_gets_labels(tmp_path: Path) -> None:
    refused = [RejectedRecord(**dict(make_record(index)), reject_reason="too dark") for index in range(2)]
    pack(ListSource(refused, row=RejectedRecord), tmp_path / "set")
    with pytest.raises(UserError, match="refused pictures alone"):
        enrich_dataset(tmp_path / "set", tmp_path / "out", tmp_path / "run")
    with pytest.raises(UserError, match="no data set"):
        enrich_dataset(tmp_path / "nothing", tmp_path / "out", tmp_path / "run")


def test_the_key_is_in_no_file(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def repeat(number: int, path: str) -> Response | None:
        if number == 2:
            return JSONResponse({"error": {"message": f"bad {KEY}", "code": "content_policy_violation"}}, 400)
        return completion(reply(objects=[KEY])) if number == 3 else None

    with LoopbackTeacher(repeat) as teacher:
        summary = enrich_dataset(dataset, tmp_path / "out", tmp_path / "run", config_for(teacher), limit=3)
        assert teacher.keys_seen == {f"Bearer {KEY}"}
    assert KEY not in summary.to_text() + summary.to_json()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
