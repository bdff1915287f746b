# SPDX-License-Identifier: Apache-2.0
"""The world the offline teacher can draw: its words, and the scenes made of them.

A picture is described on three levels: text, [`SceneRequest`] (what the text asks for), and [`Scene`] (what is drawn,
every choice made). `language.py` goes from text to request and back, `layout.py` from request to scene, `renderer.py`
from scene to pixels and `perception.py` from pixels to scene.
"""

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")

OBJECT_COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 160, 70),
    "cyan": (60, 200, 225),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (245, 130, 190),
}

BACKGROUND_COLORS = {
    "white": (246, 246, 246),
    "gray": (128, 128, 128),
    "black": (18, 18, 18),
    "beige": (222, 202, 164),
    "navy": (20, 28, 84),
    "mint": (170, 222, 196),
}

# The canvas is a grid of 8 x 8 cells, and every object's box covers whole cells. The tiny checkpoints see one image
# token a cell, so a shape of one size always gives the same few tokens.
GRID = 8
CELLS = {"small": 2, "medium": 3, "large": 4}

STYLES = ("flat", "outline", "textured")

LIGHTINGS = ("daylight", "dim light", "warm light", "light from the left")

# Where a lone object stands when the text names a place (centre of the object, canvas coordinates, y downwards).
PLACES = {
    "in the center": (0.50, 0.50),
    "on the left side": (0.25, 0.50),
    "on the right side": (0.75, 0.50),
    "at the top": (0.50, 0.25),
    "at the bottom": (0.50, 0.75),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}

# The first object stands here relative to the second one.
RELATIONS = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class SceneObject:
    """One shape on the canvas; `x` and `y` are the centre of its box in [0, 1], y downwards."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def half_side(self) -> float:
        """Half the side of the object's box as a share of the canvas side."""
        return CELLS[self.size] / GRID / 2

    @property
    def box(self) -> tuple[float, float, float, float]:
        """`(left, top, right, bottom)` of the object's box in [0, 1]."""
        half = self.half_side
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Scene:
    """A complete picture: every choice is made, so the same scene always gives the same pixels."""

    background: str
    objects: tuple[SceneObject, ...]
    style: str = "flat"
    lighting: str = "daylight"


@dataclass(frozen=True)
class ObjectRequest:
    """What a text says of one kind of object; what it leaves open is `None`."""

    shape: str
    color: str | None = None
    size: str | None = None
    count: int = 1
    place: str | None = None


@dataclass(frozen=True)
class SceneRequest:
    """What a text says of a picture; `relation` holds between the first and the second object."""

    objects: tuple[ObjectRequest, ...] = ()
    relation: str | None = None
    background: str | None = None
    style: str | None = None
    lighting: str | None = None
