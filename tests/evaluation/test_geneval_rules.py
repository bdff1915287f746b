# SPDX-License-Identifier: Apache-2.0
"""GenEval's decisions: by hand near every limit, and against a second, plain implementation on random pictures."""

import math
import random

import numpy as np
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_prompts import RELATIONS, Clause, Prompt
from sharegpt4o_image.evaluation.geneval_rules import Detection, decide, keep_detections, relations_of


def at(x, y, score=0.9, size=10.0):
    """A square around (x, y)."""
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def scored(*scores):
    return [at(20, 20, score) for score in scores]


def indices(kept):
    return {name: [one.index for one in found] for name, found in kept.items()}


def never(name, indices):
    raise AssertionError(f"asked for colors of {name}")


def verdict(prompt, detections, classify=never):
    return decide(prompt, keep_detections(detections, prompt.tag, "picture"), classify)


# ------------------------------------------------------------------ filter


def test_thresholds_are_strict_in_float32():
    just_above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    kept = keep_detections({"dog": scored(0.3, just_above, 0.3 + 1e-9)}, "colors", "picture")
    assert indices(kept) == {"dog": [1]}
    just_above = float(np.nextafter(np.float32(0.9), np.float32(1)))
    kept = keep_detections({"dog": scored(0.9, just_above, 0.5)}, "counting", "picture")
    assert indices(kept) == {"dog": [1]}


def test_best_first_and_classes_left_empty_vanish():
    kept = keep_detections({"cat": scored(0.1, 0.2), "dog": scored(0.5, 0.7, 0.2, 0.6), "cup": []}, "x", "picture")
    assert indices(kept) == {"dog": [1, 3, 0]}
    assert kept["dog"][0].to_json() == [15.0, 15.0, 25.0, 25.0, float(np.float32(0.7))]


def test_at_most_16_of_a_class():
    scores = [0.31 + 0.01 * i for i in range(20)]
    kept = keep_detections({"dog": scored(*scores)}, "two_object", "picture")
    assert indices(kept) == {"dog": list(range(19, 3, -1))}


@pytest.mark.parametrize(
    "bad", [Detection((0, 0, 1, math.nan), 0.9), at(1, 1, math.inf), Detection((0, 0, 1e39, 1), 1)]
)
def test_numbers_that_are_not_finite_name_the_picture(bad):
    with pytest.raises(UserError, match=r"00012/0001\.png: a detection of 'dog'"):
        keep_detections({"dog": [at(1, 1), bad]}, "colors", "00012/0001.png")


# ------------------------------------------------------------------ relation


@pytest.mark.parametrize(
    ("x", "y", "relations"),
    [
        (20, 0, ("right of",)),
        (-20, 0, ("left of",)),
        (0, 20, ("below",)),
        (0, -20, ("above",)),
        (-20, -20, ("left of", "above")),  # (20 - 2) / 28.28 = 0.64 on both axes
        (0, 0, ()),
        (2, 1.5, ()),  # two boxes of 10 pixels: 0.1 * (10 + 10) is taken off
        (4, 0, ()),  # (4 - 2) / 4 is not above 0.5
        (4.1, 0, ("right of",)),  # (4.1 - 2) / 4.1 is
    ],
)
def test_relations_near_their_limits(x, y, relations):
    box, other = (np.array(at(*center).box, dtype=np.float32) for center in ((50 + x, 50 + y), (50, 50)))
    assert relations_of(box, other) == relations


# ------------------------------------------------------------------ decisions


def test_missing_objects_and_surplus_ones():
    prompt = Prompt("counting", (Clause("dog", 2),), (Clause("dog", 3),), "two dogs")
    assert verdict(prompt, {"dog": scored(0.95, 0.96)}).correct
    few, many = verdict(prompt, {"dog": scored(0.95, 0.9)}), verdict(prompt, {"dog": scored(0.95, 0.96, 0.97)})
    assert (few.correct, few.reason) == (False, "expected dog>=2, found 1")
    assert (many.correct, many.reason) == (False, "expected dog<3, found 3")


def test_only_the_best_boxes_are_looked_at_for_color():
    prompt = Prompt("colors", (Clause("dog", 1, "red"),), (), "a red dog")
    detections = {"dog": scored(0.5, 0.8, 0.7)}
    asked = []

    def classify(name, indices):
        asked.append((name, list(indices)))
        return ["blue" if index == 1 else "red" for index in indices]

    right = verdict(prompt, detections, lambda name, indices: ["red"])
    assert (right.correct, right.reason) == (True, "")
    assert verdict(prompt, detections, classify).reason == "expected red dog>=1, found 0 red; and 1 blue"
    assert asked == [("dog", [1])]


