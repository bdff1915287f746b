# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules on scenes: prompts in its form that training never saw; the detector is checked on the teacher."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from sharegpt4o_image.checkpoints import TINY_JANUS_4O
from sharegpt4o_image.evaluation.geneval_prompts import TAGS, metadata_text, parse_prompt
from sharegpt4o_image.evaluation.geneval_scores import score_results
from sharegpt4o_image.evaluation.scene_geneval import SceneJudge, detect_shapes, scene_prompts
from sharegpt4o_image.evaluation.score_record import read_scores
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import combination, has_unseen_pair, training_request
from sharegpt4o_image.offline_teacher.scene import Scene, SceneObject

JUDGE = SceneJudge()


def by_teacher(prompt, size=256):
    return render(compose(parse_request(prompt.prompt), random.Random(prompt.prompt)), size)


@pytest.fixture(scope="module")
def prompts():
    return scene_prompts(40)


@pytest.fixture(scope="module")
def few():
    return scene_prompts(12, seed=1)


def test_the_prompts_are_those_of_genevals_file(prompts):
    lines = metadata_text(prompts).splitlines()
    assert [parse_prompt(json.loads(line), "here") for line in lines] == prompts
    counts = Counter(prompt.tag for prompt in prompts)
    assert tuple(counts) == TAGS
    assert counts == dict.fromkeys(TAGS, 40) | {"single_object": 33, "colors": 33}  # there are no more
    by_tag = Counter((prompt.tag, prompt.prompt) for prompt in prompts)
    assert max(by_tag.values()) == 1
    assert scene_prompts(3, seed=5) == scene_prompts(3, seed=5) != scene_prompts(3, seed=6)


def test_each_tag_asks_for_what_its_prompt_says(prompts):
    for prompt in prompts:
        request = parse_request(prompt.prompt)
        named = {(item.shape, item.color) for item in request.objects}
        assert {clause.class_name for clause in prompt.include} == {shape for shape, _ in named}
        asked = {(clause.class_name, clause.color) for clause in prompt.include if clause.color}
        assert asked == (named if prompt.tag in ("colors", "color_attr") else set())
        placed = [(clause, clause.position) for clause in prompt.include if clause.position]
        assert bool(placed) == (prompt.tag == "position")
        for clause, (relation, target) in placed:
            assert (clause.class_name, prompt.include[target].class_name) == tuple(o.shape for o in request.objects)
            assert request.relation.endswith(relation)
        if prompt.tag == "counting":
            assert prompt.include[0].count == prompt.exclude[0].count - 1 == request.objects[0].count > 1


def test_training_never_asks_for_them(prompts):
    requests = [parse_request(prompt.prompt) for prompt in prompts]
    rng = random.Random(0)
    trained = {combination(training_request(rng)) for _ in range(20_000)}
    assert not trained & {combination(request) for request in requests}
    assert not any(has_unseen_pair(request) for request in requests)


@pytest.mark.parametrize("size", [64, 256])
def test_what_the_teacher_draws_is_right(few, size):
    rows = [JUDGE.judge(by_teacher(prompt, size), prompt, "0.png") for prompt in few]
    assert [(row.prompt, row.reason) for row in rows if not row.correct] == []


def test_a_picture_of_another_prompt_is_wrong(few):
    shows_it_too = []
    for prompt, other in pairwise(few):
        row = JUDGE.judge(by_teacher(other), prompt, "0.png")
        asked, shown = parse_request(prompt.prompt).objects, parse_request(other.prompt).objects
        if {item.shape for item in asked} <= {item.shape for item in shown}:
            shows_it_too.append(row)
        else:
            assert not row.correct
            assert row.reason.startswith(f"expected {prompt.include[0].class_name}") or len(prompt.include) > 1
    assert len(shows_it_too) < len(few) / 3


