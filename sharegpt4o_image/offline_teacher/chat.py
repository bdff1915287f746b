# SPDX-License-Identifier: Apache-2.0
"""`/v1/chat/completions`: checked request -> answer body, in plain text or in the JSON schema that was asked for."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from sharegpt4o_image.offline_teacher.pictures import SourcePicture, open_picture
from sharegpt4o_image.offline_teacher.protocol import (
    CHAT_MODEL,
    ApiError,
    check_fields,
    check_model,
    count_image_tokens,
    count_text_tokens,
    now,
    read_integer,
)
from sharegpt4o_image.offline_teacher.writing import WrittenText, write

MAX_CHOICES = 8
MAX_TOKENS = 16_384

_FIELDS = {
    "messages",
    "model",
    "n",
    "response_format",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "reasoning_effort",
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "stream",
}
_ROLES = ("system", "developer", "user", "assistant")
_DATA_URL = re.compile(r"data:image/[a-z]+;base64,(?P<data>.*)", re.DOTALL)


def complete_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `POST /v1/chat/completions`."""
    check_fields(body, _FIELDS)
    model = check_model(body, CHAT_MODEL)
    if body.get("stream"):
        message = "Unsupported value: 'stream' is not supported by the offline teacher."
        raise ApiError(message, param="stream", code="unsupported_value")
    text, pictures = _read_messages(body)
    schema = _read_schema(body)
    limit = read_integer(body, "max_tokens", MAX_TOKENS, 1, MAX_TOKENS)
    limit = read_integer(body, "max_completion_tokens", limit, 1, MAX_TOKENS)
    num_choices = read_integer(body, "n", 1, 1, MAX_CHOICES)
    answers = [_shape(write(text, pictures, index), schema) for index in range(num_choices)]
    choices = [_choice(index, answer, limit) for index, answer in enumerate(answers)]
    prompt_tokens = count_text_tokens(text) + sum(count_image_tokens(*p.image.size) for p in pictures)
    completion_tokens = sum(count_text_tokens(choice["message"]["content"]) for choice in choices)
    request = json.dumps(body, sort_keys=True, default=str)
    return {
        "id": "chatcmpl-" + hashlib.sha256(request.encode()).hexdigest()[:24],
        "object": "chat.completion",
        "created": now(),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _choice(index: int, answer: str, limit: int) -> dict[str, Any]:
    is_whole = count_text_tokens(answer) <= limit
    content = answer if is_whole else answer.encode()[: limit * 4].decode(errors="ignore")
    return {
        "index": index,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop" if is_whole else "length",
    }


# --------------------------------------------------------------------------- the request


def _read_messages(body: Mapping[str, Any]) -> tuple[str, list[SourcePicture]]:
    """All text of the conversation, and its pictures."""
    messages = body.get("messages")
    if not messages:
        raise ApiError("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    if not isinstance(messages, list):
        raise ApiError("Invalid type for 'messages': expected an array.", param="messages", code="invalid_type")
    texts: list[str] = []
    pictures: list[SourcePicture] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            names = ", ".join(f"'{role}'" for role in _ROLES)
            message = f"Invalid value for '{where}.role': supported values are {names}."
            raise ApiError(message, param=f"{where}.role", code="invalid_value")
        _read_content(message.get("content"), f"{where}.content", texts, pictures)
    return "\n".join(texts), pictures


def _read_content(content: Any, where: str, texts: list[str], pictures: list[SourcePicture]) -> None:
    if isinstance(content, str):
        texts.append(content)
        return
    if not isinstance(content, list) or not content:
        message = f"Invalid type for '{where}': expected a string or an array of parts."
        raise ApiError(message, param=where, code="invalid_type")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            pictures.append(_read_data_url(str(part["image_url"].get("url")), f"{where}[{number}].image_url"))
        else:
            message = f"Invalid value for '{where}[{number}]': a part is a 'text' or an 'image_url'."
            raise ApiError(message, param=f"{where}[{number}].type", code="invalid_value")


def _read_data_url(url: str, where: str) -> SourcePicture:
    match = _DATA_URL.fullmatch(url)
    if match is None:
        message = f"Invalid '{where}': the offline teacher fetches nothing; send a base64 data URL."
        raise ApiError(message, param=where, code="invalid_image_url")
    try:
        data = base64.b64decode(match["data"], validate=True)
    except binascii.Error as error:
        raise ApiError(f"Invalid base64 in '{where}'.", param=where, code="invalid_base64") from error
    return open_picture(data, where)


def _read_schema(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of the answer, or `None` for plain text."""
    wanted = body.get("response_format")
    if wanted is None or wanted == {"type": "text"}:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    if kind != "json_schema":
        message = "Invalid value for 'response_format.type': use 'text', 'json_object' or 'json_schema'."
        raise ApiError(message, param="response_format.type", code="invalid_value")
    schema = (wanted.get("json_schema") or {}).get("schema")
    if not isinstance(schema, dict):
        message = "Missing required parameter: 'response_format.json_schema.schema'."
        raise ApiError(message, param="response_format.json_schema.schema", code="missing_required_parameter")
    return schema


# --------------------------------------------------------------------------- the answer


def _shape(written: WrittenText, schema: dict[str, Any] | None) -> str:
    """The answer as text, or as JSON that fits `schema`."""
    if schema is None:
        return written.text
    return json.dumps(_fill(schema, schema, written), ensure_ascii=False)


def _fill(part: dict[str, Any], root: dict[str, Any], written: WrittenText) -> Any:
    """A value that fits one part of a JSON schema."""
    if "$ref" in part:
        part = root.get("$defs", {}).get(str(part["$ref"]).rpartition("/")[2], {})
    if part.get("anyOf"):
        part = part["anyOf"][0]
    if "const" in part:
        return part["const"]
    if part.get("enum"):
        named = [value for value in part["enum"] if str(value).lower() in written.text.lower()]
        return (named or part["enum"])[0]
    kind = part.get("type")
    if kind == "object" or "properties" in part:
        properties = part.get("properties", {})
        return {
            name: written.fields[name] if name in written.fields else _fill(inner, root, written)
            for name, inner in properties.items()
        }
    if kind == "array":
        return [_fill(part.get("items", {}), root, written)]
    simple: dict[Any, Any] = {"boolean": True, "integer": 1, "number": 1.0, "null": None}
    return simple.get(kind, written.text)
