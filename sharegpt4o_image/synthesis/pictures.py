# SPDX-License-Identifier: Apache-2.0
"""Bytes -> picture, safely; and the hash that pictures are published with."""

import io

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000  # eight times the largest picture of the API; a few bytes can claim billions (our choice)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # what the images API sends; Pillow's other readers stay shut

_HASH_SIDE = 8


class UnreadablePicture(Exception):
    """Bytes that are no whole picture, or one that is too large to be opened safely."""


def open_picture(data: bytes) -> Image.Image:
    """Decode every pixel of a picture; raises [`UnreadablePicture`]."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadablePicture(f"{image.width}x{image.height} are more than {MAX_PIXELS:,} pixels")
        image.load()
        return image
    except UnreadablePicture:
        raise
    except Exception as error:  # Pillow's decoders let anything through on broken data: struct.error, KeyError, ...
        raise UnreadablePicture(str(error)) from error


def difference_hash(image: Image.Image) -> str:
    """64-bit dHash in hexadecimal: bit k says whether the k-th of 8 x 8 patches is darker than its right neighbour."""
    gray = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    patches = np.asarray(gray)  # (8, 9)
    return np.packbits(patches[:, :-1] < patches[:, 1:]).tobytes().hex()
