# SPDX-License-Identifier: Apache-2.0
import json
import time
from pathlib import Path

import numpy as np
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import LABELS
from sharegpt4o_image.evaluation.imgedit_scores import (
    NUM_REPLICATES,
    ImgEditItem,
    interval_of,
    read_answers,
    read_items,
    resampled_means,
    score_answers,
    score_files,
    score_uge,
    score_uge_answers,
    to_text,
    type_scores,
    uge_to_text,
)

DATA = Path(__file__).parents[1] / "data" / "evaluation" / "imgedit"
CONFORMANCE = Path(__file__).parents[3] / "shared" / "conformance" / "imgedit"


def folder_with(name):
    for folder in (DATA, CONFORMANCE):
        if (folder / name).exists():
            return folder
    pytest.skip(f"{name} is neither in {DATA} nor in {CONFORMANCE}: it is too large to be kept with the tests")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def answer(edit_type, *scores):
    return "\n".join(f"{label}: {score}" for label, score in zip(LABELS[edit_type], scores, strict=True))


@pytest.mark.parametrize("case", ["messy", "clean", "partial_unknown_key"])
def test_official_scores_are_those_of_the_official_scripts(case):
    folder = folder_with(f"{case}.result.json")
    scores = score_files(DATA / "basic_edit.json", folder / f"{case}.result.json")
    official = scores["official"]
    assert official["samples"] == read_json(folder / f"{case}.average_score.expected.json")
    assert official["types"] == read_json(folder / f"{case}.typescore.expected.json")
    with_overall = official["types"] | {"overall": official["bagel_overall"]}
    assert with_overall == read_json(folder / f"{case}.bagel_typescore.expected.json")
    summary = read_json(folder / f"{case}.summary.json")
    assert official["macro"] == summary["macro_mean_of_typescores"]
    assert (official["n_scored"], scores["n_answers"]) == (summary["scored"], summary["of"])
    json.dumps(scores, allow_nan=False)


def test_missing_and_unknown_keys_are_named():
    name = "partial_unknown_key.result.json"
    scores = score_files(DATA / "basic_edit.json", folder_with(name) / name)
    assert (scores["n_items"], scores["n_missing"], scores["unknown_keys"]) == (737, 194, ["999999"])
    official = scores["official"]
    assert official["counts"]["action"] == {"items": 36, "scored": 0, "dropped": 0, "failed": 0, "missing": 36}
    assert (official["paper8"], official["paper8_reason"]) == (None, "no score for action")
    assert "999999" not in {row["key"] for row in official["failures"]}
    text = to_text(scores)
    assert "194 items have no answer" in text
    assert "999999" in text
    assert "no score for action" in text


def test_an_error_object_is_a_failure_row():
    scores = score_files(DATA / "basic_edit.json", DATA / "error_value.result.json")
    reason = "the judge gave no answer: 'Connection error.'"
    assert scores["official"]["failures"] == [{"key": "22", "edit_type": None, "status": "failed", "reason": reason}]
    assert (scores["official"]["n_failed"], scores["official"]["types"], scores["official"]["macro"]) == (1, {}, None)
    assert reason in to_text(scores)


def test_uge_is_that_of_the_official_script():
    scores = score_uge(DATA / "uge.result.json")
    assert str(scores["official"]["mean"]) == (DATA / "uge.expected.txt").read_text().strip()
    assert scores["n_scored"] + scores["n_dropped"] == scores["n_answers"] == 47
    assert "18 dropped" in uge_to_text(scores)
    assert len(scores["official"]["failures"]) == 18


def test_uge_without_a_score_has_no_mean(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"1": "Score: 3 (Fair)", "2": {"error": "refused"}}')
    scores = score_uge(path)
    assert (scores["official"]["mean"], scores["official"]["interval"]) == (None, None)
    assert (scores["n_dropped"], scores["n_failed"], scores["n_missing"]) == (1, 1, 45)
    assert "refused" in uge_to_text(scores)


# Two items of each type with the samples 1.33 and 2.0, hence the type scores round(1.665, 2); `add` has 5.0 and 5.0.
def test_views_by_hand():
    items = {f"{name}{i}": ImgEditItem(name, "", f"{i}.jpg") for name in LABELS for i in (0, 1)}
    answers = {f"{name}0": answer(name, 1, 1, 2) for name in LABELS} | {
        f"{name}1": answer(name, 2, 2, 2) for name in LABELS
    }
    answers |= {"add0": answer("add", 5, 5, 5), "add1": answer("add", 5, 5, 5), "elsewhere": "Label: 5"}
    type_score = round((1.33 + 2.0) / 2, 2)
    scores = score_answers(items, answers)
    for parser in ("official", "strict"):
        assert scores[parser]["types"] == {name: 5.0 if name == "add" else type_score for name in LABELS}
        assert scores[parser]["macro"] == round((5 + 8 * type_score) / 9, 4)
        assert scores[parser]["micro"] == round((10 + 8 * 3.33) / 18, 4)
        assert scores[parser]["paper8"] == round((5 + 7 * type_score) / 8, 4)
    assert scores["official"]["bagel_overall"] == round((10 + 8 * 3.33 + 5) / 19, 2)
    assert scores["strict"]["n_failed"] == 1


def test_dropped_is_counted_by_type():
    items = {str(i): ImgEditItem("add", "", "a.jpg") for i in range(4)}
    answers = {"0": answer("add", 4, 4, 4), "1": "I cannot help.", "2": {"error": "timeout"}}
    scores = score_answers(items, answers)
    assert scores["official"]["counts"] == {"add": {"items": 4, "scored": 1, "dropped": 1, "failed": 1, "missing": 1}}
    assert scores["strict"]["counts"] == {"add": {"items": 4, "scored": 1, "dropped": 0, "failed": 2, "missing": 1}}
    assert [row["key"] for row in scores["strict"]["failures"]] == ["1", "2"]
    assert scores["missing_keys"] == ["3"]


