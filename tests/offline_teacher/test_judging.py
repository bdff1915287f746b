# SPDX-License-Identifier: Apache-2.0
"""The judge: right pictures score ten, wrong ones less, and unchanged ones nothing."""

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teacher_client import chat, data_url, edit, generate, json_format, png, scene

from sharegpt4o_image.offline_teacher.editing import EDIT_TASKS, describe_edit, random_edit
from sharegpt4o_image.offline_teacher.judging import judge_edit, judge_picture
from sharegpt4o_image.offline_teacher.language import describe
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.pictures import SourcePicture, open_picture, paint, repaint
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import training_request
from sharegpt4o_image.offline_teacher.scene import Scene

SCHEMA = {"properties": {"score": {"type": "integer"}, "reason": {"type": "string"}}}


def picture(image: Image.Image) -> SourcePicture:
    return open_picture(png(image), "image")


def photograph() -> Image.Image:
    pixels = np.zeros((60, 90, 3))
    pixels[:, :45], pixels[:, 45:] = (122, 82, 50), (40, 128, 128)
    pixels += np.random.default_rng(0).normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ask_judge(task: dict[str, Any], *images: Image.Image) -> dict[str, Any]:
    content = [{"type": "text", "text": f"Judge.\n{json.dumps(task)}"}, *map(data_url, images)]
    answer: dict[str, Any] = json.loads(chat(content, response_format=json_format(SCHEMA)))
    assert isinstance(answer["score"], int)
    assert answer["reason"]
    return answer


# --------------------------------------------------------------------------- pictures


def test_own_pictures_score_ten() -> None:
    rng = random.Random(0)
    for index in range(40):
        prompt = describe(training_request(rng), rng)
        assert judge_picture(prompt, [picture(paint(prompt, index, 128))]).score == 10, prompt


def test_each_fault_costs_its_share() -> None:
    prompt = "a red circle to the left of a blue star on a gray background"  # five things to see
    right = scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5))
    mirrored = scene(("red", "circle", 0.75, 0.5), ("blue", "star", 0.25, 0.5))
    for shown, score in (
        (right, 10),
        (replace(right, background="navy"), 8),
        (mirrored, 8),
        (replace(right, objects=right.objects[:1]), 6),
        (scene(("green", "heart", 0.5, 0.5), background="navy"), 2),
    ):
        verdict = judge_picture(prompt, [picture(render(shown, 128))])
        assert verdict.score == score, verdict


def test_reason_names_what_is_missing() -> None:
    task = {"judge": "text_to_image", "prompt": "two red circles at the top, warm light"}
    answer = ask_judge(task, render(scene(("red", "circle", 0.25, 0.25)), 128))
    assert "two red circles" in answer["reason"]
    assert "warm light" in answer["reason"]
    assert ask_judge(task, render(scene(("red", "circle", 0.25, 0.25)), 128)) == answer


def test_pages_and_photographs_must_not_be_blank() -> None:
    prompt = 'A clean slide titled "Lakeside bakery"'
    assert ask_judge({"judge": "text_to_image", "prompt": prompt}, generate(prompt)[0])["score"] >= 7
    assert ask_judge({"judge": "text_to_image", "prompt": prompt}, Image.new("RGB", (64, 64), "white"))["score"] == 0
    assert judge_picture("a zebra", [picture(photograph())]).score >= 7
    assert judge_picture("a zebra", []).score == 0


def test_photographs_are_compared_with_their_sentence() -> None:
    right, wrong = (
        "A photo in mostly brown and teal tones.",
        "A photo in mostly pink and white tones, with red at the top.",
    )
    assert judge_picture(right, [picture(photograph())]).score == 10
    assert judge_picture(wrong, [picture(photograph())]).score == 0


# --------------------------------------------------------------------------- edits


def test_own_edits_score_ten_and_unchanged_pictures_nothing() -> None:
    rng = random.Random(1)
    for index in range(45):
        before = compose(training_request(rng), rng)
        wanted = random_edit(before, EDIT_TASKS[index % len(EDIT_TASKS)], rng)
        if wanted is None:
            continue
        instruction, source = describe_edit(wanted, rng), picture(render(before, 128))
        edited = picture(repaint([source], instruction, None, 0))
        assert judge_edit(instruction, [source, edited]).score == 10, (instruction, before)
        assert judge_edit(instruction, [source, source]).score == 0


@pytest.mark.parametrize(
    ("after", "score"),
    [
        (scene(("green", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5)), 10),
        (scene(("green", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5), background="navy"), 9),  # 3 of 4 kept
        (scene(("green", "circle", 0.25, 0.5)), 9),
        (scene(("pink", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5)), 5),  # gone, but not as asked
        (scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5), background="navy"), 0),
    ],
)
def test_partial_edits(after: Scene, score: int) -> None:
    before = picture(render(scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5)), 128))
    verdict = judge_edit("make the red circle green", [before, picture(render(after, 128))])
    assert verdict.score == score, verdict


def test_edits_with_several_sources() -> None:
    first, second = scene(("red", "circle", 0.25, 0.25)), scene(("blue", "star", 0.5, 0.5))
    sources = [picture(render(first, 128)), picture(render(second, 128))]
    for instruction in ("add the blue star of the second picture to the first", "combine the pictures"):
        edited = repaint(sources, instruction, None, 0)
        assert judge_edit(instruction, [*sources, picture(edited)]).score == 10
        assert judge_edit(instruction, [*sources, sources[0]]).score == 0


def test_unknown_instructions_only_need_a_change() -> None:
    before, after = scene(("red", "circle", 0.25, 0.25)), scene(("red", "circle", 0.75, 0.25))
    task = {"judge": "text_and_image_to_image", "instruction": "make it pop"}
    assert ask_judge(task, render(before, 96), render(after, 96))["score"] == 5
    assert ask_judge(task, render(before, 96))["score"] == 0


@pytest.mark.parametrize(
    "instruction", ["make the picture warmer", "cover the middle of the picture with a red circle"]
)
def test_photograph_edits_are_compared_with_the_editors_own(instruction: str) -> None:
    source = photograph()
    task = {"judge": "text_and_image_to_image", "instruction": instruction}
    assert ask_judge(task, source, edit(png(source), instruction))["score"] == 10
    assert ask_judge(task, source, source)["score"] == 0
    assert (
        ask_judge(task, source, edit(png(source), "zoom out and frame the picture with a black border"))["score"] < 5
    )
    assert ask_judge({**task, "instruction": "add a zebra"}, source, source.rotate(180))["score"] == 5
