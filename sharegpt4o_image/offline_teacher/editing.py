# SPDX-License-Identifier: Apache-2.0
"""Edits: instruction text -> EditRequest, and Scene + EditRequest -> Scene.

Like the prompt parser, `parse_edit` reads whatever it is given and keeps the words it knows;
`parse_edit(describe_edit(e))` gives `e` back (a test holds it).
"""

import random
import re
from dataclasses import dataclass, replace

from sharegpt4o_image.offline_teacher.language import (
    find_background,
    find_lighting,
    find_objects,
    find_style,
    name_object,
    normalize,
)
from sharegpt4o_image.offline_teacher.layout import MAX_OBJECTS, place_object
from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    CELLS,
    GRID,
    LIGHTINGS,
    OBJECT_COLORS,
    PLACES,
    SHAPES,
    STYLES,
    ObjectRequest,
    Scene,
    SceneObject,
)

EDIT_TASKS = ("recolor", "remove", "background", "replace", "add", "move", "restyle", "relight", "zoom_out")


@dataclass(frozen=True)
class EditRequest:
    """What an instruction asks for; fields that the task does not use are `None`.

    `target` names the object to change, `replacement` the new look of it (or, for `add`, the new object).
    """

    task: str
    target: ObjectRequest | None = None
    replacement: ObjectRequest | None = None
    color: str | None = None
    place: str | None = None
    background: str | None = None
    style: str | None = None
    lighting: str | None = None


# Sentence forms per task; the first word alone tells the task, except for the forms of "make" and "change".
_FORMS = {
    "recolor": (
        "make the {target} {color}",
        "change the color of the {target} to {color}",
        "recolor the {target} {color}",
    ),
    "remove": ("remove the {target}", "delete the {target}", "take away the {target}"),
    "background": (
        "change the background to {background}",
        "make the background {background}",
        "use a {background} background",
    ),
    "replace": ("replace the {target} with {replacement}", "turn the {target} into {replacement}"),
    "add": ("add {replacement} {place}", "put {replacement} {place}"),
    "move": ("move the {target} {place}",),
    "restyle": ("redraw it in {style} style", "change it to {style} style"),
    "relight": ("change the lighting to {lighting}", "give it {lighting}"),
    "zoom_out": ("zoom out", "zoom out to show more of the background"),
}

_ADD = re.compile(r"\b(add|put|insert)\b")
_REMOVE = re.compile(r"\b(remove|delete|take away|erase)\b")
_REPLACE = re.compile(r"\b(replace|swap|turn)\b.*\b(with|into|for)\b")
_MOVE = re.compile(r"\bmove\b")
_ZOOM = re.compile(r"\bzoom out\b|\boutpaint\b|\bwider view\b")
_RECOLOR = re.compile(rf"\b(?P<color>{'|'.join(OBJECT_COLORS)})\b")
_BACKGROUND = re.compile(rf"\bbackground (?:to |into )?(?:a |an )?(?P<after>{'|'.join(BACKGROUND_COLORS)})\b")
_PLACE = re.compile("|".join(sorted(PLACES, key=len, reverse=True)))


def _find_place(text: str) -> str | None:
    match = _PLACE.search(text)
    return match.group() if match else None


def _with_target(text: str) -> tuple[ObjectRequest, str] | None:
    """The first object the text names, and the text after it."""
    objects = find_objects(text)
    if not objects:
        return None
    noun = re.search(rf"\b{objects[0].shape}(?:s|es)?\b", text)
    assert noun is not None
    return objects[0], text[noun.end() :]


def _parse_object_edit(text: str) -> EditRequest | None:
    named = _with_target(text)
    if named is None:
        return None
    target, rest = named
    target = replace(target, place=None)
    if _REMOVE.search(text):
        return EditRequest("remove", target)
    if _REPLACE.search(text):
        others = find_objects(rest)
        return EditRequest("replace", target, others[0]) if others else None
    if _ADD.search(text):
        return EditRequest("add", replacement=target, place=_find_place(text))
    if _MOVE.search(text):
        return EditRequest("move", target, place=_find_place(text) or "in the center")
    color = _RECOLOR.search(rest)
    return EditRequest("recolor", target, color=color["color"]) if color else None


def _parse_scene_edit(text: str) -> EditRequest | None:
    if _ZOOM.search(text):
        return EditRequest("zoom_out")
    background = _BACKGROUND.search(text)
    if background or find_background(text):
        return EditRequest("background", background=background["after"] if background else find_background(text))
    if find_style(text):
        return EditRequest("restyle", style=find_style(text))
    if find_lighting(text):
        return EditRequest("relight", lighting=find_lighting(text))
    return None


def parse_edit(text: str) -> EditRequest | None:
    """What an instruction asks for, or `None` when it names nothing the teacher can do."""
    text = normalize(text)
    return _parse_object_edit(text) or _parse_scene_edit(text)


def describe_edit(edit: EditRequest, rng: random.Random) -> str:
    """Write `edit` as an instruction; `rng` chooses among equivalent sentence forms."""
    target = name_object(edit.target, article="").strip() if edit.target else ""
    replacement = name_object(edit.replacement) if edit.replacement else ""
    text = rng.choice(_FORMS[edit.task]).format(
        target=target,
        replacement=replacement,
        color=edit.color,
        place=edit.place or "",
        background=edit.background,
        style=edit.style,
        lighting=edit.lighting,
    )
    return text.strip()


