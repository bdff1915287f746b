# SPDX-License-Identifier: Apache-2.0
"""The token bucket against a clock of our own, and its headers through the real client."""

from typing import Any

import openai
import pytest
from teacher_client import ask

from sharegpt4o_image.offline_teacher.app import create_app
from sharegpt4o_image.offline_teacher.protocol import CHAT_MODEL, IMAGE_MODEL, ApiError
from sharegpt4o_image.offline_teacher.rate_limits import RateLimiter, write_duration


def test_bucket_holds_one_second_and_fills_at_its_rate() -> None:
    moment = [0.0]
    limiter = RateLimiter(240, lambda: moment[0])  # four a second
    remaining = [limiter.admit("/a", "m")["x-ratelimit-remaining-requests"] for _ in range(4)]
    assert remaining == ["3", "2", "1", "0"]
    with pytest.raises(ApiError) as caught:
        limiter.admit("/a", "m")
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers["retry-after"] == "1"
    assert caught.value.headers["retry-after-ms"] == "250"
    assert caught.value.headers["x-ratelimit-reset-requests"] == "1s"
    moment[0] = 0.25
    assert limiter.admit("/a", "m")["x-ratelimit-reset-requests"] == "1s"
    moment[0] = 100.0
    assert limiter.admit("/a", "m")["x-ratelimit-reset-requests"] == "250ms"


def test_bucket_of_a_slow_rate_holds_one_request() -> None:
    moment = [0.0]
    limiter = RateLimiter(2, lambda: moment[0])
    assert limiter.admit("/a", "m") == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "30s",
    }
    moment[0] = 1.5
    with pytest.raises(ApiError) as caught:
        limiter.admit("/a", "m")
    assert (caught.value.headers["retry-after"], caught.value.headers["retry-after-ms"]) == ("29", "28500")


def test_each_route_and_model_has_its_own_bucket() -> None:
    limiter = RateLimiter(60, lambda: 0.0)
    for route, model in (("/a", "m"), ("/a", "n"), ("/b", "m")):
        limiter.admit(route, model)
    with pytest.raises(ApiError):
        limiter.admit("/a", "m")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (0.9999, "1000ms"), (6, "6s"), (6.2, "7s"), (90, "1m30s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


def test_headers_of_answers_and_refusals() -> None:
    async def talk(client: openai.AsyncOpenAI) -> None:
        params: dict[str, Any] = {"model": IMAGE_MODEL, "prompt": "a red circle", "size": "64x64"}
        first = await client.images.with_raw_response.generate(**params)
        assert first.headers["x-ratelimit-limit-requests"] == "6"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await client.images.generate(**params)
        headers = caught.value.response.headers
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
        assert headers["retry-after"] == "10"
        assert 9_000 < int(headers["retry-after-ms"]) <= 10_000
        assert headers["x-request-id"].startswith("req_")
        messages: Any = [{"role": "user", "content": "hi"}]
        with pytest.raises(openai.BadRequestError) as refused:  # a refusal counts and carries the headers too
            await client.chat.completions.create(model=CHAT_MODEL, messages=messages, n=100)
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        await client.models.list()
        await client.models.list()

    ask(talk, create_app(requests_per_minute=6))


def test_without_a_limit_there_are_no_headers() -> None:
    response = ask(
        lambda client: client.images.with_raw_response.generate(model=IMAGE_MODEL, prompt="a star", size="64x64")
    )
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]