def test_a_missing_object_has_no_color_asked_for():
    prompt = Prompt("colors", (Clause("dog", 2, "red"),), (), "two red dogs")
    assert verdict(prompt, {"dog": scored(0.5)}, never).reason == "expected dog>=2, found 1"


def test_positions_hold_for_all_pairs_and_need_a_target():
    prompt = Prompt(
        "position", (Clause("cup", 2), Clause("dog", 1, position=("left of", 0))), (), "a dog left of two cups"
    )
    cups = [at(80, 50), at(20, 50)]
    assert verdict(prompt, {"cup": [at(80, 50), at(60, 50)], "dog": [at(20, 50)]}).correct
    assert verdict(prompt, {"cup": cups, "dog": [at(50, 50)]}).reason == (
        "expected dog left of target, found right of target"
    )
    assert verdict(prompt, {"dog": [at(50, 50)]}).reason == (
        "expected cup>=2, found 0\nno target for dog to be left of"
    )
    assert verdict(prompt, {"cup": cups}).reason == "expected dog>=1, found 0"


def test_a_wrong_color_is_no_target():
    include = (Clause("cup", 1, "red"), Clause("dog", 1, position=("left of", 0)))
    reason = verdict(
        Prompt("position", include, (), "a dog left of a red cup"),
        {"cup": [at(80, 50)], "dog": [at(20, 50)]},
        lambda name, indices: ["green"],
    ).reason
    assert reason == "expected red cup>=1, found 0 red; and 1 green\nno target for dog to be left of"


# ------------------------------------------------------------------ a second implementation


def plain_relation(a, b):
    """reference/evaluation.md 1.6, axis by axis in float64."""
    shortened, offsets = [], []
    for axis in (0, 1):
        offset = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
        size = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offsets.append(offset)
        shortened.append(math.copysign(max(abs(offset) - 0.1 * size, 0), offset))
    if max(map(abs, shortened)) < 1e-3:
        return set()
    dx, dy = (value / math.hypot(*offsets) for value in shortened)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, is_held in holds.items() if is_held}


def plain_correct(prompt, detections, colors):
    limit = 0.9 if prompt.tag == "counting" else 0.3
    kept = {}
    for name, found in detections.items():
        best = sorted(((one.score, index) for index, one in enumerate(found) if one.score > limit), reverse=True)
        kept[name] = [index for _, index in best[:16]]
    correct, groups = True, []
    for clause in prompt.include:
        found = kept.get(clause.class_name, [])[: clause.count]
        ok = len(found) == clause.count
        if ok and clause.color:
            ok = all(colors[clause.class_name][index] == clause.color for index in found)
        if ok and clause.position:
            relation, group = clause.position
            other_name = prompt.include[group].class_name
            ok = groups[group] is not None and all(
                relation in plain_relation(detections[clause.class_name][a].box, detections[other_name][b].box)
                for a in found
                for b in groups[group]
            )
        groups.append(found if ok else None)
        correct = correct and ok
    return correct and all(len(kept.get(clause.class_name, [])) < clause.count for clause in prompt.exclude)


def random_picture(rng):
    names = ["dog", "cup", "car"]
    tag = rng.choice(["counting", "position"])
    include = []
    for index in range(rng.randint(1, 3)):
        color = rng.choice([None, None, "red", "blue"])
        position = (rng.choice(RELATIONS), rng.randrange(index)) if index and rng.random() < 0.7 else None
        include.append(Clause(rng.choice(names), rng.choice([1, 1, 2]), color, position))
    exclude = tuple(Clause(rng.choice(names), rng.randint(2, 4)) for _ in range(rng.randint(0, 1)))
    detections = {
        name: [
            at(rng.uniform(0, 99), rng.uniform(0, 99), rng.uniform(0.2, 1) ** 0.3, rng.uniform(1, 60))
            for _ in range(rng.randint(0, 4))
        ]
        for name in names
    }
    colors = {name: rng.choices(["red", "blue"], (5, 1), k=len(found)) for name, found in detections.items()}
    return Prompt(tag, tuple(include), exclude, "synthetic"), detections, colors


def test_random_pictures_agree_with_the_plain_implementation():
    rng = random.Random(7)
    outcomes = []
    for _ in range(1_500):
        prompt, detections, colors = random_picture(rng)

        def classify(name, indices, colors=colors):
            return [colors[name][index] for index in indices]

        correct = verdict(prompt, detections, classify).correct
        assert correct == plain_correct(prompt, detections, colors)
        outcomes.append(correct)
    assert 0.1 < sum(outcomes) / len(outcomes) < 0.9
