# SPDX-License-Identifier: Apache-2.0
"""Pictures -> labels: what the teacher sees in a picture, and what was done to the source of an edit.

It looks at pixels alone; of two opposite relations between two objects (left and right of) it names the one that
begins at the left, or at the top. Of photographs it knows no more than that they are none of its drawings.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sharegpt4o_image.offline_teacher.documents import PAPERS
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.pictures import SourcePicture, is_photo, see
from sharegpt4o_image.offline_teacher.scene import PLACES, Scene, SceneObject

NOTHING = "none"

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
_TASK_OF = {ability: task for task, abilities in TASK_ABILITIES.items() for ability in abilities}

# The paper's categories of those tasks; all others are of the first one.
_MANIPULATION = "image editing and manipulation"
_CATEGORY_OF = {
    "medium/technique styles": "style transfer and artistic transformation",
    "outpainting/inpainting for extension": "content augmentation and extension",
}

_SURE, _LIKELY, _GUESS = 0.95, 0.6, 0.1  # our choice
_NEAR = 0.07  # an object stands at a place if its centre is as near: half a cell, and a little
_PAGE_SIDE = 100  # pages are looked at with this side
_SAME_COLOR = 14.0  # largest difference of a channel (of 255) within one colour
_MIN_PAPER = 0.35  # a page shows at least so much of its paper
_BAR_SHARE = 0.05  # bars cover more of a page than its rules and bullets do
_PALE = 60.0  # an accent differs from the paper by more in some channel; so does ink, which is dark
_MIN_CHROMA = 50.0  # between the channels of an accent; inks have more than paper, but are dark
_MIN_LIGHT = 90.0  # brightness of accents


@dataclass(frozen=True)
class Look:
    """Labels of a picture, each with how sure the teacher is of it."""

    labels: dict[str, tuple[Any, float]]

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON fields of the answer."""
        values = {name: value for name, (value, _) in self.labels.items()}
        return values | {f"{name}_confidence": round(sureness, 3) for name, (_, sureness) in self.labels.items()}


def read_labels(task: str, pictures: Sequence[SourcePicture]) -> Look:
    """What the last picture shows; of an edit, also what was done to the first one."""
    if not pictures:
        return Look({"objects": ([], _GUESS)})
    picture = pictures[-1]
    labels = _label_other(picture.image) if is_photo(picture) else _label_scene(picture)
    if task == "text_and_image_to_image":
        name, sureness = _name_edit(pictures)
        category = _CATEGORY_OF.get(name, _MANIPULATION) if name != NOTHING else NOTHING
        labels |= {"edit_task": (name, sureness), "edit_category": (category, sureness)}
    return Look(labels)


def _label_scene(picture: SourcePicture) -> dict[str, tuple[Any, float]]:
    perception = perceive(picture.image)
    scene = perception.scene
    names = list(dict.fromkeys(f"{item.color} {item.shape}" for item in perception.objects))
    scores = [item.score for item in perception.objects]
    sureness = sum(scores) / len(scores) if scores else _GUESS
    shots = {size: words for words, size in CAMERA_SIZES.items()}
    camera = shots[scene.objects[0].size] if len(scene.objects) == 1 else NOTHING
    return {
        "objects": (names, sureness),
        "style": (f"{scene.style} style", _SURE),
        "lighting": (scene.lighting, _SURE),
        "camera": (camera, _SURE),
        "composition": _name_composition(scene.objects),
        "document_type": (NOTHING, _SURE),
    }


def _name_composition(objects: Sequence[SceneObject]) -> tuple[str, float]:
    """Where a lone object stands, or how two stand to each other."""
    if len(objects) == 1:
        lone = objects[0]
        distance = {place: max(abs(lone.x - x), abs(lone.y - y)) for place, (x, y) in PLACES.items()}
        place = min(distance, key=distance.__getitem__)
        return (place, _SURE) if distance[place] <= _NEAR else (NOTHING, _SURE)
    if len(objects) == 2:
        first, second = objects
        is_row = abs(first.x - second.x) >= abs(first.y - second.y)
        return "to the left of" if is_row else "above", _LIKELY
    return NOTHING, _SURE


