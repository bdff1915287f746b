# SPDX-License-Identifier: Apache-2.0
"""SceneRequest -> Scene: every choice the text leaves open is made with the given random generator."""

import random
from dataclasses import replace

from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    GRID,
    OBJECT_COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    ObjectRequest,
    Scene,
    SceneObject,
    SceneRequest,
)

MAX_OBJECTS = 4
_JITTER_STEPS = 1  # objects move by at most this many grid steps around their nominal place
_APART = 15 / 64  # distance of two related objects from the middle, as a share of the canvas
_PAIR_PLACES = {
    (-1, 0): ((0.5 - _APART, 0.5), (0.5 + _APART, 0.5)),
    (1, 0): ((0.5 + _APART, 0.5), (0.5 - _APART, 0.5)),
    (0, -1): ((0.5, 0.5 - _APART), (0.5, 0.5 + _APART)),
    (0, 1): ((0.5, 0.5 + _APART), (0.5, 0.5 - _APART)),
}
_CORNERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))


def on_grid(value: float) -> float:
    """The nearest grid coordinate; every object centre is one."""
    return round(value * GRID) / GRID


def place_object(shape: str, color: str, size: str, x: float, y: float) -> SceneObject:
    """An object at the grid point nearest to `(x, y)` at which its box stays on the canvas."""
    half = SIZES[size]
    low, high = half, 1 - half
    return SceneObject(shape, color, size, on_grid(min(max(x, low), high)), on_grid(min(max(y, low), high)))


def _jittered(item: SceneObject, rng: random.Random) -> SceneObject:
    dx, dy = (rng.randint(-_JITTER_STEPS, _JITTER_STEPS) / GRID for _ in range(2))
    return place_object(item.shape, item.color, item.size, item.x + dx, item.y + dy)


def _expand(request: SceneRequest, rng: random.Random) -> list[ObjectRequest]:
    """One entry per object, with shape and colour settled."""
    wanted = request.objects or (ObjectRequest(rng.choice(SHAPES)),)
    singles = []
    for group in wanted:
        color = group.color or rng.choice(tuple(OBJECT_COLORS))
        singles += [replace(group, color=color, count=1)] * group.count
    return singles[:MAX_OBJECTS]


def _positions(request: SceneRequest, singles: list[ObjectRequest], rng: random.Random) -> list[tuple[float, float]]:
    if len(singles) == 1:
        return [PLACES[singles[0].place or "in the center"]]
    if len(singles) == 2:
        direction = RELATIONS[request.relation or rng.choice(tuple(RELATIONS))]
        return list(_PAIR_PLACES[direction])
    return rng.sample(_CORNERS, len(singles))


def _default_size(num_objects: int) -> str:
    return "medium" if num_objects <= 2 else "small"


def compose(request: SceneRequest, rng: random.Random) -> Scene:
    """Choose what `request` leaves open and place the objects, each within one grid step of its nominal place.

    At most four objects are drawn. The same request and generator state give the same scene.
    """
    singles = _expand(request, rng)
    size = _default_size(len(singles))
    positions = _positions(request, singles, rng)
    objects = []
    for single, (x, y) in zip(singles, positions, strict=True):
        wanted_size = single.size or size
        if len(singles) > 1 and wanted_size == "large":
            wanted_size = "medium"  # two large objects would touch
        assert single.color is not None  # `_expand` settled it
        objects.append(_jittered(place_object(single.shape, single.color, wanted_size, x, y), rng))
    background = request.background or rng.choice(tuple(BACKGROUND_COLORS))
    return Scene(background, tuple(objects), request.style or "flat", request.lighting or "daylight")
