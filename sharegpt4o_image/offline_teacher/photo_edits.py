# SPDX-License-Identifier: Apache-2.0
"""Edits of photographs that a pixel editor can truly do: task -> instruction -> pixels.

`parse_photo_edit(describe_photo_edit(e))` gives `e` back (a test holds it).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps, ImageStat

# The paper's editing tasks (appendix B.1.2) -> what the editor can do for them.
PHOTO_ABILITIES = {
    "inpainting/replacement": ("cover", "inset"),
    "element manipulation": ("inset",),
    "attribute/effect manipulation": ("warmer", "cooler", "brighter", "darker", "contrast"),
    "medium/technique styles": ("monochrome", "sepia", "posterize"),
    "outpainting/inpainting for extension": ("border",),
}

DISC_COLORS = {"red": (214, 40, 40), "yellow": (250, 214, 48), "blue": (36, 92, 214), "white": (250, 250, 250)}
BORDER_COLORS = {"white": (250, 250, 250), "black": (16, 16, 16), "cream": (246, 236, 208), "gray": (150, 150, 150)}
SPOTS = {
    "top left corner": (0.25, 0.25),
    "top right corner": (0.75, 0.25),
    "bottom left corner": (0.25, 0.75),
    "bottom right corner": (0.75, 0.75),
    "middle": (0.5, 0.5),
}

_FORMS = {
    "cover": ("cover the {spot} of the picture with a {color} circle", "hide the {spot} behind a {color} circle"),
    "inset": ("put the second picture as a small inset into the {spot} of the first",),
    "warmer": ("make the picture warmer", "give the picture warmer colors"),
    "cooler": ("make the picture cooler", "give the picture cooler colors"),
    "brighter": ("make the picture brighter",),
    "darker": ("make the picture darker",),
    "contrast": ("give the picture more contrast", "increase the contrast of the picture"),
    "monochrome": ("turn the picture into a black and white picture", "make the picture black and white"),
    "sepia": ("give the picture a sepia tone",),
    "posterize": ("turn the picture into a posterized print with a few flat colors",),
    "border": ("zoom out and frame the picture with a plain {color} border",),
}
_KINDS = {
    "inset": re.compile(r"\binset\b"),
    "cover": re.compile(r"\b(cover|hide)\b.*\bcircle\b"),
    "border": re.compile(r"\bborder\b"),
    "monochrome": re.compile(r"\bblack and white\b"),
    "sepia": re.compile(r"\bsepia\b"),
    "posterize": re.compile(r"\bposterized\b"),
    "warmer": re.compile(r"\bwarmer\b"),
    "cooler": re.compile(r"\bcooler\b"),
    "brighter": re.compile(r"\bbrighter\b"),
    "darker": re.compile(r"\bdarker\b"),
    "contrast": re.compile(r"\bcontrast\b"),
}
_SPOT = re.compile("|".join(SPOTS))

# Red, green and blue of the two looks, as factors.
_WARM, _COOL = (1.12, 1.0, 0.78), (0.82, 0.98, 1.14)
_SEPIA = ((44, 28, 16), (176, 140, 98), (255, 240, 212))  # what black, gray and white become
_BRIGHTER, _DARKER = 0.6, 1.7  # exponents of the tone curve
_CONTRAST = 1.6
_NUM_PRINT_COLORS = 6
_BORDER_SHARE = 0.12  # of the shorter side
_DISC_SHARE = 0.2  # radius of the disc, of the shorter side
_INSET_SHARE = 0.34  # of each side
_TONE_RANGE = (70, 185)  # a photo darker or brighter than this is not made even more so


@dataclass(frozen=True)
class PhotoEdit:
    """What is to be done to a photograph; what the kind does not use is `None`."""

    kind: str
    color: str | None = None
    spot: str | None = None


def choose_photo_edit(image: Image.Image, task: str, num_sources: int, dice: random.Random) -> PhotoEdit | None:
    """An edit of the paper's `task` that changes `image`; `None` when there is none."""
    kinds = [kind for kind in PHOTO_ABILITIES.get(task, ()) if _is_sensible(kind, image, num_sources)]
    if not kinds:
        return None
    kind = dice.choice(kinds)
    spot = dice.choice(list(SPOTS)) if kind in ("cover", "inset") else None
    if kind == "border":
        return PhotoEdit(kind, color=dice.choice(list(BORDER_COLORS)))
    return PhotoEdit(kind, dice.choice(list(DISC_COLORS)) if kind == "cover" else None, spot)


def _is_sensible(kind: str, image: Image.Image, num_sources: int) -> bool:
    """Whether an edit of that kind can be seen in `image`."""
    if num_sources > 1 or kind == "inset":  # whoever sends several pictures wants them all used
        return num_sources == 2 and kind == "inset"
    tone = ImageStat.Stat(image.convert("L")).mean[0]
    if kind == "monochrome":
        return ImageStat.Stat(image.convert("HSV")).mean[1] > 20  # saturation: it is not gray already
    return not (kind == "brighter" and tone > _TONE_RANGE[1]) and not (kind == "darker" and tone < _TONE_RANGE[0])


