# SPDX-License-Identifier: Apache-2.0
"""Scoring stored answers as typed: the official scripts' numbers, `--json`, and what bad input is told."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data" / "evaluation"
DPG, GENEVAL, IMGEDIT, HUMAN = (DATA / name for name in ("dpg", "geneval", "imgedit", "human"))


def loaded(path):
    return json.loads(path.read_text(encoding="utf-8"))


def scores(run, *arguments):
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_geneval_from_detections(run):
    path = next((GENEVAL / "geneval_rules").glob("inputs*.jsonl"))
    expected = [json.loads(line) for line in next((GENEVAL / "geneval_rules").glob("expected*.jsonl")).open()]
    found = scores(run, "evaluate", "geneval", "--from-detections", path)
    assert [image["correct"] for image in found["images"]] == [row["correct"] for row in expected]
    assert found["overall"] == pytest.approx(sum(task["score"] for task in found["tasks"].values()) / 6)
    assert all(bool(image["reason"]) != image["correct"] for image in found["images"])


def test_geneval_from_results_prints_what_the_official_script_prints(run):
    path = GENEVAL / "geneval_summary" / "case3_other_order_one_image.jsonl"
    code, out, _ = run("evaluate", "geneval", "--from-results", path)
    assert code == 0
    assert out.startswith(path.with_suffix(".expected.txt").read_text(encoding="utf-8").rstrip("\n"))
    found = scores(run, "evaluate", "geneval", "--from-results", path)
    assert f"{found['overall']:.5f}" == f"{loaded(path.with_suffix('.expected.json'))['overall']:.5f}"


@pytest.mark.parametrize(
    ("questions", "options", "block", "entry"),
    [
        ("questions.csv", [], "official", "published_csv_4pics_1proc"),
        ("questions.csv", ["--num-pictures", 1], "official", "published_csv_1pic_1proc"),
        ("questions.csv", [], "corrected", "dummy_first_row_4pics_1proc"),
        ("questions.csv", ["--first-row", "keep", "--num-pictures", 2], "official", "dummy_first_row_2pics_1proc"),
        ("questions_dummy_first_row.csv", [], "official", "dummy_first_row_4pics_1proc"),
    ],
)
def test_dpg_bench(run, questions, options, block, entry):
    answers = DPG / "answers.json"
    command = ["evaluate", "dpg-bench", "--questions", DPG / questions, "--from-answers", answers, *options]
    found = scores(run, *command)[block]
    expected = loaded(DPG / "expected.json")[entry]
    assert found["overall"] == pytest.approx(expected["overall"], abs=1e-9)
    if block == "official":
        assert found["l1"] == pytest.approx(expected["l1"], abs=1e-9)
        assert found["l2"] == pytest.approx(expected["l2"], abs=1e-9)
    text = run(*command)[1]
    assert f"{found['n_items_scored']} items scored, {found['n_missing']} missing" in text


def test_imgedit(run):
    command = ["evaluate", "imgedit", "--items", IMGEDIT / "basic_edit.json"]
    command += ["--from-judgements", IMGEDIT / "messy.result.json"]
    found = scores(run, *command)
    assert found["official"]["types"] == loaded(IMGEDIT / "messy.typescore.expected.json")
    code, out, _ = run(*command)
    assert code == 0
    assert "437 scored, 300 dropped" in out


def test_imgedit_uge(run):
    found = scores(run, "evaluate", "imgedit", "--suite", "uge", "--from-judgements", IMGEDIT / "uge.result.json")
    assert found["official"]["mean"] == float((IMGEDIT / "uge.expected.txt").read_text())


def test_preference_report(run, tmp_path):
    found = scores(run, "preference", "report", HUMAN / "votes.csv")
    expected = loaded(HUMAN / "expected.json")
    assert found["pairs"].keys() == expected["pairs"].keys()
    for pair, numbers in expected["pairs"].items():
        assert {name: found["pairs"][pair][name] for name in ("n", "win", "tie", "loss")} == {
            name: numbers[name] for name in ("n", "win", "tie", "loss")
        }
    code, out, _ = run("preference", "report", HUMAN / "votes.csv", "--plot", tmp_path / "votes.png")
    assert code == 0
    assert "janus-4o" in out
    assert (tmp_path / "votes.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["geneval"], "give --model NAME or --images FOLDER, or score --from-results FILE"),
        (["geneval", "--from-results", "a", "--from-detections", "b"], "or --from-results FILE, not both"),
        (["dpg-bench", "--questions", "q.csv"], "give --questions FILE and --from-answers FILE"),
        (["imgedit", "--items", "i.json"], "give --items FILE and --from-judgements FILE"),
        (["imgedit", "--suite", "uge"], "give --from-judgements FILE, nothing else"),
        (["geneval", "--from-results", "nowhere.jsonl"], "nowhere.jsonl"),
        (["dpg-bench", "--questions", str(DPG / "questions.csv"), "--from-answers", "nowhere.json"], "nowhere.json"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, arguments, message):
    code, out, err = run("evaluate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imgedit", "--suite", "hard"], "'hard' is not one of 'basic', 'uge'"),
        (["imgedit", "--from-answers", "a.json"], "No such option: --from-answers"),
        (["scenes", "--from-results", "a"], "No such option: --from-results"),
        (["dpg-bench", "--first-row", "lose"], "'lose' is not one of 'keep', 'drop'"),
    ],
)
def test_wrong_usage_names_the_option(run, arguments, message):
    code, out, err = run("evaluate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
