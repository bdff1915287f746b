# SPDX-License-Identifier: Apache-2.0
"""Record -> what is wrong with it, in words, or nothing: the last gate before a row is published."""

import hashlib

from PIL import ImageOps, UnidentifiedImageError

from sharegpt4o_image.schema import ImageFile, Record
from sharegpt4o_image.synthesis.pictures import UnreadablePicture, open_picture


def find_fault(record: Record) -> str | None:
    """The first reason to keep a record out of the data set, or `None` when every check holds.

    >>> find_fault(record.model_copy(update={"output_image": ImageFile(bytes=b"<html>", path="1.png")}))
    'output_image is unreadable: not a picture'
    """
    if not record.input_prompt.strip():
        return "input_prompt is empty"
    if record.task == "text_to_image" and record.input_image:
        return "input_image is given, but the task is text_to_image"
    if record.task == "text_and_image_to_image" and not record.input_image:
        return "input_image is missing"
    if record.output_sha256 not in (None, hashlib.sha256(record.output_image.bytes).hexdigest()):
        return "output_image does not have the recorded sha256"
    fault = _image_fault("output_image", record.output_image, record.output_image_resolution)
    for index, image in enumerate(record.input_image):
        # one resolution is recorded, so with several input images it is the first one's
        recorded = record.input_image_resolution if index == 0 else None
        fault = fault or _image_fault("input_image", image, recorded)
    return fault


def _image_fault(column: str, image: ImageFile, recorded: list[int] | None) -> str | None:
    try:
        width, height = ImageOps.exif_transpose(open_picture(image.bytes)).size  # upright, as `datasets` shows it
    except UnreadablePicture as error:
        is_other = isinstance(error.__cause__, UnidentifiedImageError)
        return f"{column} is unreadable: {'not a picture' if is_other else error}"
    except Exception as error:  # Pillow's reader of EXIF lets anything through on broken data
        return f"{column} is unreadable: {error}"
    if recorded is not None and recorded != [width, height]:
        return f"{column} is {width}x{height}, recorded as {'x'.join(map(str, recorded))}"
    return None
