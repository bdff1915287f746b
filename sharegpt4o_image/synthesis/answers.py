# SPDX-License-Identifier: Apache-2.0
"""What a teacher sends back -> what can be journalled: JSON body, picture, tokens, cost; or the kind of failure."""

import base64
import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai

from sharegpt4o_image.synthesis.config import Price
from sharegpt4o_image.synthesis.journal import Status

BATCH_DISCOUNT = 0.5  # part of the price that a job of the Batch API costs (OpenAI's documentation)
MAX_ANSWER_BYTES = 128 * 2**20  # a 4K PNG in base64 has about 40 MB; longer answers are cut off unread (our choice)

_BLOCK_CODES = ("moderation_blocked", "content_policy_violation", "content_filter")
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")
_RATE_LIMIT_CODE = "rate_limit_exceeded"
_BUSY_STATUSES = (408, 409)
_GATEWAY_STATUSES = (502, 504, 524)  # somebody else stopped waiting: the teacher may have answered all the same
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_MAX_REASON_LENGTH = 500


class InvalidAnswer(Exception):
    """The teacher answered, but the answer is of no use; asking again may help.

    `usage` is what it says that the answer took, where it says so.
    """

    def __init__(self, reason: str, usage: dict[str, Any] | None = None):
        super().__init__(reason)
        self.usage = usage


class ErrorAnswer(InvalidAnswer):
    """An error that came with the status 200, as some gateways send it; `error` is what stands under that name."""

    def __init__(self, error: Any, usage: dict[str, Any] | None = None):
        super().__init__(f"the answer is an error in spite of its status 200: {error}"[:_MAX_REASON_LENGTH], usage)
        self.error = error


class BlockedAnswer(Exception):
    """The teacher's moderation refused; asking again would not help."""


class AnswerTooLong(httpx2.RequestError):
    """An answer of more than [`MAX_ANSWER_BYTES`], which was cut off."""


@dataclass(frozen=True)
class Reply:
    """A 200 answer as it came; header names are in lower case."""

    content: bytes
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UnpackedAnswer:
    """The JSON of an answer with its picture taken out."""

    body: dict[str, Any]
    picture: bytes | None


def unpack_answer(content: bytes) -> UnpackedAnswer:
    """Read the content of a 200 answer.

    Raises [`InvalidAnswer`] when it is not what an OpenAI-compatible teacher sends.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer("the answer is not JSON") from error
    if not isinstance(body, dict):
        raise InvalidAnswer("the answer is not a JSON object")
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidAnswer("the answer holds half a character, which no file can store", usage_of(body)) from error
    if body.get("error"):
        raise ErrorAnswer(body["error"], usage_of(body))
    if "data" not in body:
        return UnpackedAnswer(body, None)
    try:
        picture = base64.b64decode(body["data"][0]["b64_json"], validate=True)
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidAnswer("the answer holds no whole base64 picture", usage_of(body)) from error
    return UnpackedAnswer({**body, "data": []}, picture)


def usage_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The token counts of an answer; `None` when there are none."""
    usage = body.get("usage")
    return usage if isinstance(usage, dict) else None


def _tokens(usage: dict[str, Any], *names: str) -> float:
    """The first count that is there and a number."""
    return next((usage[name] for name in names if isinstance(usage.get(name), int | float)), 0)


def cost_of(usage: dict[str, Any] | None, price: Price) -> float:
    """US dollars for the tokens of a chat or an image answer."""
    if usage is None:
        return 0.0
    details = usage.get("input_tokens_details")
    image_tokens = _tokens(details, "image_tokens") if isinstance(details, dict) else 0
    text_tokens = _tokens(usage, "prompt_tokens", "input_tokens") - image_tokens
    output_tokens = _tokens(usage, "completion_tokens", "output_tokens")
    dollars = text_tokens * price.text_input + image_tokens * price.image_input + output_tokens * price.output
    return float(dollars) / 1e6


