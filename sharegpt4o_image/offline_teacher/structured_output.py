# SPDX-License-Identifier: Apache-2.0
"""`response_format` of the chat API: a JSON schema and a written text -> an answer that fits the schema."""

import json
from collections.abc import Mapping
from typing import Any

from sharegpt4o_image.offline_teacher.protocol import ApiError
from sharegpt4o_image.offline_teacher.writing import WrittenText

# Bounds of what is filled in; a recursive schema meets one of them (our choice; OpenAI documents 10 levels and 5,000
# properties).
MAX_LEVELS = 32
MAX_PARTS = 5_000

_PARAM = "response_format.json_schema.schema"
_ANY_OBJECT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_SIMPLE_VALUES: dict[str, Any] = {"boolean": True, "integer": 1, "number": 1.0, "null": None}
_KINDS = (*_SIMPLE_VALUES, "string", "object", "array")


def read_schema(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of the answer, or `None` for plain text."""
    wanted = body.get("response_format")
    if wanted is None or wanted == {"type": "text"}:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return _ANY_OBJECT
    if kind != "json_schema":
        message = "Invalid value for 'response_format.type': use 'text', 'json_object' or 'json_schema'."
        raise ApiError(message, param="response_format.type", code="invalid_value")
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(f"Missing required parameter: '{_PARAM}'.", param=_PARAM, code="missing_required_parameter")
    return schema


def shape_answer(written: WrittenText, schema: dict[str, Any] | None) -> str:
    """The answer as text, or as JSON that fits `schema`.

    Raises [`ApiError`] 400 for a schema that cannot be filled in.
    """
    if schema is None:
        return written.text
    return json.dumps(_Filler(schema, written).fill(schema, 0), ensure_ascii=False)


def _refusal(reason: str) -> ApiError:
    return ApiError(f"Invalid schema for '{_PARAM}': {reason}.", param=_PARAM, code="invalid_json_schema")


class _Filler:
    """Walks one schema and counts the parts that it has filled."""

    def __init__(self, root: dict[str, Any], written: WrittenText):
        self._root = root
        self._written = written
        self._num_parts = 0

    def fill(self, part: Any, level: int) -> Any:
        """A value that fits one part of the schema."""
        self._num_parts += 1
        if level > MAX_LEVELS or self._num_parts > MAX_PARTS:
            raise _refusal("it is recursive, or too large")
        if not isinstance(part, dict):
            raise _refusal(f"expected an object, found {json.dumps(part)[:40]}")
        if "$ref" in part:
            return self.fill(self._resolve(part["$ref"]), level + 1)
        if part.get("anyOf"):
            return self.fill(_checked(part, "anyOf", list)[0], level + 1)
        if "const" in part:
            return part["const"]
        if part.get("enum"):
            return self._choose(_checked(part, "enum", list))
        return self._fill_kind(part, level)

    def _fill_kind(self, part: dict[str, Any], level: int) -> Any:
        kind = _kind(part)
        if kind == "object" or "properties" in part:
            return {
                name: self._fill_field(name, inner, level)
                for name, inner in _checked(part, "properties", dict).items()
            }
        if kind == "array":
            return [self.fill(part.get("items", {}), level + 1)]
        return _SIMPLE_VALUES.get(kind, self._written.text)

    def _fill_field(self, name: str, part: Any, level: int) -> Any:
        """What was written for a field, unless it is none of the values that the schema lists."""
        fields = self._written.fields
        choices = part.get("enum") if isinstance(part, dict) else None
        if name not in fields or (isinstance(choices, list) and choices and fields[name] not in choices):
            return self.fill(part, level + 1)
        return fields[name]

    def _choose(self, values: list[Any]) -> Any:
        """The value that the text names, or the first."""
        named = [value for value in values if str(value).lower() in self._written.text.lower()]
        return (named or values)[0]

    def _resolve(self, reference: Any) -> Any:
        """The part that `#/$defs/name` points to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refusal(f"the reference {json.dumps(reference)[:80]} does not begin with '#'")
        part: Any = self._root
        for name in reference.split("/")[1:]:
            if not isinstance(part, dict) or name not in part:
                raise _refusal(f"the reference {reference[:80]!r} points to nothing")
            part = part[name]
        return part


def _checked(part: dict[str, Any], name: str, kind: type) -> Any:
    value = part.get(name, kind())
    if not isinstance(value, kind):
        raise _refusal(f"'{name}' must be {'a list' if kind is list else 'an object'}")
    return value


def _kind(part: dict[str, Any]) -> str:
    """The type of a part; the first but `null` where there are several, `string` where there is none."""
    kind = part.get("type", "string")
    kinds = kind if isinstance(kind, list) else [kind]
    if not kinds or any(name not in _KINDS for name in kinds if isinstance(name, str)):
        raise _refusal("'type' must be one or several of " + ", ".join(_KINDS))
    if not all(isinstance(name, str) for name in kinds):
        raise _refusal("'type' must be a string, or a list of strings")
    return next((name for name in kinds if name != "null"), "null")
