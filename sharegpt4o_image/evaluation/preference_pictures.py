# SPDX-License-Identifier: Apache-2.0
"""A picture file -> pixels that tell nothing of where they come from: upright RGB of one height, no metadata."""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps

# What no layout of two pictures side by side can show: our choice.
MAX_ASPECT_RATIO = 8
# A check shows the same picture blurred to a fifteenth of its height, under noise of a standard deviation of 90 of 255
# levels: our choice, meant to be seen at a glance.
_CHECK_BLUR = 15
_CHECK_NOISE = 90


def read_upright(path: Path) -> Image.Image:
    """RGB, turned as its EXIF data say, over white where it is transparent, in sRGB.

    Raises:
        ValueError: with the reason, if there is no picture that could be shown.
    """
    try:
        with Image.open(path) as opened:
            num_frames = getattr(opened, "n_frames", 1)
            if num_frames > 1 and opened.format != "MPO":  # a camera's JPEG with its preview
                raise ValueError(f"has {num_frames} frames")
            opened.load()
            profile = opened.info.get("icc_profile")
            picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is damaged or no picture"
        raise ValueError(reason) from error
    if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
        raise ValueError(f"has {picture.width} x {picture.height} pixels, too long to be shown beside another")
    return _in_srgb(picture, profile)


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The profile is taken off with the metadata, so what it says is applied first; one that is damaged is ignored."""
    drawn = picture if picture.mode == "CMYK" else _rgb(picture)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(drawn, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return drawn.convert("RGB")
        drawn = converted or drawn
    return drawn.convert("RGB")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: 65535 is white
        return picture.convert("I").point(lambda level: level / 257).convert("L").convert("RGB")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("RGB")


def bare_picture(picture: Image.Image, height: int) -> Image.Image:
    """The pixels alone, scaled to a height."""
    width = max(1, round(picture.width * height / picture.height))
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
    return Image.frombytes("RGB", scaled.size, scaled.tobytes())  # what Pillow would write into a PNG is left behind


def degraded(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The same picture, so bad that who looks at it prefers the other."""
    blurred = picture.filter(ImageFilter.GaussianBlur(picture.height / _CHECK_BLUR))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, _CHECK_NOISE, (*blurred.size[::-1], 3))
    return Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))
