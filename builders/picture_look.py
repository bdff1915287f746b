# SPDX-License-Identifier: Apache-2.0
"""The bytes of a picture -> its size and its published hash, or a phrase that says why they are no whole picture."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from sharegpt4o_image.synthesis.pictures import FORMATS, MAX_PIXELS, difference_hash, open_picture

# Pictures above are decoded one after the other, whatever the number of threads, and all in one thread: the allocator
# keeps what a thread has used. Our choice.
LARGE_PIXELS = 8_000_000
_LARGE = ThreadPoolExecutor(1)
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and the values that swap width and height
Result = TypeVar("Result")
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
    return _decode(data, lambda picture: Look(_upright_size(picture), difference_hash(picture)))


def measure(data: bytes) -> list[int]:
    """The size alone, as in [`Look`]; every pixel is decoded, too."""
    return _decode(data, _upright_size)


def alone_if_large(num_pixels: int, work: Callable[[], Result]) -> Result:
    """Do something with a picture: with a large one, while no other thread does."""
    return _LARGE.submit(work).result() if num_pixels > LARGE_PIXELS else work()


def _decode(data: bytes, read: Callable[[Image.Image], Result]) -> Result:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            num_pixels = picture.width * picture.height
            if num_pixels > MAX_PIXELS:
                raise NoPicture(f"is unreadable: {picture.width}x{picture.height} are more than {MAX_PIXELS:,} pixels")
            if num_pixels <= LARGE_PIXELS:
                picture.load()
                return read(picture)
        return alone_if_large(num_pixels, lambda: read(open_picture(data)))
    except NoPicture:
        raise
    except UnidentifiedImageError as error:
        raise NoPicture("is unreadable: not a picture") from error
    except Exception as error:  # Pillow's readers of pixels and EXIF let anything through on broken data
        raise NoPicture(f"is unreadable: {_phrase(error)}") from error


def _upright_size(picture: Image.Image) -> list[int]:
    is_turned = picture.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    return [*picture.size][:: -1 if is_turned else 1]


def _phrase(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:_MAX_PHRASE]