def prompt_of(tag, include, exclude=()):
    return parse_prompt({"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "as said"}, "here")


RED = SceneObject("circle", "red", "medium", 0.25, 0.25)
BLUE = SceneObject("circle", "blue", "medium", 0.75, 0.75)
CIRCLES = Scene("white", (RED, BLUE))


@pytest.mark.parametrize(
    ("tag", "include", "exclude", "reason"),
    [
        ("single_object", [{"class": "circle", "count": 1}], [], ""),
        ("single_object", [{"class": "star", "count": 1}], [], "expected star>=1, found 0"),
        ("counting", [{"class": "circle", "count": 2}], [{"class": "circle", "count": 3}], ""),
        ("counting", [{"class": "circle", "count": 1}], [{"class": "circle", "count": 2}],
         "expected circle<2, found 2"),
        ("counting", [{"class": "circle", "count": 3}], [], "expected circle>=3, found 2"),
        ("colors", [{"class": "circle", "count": 2, "color": "red"}], [],
         "expected red circle>=2, found 1 red; and 1 red, 1 blue"),
    ],
)  # fmt: skip
def test_the_reasons_are_genevals(tag, include, exclude, reason):
    row = JUDGE.judge(render(CIRCLES, 128), prompt_of(tag, include, exclude), "00000/samples/0000.png")
    assert (row.correct, row.reason, row.filename) == (not reason, reason, "00000/samples/0000.png")


def test_boxes_are_in_pixels_of_the_picture():
    found = detect_shapes(render(CIRCLES, 128))
    assert list(found) == ["circle"]
    boxes = {color: detection.box for detection, color in found["circle"]}
    assert boxes["red"] == pytest.approx((9, 9, 55, 55), abs=2)  # 3 of 8 cells around (32, 32), less a margin
    wide = detect_shapes(render(CIRCLES, 128).resize((256, 128), Image.Resampling.NEAREST))
    boxes = {color: detection.box for detection, color in wide["circle"]}
    assert boxes["blue"] == pytest.approx((146, 73, 238, 119), abs=4)


# ------------------------------------------------------------------ from the command line


def test_the_shipped_model_from_pictures_to_scores(run):
    command = ["evaluate", "scene-geneval", "--limit", 2, "--images-per-prompt", 2]
    code, out, _ = run(*command, "--json")
    assert code == 0
    result = json.loads(out)
    assert tuple(result["tasks"]) == TAGS
    assert result["overall"] == pytest.approx(sum(task["score"] for task in result["tasks"].values()) / 6)
    assert len(result["images"]) == result["num_scored"] == 24
    assert all(result["tasks"][tag]["score"] >= 0.5 for tag in ("single_object", "colors", "color_attr"))
    folder = Path("scores/scene-geneval")
    record = read_scores(folder / "scores/scene-geneval.json")
    assert (record.benchmark, record.model, record.overall.value) == (
        "scene-geneval",
        TINY_JANUS_4O,
        result["overall"],
    )
    assert record.generator["seed"] == 42
    assert "-m" not in record.command
    official = score_results(folder / "results.jsonl", read_prompts(folder / "evaluation_metadata.jsonl"), 2)[0]
    assert official.overall == result["overall"]
    assert official.coverage.missing_images == 0
    pictures = {path: path.stat().st_mtime_ns for path in folder.rglob("0*.png")}
    again, out, _ = run(*command)
    assert again == 0
    assert f"overall        {result['overall']:.4f} (95 % interval" in out
    assert "24 of 24 scored, 0 missing" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("0*.png")} == pictures
    code, _, err = run("evaluate", "scene-geneval", "--limit", 3, "--images-per-prompt", 2)
    assert code == 2
    assert "drawn with another limit" in err


def test_the_teachers_folder_from_the_command_line(run, tmp_path):
    root = tmp_path / "given"
    for index, prompt in enumerate(scene_prompts(2)):
        (root / f"{index:05d}/samples").mkdir(parents=True)
        by_teacher(prompt).save(root / f"{index:05d}/samples/0000.png")
    (root / "00003/samples/0000.png").unlink()
    code, out, _ = run("evaluate", "scene-geneval", "--limit", 2, "--images-per-prompt", 1, "--images", root)
    assert code == 0
    assert "overall        1.0000" in out
    assert "11 of 12 scored, 1 missing" in out
    assert "00003/samples" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "nowhere is no folder"),
        (["--images", ".", "--model", "tiny-janus-4o"], "give one source of pictures"),
        (["--images-per-prompt", "0"], "Invalid value for '--images-per-prompt'"),
        (["-m", "nothing"], "no checkpoint 'nothing'"),
    ],
)
def test_bad_input_is_named(run, arguments, message):
    code, out, err = run("evaluate", "scene-geneval", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def read_prompts(path):
    return [parse_prompt(json.loads(line), "here") for line in path.read_text(encoding="utf-8").splitlines()]
