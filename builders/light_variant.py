# SPDX-License-Identifier: Apache-2.0
"""Record -> the same record with smaller pictures, for previews and quick experiments.

Sizes and sha256 of the new row are those of the new pictures; `output_phash` stays that of the original, and `id`
names the row in the full set.
"""

import hashlib
import io
from pathlib import PurePath

from PIL import Image, ImageOps

from sharegpt4o_image.builders.picture_look import alone_if_large
from sharegpt4o_image.builders.row_source import ImageEncoding, RowFault
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record

FORMATS = ("png", "jpeg", "webp")
# About how many bytes a pixel takes, for planning shards; our choice, on the safe side.
BYTES_PER_PIXEL = {"png": 3.0, "jpeg": 0.5, "webp": 0.5}
DEFAULT_QUALITY = 90  # of jpeg and webp; our choice
_GROWTH = 8  # of a lossy picture that becomes a PNG, at most about this
_WEBP_EFFORT = 4  # Pillow's default, written down so that the same input gives the same bytes


def check_encoding(max_side: int | None, image_format: str | None, quality: int | None) -> ImageEncoding | None:
    """The options of `pack` as a recipe, or `None` when pictures stay as they are."""
    if max_side is None and image_format is None and quality is None:
        return None
    if image_format is not None and image_format not in FORMATS:
        raise UserError(f"--format {image_format} is not known; choose {', '.join(FORMATS)}")
    if quality is not None and image_format not in ("jpeg", "webp"):
        raise UserError("--quality says how much is lost in --format jpeg or webp; name one of them, or leave it out")
    if quality is None and image_format in ("jpeg", "webp"):
        quality = DEFAULT_QUALITY
    return ImageEncoding(max_side, image_format, quality)


def planned_bytes(num_bytes: int, num_pictures: int, encoding: ImageEncoding) -> int:
    """About how much the pictures of a row will take."""
    as_they_are = num_bytes * (_GROWTH if encoding.format == "png" else 1)
    if encoding.max_side is None:
        return as_they_are
    return min(as_they_are, int(num_pictures * encoding.max_side**2 * BYTES_PER_PIXEL[encoding.format or "png"]))


def lighten(record: Record, encoding: ImageEncoding) -> Record:
    """The record with every picture re-encoded, upright and no longer than `max_side` pixels.

    Raises:
        RowFault: if a picture would lose its frames, or does not fit into the format.
    """
    sources = [_encode("input_image", image, encoding) for image in record.input_image]
    output, size = _encode("output_image", record.output_image, encoding)
    return record.model_copy(
        update={
            "input_image": [image for image, _ in sources],
            "input_image_resolution": sources[0][1] if sources else None,
            "output_image": output,
            "output_image_resolution": size,
            "output_sha256": hashlib.sha256(output.bytes).hexdigest(),
        }
    )


def _encode(column: str, image: ImageFile, encoding: ImageEncoding) -> tuple[ImageFile, list[int]]:
    with Image.open(io.BytesIO(image.bytes)) as header:
        num_pixels = header.width * header.height
    return alone_if_large(num_pixels, lambda: _encode_now(column, image, encoding))


def _encode_now(column: str, image: ImageFile, encoding: ImageEncoding) -> tuple[ImageFile, list[int]]:
    with Image.open(io.BytesIO(image.bytes)) as opened:
        chosen = encoding.format or (opened.format or "png").lower()
        if getattr(opened, "n_frames", 1) > 1:  # only formats that can be animated have it
            raise RowFault(f"{column} is animated, and a light variant would keep its first frame only")
        picture = _plain(ImageOps.exif_transpose(opened), keeps_alpha=chosen != "jpeg")
        profile = opened.info.get("icc_profile")
    if encoding.max_side is not None:
        picture.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS)
    options = {"icc_profile": profile, "quality": encoding.quality, "method": _WEBP_EFFORT}
    buffer = io.BytesIO()
    try:
        picture.save(buffer, chosen, **{name: value for name, value in options.items() if value is not None})
    except (ValueError, OSError) as error:  # such as more pixels a side than the format takes
        raise RowFault(f"{column} cannot be written as {chosen}: {error}") from error
    name = PurePath(image.path).with_suffix(f".{chosen}").name
    return ImageFile(bytes=buffer.getvalue(), path=name), [*picture.size]


def _plain(picture: Image.Image, keeps_alpha: bool) -> Image.Image:
    """The picture in 8 bits a channel, RGB or gray; transparency is kept, or laid on white."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits and more
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if not picture.has_transparency_data:
        return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
    rgba = picture.convert("RGBA")
    if keeps_alpha:
        return rgba
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
