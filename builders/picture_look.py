# SPDX-License-Identifier: Apache-2.0
"""The bytes of a picture -> its size and its published hash, or a phrase that says why they are no whole picture."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from sharegpt4o_image.synthesis.pictures import FORMATS, MAX_PIXELS, UnreadablePicture, difference_hash, open_picture

# Pictures above are decoded one after the other, whatever the number of threads, and all in one thread: the allocator
# keeps what a thread has used. Our choice.
LARGE_PIXELS = 8_000_000
_LARGE = ThreadPoolExecutor(1)
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and the values that swap width and height
_MAX_PHRASE = 120  # characters of what Pillow says


class NoPicture(Exception):
    """Why bytes are no whole picture, as a phrase: `is unreadable: not a picture`."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like.

    Args:
        size (`list`): width and height in pixels, upright, as `datasets` shows it.
        phash (`str`): the hash that it is published with.
    """

    size: list[int]
    phash: str


def look_at(data: bytes) -> Look:
    """Decode every pixel of a picture, which is what finds a cut-off file; raises [`NoPicture`]."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
        if width * height > MAX_PIXELS:
            raise NoPicture(f"is unreadable: {width}x{height} are more than {MAX_PIXELS:,} pixels")
        return _LARGE.submit(_look, data).result() if width * height > LARGE_PIXELS else _look(data)
    except NoPicture:
        raise
    except UnidentifiedImageError as error:
        raise NoPicture("is unreadable: not a picture") from error
    except Exception as error:  # Pillow's readers of pixels and EXIF let anything through on broken data
        raise NoPicture(f"is unreadable: {_phrase(error)}") from error


def _look(data: bytes) -> Look:
    picture = open_picture(data)
    is_turned = picture.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    return Look([*picture.size][:: -1 if is_turned else 1], difference_hash(picture))


def _phrase(error: Exception) -> str:
    text = " ".join(str(error.__cause__ if isinstance(error, UnreadablePicture) else error).split())
    return (text or type(error).__name__)[:_MAX_PHRASE]
