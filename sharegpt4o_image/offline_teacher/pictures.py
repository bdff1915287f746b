# SPDX-License-Identifier: Apache-2.0
"""Text and pictures -> pictures: the painter behind the images API, which knows nothing of HTTP.

What it draws follows from the text and the pixels alone, so the same request gives the same picture.
"""

import hashlib
import io
import random
import warnings
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from sharegpt4o_image.offline_teacher.editing import EditRequest, apply_edit, is_free, parse_edit
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.layout import MAX_OBJECTS, compose
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.protocol import ApiError, dice_for
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.scene import PLACES, ObjectRequest, Scene, SceneRequest

MIN_SIDE, MAX_SIDE = 64, 1024
DEFAULT_SIDE = 256
MAX_SOURCE_SIDE = 4096
SOURCE_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class SourcePicture:
    """A picture that came with a request; two are equal when the bytes that were sent are."""

    image: Image.Image = field(compare=False)
    digest: str


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


@lru_cache(maxsize=16)
def see(picture: SourcePicture) -> Scene:
    """The scene in a picture; one that is sent again, first to write about and then to edit, is looked at once."""
    return perceive(picture.image).scene


def paint(prompt: str, index: int, side: int) -> Image.Image:
    """The `index`-th picture for `prompt`; what the prompt leaves open is chosen by a hash of both."""
    return render(compose(parse_request(prompt), dice_for("paint", prompt, index)), side)


def repaint(sources: list[SourcePicture], instruction: str, mask: Image.Image | None, index: int) -> Image.Image:
    """The `index`-th edit of the first source, at its size.

    The objects of further sources are added to the first. An instruction that names nothing the teacher can do leaves
    the scene as it is seen. Where `mask` is opaque, the first source's pixels stay.
    """
    dice = dice_for("repaint", instruction, *(source.digest for source in sources), index)
    scene = see(sources[0])
    for source in sources[1:]:
        for item in see(source).objects:
            scene = _with_object(scene, ObjectRequest(item.shape, item.color), dice)
    edit = parse_edit(instruction)
    if edit is not None:
        scene = apply_edit(scene, edit, dice)
    original = sources[0].image.convert("RGB")
    painted = _render_at(scene, original.size)
    if mask is None:
        return painted
    keep = mask.getchannel("A").point(lambda alpha: 255 if alpha else 0)
    return Image.composite(original, painted, keep)


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
