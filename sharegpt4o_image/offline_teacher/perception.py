# SPDX-License-Identifier: Apache-2.0
"""Pixels -> scene: reads a picture back, knowing only the world of `scene.py`.

The offline teacher's editor and writer see pictures through it, and the scene benchmark scores pictures with it.
It looks at pixels alone; on pictures that the renderer drew it is exact (a test holds it).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from sharegpt4o_image.offline_teacher.layout import place_object
from sharegpt4o_image.offline_teacher.renderer import OUTLINES, STRIPE_SHADE, light_map, render, shape_mask
from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    CELLS,
    GRID,
    LIGHTINGS,
    OBJECT_COLORS,
    SHAPES,
    Scene,
    SceneObject,
)

WORKING_SIZE = 128  # every picture is looked at with this side, in pixels
_GLANCE_SIZE = 32  # lighting and background are guessed at this side
_MISFIT_SIZE = 64  # a picture and a drawing of it are compared at this side
_FOREGROUND_DISTANCE = 40.0  # RGB distance from the background at which a pixel belongs to an object
_MIN_AREA = 90  # pixels of the smallest thing that counts as an object (a small star has about 400)
_TEMPLATE_SIDE = 48  # shapes are compared at this size
_OUTLINE_HOLE_SHARE = 0.12  # a shape with a larger hole is an outline
_TEXTURED_SHARE = 0.2  # an object with a larger share of dark stripes is textured

_COLOR_NAMES = tuple(OBJECT_COLORS)
_COLORS_K3 = np.array([OBJECT_COLORS[name] for name in _COLOR_NAMES], dtype=np.float32)
_SHADES_K3 = np.concatenate([_COLORS_K3, _COLORS_K3 * STRIPE_SHADE])  # light stripes, then dark ones


@dataclass(frozen=True)
class DetectedObject:
    """An object found in a picture.

    `box` is `(left, top, right, bottom)` in [0, 1]; `score` in [0, 1] is the overlap (IoU) of its silhouette with the
    nearest shape.
    """

    shape: str
    color: str
    box: tuple[float, float, float, float]
    score: float
    is_outline: bool
    is_textured: bool

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box in [0, 1]."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Perception:
    """What was seen: detected objects, largest first, and the look of the whole picture."""

    objects: tuple[DetectedObject, ...]
    background: str
    lighting: str

    @property
    def style(self) -> str:
        """The style that most of the objects have."""
        for style, votes in (
            ("outline", [o.is_outline for o in self.objects]),
            ("textured", [o.is_textured for o in self.objects]),
        ):
            if votes and sum(votes) * 2 > len(votes):
                return style
        return "flat"

    @property
    def scene(self) -> Scene:
        """The scene that would draw this picture, objects from left to right and top to bottom."""
        objects = sorted((_scene_object(o) for o in self.objects), key=lambda o: (o.x, o.y))
        return Scene(self.background, tuple(objects), self.style, self.lighting)


def perceive(image: Image.Image) -> Perception:
    """Read a picture of any size; alpha is ignored, and a picture that is not square is seen stretched to one."""
    rgb = image.convert("RGB")
    lighting, background = _guess_look(rgb)
    resample = Image.Resampling.BOX if rgb.width > WORKING_SIZE else Image.Resampling.BICUBIC
    pixels = np.asarray(rgb.resize((WORKING_SIZE, WORKING_SIZE), resample), dtype=np.float32)
    albedo = pixels / light_map(lighting, WORKING_SIZE)  # (size, size, 3)
    distance = _distance(albedo, np.array(BACKGROUND_COLORS[background], dtype=np.float32))
    labels, num_labels = ndimage.label(distance > _FOREGROUND_DISTANCE, structure=np.ones((3, 3)))
    found = [_detect(albedo, labels == label, background) for label in range(1, num_labels + 1)]
    objects = sorted((o for o in found if o), key=lambda o: -(o.box[2] - o.box[0]) * (o.box[3] - o.box[1]))
    return Perception(tuple(objects), background, lighting)


def measure_misfit(image: Image.Image, scene: Scene) -> float:
    """How far `image` is from a drawing of `scene`: mean absolute error of 255."""
    rgb = image.convert("RGB").resize((_MISFIT_SIZE, _MISFIT_SIZE), Image.Resampling.BOX)
    drawn = np.asarray(render(scene, _MISFIT_SIZE), dtype=np.float32)
    return float(np.abs(np.asarray(rgb, dtype=np.float32) - drawn).mean())


def _distance(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    return np.sqrt(((pixels - color) ** 2).sum(-1))


def _guess_look(rgb: Image.Image) -> tuple[str, str]:
    """The lighting and background that leave the least of the picture unexplained by the palette."""
    pixels = np.asarray(rgb.resize((_GLANCE_SIZE, _GLANCE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    best: tuple[float, str, str] = (np.inf, "", "")
    for lighting in LIGHTINGS:
        light = light_map(lighting, _GLANCE_SIZE)[:, :, None, :]  # (size, size, 1, 3)
        to_shades = np.abs(pixels[:, :, None] - _SHADES_K3 * light).sum(-1).min(-1)  # (size, size)
        for background, color in BACKGROUND_COLORS.items():
            to_background = np.abs(pixels - np.array(color, dtype=np.float32) * light[:, :, 0]).sum(-1)
            # The background must explain the rim; elsewhere the nearest of background and object colours counts.
            error = np.minimum(to_background, to_shades).mean() + np.median(_rim(to_background))
            best = min(best, (float(error), lighting, background))
    return best[1], best[2]


def _rim(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _detect(albedo: np.ndarray, blob: np.ndarray, background: str) -> DetectedObject | None:
    """What one connected blob of foreground is; `None` when it is too small to be an object."""
    if blob.sum() < _MIN_AREA:
        return None
    color, is_textured = _name_color(albedo, blob)
    silhouette = blob if is_textured else _sharpen(albedo, blob, color, background)
    filled = ndimage.binary_fill_holes(silhouette)
    if filled.sum() < _MIN_AREA:
        return None
    rows, columns = np.where(filled.any(1))[0], np.where(filled.any(0))[0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    normal = _normalize(filled[top:bottom, left:right])
    overlap = {shape: _iou(normal, _template(shape)) for shape in SHAPES}
    shape = max(overlap, key=overlap.__getitem__)
    return DetectedObject(
        shape=shape,
        color=color,
        box=(left / WORKING_SIZE, top / WORKING_SIZE, right / WORKING_SIZE, bottom / WORKING_SIZE),
        score=overlap[shape],
        is_outline=1 - silhouette.sum() / filled.sum() > _OUTLINE_HOLE_SHARE,
        is_textured=is_textured,
    )


def _name_color(albedo: np.ndarray, blob: np.ndarray) -> tuple[str, bool]:
    """The colour most of the blob's inner pixels have, and whether it is striped."""
    core = ndimage.binary_erosion(blob, iterations=2)
    inner = albedo[core if core.sum() >= _MIN_AREA // 4 else blob]  # (N, 3)
    nearest = np.sqrt(((inner[:, None] - _SHADES_K3) ** 2).sum(-1)).argmin(-1)  # (N,)
    votes = np.bincount(nearest, minlength=len(_SHADES_K3))
    light, dark = votes[: len(_COLOR_NAMES)], votes[len(_COLOR_NAMES) :]
    best = int((light + dark).argmax())
    return _COLOR_NAMES[best], bool(dark[best] > _TEXTURED_SHARE * len(inner) and light[best] > 0)


def _sharpen(albedo: np.ndarray, blob: np.ndarray, color: str, background: str) -> np.ndarray:
    """The pixels near `blob` that are more of the object's colour than of the background's."""
    ground = np.array(BACKGROUND_COLORS[background], dtype=np.float32)
    direction = np.array(OBJECT_COLORS[color], dtype=np.float32) - ground
    coverage = (albedo - ground) @ direction / (direction @ direction)  # (size, size): 0 background, 1 object
    return (coverage > 0.5) & ndimage.binary_dilation(blob, iterations=2)


def _normalize(mask: np.ndarray) -> np.ndarray:
    """`mask` centred in a square and scaled to the template's size, keeping its aspect ratio."""
    side = max(mask.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    square[top : top + mask.shape[0], left : left + mask.shape[1]] = mask * 255
    scaled = Image.fromarray(square).resize((_TEMPLATE_SIDE, _TEMPLATE_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127


@cache
def _template(shape: str) -> np.ndarray:
    mask = shape_mask(shape, 256, (0.5, 0.5), 0.48, "flat") > 0.5
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    return _normalize(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@cache
def _extent(shape: str) -> tuple[float, float, float, float]:
    """Where the shape's outline begins and ends inside its own box [-1, 1]: `(left, top, right, bottom)`."""
    xs, ys = zip(*OUTLINES[shape], strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _scene_object(found: DetectedObject) -> SceneObject:
    """The object of the scene whose silhouette fills the detected box."""
    left, top, right, bottom = found.box
    x0, y0, x1, y1 = _extent(found.shape)
    half = ((right - left) / (x1 - x0) + (bottom - top) / (y1 - y0)) / 2
    size = min(CELLS, key=lambda name: abs(CELLS[name] / GRID / 2 - half))
    x = (left + right) / 2 - half * (x0 + x1) / 2
    y = (top + bottom) / 2 - half * (y0 + y1) / 2
    return place_object(found.shape, found.color, size, x, y)
