# SPDX-License-Identifier: Apache-2.0
"""The parts of OpenAI's protocol that every route shares: error bodies, checked fields, models and token counts."""

import hashlib
import json
import math
import random
import time
from collections.abc import Collection, Mapping
from typing import Any

CHAT_MODEL = "offline-writer-1"
IMAGE_MODEL = "offline-painter-1"
MODELS = (CHAT_MODEL, IMAGE_MODEL)

MAX_BODY_BYTES = 64 * 2**20

_MODELS_CREATED = 1_763_856_000  # a fixed date, so that the answer never changes
_BYTES_PER_TOKEN = 4  # the usual rule of thumb; the offline teacher has no tokenizer
_PIXELS_PER_IMAGE_TOKEN = 256  # one token for 16 x 16 pixels


class ApiError(Exception):
    """An error answer: the body's fields, the HTTP status and headers of its own."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.param, self.code, self.status, self.kind = message, param, code, status, kind
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


SERVER_ERROR = ApiError("The server had an error while processing your request.", status=500, kind="server_error")


def as_refusal(error: Exception) -> ApiError | None:
    """The error answer for what the request is to blame for; `None` for a fault of the teacher itself."""
    if isinstance(error, UnicodeEncodeError):  # JSON may carry half a surrogate pair, which is no character
        return ApiError("The text of your request is not valid Unicode.")
    return error if isinstance(error, ApiError) else None


def model_card(model: str) -> dict[str, Any]:
    """What `GET /v1/models/{model}` answers.

    Raises [`ApiError`] 404 for a model the teacher does not have.
    """
    if model not in MODELS:
        raise ApiError(
            f"The model '{model}' does not exist; the offline teacher has {' and '.join(MODELS)}.",
            param="model",
            code="model_not_found",
            status=404,
        )
    return {
        "id": model,
        "object": "model",
        "created": _MODELS_CREATED,
        "owned_by": "sharegpt4o-image",
        "shutdown_date": None,
    }


def parse_json(data: bytes) -> Any:
    """The JSON value in a body.

    Raises [`ApiError`] 400 for anything else, and for JSON that is nested too deeply to be read.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError("We could not parse the JSON body of your request.") from error


def check_fields(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a field that the route does not have, as OpenAI does, instead of ignoring it."""
    for name in body:
        if name not in known:
            raise ApiError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def check_model(body: Mapping[str, Any], served: str) -> str:
    """The model asked for, which must be the one that this route serves."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    model_card(model)
    if model != served:
        raise ApiError(f"The model '{model}' does not serve this route; use '{served}'.", param="model")
    return model


def read_text(body: Mapping[str, Any], name: str, max_length: int) -> str:
    """A required text field."""
    text = body.get(name)
    if text is None or text == "":
        raise ApiError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(text, str):
        raise ApiError(f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type")
    if len(text) > max_length:
        message = f"Invalid '{name}': {len(text):,} characters, at most {max_length:,} are allowed."
        raise ApiError(message, param=name, code="string_above_max_length")
    return text


def read_integer(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """An optional whole number in `low..high`; a multipart form carries it as digits."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(f"Invalid type for '{name}': expected an integer.", param=name, code="invalid_type")
    if value < low:
        raise ApiError(f"Invalid '{name}': {value} is below {low}.", param=name, code="integer_below_min_value")
    if value > high:
        raise ApiError(f"Invalid '{name}': {value} is above {high}.", param=name, code="integer_above_max_value")
    return value


def read_choice(body: Mapping[str, Any], name: str, default: str | None, choices: Collection[str]) -> str:
    """A word out of `choices`; without a `default` it is required."""
    value = body.get(name)
    if value is None:
        value = default
    if value is None:
        raise ApiError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, str) or value not in choices:
        names = ", ".join(f"'{choice}'" for choice in choices)
        raise ApiError(f"Invalid value: '{value}'. Supported values are: {names}.", param=name, code="invalid_value")
    return value


def count_text_tokens(text: str) -> int:
    """Roughly what a tokenizer would count."""
    return math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)


def count_image_tokens(width: int, height: int) -> int:
    """One token for every 16 x 16 pixels."""
    return math.ceil(width * height / _PIXELS_PER_IMAGE_TOKEN)


def dice_for(*parts: object) -> random.Random:
    """A random generator that depends on `parts` alone: the same request always makes the same choices."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8]))


def now() -> int:
    """Seconds since 1970, the `created` of an answer."""
    return int(time.time())
