# SPDX-License-Identifier: Apache-2.0
"""Labels of the offline teacher: what its own pictures show, whatever the prompt says; nothing of photographs."""

import io
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teacher_client import chat, data_url, json_format, scene

from sharegpt4o_image.offline_teacher.documents import find_page, write_content, write_layout
from sharegpt4o_image.offline_teacher.editing import EDIT_TASKS, apply_edit, random_edit
from sharegpt4o_image.offline_teacher.labelling import TASK_ABILITIES, compare_scenes, read_page
from sharegpt4o_image.offline_teacher.layout import compose, place_object
from sharegpt4o_image.offline_teacher.pages import draw_page
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import training_request
from sharegpt4o_image.offline_teacher.scene import Scene
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy

TEXT = {"type": "string"}
LABELS = ("style", "lighting", "camera", "composition", "document_type", "edit_category", "edit_task")
NAMES = ("objects", *LABELS)
SCHEMA: dict[str, Any] = {
    "properties": {
        "objects": {"type": "array", "items": TEXT},
        **dict.fromkeys(LABELS, TEXT),
        **{f"{name}_confidence": {"type": "number"} for name in NAMES},
    }
}


def label(*images: Image.Image, prompt: str = "", task: str = "text_to_image", **schema: Any) -> dict[str, Any]:
    asked = json.dumps({"label": task, "prompt": prompt})
    content = [{"type": "text", "text": f"Label.\n{asked}"}, *map(data_url, images)]
    answer: dict[str, Any] = json.loads(chat(content, response_format=json_format(SCHEMA | schema)))
    assert all(0 <= answer[f"{name}_confidence"] <= 1 for name in NAMES if f"{name}_confidence" in answer)
    return answer


def compressed(image: Image.Image) -> Image.Image:
    """A picture as `enrich` shows it."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return Image.open(buffer)


# --------------------------------------------------------------------------- scenes


def test_a_lone_object() -> None:
    drawn = Scene("navy", (place_object("star", "green", "large", 0.25, 0.75),), "outline", "warm light")
    said = label(render(drawn, 256))
    assert said["objects"] == ["green star"]
    assert (said["style"], said["lighting"], said["camera"]) == ("outline style", "warm light", "close-up")
    assert (said["composition"], said["document_type"]) == ("in the bottom left corner", "none")


def test_two_objects_stand_to_each_other() -> None:
    row = label(render(scene(("red", "circle", 0.75, 0.5), ("blue", "star", 0.25, 0.5)), 256))
    assert (sorted(row["objects"]), row["composition"]) == (["blue star", "red circle"], "to the left of")
    column = label(render(scene(("red", "circle", 0.5, 0.75), ("blue", "star", 0.5, 0.25)), 256))
    assert (column["composition"], column["camera"]) == ("above", "none")


def test_equal_objects_are_named_once() -> None:
    three = scene(("red", "circle", 0.25, 0.25), ("red", "circle", 0.75, 0.25), ("red", "circle", 0.5, 0.75))
    assert label(render(three, 128))["objects"] == ["red circle"]


def test_the_prompt_tells_it_nothing() -> None:
    shown = render(scene(("blue", "heart", 0.5, 0.5)), 256)
    lie = "a large red circle at the top on a white background, outline style, warm light"
    assert label(shown, prompt=lie) == label(shown, prompt="")
    assert label(shown, prompt=lie)["objects"] == ["blue heart"]


def test_a_word_that_the_schema_does_not_list_is_none() -> None:
    listed = {"style": {"type": "string", "enum": ["none", "Byzantine icon", "outline style"]}}
    listed["lighting"] = {"type": "string", "enum": ["none", "golden hour"]}
    drawn = replace(scene(("blue", "heart", 0.5, 0.5)), style="outline", lighting="dim light")
    said = label(render(drawn, 256), properties=SCHEMA["properties"] | listed)
    assert (said["style"], said["lighting"]) == ("outline style", "none")


# --------------------------------------------------------------------------- edits


def test_every_ability_is_known_from_before_and_after() -> None:
    rng = random.Random(1)
    seen: Counter[str] = Counter()
    for _ in range(30):
        before = compose(training_request(rng), rng)
        for ability in EDIT_TASKS:
            edit = random_edit(before, ability, rng)
            if edit is not None:
                assert compare_scenes(before, apply_edit(before, edit, rng)) == ability
                seen[ability] += 1
        assert compare_scenes(before, before) is None
    assert set(seen) == set(EDIT_TASKS)


def test_tasks_and_categories_are_those_of_the_taxonomy() -> None:
    categories = {edit.task: edit.category for edit in load_taxonomy("paper").edits}
    rng = random.Random(2)
    before = Scene("white", (place_object("cross", "red", "large", 0.5, 0.5),))
    for task, abilities in TASK_ABILITIES.items():
        edit = random_edit(before, abilities[-1], rng)
        assert edit is not None
        images = (render(before, 256), render(apply_edit(before, edit, rng), 256))
        said = label(*map(compressed, images), task="text_and_image_to_image")
        assert (said["edit_task"], said["edit_category"]) == (task, categories[task])


def test_an_edit_without_a_change_is_none() -> None:
    same = render(scene(("red", "circle", 0.5, 0.5)), 128)
    said = label(same, same, task="text_and_image_to_image")
    assert (said["edit_task"], said["edit_category"]) == ("none", "none")
    assert said["edit_task_confidence"] < 0.5


# --------------------------------------------------------------------------- pages and photographs


@pytest.mark.parametrize("document_type", ["Slide", "Paper", "Document", "Infographic/Chart", "Poster"])
def test_pages_are_known_by_their_layout(document_type: str) -> None:
    found: Counter[str | None] = Counter()
    for number in range(12):
        dice = random.Random(number)
        task = {"document_type": document_type, "subject": "meeting minutes about a school garden"}
        page = find_page(write_layout(task | write_content(task, dice), dice), dice)
        assert page is not None
        found[read_page(compressed(draw_page(page, 256)))] += 1
    assert found[document_type] >= 11


def test_photographs_are_no_pages_and_get_no_labels() -> None:
    pixels = np.zeros((60, 90, 3))
    pixels[:, :45], pixels[:, 45:] = (122, 82, 50), (40, 128, 128)
    pixels += np.random.default_rng(0).normal(0, 8, pixels.shape)
    said = label(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert said["objects"] == []
    for name in ("style", "lighting", "camera", "composition", "document_type"):
        assert said[name] == "none"
        assert said[f"{name}_confidence"] <= 0.1


def test_without_a_picture_nothing_is_said() -> None:
    said = label(properties={name: SCHEMA["properties"][name] for name in ("objects", "objects_confidence")})
    assert said == {"objects": [], "objects_confidence": 0.1}
