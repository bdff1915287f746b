# SPDX-License-Identifier: Apache-2.0
"""Edits that take something from further pictures: scenes -> instruction, and instruction + scenes -> EditRequests.

add the blue star of the second picture to the first
give the first picture the background of the second picture
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

from sharegpt4o_image.offline_teacher.editing import EditRequest, is_free, parse_edit
from sharegpt4o_image.offline_teacher.language import find_objects, name_object, normalize
from sharegpt4o_image.offline_teacher.layout import MAX_OBJECTS
from sharegpt4o_image.offline_teacher.scene import PLACES, ObjectRequest, Scene, SceneObject

# The paper's editing tasks (appendix B.1.2) -> what can be taken from the second picture.
BORROWED_LOOKS = {
    "background modification": "background",
    "attribute/effect manipulation": "lighting",
    "medium/technique styles": "style",
}
_ORDINALS = ("second", "third", "fourth", "fifth")
_BORROWED = re.compile(rf"\bof the (?P<ordinal>{'|'.join(_ORDINALS)}) picture\b")
_LOOK = re.compile(rf"\bthe (?P<look>background|lighting|style) {_BORROWED.pattern}")


def write_borrowing(task: str, scene: Scene, others: Sequence[Scene], dice: random.Random) -> str | None:
    """An instruction of the paper's `task` that uses the further pictures; `None` when there is none."""
    if task == "element manipulation":
        return _write_addition(scene, others, dice)
    if task == "inpainting/replacement":
        return _write_replacement(scene, others[0], dice)
    look = BORROWED_LOOKS.get(task)
    if look is None or getattr(scene, look) == getattr(others[0], look):
        return None
    return f"give the first picture the {look} of the second picture"


def _write_addition(scene: Scene, others: Sequence[Scene], dice: random.Random) -> str | None:
    """One object of every further picture that has one, if there is room for them."""
    choices = [dice.choice(other.objects) if other.objects else None for other in others[: len(_ORDINALS)]]
    names = [
        f"{_name(item)} of the {ordinal} picture" for item, ordinal in zip(choices, _ORDINALS, strict=False) if item
    ]
    num_free = min(sum(is_free(scene, place) for place in PLACES), MAX_OBJECTS - len(scene.objects))
    has_room = 0 < len(names) <= num_free
    return f"add {' and '.join(names)} to the first" if has_room else None


def _write_replacement(scene: Scene, other: Scene, dice: random.Random) -> str | None:
    """An object that stands alone of its kind for one of the second picture."""
    names = Counter(_name(item) for item in scene.objects)
    pairs = [
        (old, new)
        for old, count in names.items()
        for new in sorted({_name(item) for item in other.objects})
        if count == 1 and old != new
    ]
    if not pairs:
        return None
    old, new = dice.choice(pairs)
    return f"replace {old} with {new} of the second picture"


def _name(item: SceneObject) -> str:
    return name_object(ObjectRequest(item.shape, item.color), article="the")


def borrows(instruction: str) -> bool:
    """Whether an instruction names what it takes from which further picture."""
    return _BORROWED.search(normalize(instruction)) is not None


def name_borrowed(instruction: str, others: Sequence[Scene]) -> list[EditRequest]:
    """The edits of an instruction that borrows, with what is borrowed named outright."""

    def name_look(match: re.Match[str]) -> str:
        index = _ORDINALS.index(match["ordinal"])
        return _say_look(match["look"], others[index]) if index < len(others) else ""

    text = _LOOK.sub(name_look, normalize(instruction))
    if re.match(r"(please )?(add|put) ", text):
        return [EditRequest("add", replacement=item) for item in find_objects(text)]
    edit = parse_edit(_BORROWED.sub("", text))
    return [edit] if edit else []


def _say_look(look: str, scene: Scene) -> str:
    """`"the navy background"`, `"outline style"`, `"dim light"`."""
    words = {"background": f"{scene.background} background", "style": f"{scene.style} style"}
    return words.get(look, scene.lighting)
