# SPDX-License-Identifier: Apache-2.0
"""A prompt or an instruction, and pictures -> a score from 0 to 10 and the reason for it.

Scenes are judged by what is seen in them, photographs by their pixels; a page is only asked not to be blank. The
weights are our own choice.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sharegpt4o_image.offline_teacher.documents import find_page
from sharegpt4o_image.offline_teacher.editing import parse_edit
from sharegpt4o_image.offline_teacher.language import name_object, parse_request
from sharegpt4o_image.offline_teacher.photo_edits import apply_photo_edit, parse_photo_edit
from sharegpt4o_image.offline_teacher.photos import PhotoLook, look_at, parse_photo
from sharegpt4o_image.offline_teacher.pictures import SourcePicture, edited_scene, is_photo, see
from sharegpt4o_image.offline_teacher.protocol import dice_for
from sharegpt4o_image.offline_teacher.scene import PLACES, RELATIONS, ObjectRequest, Scene, SceneObject, SceneRequest

_UNCHECKED_PICTURE = 8  # a picture that is not blank, for a prompt of which nothing can be checked
_UNCHECKED_EDIT = 5  # a change, for an instruction of which nothing can be checked
_UNCHECKED_REASON = "Something changed; more is not checked for this instruction."
_MIN_CONTRAST = 8  # a picture whose channels span less (of 255) is blank
_PLACE_REACH = 0.2  # how far from the named place, as a share of the side, an object still is there
_COMPARED_SIDE = 64
_MIN_CHANGE = 1.0  # mean absolute difference (of 255) from which a photograph has changed


@dataclass(frozen=True)
class Verdict:
    """What the judge says."""

    score: int
    reason: str


def judge_picture(prompt: str, pictures: Sequence[SourcePicture]) -> Verdict:
    """How well the last picture shows what `prompt` asks for."""
    if not pictures:
        return Verdict(0, "There is no picture.")
    picture = pictures[-1]
    if _is_blank(picture.image):
        return Verdict(0, "The picture is blank.")
    look = parse_photo(prompt)
    if look is not None:
        return _count(_check_look(look, look_at(picture.image)))
    checks = _check_scene(parse_request(prompt), see(picture))
    if not checks or find_page(prompt, dice_for(prompt)) is not None:
        return Verdict(_UNCHECKED_PICTURE, "The picture is not blank; more is not checked for this prompt.")
    return _count(checks)


def judge_edit(instruction: str, pictures: Sequence[SourcePicture]) -> Verdict:
    """How well the last picture is the first one, or the first ones, after `instruction`."""
    if len(pictures) < 2:
        return Verdict(0, "There are not two pictures to compare.")
    *sources, edited = pictures
    if any(map(is_photo, sources)):
        return _judge_photo_edit(instruction, [source.image for source in sources], edited.image)
    before, after = see(sources[0]), see(edited)
    if before == after and not is_photo(edited):
        return Verdict(0, "The edit changed nothing.")
    asked = edited_scene(list(sources), instruction, dice_for(instruction))
    edit = parse_edit(instruction)
    is_free = len(sources) > 1 or (edit is not None and edit.task == "add" and edit.place is None)
    return _judge_scene_edit(before, asked, after, is_free)


def _count(checks: dict[str, bool]) -> Verdict:
    """The share of the checks that hold, and the others by name."""
    missing = [name for name, holds in checks.items() if not holds]
    score = round(10 * (1 - len(missing) / len(checks)))
    return Verdict(score, f"Not seen: {', '.join(missing)}." if missing else "All that was asked for can be seen.")


def _is_blank(image: Image.Image) -> bool:
    return all(high - low < _MIN_CONTRAST for low, high in image.convert("RGB").getextrema())  # type: ignore[misc]


# --------------------------------------------------------------------------- pictures


def _check_look(asked: PhotoLook, seen: PhotoLook) -> dict[str, bool]:
    checks = {color: color in (*seen.colors, seen.accent) for color in asked.colors}
    if asked.accent:
        checks[f"{asked.accent} {asked.region}"] = (asked.accent, asked.region) == (seen.accent, seen.region)
    if asked.light:
        checks[f"brighter {asked.light}"] = asked.light == seen.light
    return checks


def _check_scene(asked: SceneRequest, seen: Scene) -> dict[str, bool]:
    """What the prompt names -> whether it is seen."""
    checks: dict[str, bool] = {}
    for item in asked.objects:
        fits = [found for found in seen.objects if _fits(found, item)]
        checks[name_object(item)] = len(fits) == sum(other.count for other in asked.objects if _is_same(other, item))
        if item.place:
            checks[item.place] = any(_is_near(found, item.place) for found in fits)
    if asked.relation and len(asked.objects) >= 2:
        checks[asked.relation] = _holds(asked.relation, seen, asked.objects[0], asked.objects[1])
    if asked.objects:
        checks["nothing else"] = len(seen.objects) <= sum(item.count for item in asked.objects)
    for name in ("background", "style", "lighting"):
        if getattr(asked, name):
            checks[f"{name} {getattr(asked, name)}"] = getattr(asked, name) == getattr(seen, name)
    return checks


def _fits(found: SceneObject, item: ObjectRequest) -> bool:
    return found.shape == item.shape and item.color in (None, found.color) and item.size in (None, found.size)


def _is_same(first: ObjectRequest, second: ObjectRequest) -> bool:
    return replace(first, count=1, place=None) == replace(second, count=1, place=None)


def _is_near(found: SceneObject, place: str) -> bool:
    x, y = PLACES[place]
    return max(abs(found.x - x), abs(found.y - y)) <= _PLACE_REACH


def _holds(relation: str, seen: Scene, first: ObjectRequest, second: ObjectRequest) -> bool:
    """Whether a first object stands `relation` a second one."""
    dx, dy = RELATIONS[relation]
    return any(
        (a.x - b.x) * dx > 0 if dx else (a.y - b.y) * dy > 0
        for a in seen.objects
        for b in seen.objects
        if _fits(a, first) and _fits(b, second)
    )


# --------------------------------------------------------------------------- edits


def _judge_scene_edit(before: Scene, asked: Scene, after: Scene, is_free: bool) -> Verdict:
    """What was asked for counts most: nothing of it is 0, all of it is 5, and what had to stay is the rest."""

    def count_objects(scene: Scene) -> Counter[object]:
        return Counter((item.shape, item.color) if is_free else item for item in scene.objects)

    old, new, seen = count_objects(before), count_objects(asked), count_objects(after)
    done: list[float] = []
    kept = [(new & old & seen).total() / (new & old).total()] if new & old else []
    if new - old:
        done.append(((new - old) & (seen - (new & old))).total() / (new - old).total())
    if old - new:
        done.append(1 - ((old - new) & (seen - new)).total() / (old - new).total())
    for name in ("background", "style", "lighting") if asked.objects else ("background", "lighting"):
        holds = float(getattr(after, name) == getattr(asked, name))
        (kept if getattr(before, name) == getattr(asked, name) else done).append(holds)
    if not done:
        return Verdict(_UNCHECKED_EDIT, _UNCHECKED_REASON)
    done_share, kept_share = sum(done) / len(done), sum(kept) / len(kept)
    score = round(10 * done_share * (0.5 + 0.5 * kept_share))
    return Verdict(score, f"{done_share:.0%} of the change is seen, and {kept_share:.0%} of what had to stay.")


def _judge_photo_edit(instruction: str, sources: Sequence[Image.Image], edited: Image.Image) -> Verdict:
    """How near the pixels are to what the editor would have made of the source."""
    before, after = _pixels(sources[0]), _pixels(edited)
    if np.abs(after - before).mean() < _MIN_CHANGE:
        return Verdict(0, "The edit changed nothing.")
    edit = parse_photo_edit(instruction)
    if edit is None:
        return Verdict(_UNCHECKED_EDIT, _UNCHECKED_REASON)
    asked = _pixels(apply_photo_edit(sources, edit))
    distance = float(np.abs(after - asked).mean() / max(float(np.abs(before - asked).mean()), _MIN_CHANGE))
    return Verdict(
        round(10 * max(0.0, 1 - distance)), f"The picture is {distance:.2f} changes away from the one asked."
    )


def _pixels(image: Image.Image) -> np.ndarray:
    side = (_COMPARED_SIDE, _COMPARED_SIDE)
    return np.asarray(image.convert("RGB").resize(side, Image.Resampling.BOX), dtype=np.float32)