def _label_other(image: Image.Image) -> dict[str, tuple[Any, float]]:
    """What is said of a photograph or a page."""
    page_type = read_page(image)
    labels: dict[str, tuple[Any, float]] = {"objects": ([], _GUESS)}
    labels |= dict.fromkeys(("style", "lighting", "camera", "composition"), (NOTHING, _GUESS))
    labels["document_type"] = (page_type, _LIKELY) if page_type else (NOTHING, _GUESS)
    return labels


# --------------------------------------------------------------------------- edits


def _name_edit(pictures: Sequence[SourcePicture]) -> tuple[str, float]:
    """The paper's task of an edit, from its first source and its result."""
    if len(pictures) < 2 or any(map(is_photo, pictures)):
        return NOTHING, _GUESS
    ability = compare_scenes(see(pictures[0]), see(pictures[-1]))
    return (_TASK_OF[ability], _SURE) if ability else (NOTHING, _GUESS)


def compare_scenes(before: Scene, after: Scene) -> str | None:
    """What the painter did to a scene; `None` where nothing has changed."""
    for ability, look in (("restyle", "style"), ("relight", "lighting"), ("background", "background")):
        if getattr(before, look) != getattr(after, look):
            return ability
    gone, come = Counter(before.objects), Counter(after.objects)
    gone, come = gone - come, come - gone
    if not gone and not come:
        return None
    if gone.total() != come.total():
        return "add" if come.total() > gone.total() else "remove"
    if Counter(item.shape for item in gone) != Counter(item.shape for item in come):
        return "replace"
    if Counter((item.shape, item.color) for item in gone) != Counter((item.shape, item.color) for item in come):
        return "recolor"
    return "move" if Counter(item.size for item in gone) == Counter(item.size for item in come) else "zoom_out"


# --------------------------------------------------------------------------- pages


def read_page(image: Image.Image) -> str | None:
    """The type of a page in the paper's words, from its layout; `None` for what is no page."""
    side = (_PAGE_SIDE, _PAGE_SIDE)
    pixels = np.asarray(image.convert("RGB").resize(side, Image.Resampling.BOX), dtype=np.float32)
    corner = np.median(pixels[-10:, -4:].reshape(-1, 3), axis=0)
    if min(float(np.abs(corner - paper).max()) for paper in PAPERS.values()) > _SAME_COLOR:
        return None
    is_paper = np.abs(pixels - corner).max(-1) <= _SAME_COLOR  # (side, side)
    if is_paper.mean() < _MIN_PAPER:
        return None
    if not is_paper[:45, -4:].any():
        return "Poster"
    if not is_paper[:, 0].any():
        return "Slide"
    if _is_accent(pixels, corner).mean() > _BAR_SHARE:
        return "Infographic/Chart"
    return "Paper" if _is_centered(is_paper) else "Document"


def _is_accent(pixels: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """Where a page has a vivid colour that is neither its paper nor its ink."""
    chroma = pixels.max(-1) - pixels.min(-1)
    is_vivid = (chroma > _MIN_CHROMA) & (pixels.mean(-1) > _MIN_LIGHT)
    return np.asarray(is_vivid & (np.abs(pixels - paper).max(-1) > _PALE))


def _is_centered(is_paper: np.ndarray) -> bool:
    """Whether the first line of text keeps away from the left margin as from the right one."""
    rows = np.flatnonzero(~is_paper[:30].all(1))
    if not len(rows):
        return False
    columns = np.flatnonzero(~is_paper[rows[0] : rows[0] + 6].all(0))
    left, right = int(columns[0]), _PAGE_SIDE - 1 - int(columns[-1])
    return abs(left - right) <= 3 and left > 8
