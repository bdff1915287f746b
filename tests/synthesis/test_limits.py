# SPDX-License-Identifier: Apache-2.0
"""Turns on a route: announced limits are kept, refusals slow down, outages are waited out one request at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from sharegpt4o_image.synthesis.answers import Failure, read_retry_after
from sharegpt4o_image.synthesis.limits import RouteLimits, Stopped

REFUSAL = Failure("retry", "429", is_rate_limit=True)
OUTAGE = Failure("retry", "503")


def on_route(num_workers: int) -> Callable[[Callable[[RouteLimits, asyncio.Event], Awaitable[None]]], None]:
    """Run an async test function with the turns of a new route."""

    def run(test: Callable[[RouteLimits, asyncio.Event], Awaitable[None]]) -> None:
        async def talk() -> None:
            stop = asyncio.Event()
            await asyncio.wait_for(test(RouteLimits(num_workers, stop), stop), 20)

        asyncio.run(talk())

    return run


async def take_turns(limits: RouteLimits, count: int, **amounts: float) -> float:
    """How long `count` turns that end at once take, in seconds."""
    started = time.monotonic()
    for _ in range(count):
        await limits.enter(**amounts)  # type: ignore[arg-type]
        limits.leave()
    return time.monotonic() - started


def test_no_more_requests_at_a_time_than_workers() -> None:
    @on_route(3)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        for _ in range(3):
            await limits.enter()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(limits.enter(), 0.02)
        waiting = asyncio.create_task(limits.enter())
        await asyncio.sleep(0)
        limits.leave()
        await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize(
    ("unit", "amounts"), [("requests", {}), ("tokens", {"num_tokens": 10}), ("images", {"num_images": 1})]
)
def test_announced_limits_are_kept_and_used(unit: str, amounts: dict[str, float]) -> None:
    per_request = 10 if unit == "tokens" else 1

    @on_route(8)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        limits.learn({f"x-ratelimit-limit-{unit}": str(6000 * per_request)})  # 100 requests a second
        seconds = await take_turns(limits, 150, **amounts)
        assert 150 / 100 - 0.3 <= seconds <= 150 / 100 / 0.95  # a quarter of a second's worth is there at once

    # Without an announcement nothing is held back.
    @on_route(8)
    async def check_unlimited(limits: RouteLimits, stop: asyncio.Event) -> None:
        assert await take_turns(limits, 150, **amounts) < 0.2


def test_a_request_of_many_tokens_takes_its_time() -> None:
    @on_route(8)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        limits.learn({"x-ratelimit-limit-tokens": "60000"})  # 1,000 a second
        assert await take_turns(limits, 2, num_tokens=700) > 0.9


def test_slow_limits_are_kept() -> None:
    @on_route(2)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        limits.learn({"x-ratelimit-limit-requests": "120"})  # one in half a second
        assert 0.95 <= await take_turns(limits, 3) <= 1.2


def test_odd_headers_change_nothing() -> None:
    @on_route(2)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        for value in ("", "many", "0", "-5", "nan"):
            limits.learn({"x-ratelimit-limit-requests": value})
        assert limits.announced("requests") is None


def test_refusals_cut_concurrency_once_a_burst_and_answers_bring_it_back() -> None:
    @on_route(16)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        for _ in range(5):
            limits.note_failure(REFUSAL)
        assert limits.concurrency == 12
        for _ in range(25):
            limits.note_answer()
        assert limits.concurrency == 13
        for _ in range(25 * 9):
            limits.note_answer()
        assert limits.concurrency == 16


def test_refusals_in_a_row_hold_the_whole_route() -> None:
    @on_route(4)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        slow = Failure("retry", "429", is_rate_limit=True, retry_after_seconds=0.2)
        limits.note_failure(slow)
        assert await take_turns(limits, 1) < 0.1  # one among answers concerns its own request
        limits.note_failure(slow)
        assert await take_turns(limits, 1) > 0.15


def test_an_outage_is_probed_by_single_requests() -> None:
    @on_route(8)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        for _ in range(8):
            limits.note_failure(OUTAGE)
        assert limits.is_out
        assert limits.concurrency == 1
        assert limits.seconds_without_answer >= 0
        assert await take_turns(limits, 1) > 0.9
        limits.note_answer()
        assert not limits.is_out
        assert limits.concurrency == 6
        assert limits.seconds_without_answer == 0


@pytest.mark.parametrize("cause", ["slot", "hold", "pace"])
def test_stopping_ends_every_wait(cause: str) -> None:
    @on_route(1)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        if cause == "slot":
            await limits.enter()
        if cause == "hold":
            for _ in range(2):
                limits.note_failure(Failure("retry", "429", is_rate_limit=True, retry_after_seconds=60))
        if cause == "pace":
            limits.learn({"x-ratelimit-limit-requests": "1"})
            await take_turns(limits, 1)
        asyncio.get_running_loop().call_later(0.02, stop.set)
        with pytest.raises(Stopped):
            await limits.enter()


def test_clock_that_is_set_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)

    @on_route(1)
    async def check(limits: RouteLimits, stop: asyncio.Event) -> None:
        for _ in range(2):
            limits.note_failure(Failure("retry", "429", is_rate_limit=True, retry_after_seconds=0.05))
        assert 0.03 < await take_turns(limits, 1) < 1


def test_waits_as_servers_write_them() -> None:
    assert read_retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert read_retry_after({"retry-after": "9"}) == 9
    assert read_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({}) is None
