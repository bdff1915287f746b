# SPDX-License-Identifier: Apache-2.0
"""The scene benchmark judges right pictures right and wrong ones wrong, and asks only for what training never saw."""

import random
from itertools import pairwise

import pytest

from sharegpt4o_image.evaluation.scene_benchmark import (
    EDIT_KINDS,
    TEXT_TO_IMAGE_KINDS,
    Verdict,
    aggregate,
    edit_items,
    judge_edit,
    judge_prompt,
    prompt_items,
    source_picture,
    teacher_picture,
)
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.sampling import UNSEEN_PAIRS, combination, edit_combination, training_request
from sharegpt4o_image.training.tiny_data import draw_edit


@pytest.fixture(scope="module")
def prompts():
    return prompt_items(60)


@pytest.fixture(scope="module")
def edits():
    return edit_items(60)


def test_teacher_pictures_are_right(prompts, edits):
    verdicts = [judge_prompt(item, teacher_picture(item)) for item in prompts]
    verdicts += [judge_edit(item, teacher_picture(item)) for item in edits]
    assert sum(v.correct for v in verdicts) / len(verdicts) >= 0.99


def test_pictures_of_another_item_are_wrong(prompts, edits):
    swapped = [
        judge_prompt(a, teacher_picture(b)).correct
        for a, b in pairwise(prompts)
        if combination(a.request) != combination(b.request)
    ]
    swapped += [judge_edit(a, teacher_picture(b)).correct for a, b in pairwise(edits) if a.target != b.target]
    assert sum(swapped) / len(swapped) <= 0.05


def test_an_unedited_source_is_wrong(edits):
    assert not any(judge_edit(item, source_picture(item)).correct for item in edits)


def test_kinds_and_wording(prompts, edits):
    assert {item.kind for item in prompts} == set(TEXT_TO_IMAGE_KINDS)
    assert {item.kind for item in edits} == set(EDIT_KINDS)
    assert all(parse_request(item.prompt) == item.request for item in prompts)


def test_training_never_asks_for_a_benchmark_combination(prompts):
    rng = random.Random(0)
    trained = {combination(training_request(rng)) for _ in range(20_000)}
    assert not trained & {combination(item.request) for item in prompts}


def test_aggregate_is_exact():
    table = aggregate(["a", "a", "b"], [Verdict(True), Verdict(False), Verdict(True)])
    assert (table["a"]["correct"], table["a"]["images"], table["a"]["score"]) == (1, 2, 0.5)
    assert table["a"]["low"] == pytest.approx(0.0945312, abs=1e-6)  # Wilson, z = 1.959964
    assert table["b"]["score"] == 1.0


def test_no_edit_of_the_benchmark_is_ever_trained() -> None:
    rng = random.Random(0)
    trained, shown = set(), set()
    for _ in range(5_000):
        source, edit, _, target = draw_edit(rng)
        trained.add(edit_combination(source, edit))
        shown |= {(item.color, item.shape) for scene in (source, target) for item in scene.objects}
    asked = {edit_combination(item.source, item.edit) for item in edit_items(200)}
    assert len(trained) > 2_000
    assert not trained & asked
    assert not shown & UNSEEN_PAIRS
