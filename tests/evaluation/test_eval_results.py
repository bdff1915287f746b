# SPDX-License-Identifier: Apache-2.0
"""Scores for the Hub: `.eval_results/*.yaml` that its library reads back, and the evaluation in a model card."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sharegpt4o_image.builders.model_card import ModelCardFacts, Sweep, Training, render_model_card
from sharegpt4o_image.checkpoints import ASSETS_DIR
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.eval_results import DATASET_IDS, entries_of, task_id_of
from sharegpt4o_image.evaluation.pretrained import weights_digest
from sharegpt4o_image.evaluation.score_files import ScoreFile
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord, write_scores
from sharegpt4o_image.evaluation.scored_card import fill_card, scores_of

hub_results = pytest.importorskip("huggingface_hub._eval_results")

Run = Callable[..., tuple[int, str, str]]

PLAIN = ScoreRecord(
    benchmark="geneval",
    name="geneval",
    unit=1,
    scores=(ScoreLine("overall", 0.8012345678, 0.78, 0.82, 2212), ScoreLine("two_object", 0.92)),
    num_expected=2212,
    num_scored=2210,
    missing=(MissingItem("00001/samples/0000.png", "unreadable"),),
    model="org/janus",
    generator={"seed": 42},
    judge={"detector": "mask2former.pth"},
    command="sharegpt4o-image evaluate geneval -m /home/me/janus",
    created_at="2026-12-01T00:00:00+00:00",
)
VARIANT = replace(PLAIN, name="geneval[detector=facebook/mask2former]")
EDITS = replace(PLAIN, benchmark="imgedit", name="imgedit[judge=gpt-4.1]", unit=5, scores=(ScoreLine("overall", 3.2),))


def files_of(*records: ScoreRecord) -> list[ScoreFile]:
    return [ScoreFile(Path(f"{index}.json"), record) for index, record in enumerate(records)]


# ------------------------------------------------------------------ .eval_results


def test_the_hub_library_reads_the_files_back(run: Run, tmp_path: Path) -> None:
    write_scores(PLAIN, tmp_path / "a")
    write_scores(VARIANT, tmp_path / "b")
    write_scores(EDITS, tmp_path / "c")
    code, out, _ = run(
        "evaluate", "results", "a", "b", "c", "-o", "model/.eval_results", "--dataset-id", "geneval=org/geneval",
        "--task-id", "imgedit[judge=gpt-4.1]=basic_gpt41", "--source-url", "https://example.org/run",
        "--source-name", "Verdicts",
    )  # fmt: skip
    assert code == 0
    names = sorted(path.name for path in Path("model/.eval_results").iterdir())
    assert names == ["basic_gpt41.yaml", "geneval.yaml", "geneval_detector_facebook_mask2former.yaml"]
    assert all(f"model/.eval_results/{name}" in out for name in names)
    found = {}
    for name in names:
        [found[name]] = hub_results.parse_eval_result_entries(
            yaml.safe_load(Path("model/.eval_results", name).read_text(encoding="utf-8"))
        )
    plain = found["geneval.yaml"]
    assert (plain.dataset_id, plain.task_id, plain.value) == ("org/geneval", "geneval", 0.801235)
    assert (plain.date, plain.source_url, plain.source_name) == (
        "2026-12-01T00:00:00+00:00",
        "https://example.org/run",
        "Verdicts",
    )
    assert plain.notes == (
        "geneval; overall of 1; 95 % interval 0.78 to 0.82; 2,210 of 2,212 scored, 2 missing; judged by detector "
        "mask2former.pth; drawn by seed 42"
    )
    variant = found["geneval_detector_facebook_mask2former.yaml"]
    assert variant.task_id == "geneval_detector_facebook_mask2former"
    assert variant.notes is not None
    assert variant.notes.startswith("geneval[detector=facebook/mask2former]; ")
    edits = found["basic_gpt41.yaml"]
    assert edits.dataset_id == DATASET_IDS["imgedit"]
    assert edits.notes is not None
    assert "no interval" in edits.notes


@pytest.mark.parametrize("name", ["geneval[]", "geneval[x]", "geneval!", "geneval[/]", " geneval "])
def test_a_variant_never_stands_under_the_plain_task(name: str) -> None:
    assert task_id_of(PLAIN) == "geneval"
    assert task_id_of(replace(PLAIN, name=name)) != "geneval"
    with pytest.raises(UserError, match="is a variant, which may not stand under geneval itself"):
        entries_of(files_of(replace(PLAIN, name=name)), {"geneval": "org/geneval"}, {name: "geneval"})


@pytest.mark.parametrize(
    ("records", "dataset_ids", "task_ids", "fault"),
    [
        ((PLAIN,), {}, {}, "which data set on the Hub is geneval"),
        ((PLAIN,), {"geneval": "no-owner"}, {}, "give owner/name"),
        ((PLAIN,), {"geneval": "a/b/c"}, {}, "is no data set on the Hub"),
        ((PLAIN,), {"geneval": "org/x", "other": "org/y"}, {}, "names 'other', of which there is no score"),
        ((PLAIN,), {"geneval": "org/x"}, {"dpg-bench": "x"}, "names 'dpg-bench', of which there is no score"),
        ((PLAIN,), {"geneval": "org/x"}, {"geneval": "../x"}, "cannot be a task id"),
        ((PLAIN, PLAIN), {"geneval": "org/x"}, {}, "0.json and 1.json both hold geneval"),
        ((PLAIN, replace(VARIANT, model="other")), {}, {}, r"are of 2 models \(org/janus, other\)"),
        (
            tuple(replace(one, generator={"revision": one.name[-2:]}) for one in (PLAIN, VARIANT)),
            {},
            {},
            r"are of 2 models called org/janus \(revisions al, r\]\)",
        ),
        (
            (replace(PLAIN, name="geneval[a/b]"), replace(PLAIN, name="geneval[a b]")),
            {"geneval": "org/x"},
            {},
            "two scores would have the task id geneval_a_b",
        ),
    ],
)
def test_what_cannot_be_filed_is_refused(
    records: tuple[ScoreRecord, ...], dataset_ids: dict[str, str], task_ids: dict[str, str], fault: str
) -> None:
    with pytest.raises(UserError, match=fault):
        entries_of(files_of(*records), dataset_ids, task_ids)


def test_the_hub_takes_the_data_sets_that_we_chose() -> None:
    for dataset_id in DATASET_IDS.values():
        validate_repo_id(dataset_id)
    with pytest.raises(HFValidationError):
        validate_repo_id("a/b/c")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("-o", "model"), "is not called .eval_results"),
        (("-o", "x/.eval_results", "--source-name", "x"), "--source-name needs --source-url"),
        (("-o", "x/.eval_results", "--source-url", "javascript:1"), "begins with https://"),
        (("-o", "x/.eval_results", "--source-url", "https://me:secret@host/x"), "has no password"),
        (("-o", "x/.eval_results", "--task-id", "="), "is not NAME=VALUE"),
    ],
)
def test_faults_of_results_are_one_sentence(run: Run, tmp_path: Path, arguments: tuple[str, ...], fault: str) -> None:
    path = write_scores(PLAIN, tmp_path / "a")
    code, out, err = run("evaluate", "results", path, "--dataset-id", "org/geneval", *arguments)
    assert (code, out) == (2, "")
    assert fault in err
    assert "secret" not in err
    assert not Path("x").exists()
    assert not Path("model").exists()


# ------------------------------------------------------------------ the model card


def make_checkpoint(folder: Path, facts: ModelCardFacts | None = None) -> Path:
    folder.mkdir(parents=True)
    facts = facts or ModelCardFacts(name="janus", summary="A checkpoint.", training=Training(num_steps=7))
    (folder / "README.md").write_text(render_model_card(facts), encoding="utf-8")
    return folder


def test_scores_of_a_record_keep_its_name() -> None:
    scores = scores_of([VARIANT])
    assert [score.benchmark for score in scores] == [f"{VARIANT.name}, overall", f"{VARIANT.name}, two_object"]
    assert (scores[0].score, scores[0].interval, scores[0].num_samples) == (0.8012345678, (0.78, 0.82), 2212)
    assert (scores[1].interval, scores[1].num_samples) == (None, None)
    assert scores[0].command == "sharegpt4o-image evaluate geneval -m janus"


def test_a_card_is_filled_and_all_else_stays(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "janus")
    before = (checkpoint / "README.md").read_text()
    filled = fill_card(files_of(PLAIN, EDITS), checkpoint)
    assert (filled.num_scores, filled.num_replaced) == (3, 0)
    after = (checkpoint / "README.md").read_text()
    assert "| geneval, overall | 0.801 | 0.780 to 0.820 | 2,212 |" in after
    assert "| geneval, two_object | 0.920 | not measured | not recorded |" in after
    assert "2,210 of 2,212 items scored, 2 missing" in after
    assert "a variant: not comparable with published imgedit" in after
    assert "It was not evaluated." not in after
    assert "home" not in after
    start, end = "## Evaluation\n", "\n## Limits"
    assert after.split(end)[1] == before.split(end)[1]
    body = after.split("\n---\n", 1)[1]
    assert body.split(start)[0] == before.split("\n---\n", 1)[1].split(start)[0]


def test_the_head_of_a_filled_card_is_a_model_index(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "janus")
    fill_card(files_of(PLAIN, VARIANT, EDITS), checkpoint)
    data = ModelCard.load(checkpoint / "README.md").data
    assert isinstance(data, ModelCardData)
    assert (data.model_name, data.library_name, data.pipeline_tag) == ("janus", "transformers", "any-to-any")
    results = data.eval_results
    assert results is not None
    assert all(isinstance(result, EvalResult) for result in results)
    by_name = {(result.dataset_name, result.metric_type): result for result in results}
    assert len(by_name) == len(results) == 5
    overall = by_name["geneval", "overall"]
    assert (overall.task_type, overall.metric_value) == ("text-to-image", 0.801235)
    assert overall.metric_args == {"low": 0.78, "high": 0.82, "count": 2212, "missing": 2}
    variant = by_name[VARIANT.name, "overall"]
    assert variant.dataset_type == "geneval_detector_facebook_mask2former"
    assert by_name[EDITS.name, "overall"].task_type == "image-to-image"


def test_filling_again_replaces_the_scores_and_keeps_the_sweeps(tmp_path: Path) -> None:
    sweep = Sweep("guidance_scale", "share right", ((1.0, 0.5), (5.0, 0.75)))
    facts = ModelCardFacts(name="janus", summary="A checkpoint.", sweeps=(sweep,))
    checkpoint = make_checkpoint(tmp_path / "janus", facts)
    fill_card(files_of(PLAIN, EDITS), checkpoint)
    first = (checkpoint / "README.md").read_text()
    assert fill_card(files_of(PLAIN, EDITS), checkpoint).num_replaced == 3
    assert (checkpoint / "README.md").read_text() == first
    fill_card(files_of(VARIANT), checkpoint)
    text = (checkpoint / "README.md").read_text()
    assert "| `guidance_scale` | 1 | 5 |" in text
    assert "imgedit" not in text
    assert text.count("| Benchmark | Score |") == 1


def test_a_shipped_card_can_be_filled(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny-janus-4o"
    checkpoint.mkdir()
    text = (ASSETS_DIR / "tiny-janus-4o" / "README.md").read_text(encoding="utf-8")
    (checkpoint / "README.md").write_text(text, encoding="utf-8")
    filled = fill_card(files_of(replace(PLAIN, model="tiny-janus-4o")), checkpoint)
    assert (filled.num_scores, filled.num_replaced) == (2, 6)
    after = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert after.count("| `guidance_scale` |") == text.count("| `guidance_scale` |")
    assert "single object" not in after


def test_a_card_that_is_not_ours_or_was_changed_is_left_alone(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "janus")
    path = checkpoint / "README.md"
    text = path.read_text()
    for changed in (
        "# A model of mine\n",
        text.replace("## Limits", "## Limitations"),
        text.replace("carries the biases", "has none of the biases"),
        text.replace("It was not evaluated.", "It is very good."),
        text + "\n## Evaluation\n\nMore.\n",
    ):
        path.write_text(changed)
        with pytest.raises(UserError, match="by hand"):
            fill_card(files_of(PLAIN), checkpoint)
        assert path.read_text() == changed


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "janus")
    other = replace(PLAIN, model="org/other")
    with pytest.raises(UserError, match="the scores are of org/other, the checkpoint is"):
        fill_card(files_of(other), checkpoint)
    assert fill_card(files_of(other), checkpoint, called="org/other").num_scores == 2
    assert fill_card(files_of(replace(PLAIN, model=str(checkpoint))), checkpoint).num_scores == 2
    fill_card(files_of(replace(PLAIN, model=None)), checkpoint)
    assert "an unknown model" in (checkpoint / "README.md").read_text()


def test_scores_of_other_weights_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "final")
    (checkpoint / "model.safetensors").write_bytes(b"trained on")
    earlier = replace(PLAIN, model="final", generator={"revision": "0123456789abcdef"})
    with pytest.raises(UserError, match=r"other weights \(0123456789abcdef\) than those in"):
        fill_card(files_of(earlier), checkpoint)
    assert fill_card(files_of(earlier), checkpoint, called="final").num_scores == 2
    same = replace(PLAIN, model="elsewhere", generator={"revision": weights_digest(checkpoint)})
    assert fill_card(files_of(same), checkpoint).num_scores == 2


def test_text_from_outside_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    hostile = "a|b\n## Limits\n---\n`x` <script>"
    checkpoint = make_checkpoint(tmp_path / "janus")
    record = replace(
        PLAIN,
        name=hostile,
        judge={hostile: hostile},
        generator={hostile: hostile},
        command=hostile,
        created_at=hostile,
        scores=(ScoreLine(hostile, 1.0),),
    )
    fill_card(files_of(record), checkpoint)
    card = ModelCard.load(checkpoint / "README.md")
    assert "<script" not in card.text
    assert card.text.count("\n## ") == 6
    for block in re.findall(r"(?:^\|.*\|\n)+", card.text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert fill_card(files_of(PLAIN), checkpoint).num_scores == 2


def test_the_verb_fills_a_card(run: Run, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "janus")
    write_scores(PLAIN, tmp_path / "scores-of-it")
    code, out, _ = run("evaluate", "card", "scores-of-it", "--checkpoint", checkpoint, "--json")
    assert code == 0
    assert json.loads(out) == {"path": str(checkpoint / "README.md"), "scores": 2, "replaced": 0}
    code, _, err = run("evaluate", "card", "scores-of-it", "--checkpoint", "nowhere")
    assert code == 2
    assert "nowhere/README.md cannot be read" in err


def test_a_preference_report_is_no_score(run: Run, tmp_path: Path) -> None:
    (tmp_path / "preference.json").write_text('{"pairs": {}, "votes": {}, "bradley_terry_groups": []}')
    code, _, err = run("evaluate", "card", "preference.json", "--checkpoint", ".")
    assert code == 2
    assert "is a preference report, which has no scores" in err
