# SPDX-License-Identifier: Apache-2.0
"""Instructions that use further pictures, and what the painter makes of them."""

import json
import random
from typing import Any

import pytest
from PIL import Image
from teacher_client import chat, data_url, edit, json_format, png, scene

from sharegpt4o_image.offline_teacher.borrowing import write_borrowing
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.scene import Scene

SCHEMA = {"properties": {"instruction": {"type": "string"}, "is_applicable": {"type": "boolean"}}}
FIRST = scene(("red", "circle", 0.25, 0.25), background="gray")
SECOND = Scene(
    "navy", scene(("blue", "star", 0.75, 0.25), ("blue", "star", 0.25, 0.75)).objects, "outline", "dim light"
)
THIRD = scene(("pink", "heart", 0.5, 0.5), background="mint")


def ask_for_instruction(task: str, *scenes: Scene) -> dict[str, Any]:
    text = {"type": "text", "text": json.dumps({"edit_task": task})}
    pictures = [data_url(render(shown, 128)) for shown in scenes]
    answer: dict[str, Any] = json.loads(chat([text, *pictures], response_format=json_format(SCHEMA)))
    return answer


def edited(instruction: str, *scenes: Scene) -> Scene:
    image: Image.Image = edit([png(render(shown, 128)) for shown in scenes], instruction)
    return perceive(image).scene


def names(shown: Scene) -> list[str]:
    return sorted(f"{item.color} {item.shape}" for item in shown.objects)


def test_one_object_of_the_second_picture_is_added() -> None:
    answer = ask_for_instruction("element manipulation", FIRST, SECOND)
    assert answer == {"instruction": "add the blue star of the second picture to the first", "is_applicable": True}
    after = edited(answer["instruction"], FIRST, SECOND)
    assert names(after) == ["blue star", "red circle"]
    assert (after.background, after.style, after.lighting) == ("gray", "flat", "daylight")


def test_one_object_of_every_further_picture_is_added() -> None:
    instruction = ask_for_instruction("element manipulation", FIRST, SECOND, THIRD)["instruction"]
    assert instruction.count("picture") == 2
    assert names(edited(instruction, FIRST, SECOND, THIRD)) == ["blue star", "pink heart", "red circle"]


def test_object_is_replaced_by_one_of_the_second_picture() -> None:
    instruction = ask_for_instruction("inpainting/replacement", FIRST, SECOND)["instruction"]
    assert instruction == "replace the red circle with the blue star of the second picture"
    assert names(edited(instruction, FIRST, SECOND)) == ["blue star"]


@pytest.mark.parametrize(
    ("task", "look"),
    [
        ("background modification", "background"),
        ("attribute/effect manipulation", "lighting"),
        ("medium/technique styles", "style"),
    ],
)
def test_look_of_the_second_picture_is_taken(task: str, look: str) -> None:
    instruction = ask_for_instruction(task, FIRST, SECOND)["instruction"]
    after = edited(instruction, FIRST, SECOND)
    assert getattr(after, look) == getattr(SECOND, look) != getattr(FIRST, look)
    assert names(after) == ["red circle"]
    same = Scene(SECOND.background, FIRST.objects, SECOND.style, SECOND.lighting)
    assert ask_for_instruction(task, same, SECOND) == {"instruction": "", "is_applicable": False}


def test_task_beyond_the_painter_and_full_pictures() -> None:
    assert not ask_for_instruction("storyboarding/sequential generation", FIRST, SECOND)["is_applicable"]
    places = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    full = scene(*(("red", "circle", x, y) for x, y in places))
    dice = random.Random(0)
    assert write_borrowing("element manipulation", full, [SECOND], dice) is None
    assert write_borrowing("element manipulation", FIRST, [Scene("gray", ())], dice) is None
    assert write_borrowing("inpainting/replacement", full, [SECOND], dice) is None  # "the red circle" is one of four


def test_borrowing_from_a_picture_that_is_not_there_changes_nothing() -> None:
    assert edited("give the first picture the background of the fifth picture", FIRST, SECOND) == FIRST