# --------------------------------------------------------------------------- applying


def matches(item: SceneObject, wanted: ObjectRequest) -> bool:
    """Whether a drawn object fits the words that name it."""
    return item.shape == wanted.shape and wanted.color in (None, item.color) and wanted.size in (None, item.size)


def _change(scene: Scene, edit: EditRequest) -> tuple[SceneObject, ...]:
    assert edit.target is not None
    changed = []
    for item in scene.objects:
        if not matches(item, edit.target):
            changed.append(item)
        elif edit.task == "recolor":
            changed.append(replace(item, color=edit.color or item.color))
        elif edit.task == "replace":
            changed.append(_replaced(item, edit))
        elif edit.task == "move":
            changed.append(place_object(item.shape, item.color, item.size, *PLACES[edit.place or "in the center"]))
    return tuple(changed)


def _replaced(item: SceneObject, edit: EditRequest) -> SceneObject:
    new = edit.replacement
    assert new is not None
    return replace(item, shape=new.shape, color=new.color or item.color, size=new.size or item.size)


def _added(scene: Scene, edit: EditRequest, rng: random.Random) -> tuple[SceneObject, ...]:
    new = edit.replacement
    assert new is not None
    color = new.color or rng.choice(tuple(OBJECT_COLORS))
    place = edit.place or _free_place(scene, rng)
    size = new.size or "small"
    return (*scene.objects, place_object(new.shape, color, size, *PLACES[place]))[-MAX_OBJECTS:]


def is_free(scene: Scene, place: str) -> bool:
    """Whether a small object at `place` would overlap nothing."""
    x, y = PLACES[place]
    reach = (CELLS["small"] / 2 + 0.5) / GRID  # half a cell of air
    return all(max(abs(o.x - x), abs(o.y - y)) >= o.half_side + reach for o in scene.objects)


def _free_place(scene: Scene, rng: random.Random) -> str:
    free = [place for place in PLACES if is_free(scene, place)]
    return rng.choice(free or list(PLACES))


def _zoomed_out(scene: Scene) -> tuple[SceneObject, ...]:
    """Every object one size smaller and nearer to the middle."""
    names = list(CELLS)
    smaller = {name: names[max(0, i - 1)] for i, name in enumerate(names)}
    pull = 0.8
    return tuple(
        place_object(o.shape, o.color, smaller[o.size], 0.5 + (o.x - 0.5) * pull, 0.5 + (o.y - 0.5) * pull)
        for o in scene.objects
    )


def apply_edit(scene: Scene, edit: EditRequest, rng: random.Random) -> Scene:
    """The scene after the edit; what the edit does not name stays as it is. `rng` places an added object."""
    if edit.task in ("recolor", "remove", "replace", "move"):
        return replace(scene, objects=_change(scene, edit))
    if edit.task == "add":
        return replace(scene, objects=_added(scene, edit, rng))
    if edit.task == "zoom_out":
        return replace(scene, objects=_zoomed_out(scene))
    return replace(
        scene,
        background=edit.background or scene.background,
        style=edit.style or scene.style,
        lighting=edit.lighting or scene.lighting,
    )


# --------------------------------------------------------------------------- sampling


def random_edit(scene: Scene, task: str, rng: random.Random) -> EditRequest | None:
    """An edit of kind `task` that changes `scene`, or `None` when the scene allows none."""
    item = rng.choice(scene.objects) if scene.objects else None
    if item is None:
        return None
    target = ObjectRequest(item.shape, item.color)
    other_colors = [color for color in OBJECT_COLORS if color != item.color]
    if task == "recolor":
        return EditRequest(task, target, color=rng.choice(other_colors))
    if task == "remove":
        return EditRequest(task, target)
    if task == "replace":
        shape = rng.choice([shape for shape in SHAPES if shape != item.shape])
        return EditRequest(task, target, ObjectRequest(shape, rng.choice(other_colors)))
    if task == "add":
        places = [place for place in PLACES if is_free(scene, place)]
        new = ObjectRequest(rng.choice(SHAPES), rng.choice(tuple(OBJECT_COLORS)))
        return EditRequest(task, replacement=new, place=rng.choice(places)) if places else None
    if task == "move":
        places = [p for p, xy in PLACES.items() if max(abs(item.x - xy[0]), abs(item.y - xy[1])) > 0.15]
        alone = len(scene.objects) == 1
        return EditRequest(task, target, place=rng.choice(places)) if alone else None
    if task == "zoom_out":
        return EditRequest(task) if item.size != "small" else None
    return _random_look_edit(scene, task, rng)


def _random_look_edit(scene: Scene, task: str, rng: random.Random) -> EditRequest:
    if task == "background":
        return EditRequest(task, background=rng.choice([b for b in BACKGROUND_COLORS if b != scene.background]))
    if task == "restyle":
        return EditRequest(task, style=rng.choice([style for style in STYLES if style != scene.style]))
    return EditRequest(task, lighting=rng.choice([light for light in LIGHTINGS if light != scene.lighting]))
