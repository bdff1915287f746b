# SPDX-License-Identifier: Apache-2.0
"""A picture, an instance mask and its box -> the crop that GenEval's colour classifier sees."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharegpt4o_image.errors import UserError

BACKGROUND = "#999999"  # djghosh13/geneval@af4902f, evaluation/evaluate_images.py


def crop_of(picture: Image.Image, mask: NDArray[np.bool_], box: Sequence[float]) -> Image.Image:
    """Grey outside the mask, then cut to the box, its corners rounded half to even.

    Args:
        picture: with its EXIF orientation applied.
        mask: (H, W), of the picture's size.
        box: `(x1, y1, x2, y2)` in pixels.
    """
    if mask.shape != (picture.height, picture.width):
        height, width = mask.shape
        raise UserError(
            f"The mask has {width} x {height} pixels, the picture {picture.width} x {picture.height}; apply the "
            "picture's EXIF orientation before the detector runs, and resize masks to its size."
        )
    grey = Image.new("RGB", picture.size, BACKGROUND)
    shown = Image.composite(picture.convert("RGB"), grey, Image.fromarray(mask.astype(np.bool_)))
    left, upper, right, lower = (round(float(edge)) for edge in box)
    return shown.crop((left, upper, right, lower))
