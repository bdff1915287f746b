# SPDX-License-Identifier: Apache-2.0
"""Photographs, of which the teacher sees colours and light alone: pixels -> sentence, and sentence -> soft pixels.

    A photo in mostly brown and dark gray tones, brighter at the top, with orange in the lower left.

The names, their colours and the numbers are our own choice.
"""

import random
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

COLORS = {
    "black": (12, 12, 14),
    "dark gray": (64, 64, 66),
    "gray": (124, 124, 126),
    "light gray": (190, 190, 192),
    "white": (244, 244, 244),
    "dark brown": (58, 38, 26),
    "brown": (122, 82, 50),
    "reddish brown": (150, 66, 38),
    "tan": (186, 148, 110),
    "beige": (226, 208, 180),
    "dark red": (112, 22, 28),
    "red": (196, 38, 38),
    "orange": (230, 128, 40),
    "yellow": (238, 206, 64),
    "olive": (112, 112, 52),
    "dark green": (34, 66, 36),
    "green": (76, 146, 62),
    "light green": (164, 204, 134),
    "teal": (40, 128, 128),
    "light blue": (152, 192, 228),
    "blue": (52, 100, 190),
    "dark blue": (24, 38, 92),
    "purple": (114, 66, 144),
    "pink": (228, 152, 168),
}

# Column and row of each region of a 3 x 3 grid.
REGIONS = {
    "in the upper left": (0, 0),
    "at the top": (1, 0),
    "in the upper right": (2, 0),
    "on the left": (0, 1),
    "in the middle": (1, 1),
    "on the right": (2, 1),
    "in the lower left": (0, 2),
    "at the bottom": (1, 2),
    "in the lower right": (2, 2),
}
_LIGHTS = ("at the top", "at the bottom", "on the left", "on the right", "in the middle")

_SIDE = 48  # photographs are looked at with this side, which three divides
_LIGHT_DIFFERENCE = 22.0  # brightness (of 255) by which a part must exceed the rest to be named
_SECOND_SHARE = 0.12  # the second colour is named from this share of the picture on
_LIGHT_REACH = 80.0  # brightness (of 255) from the dark to the bright side of a painted field
_ACCENT_SHARE = 0.15  # an accent covers as much of its region
_ACCENT_EXCESS = 0.10  # and more of it than of the whole picture, by so much

_NAMES = tuple(COLORS)
_ANY_COLOR = "|".join(sorted(COLORS, key=len, reverse=True))
_SENTENCE = re.compile(
    rf"\bphoto in mostly (?P<first>{_ANY_COLOR})(?: and (?P<second>{_ANY_COLOR}))? tones"
    rf"(?:, brighter (?P<light>{'|'.join(_LIGHTS)}))?"
    rf"(?:, with (?P<accent>{_ANY_COLOR}) (?P<region>{'|'.join(REGIONS)}))?"
)


@dataclass(frozen=True)
class PhotoLook:
    """What is said of a photograph: one or two main colours, where it is brighter, and a colour that stands out."""

    colors: tuple[str, ...]
    light: str | None = None
    accent: str | None = None
    region: str | None = None


# --------------------------------------------------------------------------- pixels -> sentence


def look_at(image: Image.Image) -> PhotoLook:
    """The colours and the light of a photograph."""
    pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    names = _nearest_names(pixels)  # (side, side)
    shares = np.bincount(names.ravel(), minlength=len(_NAMES)) / names.size
    order = np.argsort(-shares, kind="stable")
    main = order[:2] if shares[order[1]] >= _SECOND_SHARE else order[:1]
    accent = _find_accent(names, shares, main)
    colors = tuple(_NAMES[index] for index in main)
    return PhotoLook(colors, _find_light(pixels.mean(-1)), *(accent or (None, None)))


