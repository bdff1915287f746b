# SPDX-License-Identifier: Apache-2.0
"""Text and pictures -> text: the writer behind the chat API, which knows nothing of HTTP.

It looks for a JSON object in the message. One with `judge` asks for a score, one with `label` for labels, one with
`edit_task` for an edit instruction, one with `document_type` for the text of a document (or, where it holds that text,
for a prompt that lays it out), and one with `objects` for an image prompt. Anything else is answered with a
description of the picture or of what the text names.
"""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

from sharegpt4o_image.offline_teacher.borrowing import write_borrowing
from sharegpt4o_image.offline_teacher.documents import write_content, write_layout
from sharegpt4o_image.offline_teacher.editing import EditRequest, describe_edit, matches, random_edit
from sharegpt4o_image.offline_teacher.judging import judge_edit, judge_picture
from sharegpt4o_image.offline_teacher.labelling import CAMERA_SIZES, TASK_ABILITIES, read_labels
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
from sharegpt4o_image.offline_teacher.photo_edits import choose_photo_edit, describe_photo_edit
from sharegpt4o_image.offline_teacher.photos import describe_photo
from sharegpt4o_image.offline_teacher.pictures import SourcePicture, is_photo, see
from sharegpt4o_image.offline_teacher.protocol import dice_for
from sharegpt4o_image.offline_teacher.scene import PLACES, RELATIONS, ObjectRequest, Scene, SceneRequest


@dataclass(frozen=True)
class WrittenText:
    """An answer: its text, and the values of the JSON fields it would fill."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def write(text: str, pictures: list[SourcePicture], index: int) -> WrittenText:
    """The `index`-th answer to a message."""
    dice = dice_for("write", text, *(picture.digest for picture in pictures), index)
    task = find_json(text)
    if "judge" in task:
        return _write_judgement(task, pictures)
    if "label" in task:
        look = read_labels(str(task["label"]), pictures)
        return WrittenText(", ".join(look.fields["objects"]) or "nothing known", look.fields)
    if "edit_task" in task:
        return _write_instruction(task, pictures, dice)
    if task.get("document_type"):
        return _write_document(task, dice)
    if "objects" in task:
        prompt = describe(request_for_topic(task), dice)
        return WrittenText(prompt, {"prompt": prompt})
    if pictures and is_photo(pictures[0]):
        description = describe_photo(pictures[0].image)
        return WrittenText(description, {"prompt": description})
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
        except (json.JSONDecodeError, RecursionError):
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
    names = topic.get("objects")
    for name in names if isinstance(names, list) else []:
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


def _write_document(task: dict[str, Any], dice: random.Random) -> WrittenText:
    """The text of a document, or the prompt for a document whose text is there."""
    if task.get("title") or task.get("content"):
        prompt = write_layout(task, dice)
        return WrittenText(prompt, {"prompt": prompt})
    content = write_content(task, dice)
    return WrittenText("\n".join(content.values()), {**content})


def _write_judgement(task: dict[str, Any], pictures: list[SourcePicture]) -> WrittenText:
    """The score of the last picture."""
    if task["judge"] == "text_and_image_to_image":
        verdict = judge_edit(str(task.get("instruction") or ""), pictures)
    else:
        verdict = judge_picture(str(task.get("prompt") or ""), pictures)
    return WrittenText(f"{verdict.score} of 10: {verdict.reason}", {"score": verdict.score, "reason": verdict.reason})


# --------------------------------------------------------------------------- edit instructions


def _write_instruction(task: dict[str, Any], pictures: list[SourcePicture], dice: random.Random) -> WrittenText:
    """An instruction of the kind asked for; empty when the picture allows none."""
    name = _words(task, "edit_task")
    if any(map(is_photo, pictures)):
        photo_edit = choose_photo_edit(pictures[0].image, name, len(pictures), dice)
        instruction = describe_photo_edit(photo_edit, dice) if photo_edit else ""
    elif len(pictures) > 1:
        scene, *others = map(see, pictures)
        instruction = write_borrowing(name, scene, others, dice) or ""
    else:
        scene = see(pictures[0]) if pictures else compose(parse_request(_words(task, "source_prompt")), dice)
        edit = _choose_edit(scene, TASK_ABILITIES.get(name, ()), dice)
        instruction = describe_edit(edit, dice) if edit else ""
    return WrittenText(instruction, {"instruction": instruction, "is_applicable": instruction != ""})


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
