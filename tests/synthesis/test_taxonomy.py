# SPDX-License-Identifier: Apache-2.0
"""The embedded taxonomies, taxonomies of one's own, and what is drawn from them."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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
from sharegpt4o_image.schema import Topic
from sharegpt4o_image.synthesis.taxonomy import ObjectCount, Taxonomy, load_taxonomy

OFFLINE = load_taxonomy("offline")
PAPER = load_taxonomy("paper")
NUM_TOPICS = 45_717  # text-to-image rows of the upstream release


@pytest.fixture(scope="module")
def paper_topics() -> list[Topic]:
    return list(PAPER.draw_topics(NUM_TOPICS, seed=0))


def taxonomy(**parts: Any) -> Taxonomy:
    return Taxonomy.model_validate(
        {"name": "small", "object_count": {"max": 1}, "objects": {"all": ["cat", "dog"]}} | parts
    )


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


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.5, 1.0])
def test_number_of_objects_follows_the_formula(decay: float) -> None:
    drawing = PAPER.model_copy(update={"object_count": ObjectCount(decay=decay, max=20)})
    counts = Counter(len(topic.objects) for topic in drawing.draw_topics(2000, seed=0))
    weights = [math.exp(-decay * (x - 1)) for x in range(1, 21)]
    for x, weight in enumerate(weights, start=1):
        # Multiples of the golden ratio leave no number of objects more than a few topics behind.
        assert counts[x] == pytest.approx(2000 * weight / sum(weights), abs=4)


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


def test_objects_are_distinct_or_all_the_same() -> None:
    for topic in PAPER.draw_topics(2000, seed=0):
        assert len(set(topic.objects)) == len(topic.objects)
    several = [topic.objects for topic in OFFLINE.draw_topics(2000, seed=0) if len(topic.objects) > 1]
    repeated = [objects for objects in several if len(set(objects)) == 1]
    assert len(repeated) / len(several) == pytest.approx(OFFLINE.object_count.repeat_share, abs=0.06)
    assert all(len(set(objects)) in (1, len(objects)) for objects in several)


def test_all_words_of_a_list_come_before_one_comes_again() -> None:
    leaves = [f"light {number}" for number in range(7)]
    lights = taxonomy(dimensions={"lighting": {"groups": {"a": {"leaves": leaves}}}}).draw_topics(14, seed=5)
    drawn = [str(topic.lighting) for topic in lights]
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == leaves
    assert drawn[:7] != drawn[7:]


def test_sub_dimensions_are_drawn_equally_often() -> None:
    groups = {"few": {"leaves": ["a"]}, "many": {"leaves": [f"b{number}" for number in range(30)]}}
    topics = taxonomy(dimensions={"style": {"groups": groups}}, objects={"all": [*map(str, range(500))]}).draw_topics(
        100, 0
    )
    assert sum(topic.style == "a" for topic in topics) == 50


def test_topics_are_the_same_in_another_process() -> None:
    program = (
        "from sharegpt4o_image.synthesis.taxonomy import load_taxonomy\n"
        "print(*(topic.id for topic in load_taxonomy('paper').draw_topics(50, seed=7)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        check=True,
    )
    assert done.stdout.split() == [topic.id for topic in PAPER.draw_topics(50, seed=7)]


def test_documents() -> None:
    documents = list(OFFLINE.draw_documents(100, seed=3))
    assert documents[:30] == list(OFFLINE.draw_documents(30, seed=3))
    assert len({topic.id for topic in documents}) == 100
    assert Counter(topic.document_type for topic in documents) == dict.fromkeys(
        ["Slide", "Paper", "Document", "Infographic/Chart", "Poster"], 20
    )
    assert OFFLINE.documents is not None
    for topic in documents:
        kind, subject = str(topic.subject).split(" about ")
        assert (topic.pipeline, topic.objects) == ("document", [])
        assert kind in OFFLINE.documents.types[str(topic.document_type)]
        assert subject in OFFLINE.documents.subjects


def test_no_documents_without_words_for_them() -> None:
    assert list(taxonomy().draw_documents(0, seed=0)) == []
    with pytest.raises(UserError, match="has no documents; add `documents`"):
        taxonomy().draw_documents(1, seed=0)


# --------------------------------------------------------------------------- the paper's taxonomy


def test_paper_taxonomy_has_the_structure_of_the_paper() -> None:
    assert len(set(PAPER.object_leaves)) == 1000
    assert PAPER.object_count == ObjectCount(decay=0.5, max=100, repeat_share=0.0)
    assert {name: list(words.groups) for name, words in PAPER.dimensions.items()} == {
        "background": ["abstract landscapes", "urban", "interior"],
        "style": ["cultural and historical aesthetics", "artistic movements", "digital and graphic art"],
        "lighting": ["color temperature", "direction", "intensity and quality"],
        "camera": ["vertical perspective", "horizontal perspective", "shot distance and framing"],
        "composition": ["basic division", "balance and symmetry", "framing, depth and layers"],
    }
    assert min(len(group.leaves) for words in PAPER.dimensions.values() for group in words.groups.values()) >= 20
    assert Counter(edit.category for edit in PAPER.edits) == {
        "image editing and manipulation": 4,
        "style transfer and artistic transformation": 3,
        "content augmentation and extension": 2,
        "structured generation and conditional control": 3,
        "creative ideation and iteration": 2,
    }
    assert PAPER.documents is not None
    assert list(PAPER.documents.types) == ["Slide", "Paper", "Document", "Infographic/Chart", "Poster"]


def test_only_structured_generation_prepares_its_source() -> None:
    for edit in PAPER.edits:
        assert (edit.prepare is not None) == (edit.category == "structured generation and conditional control")
    scopes = {edit.task: edit.scope for edit in PAPER.edits}
    assert {task for task, scope in scopes.items() if scope == "local"} == {
        "inpainting/replacement",
        "element manipulation",
    }
    assert all(scopes[edit.task] == edit.scope for edit in OFFLINE.edits)


def test_a_run_of_the_upstream_size_draws_every_leaf(paper_topics: list[Topic]) -> None:
    assert len({topic.id for topic in paper_topics}) == NUM_TOPICS
    assert {name for topic in paper_topics for name in topic.objects} >= set(PAPER.object_leaves)
    for dimension, words in PAPER.dimensions.items():
        drawn = Counter(getattr(topic, dimension) for topic in paper_topics)
        assert set(drawn) == {leaf for group in words.groups.values() for leaf in group.leaves}
        for group in words.groups.values():
            draws = [drawn[leaf] for leaf in group.leaves]
            assert max(draws) - min(draws) <= 1


def test_people_are_balanced(paper_topics: list[Topic]) -> None:
    assert PAPER.person is not None
    things = set(PAPER.object_leaves)
    people = [name for topic in paper_topics for name in topic.objects if name not in things]
    assert len(people) / NUM_TOPICS == pytest.approx(0.15, abs=0.01)
    for leaves in PAPER.person.groups.values():
        draws = [sum(f" {leaf} " in f" {person} " for person in people) for leaf in leaves]
        assert sum(draws) == len(people)
        assert max(draws) - min(draws) <= 1


def test_a_person_is_one_of_the_objects() -> None:
    groups = {"age": ["elderly"], "gender": ["woman"]}
    drawing = taxonomy(person={"share": 1.0, "groups": groups}, object_count={"max": 2, "decay": 0.0})
    topics = list(drawing.draw_topics(8, seed=0))
    assert {len(topic.objects) for topic in topics} == {1, 2}
    assert all(topic.objects[-1] == "elderly woman" for topic in topics)


# --------------------------------------------------------------------------- taxonomies of one's own


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_own_taxonomy_changes_the_one_it_extends(tmp_path: Path) -> None:
    mine = load_taxonomy(
        written(
            tmp_path,
            """
