# SPDX-License-Identifier: Apache-2.0
"""Scene -> pixels, with Pillow and numpy; the same scene and size always give the same bytes."""

import math

import numpy as np
from PIL import Image, ImageDraw

from sharegpt4o_image.offline_teacher.scene import BACKGROUND_COLORS, OBJECT_COLORS, Scene, SceneObject

_SUPERSAMPLING = 4
_OUTLINE_INNER_SCALE = 0.58  # an outlined shape is the shape minus itself at this scale
STRIPE_SHADE = 0.62  # brightness of the dark stripes of the textured style
_STRIPES_PER_SIDE = 16  # diagonal stripes across the canvas


def _regular_points(num_points: int, radii: tuple[float, ...], start_degrees: float) -> list[tuple[float, float]]:
    angles = (math.radians(start_degrees + 360 * i / num_points) for i in range(num_points))
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart_points() -> list[tuple[float, float]]:
    """The parametric heart curve 16 sin^3 t, scaled to the box."""
    points = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 14.5))
    return points


_ARM = 0.36  # half the width of a cross's arm

# Outlines in the object's own coordinates: the box is [-1, 1] x [-1, 1], y downwards.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _regular_points(72, (1.0,), 0),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": _regular_points(10, (1.0, 0.45), -90),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "heart": _heart_points(),
}  # fmt: skip


def shape_mask(shape: str, size: int, center: tuple[float, float], half_side: float, style: str) -> np.ndarray:
    """Coverage of every pixel by one shape.

    Args:
        shape: a key of `OUTLINES`.
        size: side of the square canvas in pixels.
        center: centre of the shape's box in [0, 1].
        half_side: half the side of the box as a share of the canvas side.
        style: `"outline"` leaves only the rim.

    Returns:
        float32 array of shape `(size, size)` in [0, 1].
    """
    side = size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    scales = ((1.0, 255), (_OUTLINE_INNER_SCALE, 0)) if style == "outline" else ((1.0, 255),)
    for scale, value in scales:
        reach = half_side * scale * side
        points = [(center[0] * side + x * reach, center[1] * side + y * reach) for x, y in OUTLINES[shape]]
        draw.polygon(points, fill=value)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def light_map(lighting: str, size: int) -> np.ndarray:
    """The factor by which the lighting scales every pixel: float32 `(size, size, 3)`."""
    ones = np.ones((size, size, 3), dtype=np.float32)
    if lighting == "dim light":
        return ones * np.float32(0.5)
    if lighting == "warm light":
        return ones * np.array([1.0, 0.86, 0.62], dtype=np.float32)
    if lighting == "light from the left":
        ramp = np.linspace(1.0, 0.55, size, dtype=np.float32)
        return ones * ramp[None, :, None]
    return ones


def _stripes(size: int) -> np.ndarray:
    """Diagonal stripes, float32 `(size, size)`: 1 on the light ones, `STRIPE_SHADE` on the dark ones."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    dark = np.floor((axis[:, None] + axis[None, :]) * _STRIPES_PER_SIDE / 2) % 2 == 1
    return np.where(dark, np.float32(STRIPE_SHADE), np.float32(1.0))


def _paint(pixels: np.ndarray, item: SceneObject, style: str) -> np.ndarray:
    size = pixels.shape[0]
    coverage = shape_mask(item.shape, size, (item.x, item.y), item.half_side, style)[..., None]
    color = np.array(OBJECT_COLORS[item.color], dtype=np.float32)
    shade = _stripes(size)[..., None] if style == "textured" else np.float32(1.0)
    return pixels * (1 - coverage) + color * shade * coverage  # (size, size, 3)


def render(scene: Scene, size: int) -> Image.Image:
    """Draw `scene` as an RGB picture of `size` x `size` pixels."""
    pixels = np.empty((size, size, 3), dtype=np.float32)
    pixels[:] = BACKGROUND_COLORS[scene.background]
    for item in scene.objects:
        pixels = _paint(pixels, item, scene.style)
    pixels *= light_map(scene.lighting, size)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
