# SPDX-License-Identifier: Apache-2.0
"""The scene benchmark: held-out prompts and edits of the offline teacher's world, scored exactly from pixels.

Items are generated from a seed: every word of them occurs in training, the full combination never
(`offline_teacher/sampling.py`). The detector (`offline_teacher/perception.py`) sees pixels only. Verdicts are pure
functions of what it saw and what was asked.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image

from sharegpt4o_image.offline_teacher.editing import EditRequest, apply_edit, describe_edit, random_edit
from sharegpt4o_image.offline_teacher.language import describe
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.perception import DetectedObject, Perception, perceive
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import (
    combination,
    edit_combination,
    has_unseen_pair,
    is_held_out,
    pair_request,
    shows_unseen_pair,
    single_request,
)
from sharegpt4o_image.offline_teacher.scene import RELATIONS, Scene, SceneObject, SceneRequest

TEXT_TO_IMAGE_KINDS = ("single object", "two objects", "unseen pair")
EDIT_KINDS = ("recolor", "remove", "background")

# How far the centre of an unchanged object may move, as a share of the canvas (one cell of the grid is 0.125).
POSITION_TOLERANCE = 0.125


@dataclass(frozen=True)
class PromptItem:
    """A held-out prompt; a picture is right when it shows what `request` asks for."""

    kind: str
    prompt: str
    request: SceneRequest


@dataclass(frozen=True)
class EditItem:
    """A held-out edit of `source`; a picture is right when it shows the scene `target`."""

    kind: str
    instruction: str
    source: Scene
    edit: EditRequest
    target: Scene


@dataclass(frozen=True)
class Verdict:
    """Whether one picture is right, and if not, the first thing that is wrong."""

    correct: bool
    reason: str = ""


# ------------------------------------------------------------------ items


def prompt_items(num_per_kind: int, seed: int = 0) -> list[PromptItem]:
    """`num_per_kind` prompts of each of `TEXT_TO_IMAGE_KINDS`."""
    rng = random.Random(f"prompts {seed}")
    wanted: dict[str, tuple[Callable[[random.Random], SceneRequest], bool]] = {
        "single object": (single_request, False),
        "two objects": (pair_request, False),
        "unseen pair": (single_request, True),
    }
    items: list[PromptItem] = []
    for kind, (draw, is_unseen) in wanted.items():
        while sum(item.kind == kind for item in items) < num_per_kind:
            request = draw(rng)
            is_fresh = has_unseen_pair(request) if is_unseen else is_untrained(request)
            if is_fresh:
                items.append(PromptItem(kind, describe(request, rng), request))
    return items


def is_untrained(request: SceneRequest) -> bool:
    """Whether training never shows this combination, but each of its colours and shapes together."""
    return is_held_out(combination(request)) and not has_unseen_pair(request)


def edit_items(num_per_kind: int, seed: int = 0) -> list[EditItem]:
    """`num_per_kind` edits of each of `EDIT_KINDS`, of sources with one or two objects."""
    rng = random.Random(f"edits {seed}")
    items: list[EditItem] = []
    for kind in EDIT_KINDS:
        while sum(item.kind == kind for item in items) < num_per_kind:
            request = rng.choice((single_request, pair_request))(rng)
            source = compose(request, rng)
            edit = random_edit(source, kind, rng)
            if edit is None or not is_held_out(edit_combination(source, edit)):
                continue
            target = apply_edit(source, edit, rng)
            if not shows_unseen_pair(source) and not shows_unseen_pair(target):
                items.append(EditItem(kind, describe_edit(edit, rng), source, edit, target))
    return items


def source_picture(item: EditItem, size: int = 256) -> Image.Image:
    """The picture to edit, as the teacher draws it."""
    return render(item.source, size)


def teacher_picture(item: PromptItem | EditItem, size: int = 256) -> Image.Image:
    """What the offline teacher would draw: the reference, and the check of the detector itself."""
    if isinstance(item, EditItem):
        return render(item.target, size)
    return render(compose(item.request, random.Random(item.prompt)), size)


# ------------------------------------------------------------------ verdicts


def judge_prompt(item: PromptItem, picture: Image.Image) -> Verdict:
    """Right objects (no more, no fewer), right colours, right relation and the right background."""
    seen = perceive(picture)
    wanted = [(o.shape, o.color) for o in item.request.objects]
    got = [(o.shape, o.color) for o in seen.objects]
    if sorted(wanted, key=str) != sorted(got, key=str):
        return Verdict(False, f"objects: wanted {wanted}, seen {got}")
    if item.request.relation and not _stands(item.request, seen):
        return Verdict(False, f"relation: wanted {item.request.relation}")
    if item.request.background and seen.background != item.request.background:
        return Verdict(False, f"background: wanted {item.request.background}, seen {seen.background}")
    return Verdict(True)


def _stands(request: SceneRequest, seen: Perception) -> bool:
    first, second = (_find(seen.objects, o.shape, o.color) for o in request.objects)
    dx, dy = RELATIONS[request.relation or ""]
    along = (first.center[0] - second.center[0]) * dx + (first.center[1] - second.center[1]) * dy
    return along > POSITION_TOLERANCE


def _find(objects: Iterable[DetectedObject], shape: str, color: str | None) -> DetectedObject:
    return next(o for o in objects if (o.shape, o.color) == (shape, color))


def judge_edit(item: EditItem, picture: Image.Image) -> Verdict:
    """The target's objects in their places, nothing else, on the target's background."""
    seen = perceive(picture)
    if seen.background != item.target.background:
        return Verdict(False, f"background: wanted {item.target.background}, seen {seen.background}")
    unmatched = list(seen.objects)
    for wanted in item.target.objects:
        found = next((o for o in unmatched if _is_same(o, wanted)), None)
        if found is None:
            return Verdict(False, f"missing: {wanted.color} {wanted.shape}")
        unmatched.remove(found)
    if unmatched:
        return Verdict(False, f"too much: {unmatched[0].color} {unmatched[0].shape}")
    return Verdict(True)


def _is_same(seen: DetectedObject, wanted: SceneObject) -> bool:
    distance = max(abs(seen.center[0] - wanted.x), abs(seen.center[1] - wanted.y))
    return (seen.shape, seen.color) == (wanted.shape, wanted.color) and distance <= POSITION_TOLERANCE


# ------------------------------------------------------------------ aggregation


def aggregate(kinds: Iterable[str], verdicts: Iterable[Verdict]) -> dict[str, dict[str, float]]:
    """Per kind: `correct`, `images`, `score` and the 95 % Wilson interval `low`, `high`."""
    from scipy.stats import binomtest

    counts: dict[str, list[bool]] = {}
    for kind, verdict in zip(kinds, verdicts, strict=True):
        counts.setdefault(kind, []).append(verdict.correct)
    table = {}
    for kind, rights in counts.items():
        interval = binomtest(sum(rights), len(rights)).proportion_ci(method="wilson")
        table[kind] = {
            "correct": sum(rights),
            "images": len(rights),
            "score": sum(rights) / len(rights),
            "low": float(interval.low),
            "high": float(interval.high),
        }
    return table
