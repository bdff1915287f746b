# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` metrics, loaded by path: conformance numbers, one row at a time, their cards, and bad input."""

import csv
import json
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import dpg_scores, geneval_scores, imgedit_scores, preference_report, preference_votes

evaluate = pytest.importorskip("evaluate", reason="needs the extra `evaluate`")

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "evaluate_modules"
NAMES = ["dpg_bench", "geneval", "imgedit_bench", "pairwise_preference"]
DATA = Path(__file__).parents[1] / "data" / "evaluation"
QUESTIONS = DATA / "dpg" / "questions.csv"
RESULTS = DATA / "geneval" / "geneval_summary" / "case2_uneven_images_missing_task.jsonl"
VOTES = DATA / "human" / "votes.csv"


@pytest.fixture(autouse=True, scope="module")
def _own_caches(tmp_path_factory):
    """Copies of the modules and their rows go to a temporary folder, whatever the environment says."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(folder / "metrics"))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setattr(sys, "path", [*sys.path, str(folder / "modules")])
        yield


def loaded(path):
    return json.loads(path.read_text(encoding="utf-8"))


def metric_of(name, configuration=None, **options):
    return evaluate.load(str(MODULES / name), configuration, **options)


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def geneval_rows():
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def dpg_rows():
    return [
        {"item_id": item, "picture": number, "proposition_id": int(question), "answer": answer}
        for item, pictures in loaded(DATA / "dpg" / "answers.json")["answers"].items()
        for number, picture in enumerate(pictures, start=1)
        for question, answer in picture.items()
    ]


def imgedit_rows():
    items, answers = (loaded(DATA / "imgedit" / name) for name in ("basic_edit.json", "messy.result.json"))
    return [
        {"key": key, "edit_type": items[key]["edit_type"], "source": items[key]["id"], "answer": answer}
        for key, answer in answers.items()
    ]


def vote_rows():
    with VOTES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ numbers


def test_geneval_is_the_official_summary():
    scores = metric_of("geneval").compute(**columns_of(geneval_rows()))
    expected = loaded(RESULTS.with_suffix(".expected.json"))
    assert f"{scores['overall']:.5f}" == f"{float(expected['overall']):.5f}"
    assert {tag: (task["correct"], task["images"]) for tag, task in scores["tasks"].items()} == {
        tag: (task["correct"], task["images"]) for tag, task in expected["tasks"].items()
    }
    assert (scores["num_images"], scores["num_prompts"]) == (expected["total_images"], expected["total_prompts"])
    assert scores == geneval_scores.to_json(*geneval_scores.score_results(RESULTS))


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ({}, "published_csv_4pics_1proc"),
        ({"num_pictures": 1}, "published_csv_1pic_1proc"),
        ({"num_pictures": 2, "first_row": "keep"}, "dummy_first_row_2pics_1proc"),
    ],
)
def test_dpg_bench_is_the_official_script(options, entry):
    scores = metric_of("dpg_bench").compute(**columns_of(dpg_rows()), questions=str(QUESTIONS), **options)
    expected = loaded(DATA / "dpg" / "expected.json")[entry]
    assert scores["official"]["overall"] == pytest.approx(expected["overall"], abs=1e-9)
    for level in ("l1", "l2"):
        assert scores["official"][level] == pytest.approx(expected[level], abs=1e-9)
    assert scores == dpg_scores.score_files(QUESTIONS, DATA / "dpg" / "answers.json", **options)


def test_imgedit_bench_is_the_official_scripts():
    metric, columns = metric_of("imgedit_bench"), columns_of(imgedit_rows())
    folder = DATA / "imgedit"
    of_files = imgedit_scores.score_files(folder / "basic_edit.json", folder / "messy.result.json")
    scores = metric.compute(**columns)
    assert scores["samples"] == loaded(folder / "messy.average_score.expected.json")
    assert scores["types"] == loaded(folder / "messy.typescore.expected.json")
    assert scores["macro"] == loaded(folder / "messy.summary.json")["macro_mean_of_typescores"]
    for parser, found in (("official", scores), ("strict", metric.compute(**columns, parser="strict"))):
        assert found.pop("parser") == parser
        assert found == of_files[parser]


def test_an_imgedit_item_without_an_answer_is_missing():
    rows = imgedit_rows()
    rows[0]["answer"] = ""
    scores = metric_of("imgedit_bench").compute(**columns_of(rows))
    assert scores["n_missing"] == 1
    assert scores["counts"][rows[0]["edit_type"]]["missing"] == 1


def test_pairwise_preference_is_the_report():
    scores = metric_of("pairwise_preference").compute(**columns_of(vote_rows()))
    for pair, expected in loaded(DATA / "human" / "expected.json")["pairs"].items():
        first, second = pair.split(" vs ")
        assert first < second
        for name, value in expected.items():
            assert scores["pairs"][pair][name] == pytest.approx(value, abs=1e-9), (pair, name)
    of_file = preference_report.report(preference_votes.read_votes(VOTES))
    for lines in (scores["votes"], of_file["votes"]):
        lines.pop("unmarked_second_vote_lines")  # rows of the data here, lines of the file there
    assert scores == of_file


def test_marked_repeats_count_for_consistency_alone():
    rows = [
        {"prompt_id": "1", "rater": "r", "model_a": "x", "model_b": "y", "winner": "model_a", "is_repeat": False},
        {"prompt_id": "1", "rater": "r", "model_a": "y", "model_b": "x", "winner": "model_b", "is_repeat": True},
    ]
    scores = metric_of("pairwise_preference", "with_repeats").compute(**columns_of(rows))
    assert (scores["votes"]["counted"], scores["votes"]["marked_repeats"]) == (1, 1)
    assert (scores["consistency_on_repeats"]["n"], scores["consistency_on_repeats"]["share"]) == (1, 1.0)


# Rows, and what `compute` needs beside them.
CASES = {
    "geneval": (geneval_rows, {}),
    "dpg_bench": (lambda: dpg_rows()[:400], {"questions": str(QUESTIONS)}),
    "imgedit_bench": (lambda: imgedit_rows()[:200], {}),
    "pairwise_preference": (lambda: vote_rows()[:200], {}),
}


@pytest.mark.parametrize("name", NAMES)
def test_rows_batches_and_all_at_once_are_equal_and_can_be_saved(name, tmp_path):
    rows, options = CASES[name][0](), CASES[name][1]
    metric = metric_of(name)
    assert metric.info.module_name == name
    at_once = metric.compute(**columns_of(rows), **options)
    for row in rows:
        metric.add(**row)
    assert metric.compute(**options) == at_once
    for half in (rows[:50], rows[50:]):
        metric.add_batch(**columns_of(half))
    assert metric.compute(**options) == at_once
    json.dumps(at_once, allow_nan=False)
    saved = loaded(Path(evaluate.save(tmp_path / "scores.json", **at_once)))
    assert saved.items() >= json.loads(json.dumps(at_once)).items()


# ------------------------------------------------------------------ cards


@pytest.mark.parametrize("name", NAMES)
def test_the_card(name, tmp_path, monkeypatch):
    text = (MODULES / name / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["sdk"], front["app_file"], front["tags"]) == ("gradio", "app.py", ["evaluate", "metric"])
    assert front["pinned"] is False
    info = metric_of(name).info
    assert all(f"`{column}`" in text for column in info.features)
    assert info.citation.strip() in text
    assert (MODULES / name / "requirements.txt").read_text().startswith("sharegpt4o-image")
    (tmp_path / "evaluate_modules").symlink_to(MODULES)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})


# ------------------------------------------------------------------ apps

FILES = {
    "geneval": [RESULTS],
    "dpg_bench": [QUESTIONS, DATA / "dpg" / "answers.json"],
    "imgedit_bench": [DATA / "imgedit" / "basic_edit.json", DATA / "imgedit" / "messy.result.json", "official"],
    "pairwise_preference": [VOTES],
}
ROWS = {
    "geneval": geneval_rows,
    "dpg_bench": dpg_rows,
    "imgedit_bench": imgedit_rows,
    "pairwise_preference": vote_rows,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_app_scores_files(name, monkeypatch):
    gradio = MagicMock(Error=RuntimeError)  # the widgets are not looked at
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app = runpy.run_path(str(MODULES / name / "app.py"))
    gradio.Interface.assert_called_once()
    assert app["score"](*map(str, FILES[name])) == metric_of(name).compute(
        **columns_of(ROWS[name]()), **CASES[name][1]
    )
    with pytest.raises(RuntimeError, match=r"absent\.csv"):
        app["score"](*["absent.csv"] * len(FILES[name]))


# ------------------------------------------------------------------ bad input


def in_memory(name):
    """A metric that leaves no locked file behind when it fails; the next one would wait a second for it."""
    return metric_of(name, keep_in_memory=True)


def changed(rows, place, **values):
    return [row | values if number == place else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "values", "options", "message"),
    [
        ("geneval", {"correct": 2}, {}, "row 2: `correct` is 2; give true or false"),
        ("geneval", {"metadata": "{"}, {}, "row 2: `metadata` is no JSON text"),
        ("geneval", {"tag": None}, {}, "row 2: `tag` is None"),
        ("geneval", {}, {"metadata_file": "absent.jsonl"}, "absent.jsonl cannot be read"),
        ("dpg_bench", {}, {"questions": None}, "No question file"),
        ("dpg_bench", {}, {"questions": "absent.csv"}, "absent.csv: cannot be read"),
        ("dpg_bench", {}, {"first_row": "lose"}, "first_row is 'lose'; give 'keep' or 'drop'"),
        ("dpg_bench", {}, {"num_pictures": 5}, "5 pictures were asked for"),
        ("dpg_bench", {"picture": 5}, {}, "row 2 .*: number pictures from 1 to 4"),
        ("dpg_bench", {"answer": None}, {}, "row 2 .*: a value is missing"),
        ("dpg_bench", {"proposition_id": 1}, {}, "row 2 .*: there is an answer already"),
        ("imgedit_bench", {"edit_type": "paint"}, {}, "row 2: item .* has the unknown type 'paint'"),
        ("imgedit_bench", {"key": "547"}, {}, "row 2: the key '547' is empty or there already"),
        ("imgedit_bench", {}, {"parser": "lenient"}, "parser is 'lenient'; give one of official, strict"),
        ("pairwise_preference", {"winner": "left"}, {}, "the data, line 2: winner is 'left'"),
        ("pairwise_preference", {"rater": ""}, {}, "the data, line 2: rater is empty"),
    ],
)
def test_bad_input_is_told_in_a_sentence(name, values, options, message):
    rows = changed(CASES[name][0]()[:8], 1, **values)
    with pytest.raises(UserError, match=message):
        in_memory(name).compute(**columns_of(rows), **(CASES[name][1] | options))


def test_a_metric_can_be_used_again_after_a_fault():
    metric, columns = in_memory("imgedit_bench"), columns_of(imgedit_rows()[:8])
    with pytest.raises(UserError, match="parser"):
        metric.compute(**columns, parser="lenient")
    assert sum(count["items"] for count in metric.compute(**columns)["counts"].values()) == 8


def test_a_dpg_picture_that_is_left_out_fails_its_item():
    rows = [row for row in dpg_rows() if (row["item_id"], row["picture"]) != ("synth5", 2)]
    scores = metric_of("dpg_bench").compute(**columns_of(rows), questions=str(QUESTIONS))
    assert "question 1 of picture 2" in scores["corrected"]["failed"]["synth5"]


def test_repeated_dpg_questions_are_named(tmp_path):
    header = "item_id,text,proposition_id,dependency,tuple,question_natural_language"
    row = "a,a ball,1,0,entity - whole (ball),Is there a ball?"
    (tmp_path / "q.csv").write_text(f"{header}\n{row}\n{row}\n")
    columns = {"item_id": ["a"], "picture": [1], "proposition_id": [1], "answer": ["yes"]}
    scores = metric_of("dpg_bench").compute(**columns, questions=str(tmp_path / "q.csv"))
    assert list(scores["repeated_questions"]) == ["a"]


@pytest.mark.parametrize(("name", "column"), [("geneval", "correct"), ("dpg_bench", "picture")])
def test_a_text_is_never_taken_for_a_number(name, column):
    rows = changed(CASES[name][0]()[:8], 1, **{column: "false"})
    with pytest.raises(ValueError, match="false"):
        in_memory(name).compute(**columns_of(rows), **CASES[name][1])


def test_a_text_is_never_taken_for_a_mark():
    rows = [row | {"is_repeat": "false"} for row in vote_rows()[:2]]
    with pytest.raises(ValueError, match="false"):
        metric_of("pairwise_preference", "with_repeats", keep_in_memory=True).compute(**columns_of(rows))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_are_no_score(name):
    metric = in_memory(name)
    with pytest.raises(UserError, match=r"There is no|has no votes"):
        metric.compute(**{column: [] for column in metric.features}, **CASES[name][1])


def test_an_unknown_configuration_is_refused():
    with pytest.raises(UserError, match="leave it out or give 'with_repeats'"):
        metric_of("pairwise_preference", "repeats")