def describe_photo(image: Image.Image) -> str:
    """One sentence on a photograph, from which it can be painted again."""
    look = look_at(image)
    light = f", brighter {look.light}" if look.light else ""
    accent = f", with {look.accent} {look.region}" if look.accent else ""
    return f"A photo in mostly {' and '.join(look.colors)} tones{light}{accent}."


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..255 -> CIELAB (D65), where distances are about as large as they look."""
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _nearest_names(pixels: np.ndarray) -> np.ndarray:
    """Index of the colour name of every pixel."""
    known = _to_lab(np.array([COLORS[name] for name in _NAMES], dtype=np.float32))  # (K, 3)
    difference = _to_lab(pixels)[:, :, None] - known  # (side, side, K, 3)
    difference[..., 0] *= 0.7  # a shadow does not change what a colour is called as much as a hue does
    return np.asarray((difference**2).sum(-1).argmin(-1))


def _region_of(values: np.ndarray, region: str) -> np.ndarray:
    side = values.shape[0] // 3
    column, row = REGIONS[region]
    return values[row * side : (row + 1) * side, column * side : (column + 1) * side]


def _find_light(gray: np.ndarray) -> str | None:
    """The part that is brighter than the rest."""
    half = len(gray) // 2
    down, right = gray[:half].mean() - gray[half:].mean(), gray[:, :half].mean() - gray[:, half:].mean()
    middle = _region_of(gray, "in the middle").mean() - gray.mean()
    excess = dict(zip(_LIGHTS, (down, -down, right, -right, middle), strict=True))
    best = max(excess, key=excess.__getitem__)
    return best if excess[best] >= _LIGHT_DIFFERENCE else None


def _find_accent(names: np.ndarray, shares: np.ndarray, main: np.ndarray) -> tuple[str, str] | None:
    """The colour beside the main ones that is most at home in one region, and that region."""
    best: tuple[float, str, str] = (_ACCENT_EXCESS, "", "")
    for region in REGIONS:
        here = np.bincount(_region_of(names, region).ravel(), minlength=len(_NAMES)) * 9 / names.size
        for index in np.flatnonzero(here >= _ACCENT_SHARE):
            if index not in main:
                excess = float(here[index] - shares[index]) * (1 + _vividness(_NAMES[index]))
                best = max(best, (excess, _NAMES[index], region))
    return (best[1], best[2]) if best[1] else None


def _vividness(name: str) -> float:
    """0 for grays, 1 for the purest colours: what strikes the eye is named first."""
    return (max(COLORS[name]) - min(COLORS[name])) / 255


# --------------------------------------------------------------------------- sentence -> pixels


def parse_photo(text: str) -> PhotoLook | None:
    """What a sentence of `describe_photo` says; `None` for any other text."""
    match = _SENTENCE.search(text)
    if match is None:
        return None
    colors = tuple(name for name in (match["first"], match["second"]) if name)
    return PhotoLook(colors, match["light"], match["accent"], match["region"])


def paint_photo(look: PhotoLook, side: int, dice: random.Random) -> Image.Image:
    """A soft field of colour that fits a sentence."""
    first, second = (np.array(COLORS[name], dtype=np.float32) for name in (look.colors * 2)[:2])
    light = _slope(side, look.light) if look.light else np.zeros((side, side), dtype=np.float32)
    contrast = float(second.mean() - first.mean())
    # The brighter colour gathers where the light is, and what it lacks in brightness is added.
    cloud = _smooth_noise(side, 4, dice) + 1.5 * light * np.sign(contrast)
    share = 1 / (1 + np.exp(40 * (cloud - np.quantile(cloud, 0.6))))[..., None]  # (side, side, 1): 1 is all `first`
    pixels = second + (first - second) * share
    pixels += light[..., None] * max(0.0, _LIGHT_REACH - abs(contrast))
    if look.accent and look.region:
        pixels += (np.array(COLORS[look.accent], dtype=np.float32) - pixels) * _spot(side, look.region)[..., None]
    pixels += (_smooth_noise(side, 24, dice)[..., None] - 0.5) * 14  # a little grain, so that it is no gradient
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _smooth_noise(side: int, cells: int, dice: random.Random) -> np.ndarray:
    """Soft random values about [0, 1], float32 `(side, side)`."""
    grid = np.array([dice.random() for _ in range(cells * cells)], dtype=np.float32).reshape(cells, cells)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of every pixel in [0, 1]."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    return axis[None, :], axis[:, None]


def _spot(side: int, region: str) -> np.ndarray:
    """Coverage of a soft spot that fills most of a region."""
    x, y = _axes(side)
    column, row = REGIONS[region]
    distance = np.sqrt((x - (column + 0.5) / 3) ** 2 + (y - (row + 0.5) / 3) ** 2)
    return np.asarray(1 / (1 + np.exp((distance - 0.15) * 28)))


def _slope(side: int, light: str) -> np.ndarray:
    """How bright the light makes every pixel: about 0 on average, and 1 from the darkest to the brightest."""
    x, y = _axes(side)
    if light == "in the middle":
        return np.asarray(np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.06) - 0.2)
    column, row = REGIONS[light]
    return np.asarray((column - 1) * (x - 0.5) + (row - 1) * (y - 0.5)) * np.ones((side, side), dtype=np.float32)
