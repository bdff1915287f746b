# SPDX-License-Identifier: Apache-2.0
"""YAML file -> checked model; a fault becomes one sentence that names the file and the place."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sharegpt4o_image.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Read `path` as a `model`; unknown keys, wrong types and broken YAML raise [`UserError`]."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}; give the path of a YAML file") from error
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{path}{where}: not valid YAML ({problem})") from error
    if not isinstance(loaded or {}, dict):
        raise UserError(f"{path}: expected keys and values at the top level, found a {type(loaded).__name__}")
    try:
        return model.model_validate(loaded or {})
    except ValidationError as error:
        raise UserError(f"{path}: {describe_fault(error)}") from error


def describe_fault(error: ValidationError) -> str:
    """The first fault that a model found, in words: `num_topics: Input should be a valid integer, found 'many'`."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {place!r}; see the configurations in configs/ for the known ones"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault["input"]
    is_ours = fault["type"] == "value_error"  # our own validators say what they found, where it is fit to be shown
    shown = f", found {found!r}" if not is_ours and isinstance(found, str | int | float | bool | None) else ""
    return f"{place}: {message}{shown}" if place else message
