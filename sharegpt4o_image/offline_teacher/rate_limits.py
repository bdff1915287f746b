# SPDX-License-Identifier: Apache-2.0
"""Requests per minute: who may ask now, and what the `x-ratelimit-*` headers say of it."""

import math
import time
from collections.abc import Callable

from sharegpt4o_image.offline_teacher.protocol import ApiError


class RateLimiter:
    """A token bucket for every route and model; it holds one second's worth of requests, at least one.

    Args:
        requests_per_minute (`int`): how fast a bucket fills.
        clock (`Callable`, *optional*): seconds since some moment.
    """

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._per_minute = requests_per_minute
        self._per_second = requests_per_minute / 60
        self._capacity = max(1.0, self._per_second)
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # requests left, and when that was so

    def admit(self, route: str, model: str) -> dict[str, str]:
        """Count a request and return the headers of its answer.

        Raises [`ApiError`] 429 when the bucket is empty.
        """
        moment = self._clock()
        left, since = self._buckets.get((route, model), (self._capacity, moment))
        left = min(self._capacity, left + (moment - since) * self._per_second)
        is_admitted = left >= 1
        left -= is_admitted
        self._buckets[route, model] = (left, moment)
        headers = self._headers(left)
        if not is_admitted:
            raise self._refusal(model, (1 - left) / self._per_second, headers)
        return headers

    def _headers(self, left: float) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self._per_minute),
            "x-ratelimit-remaining-requests": str(int(left)),
            "x-ratelimit-reset-requests": write_duration((self._capacity - left) / self._per_second),
        }

    def _refusal(self, model: str, wait_seconds: float, headers: dict[str, str]) -> ApiError:
        message = (
            f"Rate limit reached for {model} on requests per min (RPM): limit {self._per_minute}. "
            f"Please try again in {write_duration(wait_seconds)}."
        )
        wait = {
            "retry-after": str(max(1, math.ceil(wait_seconds))),
            "retry-after-ms": str(math.ceil(wait_seconds * 1000)),
        }
        return ApiError(message, code="rate_limit_exceeded", status=429, kind="requests", headers={**headers, **wait})


def write_duration(seconds: float) -> str:
    """`"120ms"`, `"6s"`, `"1m30s"`: a duration as OpenAI's headers write it, rounded up."""
    if seconds < 1:
        return f"{math.ceil(round(seconds * 1000, 6))}ms"
    minutes, rest = divmod(math.ceil(round(seconds, 6)), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
