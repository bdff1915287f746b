# SPDX-License-Identifier: Apache-2.0
"""Text and pictures -> text: the writer behind the chat API, which knows nothing of HTTP.

It looks for a JSON object in the message. One with `edit_task` asks for an edit instruction, one with `objects` for an
image prompt; anything else is answered with a description of the picture or of what the text names.
"""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

from sharegpt4o_image.offline_teacher.editing import EditRequest, describe_edit, matches, random_edit
from sharegpt4o_image.offline_teacher.language import (
    describe,
    find_background,
    find_lighting,
    find_objects,
    find_style,
    normalize,
    parse_request,
    without_defaults,
)
from sharegpt4o_image.offline_teacher.layout import MAX_OBJECTS, compose
from sharegpt4o_image.offline_teacher.pictures import SourcePicture, see
from sharegpt4o_image.offline_teacher.protocol import dice_for
from sharegpt4o_image.offline_teacher.scene import PLACES, RELATIONS, ObjectRequest, Scene, SceneRequest

# What the writer makes of the words of a camera viewpoint: how large the object is drawn.
CAMERA_SIZES = {"close-up": "large", "medium shot": "medium", "long shot": "small"}

# The painter's abilities under the names of the paper's editing tasks (appendix B.1.2); the other tasks of the paper
# are beyond simple scenes.
TASK_ABILITIES = {
    "inpainting/replacement": ("replace",),
    "element manipulation": ("add", "remove", "move"),
    "background modification": ("background",),
    "attribute/effect manipulation": ("recolor", "relight"),
    "medium/technique styles": ("restyle",),
    "outpainting/inpainting for extension": ("zoom_out",),
}


@dataclass(frozen=True)
class WrittenText:
    """An answer: its text, and the values of the JSON fields it would fill."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def write(text: str, pictures: list[SourcePicture], index: int) -> WrittenText:
    """The `index`-th answer to a message."""
    dice = dice_for("write", text, *(picture.digest for picture in pictures), index)
    task = find_json(text)
    if "edit_task" in task:
        return _write_instruction(task, pictures, dice)
    if "objects" in task:
        prompt = describe(request_for_topic(task), dice)
        return WrittenText(prompt, {"prompt": prompt})
    request = _as_request(see(pictures[0])) if pictures else parse_request(text)
    if len(request.objects) < 2:
        request = replace(request, objects=request.objects or (ObjectRequest("circle"),), relation=None)
    description = describe(without_defaults(request), dice)
    return WrittenText(description, {"prompt": description})


def find_json(text: str) -> dict[str, Any]:
    """The first JSON object in a text, or an empty one."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict):
            return found
        start = text.find("{", start + 1)
    return {}


# --------------------------------------------------------------------------- prompts


def _words(topic: dict[str, Any], name: str) -> str:
    """One attribute of a topic, normalised; an absent one is empty."""
    return normalize(str(topic.get(name) or ""))


def request_for_topic(topic: dict[str, Any]) -> SceneRequest:
    """The scene that a topic's attributes ask for; equal objects are counted, unknown words ignored."""
    counts: dict[ObjectRequest, int] = {}
    for name in topic.get("objects") or []:
        for item in find_objects(normalize(str(name))):
            counts[item] = counts.get(item, 0) + item.count
    objects = tuple(replace(item, count=min(count, MAX_OBJECTS)) for item, count in counts.items())
    objects = objects or (ObjectRequest("circle"),)
    composition = _words(topic, "composition")
    if len(objects) == 1 and objects[0].count == 1:
        place = composition if composition in PLACES else None
        objects = (replace(objects[0], size=CAMERA_SIZES.get(_words(topic, "camera")), place=place),)
    is_pair = len(objects) == 2 and all(item.count == 1 for item in objects)
    background = _words(topic, "background")
    return without_defaults(
        SceneRequest(
            objects=objects,
            relation=composition if is_pair and composition in RELATIONS else None,
            background=find_background(background) or find_background(f"{background} background"),
            style=find_style(_words(topic, "style")),
            lighting=find_lighting(_words(topic, "lighting")),
        )
    )


def _as_request(scene: Scene) -> SceneRequest:
    """What one would ask for to get `scene`."""
    counts: dict[ObjectRequest, int] = {}
    for item in scene.objects:
        seen = ObjectRequest(item.shape, item.color)
        counts[seen] = counts.get(seen, 0) + 1
    objects = tuple(replace(item, count=min(count, MAX_OBJECTS)) for item, count in counts.items())
    return SceneRequest(objects, None, scene.background, scene.style, scene.lighting)


# --------------------------------------------------------------------------- edit instructions


def _write_instruction(task: dict[str, Any], pictures: list[SourcePicture], dice: random.Random) -> WrittenText:
    """An instruction of the kind asked for; empty when the picture allows none."""
    scene = see(pictures[0]) if pictures else compose(parse_request(_words(task, "source_prompt")), dice)
    edit = _choose_edit(scene, TASK_ABILITIES.get(_words(task, "edit_task"), ()), dice)
    instruction = describe_edit(edit, dice) if edit else ""
    return WrittenText(instruction, {"instruction": instruction, "is_applicable": edit is not None})


def _choose_edit(scene: Scene, abilities: tuple[str, ...], dice: random.Random) -> EditRequest | None:
    for ability in dice.sample(abilities, len(abilities)):
        edit = random_edit(scene, ability, dice)
        if edit is not None:
            return _counted(edit, scene)
    return None


def _counted(edit: EditRequest, scene: Scene) -> EditRequest:
    """`edit` with its target named in the plural where several objects are meant."""
    if edit.target is None:
        return edit
    count = sum(matches(item, edit.target) for item in scene.objects)
    if not 1 < count <= MAX_OBJECTS:
        return edit
    replacement = replace(edit.replacement, count=count) if edit.replacement else None
    return replace(edit, target=replace(edit.target, count=count), replacement=replacement)
