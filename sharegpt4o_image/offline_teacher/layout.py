# SPDX-License-Identifier: Apache-2.0
"""SceneRequest -> Scene: every choice the text leaves open is made with the given random generator."""

import random
from dataclasses import replace

from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    CELLS,
    GRID,
    OBJECT_COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    ObjectRequest,
    Scene,
    SceneObject,
    SceneRequest,
)

MAX_OBJECTS = 4


def place_object(shape: str, color: str, size: str, x: float, y: float) -> SceneObject:
    """An object whose box covers whole cells, its centre as near to `(x, y)` as the grid and the canvas allow."""
    cells = CELLS[size]
    column, row = (min(max(round(value * GRID - cells / 2), 0), GRID - cells) for value in (x, y))
    return _object_at(ObjectRequest(shape, color, size), column, row)


def _object_at(item: ObjectRequest, column: int, row: int) -> SceneObject:
    """The object whose box begins at the given cell; shape, colour and size are settled."""
    assert item.color is not None
    assert item.size is not None
    half = CELLS[item.size] / 2
    return SceneObject(item.shape, item.color, item.size, (column + half) / GRID, (row + half) / GRID)


def _expand(request: SceneRequest, rng: random.Random) -> list[ObjectRequest]:
    """One entry per object, with shape, colour and size settled."""
    wanted = request.objects or (ObjectRequest(rng.choice(SHAPES)),)
    singles: list[ObjectRequest] = []
    for group in wanted:
        color = group.color or rng.choice(tuple(OBJECT_COLORS))
        singles += [replace(group, color=color, size=group.size or "medium", count=1)] * group.count
    singles = singles[:MAX_OBJECTS]
    if len(singles) == 1:
        return singles
    return [replace(item, size="medium") if item.size == "large" else item for item in singles]  # two large ones touch


def _start_near(value: float, cells: int, rng: random.Random) -> int:
    """The first cell of a box of `cells` cells centred on `value`; between two cells `rng` decides."""
    start = value * GRID - cells / 2
    return min(max(int(start + rng.choice((0.0, 0.5))), 0), GRID - cells)


def _starts_apart(first: int, second: int, rng: random.Random) -> tuple[int, int]:
    """First cells of two boxes of `first` and `second` cells, one after the other with at least one cell between."""
    slack = GRID - first - second
    choices = [(a, b) for a in range(slack) for b in range(slack - a)]
    before, after = rng.choice(choices)
    return before, GRID - second - after


def _lone(item: ObjectRequest, rng: random.Random) -> SceneObject:
    cells = CELLS[item.size or "medium"]
    x, y = PLACES[item.place or "in the center"]
    column, row = _start_near(x, cells, rng), _start_near(y, cells, rng)
    if item.place is None:  # free to stand a cell beside the middle
        column, row = column + rng.randint(-1, 1), row + rng.randint(-1, 1)
    return _object_at(item, column, row)


def _pair(items: list[ObjectRequest], relation: str, rng: random.Random) -> list[SceneObject]:
    """Two objects; the first stands `relation` the second."""
    dx, dy = RELATIONS[relation]
    order = items if dx + dy < 0 else items[::-1]  # from left to right, or from top to bottom
    cells = [CELLS[item.size or "medium"] for item in order]
    along = _starts_apart(cells[0], cells[1], rng)
    across = [_start_near(0.5, n, rng) for n in cells]
    starts = list(zip(along, across, strict=True)) if dx else list(zip(across, along, strict=True))
    placed = [_object_at(item, *start) for item, start in zip(order, starts, strict=True)]
    return placed if order is items else placed[::-1]


def _corners(items: list[ObjectRequest], rng: random.Random) -> list[SceneObject]:
    """Three or four objects in the quarters of the canvas."""
    cells = CELLS["medium"]
    columns, rows = _starts_apart(cells, cells, rng), _starts_apart(cells, cells, rng)
    quarters = [(column, row) for row in rows for column in columns]
    return [_object_at(item, *start) for item, start in zip(items, rng.sample(quarters, len(items)), strict=True)]


def compose(request: SceneRequest, rng: random.Random) -> Scene:
    """Choose what `request` leaves open and place the objects on the grid.

    At most four objects are drawn. The same request and generator state give the same scene.
    """
    items = _expand(request, rng)
    if len(items) == 1:
        objects = [_lone(items[0], rng)]
    elif len(items) == 2:
        objects = _pair(items, request.relation or rng.choice(tuple(RELATIONS)), rng)
    else:
        objects = _corners(items, rng)
    background = request.background or rng.choice(tuple(BACKGROUND_COLORS))
    return Scene(background, tuple(objects), request.style or "flat", request.lighting or "daylight")
