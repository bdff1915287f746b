# SPDX-License-Identifier: Apache-2.0
"""Text and pictures -> pictures: the painter behind the images API, which knows nothing of HTTP.

What it draws follows from the text and the pixels alone, so the same request gives the same picture.
"""

import base64
import hashlib
import io
import random
import re
import warnings
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from sharegpt4o_image.offline_teacher.borrowing import borrows, name_borrowed
from sharegpt4o_image.offline_teacher.documents import find_page
from sharegpt4o_image.offline_teacher.editing import EditRequest, apply_edit, is_free, parse_edit
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.layout import MAX_OBJECTS, compose
from sharegpt4o_image.offline_teacher.pages import draw_page
from sharegpt4o_image.offline_teacher.perception import measure_misfit, perceive
from sharegpt4o_image.offline_teacher.photo_edits import apply_photo_edit, parse_photo_edit
from sharegpt4o_image.offline_teacher.photos import paint_photo, parse_photo
from sharegpt4o_image.offline_teacher.protocol import ApiError, dice_for
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.scene import PLACES, ObjectRequest, Scene, SceneRequest

MIN_SIDE, MAX_SIDE = 64, 1024
DEFAULT_SIDE = 256
MAX_SOURCE_SIDE = 4096
SOURCE_FORMATS = ("PNG", "JPEG", "WEBP")

_DATA_URL = re.compile(r"data:image/[a-z]+;base64,(?P<data>.*)", re.DOTALL)


@dataclass(frozen=True)
class SourcePicture:
    """A picture that came with a request; two are equal when the bytes that were sent are."""

    image: Image.Image = field(compare=False)
    digest: str


def read_data_url(url: str, param: str) -> bytes:
    """The bytes in a data URL; `param` names its field in the error.

    Raises [`ApiError`] 400 for an address: nothing is fetched.
    """
    match = _DATA_URL.fullmatch(url)
    if match is None:
        message = f"Invalid '{param}': the offline teacher fetches nothing; send a base64 data URL."
        raise ApiError(message, param=param, code="invalid_image_url")
    try:
        return base64.b64decode(match["data"], validate=True)
    except ValueError as error:  # binascii.Error, or letters beyond ASCII
        raise ApiError(f"Invalid base64 in '{param}'.", param=param, code="invalid_base64") from error


def open_picture(data: bytes, param: str) -> SourcePicture:
    """Decode a picture of the request; `param` names its field in the error.

    Raises [`ApiError`] 400 for anything that is not a whole PNG, JPEG or WebP of a reasonable size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=SOURCE_FORMATS)
            if max(image.size) > MAX_SOURCE_SIDE:
                message = (
                    f"Invalid image: {image.width}x{image.height} is larger than {MAX_SOURCE_SIDE} pixels a side."
                )
                raise ApiError(message, param=param, code="image_too_large")
            image.load()
    except ApiError:
        raise
    except Exception as error:  # Pillow's decoders let anything through on broken data: struct.error, KeyError, ...
        message = "Invalid image file or mode: send a complete PNG, JPEG or WebP file."
        raise ApiError(message, param=param, code="invalid_image_file") from error
    return SourcePicture(image, hashlib.sha256(data).hexdigest())


# A picture farther than this from a drawing of the scene that is seen in it is none of the teacher's: drawings stay
# below 4, as JPEG and with noise too, and all but few photographs are above 8 (mean absolute error of 255, measured).
_MAX_MISFIT = 6.0


@lru_cache(maxsize=16)
def _look(picture: SourcePicture) -> tuple[Scene, bool]:
    """What is seen in a picture; one that is sent again, first to write about and then to edit, is looked at once."""
    scene = perceive(picture.image).scene
    return scene, measure_misfit(picture.image, scene) > _MAX_MISFIT


def see(picture: SourcePicture) -> Scene:
    """The scene in a picture."""
    return _look(picture)[0]


def is_photo(picture: SourcePicture) -> bool:
    """Whether a picture is something else than a scene: a photograph, or a page."""
    return _look(picture)[1]


def paint(prompt: str, index: int, side: int) -> Image.Image:
    """The `index`-th picture for `prompt`: a page, a field of colour for the sentence on a photograph, or a scene.

    What the prompt leaves open is chosen by a hash of both.
    """
    dice = dice_for("paint", prompt, index)
    page = find_page(prompt, dice)
    if page is not None:
        return draw_page(page, side)
    look = parse_photo(prompt)
    if look is not None:
        return paint_photo(look, side, dice)
    return render(compose(parse_request(prompt), dice), side)


def repaint(sources: list[SourcePicture], instruction: str, mask: Image.Image | None, index: int) -> Image.Image:
    """The `index`-th edit of the first source, at its size. Where `mask` is opaque, the first source's pixels stay.

    An instruction that names nothing the teacher can do leaves the picture as it is seen.
    """
    dice = dice_for("repaint", instruction, *(source.digest for source in sources), index)
    original = sources[0].image.convert("RGB")
    if any(map(is_photo, sources)):
        photo_edit = parse_photo_edit(instruction)
        images = [source.image for source in sources]
        painted = apply_photo_edit(images, photo_edit) if photo_edit else original
    else:
        painted = _render_at(edited_scene(sources, instruction, dice), original.size)
    if mask is None:
        return painted
    keep = mask.getchannel("A").point(lambda alpha: 255 if alpha else 0)
    return Image.composite(original, painted, keep)


def edited_scene(sources: list[SourcePicture], instruction: str, dice: random.Random) -> Scene:
    """The scene of the first source after the edit.

    Of further sources the instruction may name what to take; else all their objects are added to the first.
    """
    scene, *others = map(see, sources)
    if others and borrows(instruction):
        edits = name_borrowed(instruction, others)
    else:
        for item in (item for other in others for item in other.objects):
            scene = _with_object(scene, ObjectRequest(item.shape, item.color), dice)
        edit = parse_edit(instruction)
        edits = [edit] if edit else []
    for edit in edits:
        scene = apply_edit(scene, edit, dice)
    return scene


def _with_object(scene: Scene, item: ObjectRequest, dice: random.Random) -> Scene:
    """`scene` with one more object at a free place; where there is none, all objects are laid out anew."""
    if any(is_free(scene, place) for place in PLACES):
        return apply_edit(scene, EditRequest("add", replacement=item), dice)
    items = [ObjectRequest(old.shape, old.color, old.size) for old in scene.objects]
    request = SceneRequest((*items, item)[-MAX_OBJECTS:], None, scene.background, scene.style, scene.lighting)
    return compose(request, dice)


def _render_at(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """`scene` drawn as a square and brought to `size` where that is none, or too large to draw."""
    side = min(max(*size, MIN_SIDE), MAX_SIDE)
    painted = render(scene, side)
    return painted if painted.size == size else painted.resize(size, Image.Resampling.LANCZOS)


def resize(image: Image.Image, side: int) -> Image.Image:
    """`image` as a square of `side` pixels."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


def encode(image: Image.Image, output_format: str, compression: int) -> bytes:
    """The file that goes into the answer."""
    buffer = io.BytesIO()
    if output_format == "png":
        image.save(buffer, "PNG", compress_level=6)
    else:
        image.save(buffer, output_format.upper(), quality=compression)
    return buffer.getvalue()
