# SPDX-License-Identifier: Apache-2.0
"""`/v1/chat/completions`: checked request -> answer body, in plain text or in the JSON schema that was asked for."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sharegpt4o_image.offline_teacher.pictures import SourcePicture, open_picture, read_data_url
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
from sharegpt4o_image.offline_teacher.structured_output import read_schema, shape_answer
from sharegpt4o_image.offline_teacher.writing import write

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


def complete_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `POST /v1/chat/completions`."""
    check_fields(body, _FIELDS)
    model = check_model(body, CHAT_MODEL)
    if body.get("stream"):
        message = "Unsupported value: 'stream' is not supported by the offline teacher."
        raise ApiError(message, param="stream", code="unsupported_value")
    text, pictures = _read_messages(body)
    schema = read_schema(body)
    limit = read_integer(body, "max_tokens", MAX_TOKENS, 1, MAX_TOKENS)
    limit = read_integer(body, "max_completion_tokens", limit, 1, MAX_TOKENS)
    num_choices = read_integer(body, "n", 1, 1, MAX_CHOICES)
    answers = [shape_answer(write(text, pictures, index), schema) for index in range(num_choices)]
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
            param = f"{where}[{number}].image_url"
            pictures.append(open_picture(read_data_url(str(part["image_url"].get("url")), param), param))
        else:
            message = f"Invalid value for '{where}[{number}]': a part is a 'text' or an 'image_url'."
            raise ApiError(message, param=f"{where}[{number}].type", code="invalid_value")
