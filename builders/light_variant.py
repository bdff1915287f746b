# SPDX-License-Identifier: Apache-2.0
"""Record -> the same record with smaller pictures, for previews and quick experiments.

Sizes and sha256 of the new row are those of the new pictures; `output_phash` stays that of the original, and `id`
names the row in the full set.
"""

import hashlib
import io
from pathlib import PurePath

from PIL import Image, ImageOps

from sharegpt4o_image.builders.row_source import ImageEncoding
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record

FORMATS = ("png", "jpeg", "webp")
BYTES_PER_PIXEL = 0.35  # of a lossy picture at high quality, for planning shards; our choice
_WEBP_EFFORT = 4  # Pillow's default, written down so that the same input gives the same bytes


def check_encoding(max_side: int | None, image_format: str | None, quality: int | None) -> ImageEncoding | None:
    """The options of `pack` as a recipe, or `None` when pictures stay as they are."""
    if max_side is None and image_format is None and quality is None:
        return None
    if image_format is not None and image_format not in FORMATS:
        raise UserError(f"--format {image_format} is not known; choose {', '.join(FORMATS)}")
    if quality is not None and image_format not in ("jpeg", "webp"):
        raise UserError("--quality says how much is lost in --format jpeg or webp; name one of them, or leave it out")
    return ImageEncoding(max_side, image_format, quality)


def planned_bytes(num_bytes: int, num_pictures: int, encoding: ImageEncoding) -> int:
    """About how much the pictures of a row will take."""
    if encoding.max_side is None:
        return num_bytes
    return min(num_bytes, int(num_pictures * encoding.max_side**2 * BYTES_PER_PIXEL))


def lighten(record: Record, encoding: ImageEncoding) -> Record:
    """The record with every picture re-encoded, upright and no longer than `max_side` pixels."""
    sources = [_encode(image, encoding) for image in record.input_image]
    output, size = _encode(record.output_image, encoding)
    return record.model_copy(
        update={
            "input_image": [image for image, _ in sources],
            "input_image_resolution": sources[0][1] if sources else None,
            "output_image": output,
            "output_image_resolution": size,
            "output_sha256": hashlib.sha256(output.bytes).hexdigest(),
        }
    )


def _encode(image: ImageFile, encoding: ImageEncoding) -> tuple[ImageFile, list[int]]:
    with Image.open(io.BytesIO(image.bytes)) as opened:
        chosen = encoding.format or (opened.format or "png").lower()
        picture = ImageOps.exif_transpose(opened)
        if encoding.max_side is not None:
            picture.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS)
        if chosen == "jpeg" or picture.mode not in ("RGB", "RGBA", "L"):
            picture = _flatten(picture) if chosen == "jpeg" else picture.convert("RGBA")
        buffer = io.BytesIO()
        options = {} if encoding.quality is None else {"quality": encoding.quality}
        picture.save(buffer, chosen, **options, **({"method": _WEBP_EFFORT} if chosen == "webp" else {}))
    name = PurePath(image.path).with_suffix(f".{chosen}").name
    return ImageFile(bytes=buffer.getvalue(), path=name), [*picture.size]


def _flatten(picture: Image.Image) -> Image.Image:
    """Without transparency, on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