name: mine
extends: paper
object_count: {decay: 0.3}
objects:
  fish: {add: [clownfish], remove: [tench, goldfish]}
  robots: [household robot]
  artifacts: null
  people: [ballplayer]
dimensions:
  style: {share: 0.5}
person: null
edits:
  remove: [storyboarding/sequential generation]
  add: [{category: own, task: own task}]
""",
        )
    )
    fish = PAPER.objects["fish"]
    assert (mine.name, mine.object_count) == ("mine", ObjectCount(decay=0.3, max=100))
    assert mine.objects["fish"] == [*fish[2:], "clownfish"]
    assert mine.objects["robots"] == ["household robot"]
    assert mine.objects["people"] == ["ballplayer"]
    assert set(mine.objects) == set(PAPER.objects) - {"artifacts"} | {"robots"}
    assert mine.dimensions["style"].share == 0.5
    assert mine.dimensions["style"].groups == PAPER.dimensions["style"].groups
    assert (mine.person, mine.documents) == (None, PAPER.documents)
    tasks = [edit.task for edit in PAPER.edits if edit.task != "storyboarding/sequential generation"]
    assert [edit.task for edit in mine.edits] == [*tasks, "own task"]


def test_extended_file_is_found_beside_the_own_one(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    written(
        tmp_path / "base", "name: first\nextends: offline\nobjects: {circle: {remove: [red circle]}}\n", "first.yaml"
    )
    second = load_taxonomy(written(tmp_path, "name: second\nextends: base/first.yaml\nobjects: {star: [red star]}\n"))
    assert second.objects["circle"] == OFFLINE.objects["circle"][1:]
    assert second.objects["star"] == ["red star"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("objects:\n fish:\n  remove:\n  - eel\n  - godfish\n", 7, "unknown leaf 'godfish'; did you mean 'goldfish'?"),
        ("edits:\n  remove: [storyboard]\n", 4, "unknown leaf 'storyboard'"),
        ("objects:\n  fish: {ad: [cod]}\n", 4, "'ad' cannot change a list; write a list, or {add: [...]"),
        ("objects:\n  fish: {add: cod}\n", 4, "'add' cannot change a list"),
        ("objects:\n  fishes: null\n", 4, "no key 'fishes' to leave out; did you mean 'fish'?"),
        ("objects:\n  fish:\n    add:\n      - cod\n      - Tench\n", 7, "objects.fish.17: 'Tench' is listed twice"),
        ("objects:\n  own: {add: [cod]}\n", 4, "objects.own: Input should be a valid list"),
        ("objects:\n  own:\n    - cod\n    - robin\n", 6, "objects.own.1: 'robin' is listed twice"),
        ("dimensions:\n  style: {share: 2}\n", 4, "dimensions.style.share"),
        ("edits:\n  add:\n  - {category: c, task: from pose}\n", 5, "edits.14: the edit task 'from pose' is listed"),
    ],
)  # fmt: skip
def test_fault_in_an_extending_taxonomy_names_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = written(tmp_path, f"name: mine\nextends: paper\n{text}")
    with pytest.raises(UserError) as caught:
        load_taxonomy(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {message}")


def test_fault_that_stands_in_the_extended_file_names_that_one(tmp_path: Path) -> None:
    base = written(tmp_path, "name: base\nextends: paper\nobjects:\n  fish:\n    - tench\n    - 7\n", "base.yaml")
    with pytest.raises(UserError) as caught:
        load_taxonomy(written(tmp_path, "name: mine\nextends: base.yaml\n"))
    assert str(caught.value).startswith(f"{base}, line 6: objects.fish.1: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\nextends: papers\n", "line 2: there is no taxonomy 'papers' to extend; give offline, paper or"),
        ("name: mine\nextends: [paper]\n", "line 2: there is no taxonomy"),
        ("name: mine\nextends: mine.yaml\n", "line 2: the taxonomy extends itself"),
        ("extends: paper\n", "line 1: name: Field required"),
    ],
)
def test_fault_in_what_is_extended(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_taxonomy(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_taxonomies_that_extend_each_other(tmp_path: Path) -> None:
    written(tmp_path, "name: a\nextends: b.yaml\n", "a.yaml")
    written(tmp_path, "name: b\nextends: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match="extends itself"):
        load_taxonomy(str(tmp_path / "a.yaml"))


def test_unknown_taxonomy_is_a_sentence() -> None:
    with pytest.raises(UserError, match="there is no taxonomy 'papr'; give offline, paper or the path of a YAML file"):
        load_taxonomy("papr")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: x\nobjects: {}\n", 2, "objects"),
        ("name: x\nobjects: {a: []}\n", 2, "objects.a"),
        ("name: x\nobjects: {a: [b, ' ']}\n", 2, "objects.a.1"),
        ("name: x\nobjects:\n  a: [b]\ncolour: red\n", 4, "unknown key 'colour'"),
        ("name: x\nobjects: {a: [b]}\ndimensions:\n  smell: {groups: {}}\n", 4, "dimensions.smell"),
        ("name: x\nobjects: {a: [b]}\nobject_count:\n  max: 1\n  decay: -1\n", 5, "object_count.decay"),
        ("name: x\nobject_count: {max: 2}\nobjects: {a: [b]}\n", 2, "object_count.max: a topic may name up to 2"),
        ("name: x\nobjects: {a: [b]}\n", 1, "object_count.max: a topic may name up to 100 objects, but 1 is"),
        ("name: x\nobjects: {a: [b]}\nedits:\n- {category: c, task: t}\n- {category: d, task: t}\n", 5, "edits.1"),
        ("name: x\nobjects: {a: [b]}\nedits:\n- {category: c, task: t, scope: everywhere}\n", 4, "edits.0.scope"),
        ("name: x\nobjects:\n  a:\n  - b\n  - c\n  - B\n", 6, "objects.a.2: 'B' is listed twice; keep one of them"),
        (
            "name: x\nobjects: {a: [b]}\ndimensions:\n style:\n  groups:\n   s: {leaves: [l], for_objects: [3, 2]}\n",
            6,
            "dimensions.style.groups.s.for_objects: the lowest number of objects comes first, found [3, 2]",
        ),
        ("name: x\nobjects:\n  a: [b]\n  a: [c]\n", 4, "the key 'a' is written twice; keep one of them"),
        ("name: [x\n", 2, "not valid YAML"),
    ],
)  # fmt: skip
def test_fault_in_a_taxonomy_is_a_sentence(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_taxonomy(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {message}")
    assert "\n" not in str(caught.value)
