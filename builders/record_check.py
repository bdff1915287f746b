# SPDX-License-Identifier: Apache-2.0
"""Record -> what is wrong with it, in words, or nothing: the last gate before a row is published."""

import hashlib
import json

from sharegpt4o_image.builders.picture_look import NoPicture, measure
from sharegpt4o_image.schema import ImageFile, Record


def find_fault(record: Record, decodes: bool = True) -> str | None:
    """The first reason to keep a record out of the data set, or `None` when every check holds.

    Args:
        record (`Record`): the row.
        decodes (`bool`, *optional*, defaults to `True`): look at the pictures, too; a source may have done that.

    >>> find_fault(record.model_copy(update={"output_image": ImageFile(bytes=b"<html>", path="1.png")}))
    'output_image is unreadable: not a picture'
    """
    if not record.input_prompt.strip():
        return "input_prompt is empty"
    if record.task == "text_to_image" and record.input_image:
        return "input_image is given, but the task is text_to_image"
    if record.task == "text_and_image_to_image" and not record.input_image:
        return "input_image is missing"
    if not _is_json(record.image_params) or not _is_json(record.usage):
        return "image_params or usage hold what is no JSON"
    if record.output_sha256 not in (None, hashlib.sha256(record.output_image.bytes).hexdigest()):
        return "output_image does not have the recorded sha256"
    return _find_picture_fault(record) if decodes else None


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _find_picture_fault(record: Record) -> str | None:
    fault = _image_fault("output_image", record.output_image, record.output_image_resolution)
    for index, image in enumerate(record.input_image):
        # one resolution is recorded, so with several input images it is the first one's
        recorded = record.input_image_resolution if index == 0 else None
        fault = fault or _image_fault("input_image", image, recorded)
    return fault


def _image_fault(column: str, image: ImageFile, recorded: list[int] | None) -> str | None:
    try:
        size = measure(image.bytes)
    except NoPicture as fault:
        return f"{column} {fault}"
    return None if recorded in (None, size) else size_fault(column, size, recorded or [])


def size_fault(column: str, size: list[int], recorded: list[int]) -> str:
    """What is said of a picture that is not of its recorded size; counts leave out what follows the colon."""
    true, claimed = ("x".join(map(str, one)) for one in (size, recorded))
    return f"{column} does not have the recorded size: it is {true}, not {claimed}"
