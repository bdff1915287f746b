# SPDX-License-Identifier: Apache-2.0
"""What a teacher sends back -> what can be journalled: JSON body, picture, tokens, cost; or the kind of failure."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from sharegpt4o_image.synthesis.config import Price
from sharegpt4o_image.synthesis.journal import Status

_BLOCK_CODES = ("moderation_blocked", "content_policy_violation", "content_filter")
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")
_BUSY_STATUSES = (408, 409, 429)
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_MAX_REASON_LENGTH = 500


class InvalidAnswer(Exception):
    """The teacher answered, but the answer is of no use; asking again may help."""


class BlockedAnswer(Exception):
    """The teacher's moderation refused; asking again would not help."""


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
    except ValueError as error:
        raise InvalidAnswer("the answer is not JSON") from error
    if not isinstance(body, dict):
        raise InvalidAnswer("the answer is not a JSON object")
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidAnswer("the answer holds half a character, which no file can store") from error
    if body.get("error"):
        raise InvalidAnswer(f"the answer is an error in spite of its status 200: {body['error']}"[:_MAX_REASON_LENGTH])
    if "data" not in body:
        return UnpackedAnswer(body, None)
    try:
        picture = base64.b64decode(body["data"][0]["b64_json"], validate=True)
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidAnswer("the answer holds no whole base64 picture") from error
    return UnpackedAnswer({**body, "data": []}, picture)


def usage_of(body: dict[str, Any]) -> dict[str, Any]:
    """The token counts of an answer; nothing when they are not what OpenAI sends."""
    usage = body.get("usage")
    return usage if isinstance(usage, dict) else {}


def _tokens(usage: dict[str, Any], *names: str) -> float:
    """The first count that is there and a number."""
    return next((usage[name] for name in names if isinstance(usage.get(name), int | float)), 0)


def cost_of(usage: dict[str, Any], price: Price) -> float:
    """US dollars for the tokens of a chat or an image answer."""
    details = usage.get("input_tokens_details")
    image_tokens = _tokens(details, "image_tokens") if isinstance(details, dict) else 0
    text_tokens = _tokens(usage, "prompt_tokens", "input_tokens") - image_tokens
    output_tokens = _tokens(usage, "completion_tokens", "output_tokens")
    dollars = text_tokens * price.text_input + image_tokens * price.image_input + output_tokens * price.output
    return float(dollars) / 1e6


@dataclass(frozen=True)
class Failure:
    """Why a request had no answer, and what follows from it.

    Args:
        status (`str`): what the journal calls it.
        reason (`str`): a sentence for the journal and the user.
        stops_run (`bool`): no other request would fare better.
        is_final (`bool`): the same request would fail again.
    """

    status: Status
    reason: str
    stops_run: bool = False
    is_final: bool = False
    http_status: int | None = None
    request_id: str | None = None
    retry_after_seconds: float | None = None
    answer: str | None = None


def classify_failure(error: openai.OpenAIError) -> Failure:
    """Tell apart what the openai client raises."""
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error)
    if isinstance(error.__cause__, _NEVER_SENT):
        return Failure("retry", f"cannot reach the teacher: {error.__cause__ or error}")
    if isinstance(error, openai.APITimeoutError):
        return Failure("lost", "the teacher did not answer in time")
    return Failure("lost", f"the connection broke off: {error.__cause__ or error}")


def _classify_status(error: openai.APIStatusError) -> Failure:
    status = error.status_code
    verdict: dict[str, Any] = {"status": "invalid", "is_final": True}
    if error.code in _BLOCK_CODES:
        verdict = {"status": "blocked", "is_final": True}
    elif error.code in _QUOTA_CODES or status == 402:
        verdict = {"status": "quota", "stops_run": True}
    elif status in (401, 403, 404):
        verdict = {"status": "retry", "stops_run": True}
    elif status in _BUSY_STATUSES or status >= 500:
        verdict = {"status": "retry"}
    return Failure(
        reason=f"{status} {error.code or error.type or ''}: {_message(error)}"[:_MAX_REASON_LENGTH],
        http_status=status,
        request_id=error.request_id,
        retry_after_seconds=_retry_after(error.response),
        answer=error.response.text if verdict["status"] in ("blocked", "invalid") else None,
        **verdict,
    )


def _message(error: openai.APIStatusError) -> str:
    if error.status_code == 401:
        return "the teacher does not accept the key"  # its own words repeat a part of the key
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.response.reason_phrase or "no reason given")


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the teacher asks to wait, if it says so in a number."""
    for header, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(response.headers[header]) * seconds)
        except (KeyError, ValueError):
            continue
    return None
