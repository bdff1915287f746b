# SPDX-License-Identifier: Apache-2.0
"""`/v1/images/generations` and `/v1/images/edits`: checked request -> answer body."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from sharegpt4o_image.offline_teacher.files import FileStore
from sharegpt4o_image.offline_teacher.pictures import (
    DEFAULT_SIDE,
    MAX_SIDE,
    MIN_SIDE,
    SourcePicture,
    encode,
    open_picture,
    paint,
    read_data_url,
    repaint,
    resize,
)
from sharegpt4o_image.offline_teacher.protocol import (
    IMAGE_MODEL,
    ApiError,
    check_fields,
    check_model,
    count_image_tokens,
    count_text_tokens,
    now,
    read_choice,
    read_integer,
    read_text,
)

MAX_PROMPT_LENGTH = 32_000
MAX_PICTURES = 10
MAX_SOURCES = 16
MAX_MASK_BYTES = 4 * 2**20
MAX_SOURCE_BYTES = 50 * 2**20

_COMMON_FIELDS = {
    "prompt",
    "model",
    "n",
    "size",
    "quality",
    "output_format",
    "output_compression",
    "background",
    "user",
    "safety_identifier",
}
_GENERATION_FIELDS = _COMMON_FIELDS | {"moderation"}
_EDIT_FIELDS = _COMMON_FIELDS | {"input_fidelity"}
_QUALITIES = ("auto", "low", "medium", "high")


def read_side(body: Mapping[str, Any]) -> int | None:
    """Side of the square asked for, or `None` for `auto`."""
    size = body.get("size")
    if size is None or size == "auto":
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(size))
    if match is None or match[1] != match[2] or not MIN_SIDE <= int(match[1]) <= MAX_SIDE:
        message = (
            f"Invalid size '{size}'. The offline teacher draws 'auto' and squares "
            f"from '{MIN_SIDE}x{MIN_SIDE}' to '{MAX_SIDE}x{MAX_SIDE}'."
        )
        raise ApiError(message, param="size", code="invalid_value")
    return int(match[1])


def _answer(
    body: Mapping[str, Any], draw: Callable[[int], Image.Image], text: str, sources: list[SourcePicture]
) -> dict[str, Any]:
    """Draw the pictures asked for and write them down as OpenAI does."""
    output_format = read_choice(body, "output_format", "png", ("png", "jpeg", "webp"))
    compression = read_integer(body, "output_compression", 100, 0, 100)
    quality = read_choice(body, "quality", "auto", _QUALITIES)
    background = read_choice(body, "background", "auto", ("auto", "opaque"))
    images = [draw(index) for index in range(read_integer(body, "n", 1, 1, MAX_PICTURES))]
    text_tokens = count_text_tokens(text)
    source_tokens = sum(count_image_tokens(*source.image.size) for source in sources)
    output_tokens = sum(count_image_tokens(*image.size) for image in images)
    return {
        "created": now(),
        "background": "opaque" if background == "auto" else background,
        "data": [
            {"b64_json": base64.b64encode(encode(image, output_format, compression)).decode()} for image in images
        ],
        "output_format": output_format,
        "quality": "high" if quality == "auto" else quality,
        "size": f"{images[0].width}x{images[0].height}",
        "usage": {
            "input_tokens": text_tokens + source_tokens,
            "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": source_tokens},
            "output_tokens": output_tokens,
            "total_tokens": text_tokens + source_tokens + output_tokens,
        },
    }


def generate_images(body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `POST /v1/images/generations`."""
    check_fields(body, _GENERATION_FIELDS)
    check_model(body, IMAGE_MODEL)
    prompt = read_text(body, "prompt", MAX_PROMPT_LENGTH)
    read_choice(body, "moderation", "auto", ("auto", "low"))
    side = read_side(body) or DEFAULT_SIDE
    return _answer(body, lambda index: paint(prompt, index, side), prompt, [])


def read_json_edit(body: Mapping[str, Any], files: FileStore) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    """The fields, the pictures and the mask of an edit that came as JSON instead of a form."""
    references = body.get("images")
    if not references:
        raise ApiError("Missing required parameter: 'images'.", param="images", code="missing_required_parameter")
    if not isinstance(references, list):
        raise ApiError("Invalid type for 'images': expected an array.", param="images", code="invalid_type")
    fields = {name: value for name, value in body.items() if name not in ("images", "mask")}
    pictures = [_fetch(reference, f"images[{number}]", files) for number, reference in enumerate(references)]
    return fields, pictures, _fetch(body["mask"], "mask", files) if body.get("mask") is not None else None


def _fetch(reference: Any, where: str, files: FileStore) -> bytes:
    """The bytes behind `{"image_url": "data:..."}` or `{"file_id": "..."}`."""
    match reference:
        case {"file_id": str(file_id)} if len(reference) == 1:
            return files.find(file_id, f"{where}.file_id").data
        case {"image_url": str(url)} if len(reference) == 1:
            return read_data_url(url, f"{where}.image_url")
    message = f"Invalid value for '{where}': expected an object with either 'image_url' or 'file_id'."
    raise ApiError(message, param=where, code="invalid_value")


def edit_images(fields: Mapping[str, Any], pictures: list[bytes], mask: bytes | None) -> dict[str, Any]:
    """Answer `POST /v1/images/edits`; `fields` are those other than the pictures and the mask."""
    check_fields(fields, _EDIT_FIELDS)
    check_model(fields, IMAGE_MODEL)
    prompt = read_text(fields, "prompt", MAX_PROMPT_LENGTH)
    read_choice(fields, "input_fidelity", "low", ("low", "high"))
    if not pictures:
        raise ApiError("Missing required parameter: 'image'.", param="image", code="missing_required_parameter")
    if len(pictures) > MAX_SOURCES:
        message = f"Invalid 'image': {len(pictures)} images, at most {MAX_SOURCES} are allowed."
        raise ApiError(message, param="image", code="array_above_max_length")
    for data in pictures:
        _check_length(data, "image", MAX_SOURCE_BYTES)
    sources = [open_picture(data, "image") for data in pictures]
    opened_mask = _open_mask(mask, sources[0].image.size) if mask is not None else None
    side = read_side(fields)

    def draw(index: int) -> Image.Image:
        painted = repaint(sources, prompt, opened_mask, index)
        return painted if side is None else resize(painted, side)

    return _answer(fields, draw, prompt, sources)


def _check_length(data: bytes, param: str, max_bytes: int) -> None:
    if len(data) > max_bytes:
        message = f"Invalid '{param}': the file has {len(data):,} bytes, at most {max_bytes:,} are allowed."
        raise ApiError(message, param=param, code="image_too_large", status=413)


def _open_mask(data: bytes, size: tuple[int, int]) -> Image.Image:
    _check_length(data, "mask", MAX_MASK_BYTES)
    mask = open_picture(data, "mask").image
    if mask.format != "PNG" or "A" not in mask.getbands():
        message = "Invalid mask image format: the mask must be a PNG with an alpha channel."
        raise ApiError(message, param="mask", code="invalid_mask")
    if mask.size != size:
        message = (
            f"Invalid mask image: its size {mask.width}x{mask.height} differs from the image's {size[0]}x{size[1]}."
        )
        raise ApiError(message, param="mask", code="invalid_mask")
    return mask
