# SPDX-License-Identifier: Apache-2.0
"""GenEval's summaries equal the official script's; intervals, missing images and faults are told."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_prompts import generate_metadata
from sharegpt4o_image.evaluation.geneval_scores import (
    Coverage,
    ResultRow,
    coverage_text,
    format_official,
    read_results,
    score_detections,
    score_results,
    summarize,
    to_json,
)

COPIED = Path(__file__).parents[1] / "data" / "evaluation" / "geneval"
SHARED = Path(__file__).parents[3] / "shared" / "conformance"
both_folders = pytest.mark.parametrize("root", [COPIED, SHARED], ids=["copied", "shared"])


def folder_of(root, name):
    if not (root / name).is_dir():
        pytest.skip(f"{root / name} is not there: only the copied part of the official outputs is compared")
    return root / name


def row(index, correct, tag="colors", prompt=None):
    name = f"prompt {index if prompt is None else prompt}"
    metadata = json.dumps({"tag": tag, "include": [{"class": "dog", "count": 1}], "prompt": name})
    return ResultRow(f"{index}.png", tag, name, correct, "" if correct else "expected dog>=1, found 0", metadata, "{}")


def write(path, rows):
    path.write_text("".join(json.dumps(one if isinstance(one, dict) else one.to_json()) + "\n" for one in rows))
    return path


# ------------------------------------------------------------------ official outputs


@both_folders
def test_summaries_equal_the_official_ones(root):
    paths = sorted(folder_of(root, "geneval_summary").glob("*.jsonl"))
    assert len(paths) >= 2
    for path in paths:
        summary, _ = score_results(path)
        assert format_official(summary) + "\n" == path.with_suffix(".expected.txt").read_text()


@both_folders
def test_verdicts_equal_the_official_ones(root):
    folder = folder_of(root, "geneval_rules")
    _, rows = score_detections(folder / "inputs.jsonl")
    for got, line in zip(rows, (folder / "expected.jsonl").read_text().splitlines(), strict=True):
        expected = json.loads(line)
        assert (got.filename, got.tag, got.correct) == (str(expected["id"]), expected["tag"], expected["correct"])
        assert json.loads(got.details) == expected["details"]
        # Upstream joins relations in a set's order.
        assert sorted(got.reason.split()) == sorted(expected["reason"].split())


def test_summary_of_verdicts_equals_the_official_one():
    folder = folder_of(SHARED, "geneval_rules")
    summary, rows = score_detections(folder / "inputs.jsonl")
    expected = json.loads((folder / "expected_summary.json").read_text())
    tasks = {
        tag: {"pct": f"{task.score:.2%}", "correct": task.correct, "images": task.images}
        for tag, task in summary.tasks.items()
    }
    assert tasks == expected["tasks"]
    assert f"{summary.overall:.5f}" == f"{expected['overall']:.5f}"
    assert (summary.num_images, summary.num_prompts) == (expected["total_images"], expected["total_prompts"])
    assert f"{summary.correct_images:.2%}" == expected["pct_correct_images"]
    assert f"{summary.correct_prompts:.2%}" == expected["pct_correct_prompts"]
    assert [one["correct"] for one in to_json(summary, rows)["images"]] == [one.correct for one in rows]


def test_verdicts_written_as_rows_give_the_same_summary(tmp_path):
    summary, rows = score_detections(COPIED / "geneval_rules" / "inputs.jsonl")
    again, read = score_results(write(tmp_path / "results.jsonl", rows))
    assert (again, read) == (summary, rows)


# ------------------------------------------------------------------ by hand


def test_overall_is_the_unweighted_mean_of_the_tasks_present():
    rows = [row(0, True), row(1, False, prompt=0), row(2, False, prompt=2), row(3, True, "position")]
    summary = summarize(rows)
    assert summary.overall == (1 / 3 + 1) / 2
    assert summary.correct_images == 0.5
    assert summary.correct_prompts == 2 / 3
    assert {tag: (task.correct, task.images) for tag, task in summary.tasks.items()} == {
        "colors": (1, 3),
        "position": (1, 1),
    }
    assert list(to_json(summary, rows)["tasks"]) == ["colors", "position"]


def test_wilson_intervals_of_tasks():
    task = summarize([row(index, index < 7) for index in range(10)]).tasks["colors"]
    z, p, n = 1.959963984540054, 0.7, 10
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert task.low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-9)
    assert task.high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-9)


def test_bootstrap_goes_by_prompt():
    """Four equal pictures of each prompt say no more than one: the interval is that of the prompts."""
    rows = [row(4 * index + picture, index % 5 < 3, prompt=index) for index in range(200) for picture in range(4)]
    summary = summarize(rows)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    assert summary.low == pytest.approx(0.6 - half, abs=0.01)
    assert summary.high == pytest.approx(0.6 + half, abs=0.01)
    assert summarize(rows) == summary


def test_pictures_that_agree_leave_a_doubt():
    """A task all right and one all wrong, which a bootstrap takes for certain: Wilson's ends, by square-and-add."""
    rows = [row(index, index < 10, "colors" if index < 10 else "position") for index in range(20)]
    summary = summarize(rows)
    half = (1 - 10 / (10 + 1.959963984540054**2)) / 2  # Wilson's lower end at n of n is n / (n + z**2)
    assert (summary.low, summary.overall, summary.high) == pytest.approx((0.5 - half, 0.5, 0.5 + half), abs=1e-9)