def describe_photo_edit(edit: PhotoEdit, dice: random.Random) -> str:
    """Write `edit` as an instruction; `dice` choose among equivalent sentence forms."""
    return dice.choice(_FORMS[edit.kind]).format(color=edit.color, spot=edit.spot)


def parse_photo_edit(text: str) -> PhotoEdit | None:
    """What an instruction asks for; `None` when the editor cannot do it."""
    text = " ".join(text.lower().split())
    kind = next((kind for kind, form in _KINDS.items() if form.search(text)), None)
    if kind is None:
        return None
    spot = _SPOT.search(text)
    return PhotoEdit(
        kind,
        _find_color(text, {"border": BORDER_COLORS, "cover": DISC_COLORS}.get(kind, {})),
        (spot.group() if spot else "middle") if kind in ("cover", "inset") else None,
    )


def _find_color(text: str, colors: Mapping[str, object]) -> str | None:
    """The colour that the text names, or the first of `colors`."""
    return next((name for name in colors if re.search(rf"\b{name}\b", text)), next(iter(colors), None))


# --------------------------------------------------------------------------- pixels


def apply_photo_edit(images: Sequence[Image.Image], edit: PhotoEdit) -> Image.Image:
    """The first of `images` after the edit, at its size."""
    photo = images[0].convert("RGB")
    if edit.kind == "cover":
        return _covered(photo, edit)
    if edit.kind == "inset":
        return _with_inset(photo, images[-1].convert("RGB"), edit)
    if edit.kind == "border":
        return _framed(photo, edit)
    if edit.kind in ("monochrome", "sepia", "posterize"):
        return _restyled(photo, edit.kind)
    return _toned(photo, edit.kind)


def _toned(photo: Image.Image, kind: str) -> Image.Image:
    if kind == "contrast":
        return ImageEnhance.Contrast(photo).enhance(_CONTRAST)
    if kind in ("warmer", "cooler"):
        factors = _WARM if kind == "warmer" else _COOL
        return photo.point([min(255, round(level * factor)) for factor in factors for level in range(256)])
    exponent = _BRIGHTER if kind == "brighter" else _DARKER
    return photo.point([round(255 * (level / 255) ** exponent) for level in range(256)] * 3)


def _restyled(photo: Image.Image, kind: str) -> Image.Image:
    gray = ImageOps.grayscale(photo)
    if kind == "monochrome":
        return gray.convert("RGB")
    if kind == "sepia":
        black, mid, white = _SEPIA
        return ImageOps.colorize(gray, black, white, mid)
    soft = photo.filter(ImageFilter.BoxBlur(max(1, min(photo.size) // 120)))
    return ImageOps.autocontrast(soft.quantize(_NUM_PRINT_COLORS).convert("RGB"))


def _framed(photo: Image.Image, edit: PhotoEdit) -> Image.Image:
    border = max(1, round(min(photo.size) * _BORDER_SHARE))
    canvas = Image.new("RGB", photo.size, BORDER_COLORS[edit.color or "white"])
    inner = (max(1, photo.width - 2 * border), max(1, photo.height - 2 * border))
    canvas.paste(photo.resize(inner, Image.Resampling.LANCZOS), (border, border))
    return canvas


def _covered(photo: Image.Image, edit: PhotoEdit) -> Image.Image:
    x, y = SPOTS[edit.spot or "middle"]
    radius = max(1, round(min(photo.size) * _DISC_SHARE))
    scale = 4  # drawn large and shrunk, so that the rim is smooth
    disc = Image.new("L", (2 * radius * scale,) * 2, 0)
    ImageDraw.Draw(disc).circle((radius * scale,) * 2, radius * scale, 255)
    covered = photo.copy()
    corner = (round(x * photo.width) - radius, round(y * photo.height) - radius)
    covered.paste(DISC_COLORS[edit.color or "red"], corner, disc.reduce(scale))
    return covered


def _with_inset(photo: Image.Image, other: Image.Image, edit: PhotoEdit) -> Image.Image:
    """`photo` with a small copy of `other` in a white rim."""
    x, y = SPOTS[edit.spot or "middle"]
    width, height = (max(2, round(side * _INSET_SHARE)) for side in photo.size)
    rim = max(1, min(photo.size) // 100)
    inset = ImageOps.expand(ImageOps.fit(other, (width, height), Image.Resampling.LANCZOS), rim, (250, 250, 250))
    framed = photo.copy()
    framed.paste(inset, (round(x * photo.width - inset.width / 2), round(y * photo.height - inset.height / 2)))
    return framed
