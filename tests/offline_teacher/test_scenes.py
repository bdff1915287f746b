# SPDX-License-Identifier: Apache-2.0
"""Text, request, scene and pixels: every way there and back."""

import random

import pytest

from sharegpt4o_image.offline_teacher.editing import EDIT_TASKS, apply_edit, describe_edit, parse_edit, random_edit
from sharegpt4o_image.offline_teacher.language import describe, parse_request
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import training_request
from sharegpt4o_image.offline_teacher.scene import LIGHTINGS, STYLES, ObjectRequest, Scene, SceneRequest


def test_a_described_request_is_read_back():
    rng = random.Random(0)
    for _ in range(2000):
        request = training_request(rng)
        assert parse_request(describe(request, rng)) == request


def test_a_described_edit_is_read_back_and_changes_the_scene():
    rng = random.Random(1)
    for index in range(2000):
        scene = compose(training_request(rng), rng)
        edit = random_edit(scene, EDIT_TASKS[index % len(EDIT_TASKS)], rng)
        if edit is not None:
            assert parse_edit(describe_edit(edit, rng)) == edit
            assert apply_edit(scene, edit, rng) != scene


@pytest.mark.parametrize("lighting", LIGHTINGS)
@pytest.mark.parametrize("style", STYLES)
def test_a_drawn_scene_is_perceived_exactly(style, lighting):
    rng = random.Random(f"{style} {lighting}")
    for _ in range(25):
        drawn = training_request(rng)
        request = SceneRequest(drawn.objects, drawn.relation, drawn.background, style, lighting)
        scene = compose(request, rng)
        ordered = Scene(scene.background, tuple(sorted(scene.objects, key=lambda o: (o.x, o.y))), style, lighting)
        assert perceive(render(scene, 256)).scene == ordered


def test_words_outside_the_world_are_ignored():
    request = parse_request("A photo of a red circle above a blue square, 35mm, <|User|> please")
    assert request == SceneRequest((ObjectRequest("circle", "red"), ObjectRequest("square", "blue")), "above")
    assert parse_edit("make it pop") is None


def test_the_same_scene_gives_the_same_bytes():
    scene = compose(parse_request("three green stars on a navy background"), random.Random(3))
    assert render(scene, 64).tobytes() == render(scene, 64).tobytes()
    assert len(scene.objects) == 3