# ------------------------------------------------------------------ coverage


@pytest.fixture(scope="module")
def official_rows():
    return [
        ResultRow(f"{n:05d}/{i}.png", p.tag, p.prompt, i != 3, "", json.dumps(p.to_json()), "{}")
        for n, p in enumerate(generate_metadata())
        for i in range(4)
    ]


def test_missing_and_surplus_images_are_counted(official_rows):
    assert summarize(official_rows).coverage == Coverage(2212, 0, 0)
    surplus = replace(official_rows[-1], filename="more.png")
    summary = summarize([*official_rows[6:], surplus])
    assert summary.coverage == Coverage(2212, 6, 1)
    assert coverage_text(summary) == "2207 images, 2212 expected: 6 missing, 1 surplus"
    assert to_json(summary, [])["coverage"] == {"expected_images": 2212, "missing_images": 6, "surplus_images": 1}


def test_expected_prompts_can_be_given(official_rows):
    prompts = generate_metadata()[:10]
    assert summarize(official_rows[:36], prompts).coverage == Coverage(40, 4, 0)
    assert summarize(official_rows[:44], prompts, images_per_prompt=2).coverage == Coverage(20, 0, 24)


def test_unknown_prompts_need_a_metadata_file():
    summary = summarize([row(0, True)])
    assert summary.coverage is None
    assert "give the prompts' metadata file" in coverage_text(summary)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"correct": math.nan}, "`correct` is nan"),
        ({"correct": None}, "`correct` is None"),
        ({"correct": 1}, "`correct` is 1"),
        ({"correct": "true"}, "`correct` is 'true'"),
        ({"tag": None}, "`tag` is None"),
        ({"metadata": {"tag": "colors"}}, "`metadata` is {'tag': 'colors'}"),
        ({"metadata": "{"}, "`metadata` is no JSON text"),
    ],
)
def test_bad_rows_name_their_line(tmp_path, change, named):
    path = write(tmp_path / "results.jsonl", [row(0, True), row(1, True).to_json() | change])
    with pytest.raises(UserError) as error:
        read_results(path)
    assert f"{path}, line 2" in str(error.value)
    assert named in str(error.value)


def test_tag_verdict_and_metadata_are_needed_as_by_the_official_script(tmp_path):
    whole = row(0, True).to_json()
    short = {key: value for key, value in whole.items() if key != "tag"}
    with pytest.raises(UserError, match="line 1: no tag;"):
        read_results(write(tmp_path / "short.jsonl", [short]))
    enough = {key: whole[key] for key in ("tag", "correct", "metadata")} | {"reason": None, "filename": 3}
    [found] = read_results(write(tmp_path / "enough.jsonl", [enough]))
    assert (found.filename, found.reason, found.details) == ("3", "", "")


def test_rows_of_one_name_all_count_and_are_counted(tmp_path):
    summary, _ = score_results(write(tmp_path / "twice.jsonl", [row(0, True), row(1, True), row(0, False)]))
    assert (summary.num_images, summary.num_duplicates) == (3, 1)
    assert coverage_text(summary).endswith("1 have several rows, which all count")


def test_detections_without_id_and_prompts_that_ask_for_nothing(tmp_path):
    empty = {"metadata": {"tag": "t", "include": []}, "detections": {}}
    none = {"metadata": {"tag": "t", "include": [{"class": "dog", "count": 0}]}, "detections": {}}
    _, rows = score_detections(write(tmp_path / "d.jsonl", [empty, none]))
    assert [found.correct for found in rows] == [True, True]


def test_no_rows():
    with pytest.raises(UserError, match="no verdict"):
        summarize([])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metadata": 3}, "metadata is a int"),
        ({"detections": None}, "`detections` must be"),
        ({"detections": {"dog": [[0, 0, 1, 1]]}}, "`detections` must be"),
        ({"detections": {"dog": [[0, 0, 1, 1, math.nan]]}}, "(image 7): a detection of 'dog'"),
        ({"colors": {}}, "no color is stored for detections [0] of 'dog'"),
        ({"colors": {"dog": []}}, "no color is stored for detections [0] of 'dog'"),
    ],
)
def test_bad_detections_name_their_line(tmp_path, change, named):
    metadata = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"}
    good = {"id": 7, "metadata": metadata, "detections": {"dog": [[0, 0, 9, 9, 0.8]]}, "colors": {"dog": ["red"]}}
    _, rows = score_detections(write(tmp_path / "good.jsonl", [good]))
    assert rows[0].correct
    path = write(tmp_path / "bad.jsonl", [good | {"id": 6}, good | change])
    with pytest.raises(UserError) as error:
        score_detections(path)
    assert f"{path}, line 2" in str(error.value)
    assert named in str(error.value)


def test_scores_are_plain_numbers():
    summary, rows = score_detections(COPIED / "geneval_rules" / "inputs.jsonl")
    text = json.dumps(to_json(summary, rows))
    assert not isinstance(summary.overall, np.floating)
    assert json.loads(text)["overall"] == summary.overall