# --------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class Failure:
    """Why a request had no answer, and what follows from it.

    Args:
        status (`str`): what the journal calls it.
        reason (`str`): a sentence for the journal and the user.
        stops_run (`bool`): no other request would fare better.
        is_final (`bool`): the same request would fail again.
        is_rate_limit (`bool`): the teacher asks to be asked more slowly.
    """

    status: Status
    reason: str
    stops_run: bool = False
    is_final: bool = False
    is_rate_limit: bool = False
    http_status: int | None = None
    request_id: str | None = None
    retry_after_seconds: float | None = None
    answer: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def classify_failure(error: openai.OpenAIError) -> Failure:
    """Tell apart what the openai client raises."""
    if isinstance(error, openai.APIStatusError):
        headers = dict(error.response.headers)
        phrase = error.response.reason_phrase
        return classify_status(error.status_code, error.body, error.response.text, headers, error.request_id, phrase)
    if isinstance(error.__cause__, AnswerTooLong):
        return Failure("invalid", str(error.__cause__), is_final=True, http_status=200)
    if isinstance(error.__cause__, _NEVER_SENT):
        return Failure("retry", f"cannot reach the teacher: {error.__cause__ or error}")
    if isinstance(error, openai.APITimeoutError):
        return Failure("lost", "the teacher did not answer in time")
    return Failure("lost", f"the connection broke off: {error.__cause__ or error}")


def classify_status(
    status: int, body: object, text: str, headers: Mapping[str, str], request_id: str | None = None, phrase: str = ""
) -> Failure:
    """Tell apart the answers that are not 200, by status and OpenAI's error codes.

    `body` is the answer's JSON, or its `error` part; `text` is the answer as it came, kept where it says why a request
    was refused; `phrase` is what the status line says, for a body that says nothing.
    """
    fields = body if isinstance(body, dict) else {}
    if isinstance(fields.get("error"), dict):
        fields = fields["error"]
    code, kind = fields.get("code"), fields.get("type")
    verdict: dict[str, Any] = {"status": "invalid", "is_final": True}
    if code in _BLOCK_CODES:
        verdict = {"status": "blocked", "is_final": True}
    elif code in _QUOTA_CODES or status == 402:
        verdict = {"status": "quota", "stops_run": True}
    elif status in (401, 403, 404):
        verdict = {"status": "retry", "stops_run": True}
    elif status == 429:
        verdict = {"status": "retry", "is_rate_limit": True}
    elif status in _GATEWAY_STATUSES:
        verdict = {"status": "lost"}
    elif status in _BUSY_STATUSES or status >= 500:
        verdict = {"status": "retry"}
    # What a 401 answers repeats a part of the key.
    message = "the teacher does not accept the key" if status == 401 else fields.get("message") or phrase
    details = fields.get("moderation_details")
    categories = details.get("categories") if isinstance(details, dict) else None
    said = f"{status} {code or kind or ''}: {message or 'no reason given'}" + (f" {categories}" if categories else "")
    return Failure(
        reason=said[:_MAX_REASON_LENGTH],
        http_status=status,
        request_id=request_id,
        retry_after_seconds=read_retry_after(headers),
        answer=text if verdict["status"] in ("blocked", "invalid") else None,
        headers=headers,
        **verdict,
    )


def classify_error_answer(answer: ErrorAnswer) -> Failure | None:
    """What an error with the status 200 would be with its own; `None` when it does not say."""
    fields = answer.error if isinstance(answer.error, dict) else {}
    code = fields.get("code")
    status = {_RATE_LIMIT_CODE: 429, **dict.fromkeys(_QUOTA_CODES, 429), **dict.fromkeys(_BLOCK_CODES, 400)}.get(
        code if isinstance(code, str) else ""
    )
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        status = code
    return classify_status(status, fields, str(answer), {}) if status else None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the teacher asks to wait: a number, or the date after which to ask again."""
    for header, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[header]) * seconds)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