# ------------------------------------------------------------------ intervals


def test_resampled_means_equal_a_plain_loop():
    rng = np.random.default_rng(5)
    values, sources = rng.uniform(1, 5, 40), [f"{i}" for i in rng.integers(0, 12, 40)]
    groups = rng.integers(0, 3, 40).tolist()
    got = resampled_means(values.tolist(), sources, groups, 3, seed=7)
    names = sorted(set(sources))
    draws = np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_REPLICATES)
    for replicate in (0, 1, NUM_REPLICATES - 1):
        chosen = [name for name, times in zip(names, draws[replicate], strict=True) for _ in range(times)]
        for group in range(3):
            drawn = [
                v
                for name in chosen
                for v, s, g in zip(values, sources, groups, strict=True)
                if (s, g) == (name, group)
            ]
            assert got[replicate, group] == pytest.approx(np.mean(drawn)) if drawn else np.isnan(got[replicate, group])


def test_interval_of_independent_items_is_that_of_the_normal_limit():
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = interval_of(resampled_means(values.tolist(), [str(i) for i in range(400)], [0] * 400, 1)[:, 0])
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_items_of_one_source_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(3, 1, 60)
    once = interval_of(resampled_means(values.tolist(), [str(i) for i in range(60)], [0] * 60, 1)[:, 0])
    copies = np.repeat(values, 4).tolist()
    of_sources = interval_of(resampled_means(copies, [str(i // 4) for i in range(240)], [0] * 240, 1)[:, 0])
    of_items = interval_of(resampled_means(copies, [str(i) for i in range(240)], [0] * 240, 1)[:, 0])
    width = once[1] - once[0]
    assert of_sources[1] - of_sources[0] == pytest.approx(width, rel=0.1)
    assert of_items[1] - of_items[0] < 0.65 * width


def test_one_source_has_no_interval():
    items = {key: ImgEditItem("add", "", "a.jpg") for key in "01"}
    scores = score_answers(items, {"0": answer("add", 1, 1, 1), "1": answer("add", 5, 5, 5)})
    assert scores["official"]["types"] == {"add": 3.0}
    assert scores["official"]["intervals"] == {"types": {"add": None}, "macro": None, "micro": None, "paper8": None}


# ------------------------------------------------------------------ bad input


def test_types_are_in_order_of_first_appearance_which_decides_ties_of_their_mean():
    items = {str(index): ImgEditItem(name, "p", str(index)) for index, name in enumerate(("style", "add", "remove"))}
    assert list(type_scores(items, {"1": 3.0, "0": 2.0, "2": 1.0})) == ["add", "style", "remove"]


def test_the_type_alone_is_needed_of_an_item(tmp_path):
    path = tmp_path / "basic_edit.json"
    path.write_text('{"1": {"edit_type": "add", "id": 7}, "2": {"edit_type": "add"}}')
    assert read_items(path) == {"1": ImgEditItem("add", "", "7"), "2": ImgEditItem("add", "", "2")}


def test_old_copies_say_alter(tmp_path):
    path = tmp_path / "basic_edit.json"
    path.write_text('{"1": {"id": "a.jpg", "prompt": "p", "edit_type": "alter"}}')
    assert read_items(path) == {"1": ImgEditItem("adjust", "p", "a.jpg")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"7": {"id": "a", "prompt": "p", "edit_type": "paint"}}', "item '7' has the unknown type 'paint'"),
        ('{"7": {"id": "a", "prompt": "p"}}', "item '7' has no text `edit_type`"),
        ('{"7": "add"}', "item '7' has no text `edit_type`"),
        ("{}", "no items"),
    ],
)
def test_bad_items_are_named(tmp_path, content, message):
    path = tmp_path / "items.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_items(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"1": "A: 4", "1": "A: 5"}', "key '1' occurs more than once"),
        (b'{"1": NaN}', "NaN is not JSON"),
        (b'{"1": "A: 4"', "line 1"),
        (b"[1]", "holds a list"),
        (b"{}", "no answers"),
        (b'{"1": "\xff"}', "utf-8"),
        (b"[" * 100_000, "cannot|can be used"),
    ],
)
def test_bad_answers_are_named(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_answers(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json cannot be read"):
        read_answers(tmp_path / "nothing.json")


def test_twice_the_answers_take_seconds_at_most():
    items = read_items(DATA / "basic_edit.json")
    answers = read_answers(DATA / "messy.result.json")
    twice = {f"{key}{mark}": item for mark in "ab" for key, item in items.items()}
    start = time.perf_counter()
    scores = score_answers(twice, {f"{key}{mark}": text for mark in "ab" for key, text in answers.items()})
    assert time.perf_counter() - start < 5  # 0.3 s on an idle core
    assert scores["official"]["n_scored"] == 2 * 437


def test_what_a_judge_said_steers_no_terminal():
    hostile = {"1": "a: \u00b2\x1b[31m", "\x1b[2J": "a: 3", "2": {"error": "\x1b[31m\u202e\ud800"}}
    items = {key: ImgEditItem("add", "p", key) for key in ("1", "2")}
    for text in (to_text(score_answers(items, hostile)), uge_to_text(score_uge_answers(hostile))):
        assert text.replace("\n", "").isprintable()
        assert r"\x1b[31m\u202e\ud800" in text
