# SPDX-License-Identifier: Apache-2.0
"""Topics drawn from the offline taxonomy."""

import math
from collections import Counter
from pathlib import Path

import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    LIGHTINGS,
    OBJECT_COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
)
from sharegpt4o_image.offline_teacher.writing import CAMERA_SIZES, TASK_ABILITIES
from sharegpt4o_image.synthesis.taxonomy import ObjectCount, Taxonomy, load_taxonomy

OFFLINE = load_taxonomy("offline")


def leaves_of(dimension: str) -> set[str]:
    return {leaf for group in OFFLINE.dimensions[dimension].groups.values() for leaf in group.leaves}  # type: ignore[index]


def test_offline_taxonomy_is_the_world_of_the_offline_teacher() -> None:
    objects = {leaf for leaves in OFFLINE.objects.values() for leaf in leaves}
    assert objects == {f"{color} {shape}" for color in OBJECT_COLORS for shape in SHAPES}
    assert leaves_of("background") == {f"{color} background" for color in BACKGROUND_COLORS}
    assert leaves_of("style") == {f"{style} style" for style in STYLES if style != "flat"}
    assert leaves_of("lighting") == set(LIGHTINGS) - {"daylight"}
    assert leaves_of("camera") == set(CAMERA_SIZES)
    assert leaves_of("composition") == set(PLACES) | set(RELATIONS)
    assert {edit.task for edit in OFFLINE.edits} == set(TASK_ABILITIES)


def test_longer_sequences_begin_with_shorter_ones() -> None:
    assert list(OFFLINE.draw_topics(40, seed=3)) == list(OFFLINE.draw_topics(60, seed=3))[:40]
    assert list(OFFLINE.draw_topics(40, seed=3)) != list(OFFLINE.draw_topics(40, seed=4))


def test_topics_differ_and_name_every_leaf() -> None:
    topics = list(OFFLINE.draw_topics(2000, seed=0))
    assert len({topic.id for topic in topics}) == 2000
    words = {word for topic in topics for word in [*topic.objects, topic.camera, topic.composition, topic.lighting]}
    assert set(CAMERA_SIZES) | set(PLACES) | set(RELATIONS) <= words
    assert sum(len(leaves) for leaves in OFFLINE.objects.values()) == len(
        words & {leaf for leaves in OFFLINE.objects.values() for leaf in leaves}
    )


def test_composition_fits_the_number_of_objects() -> None:
    for topic in OFFLINE.draw_topics(300, seed=1):
        if topic.composition in RELATIONS:
            assert len(topic.objects) == 2
        if topic.composition in PLACES or topic.camera:
            assert len(topic.objects) == 1


def test_number_of_objects_follows_the_formula() -> None:
    counts = Counter(len(topic.objects) for topic in OFFLINE.draw_topics(4000, seed=0))
    weights = ObjectCount(decay=1.0, max=4).weights
    assert weights[1] / weights[0] == pytest.approx(math.exp(-1.0))
    for count, weight in enumerate(weights, start=1):
        share = weight / sum(weights)
        # Four standard deviations, and a little more for topics that were drawn again because they were not new.
        assert counts[count] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 0.03)


def test_small_taxonomy_repeats_under_new_ids() -> None:
    tiny = Taxonomy.model_validate({"name": "tiny", "objects": {"all": ["cat", "dog"]}, "object_count": {"max": 1}})
    topics = list(tiny.draw_topics(10, seed=0))
    assert len({topic.id for topic in topics}) == 10
    assert {topic.objects[0] for topic in topics} == {"cat", "dog"}


def test_edit_tasks_come_in_an_order_of_their_own_for_each_source() -> None:
    orders = [[edit.task for edit in OFFLINE.draw_edit_tasks(f"source {i}", seed=0)] for i in range(2000)]
    assert orders[0] == [edit.task for edit in OFFLINE.draw_edit_tasks("source 0", seed=0)]
    assert all(len(set(order)) == len(OFFLINE.edits) for order in orders)
    first = Counter(order[0] for order in orders)
    total_weight = sum(edit.weight for edit in OFFLINE.edits)
    for edit in OFFLINE.edits:
        assert first[edit.task] / 2000 == pytest.approx(edit.weight / total_weight, abs=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nobjects: {}\n", "objects"),
        ("name: x\nobjects: {a: []}\n", "objects.a"),
        ("name: x\nobjects: {a: [b]}\ncolour: red\n", "unknown key 'colour'"),
        ("name: x\nobjects: {a: [b]}\ndimensions: {smell: {groups: {}}}\n", "dimensions.smell"),
        ("name: x\nobjects: {a: [b]}\nobject_count: {decay: -1}\n", "object_count.decay"),
        ("name: x\nobjects: {a: [b]}\nedits: [{category: c, task: t}, {category: d, task: t}]\n", "listed twice"),
        ("- a\n- b\n", "found a list"),
        ("name: [x\n", "line"),
    ],
)
def test_fault_in_a_taxonomy_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "taxonomy.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_taxonomy(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
