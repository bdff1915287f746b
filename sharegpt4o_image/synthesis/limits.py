# SPDX-License-Identifier: Apache-2.0
"""How fast a route of the teacher may be asked: its announced limits, its refusals, and its outages.

Everything is measured with the monotonic clock, so a clock that is set back changes nothing.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import TypeVar

from aiolimiter import AsyncLimiter

from sharegpt4o_image.synthesis.answers import Failure

# All of these are our choice; the shape is additive increase, multiplicative decrease.
_CUT, _CUT_COOLDOWN_SECONDS = 0.75, 2.0  # on a 429; the others of the same burst do not count
_SUCCESSES_PER_STEP = 25  # answers until one more request at a time is allowed
_PACE = 0.99  # part of an announced limit that is used: clocks differ
_BURST_SECONDS = 0.25  # how much of a minute's limit may be used at once
_FIRST_OUTAGE_SECONDS, _LONGEST_OUTAGE_SECONDS = 1.0, 60.0
_MIN_FAILURES_IN_A_ROW = 3  # a run with one worker does not see an outage in one failure

Result = TypeVar("Result")

_UNITS = ("requests", "tokens", "images")


class Stopped(Exception):
    """The run was stopped while a request waited for its turn."""


class Pace:
    """So many units a minute, spread evenly; unlimited until a limit is learned."""

    def __init__(self) -> None:
        self.per_minute: float | None = None
        self._limiter: AsyncLimiter | None = None

    def learn(self, per_minute: float) -> None:
        """Take over what the teacher announced."""
        if per_minute <= 0 or per_minute == self.per_minute:
            return
        self.per_minute = per_minute
        per_second = per_minute * _PACE / 60
        period = max(_BURST_SECONDS, 1 / per_second)
        self._limiter = AsyncLimiter(per_second * period, period)

    def must_wait(self, amount: float) -> bool:
        """Whether `amount` units are not free at once."""
        limiter = self._limiter
        return limiter is not None and (amount > limiter.max_rate or not limiter.has_capacity(amount))

    async def take(self, amount: float) -> None:
        """Wait until `amount` units are free and use them, a burst's worth at a time."""
        while self._limiter is not None and amount > 0:
            part = min(amount, self._limiter.max_rate)
            await self._limiter.acquire(part)
            amount -= part


class RouteLimits:
    """The turns of one route: at most `num_workers` requests at a time, fewer while the teacher refuses or fails.

    Args:
        num_workers (`int`): most requests at a time.
        stop (`asyncio.Event`): ends all waiting.
    """

    def __init__(self, num_workers: int, stop: asyncio.Event):
        self._most = num_workers
        self._stop = stop
        self.concurrency = float(num_workers)
        self._num_in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._paces = {unit: Pace() for unit in _UNITS}
        self._held_until = 0.0
        self._last_cut = -_CUT_COOLDOWN_SECONDS
        self._num_successes = 0
        self._refusals_in_a_row = self._failures_in_a_row = 0
        self._outage_seconds = 0.0
        self._concurrency_before_outage = self.concurrency
        self._failing_since: float | None = None

    @property
    def seconds_without_answer(self) -> float:
        """Since when there was no answer, counted from the first failure after the last one."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    @property
    def is_out(self) -> bool:
        """Whether so many requests in a row failed that only single ones are sent."""
        return self._outage_seconds > 0

    def announced(self, unit: str) -> float | None:
        """The limit a minute that the teacher announced for `requests`, `tokens` or `images`."""
        return self._paces[unit].per_minute

    # ----------------------------------------------------------------------- turns

    async def enter(self, num_tokens: float = 0.0, num_images: int = 0) -> None:
        """Wait for a turn; raises [`Stopped`] when the run is stopped meanwhile."""
        await self._take_slot()
        try:
            await self._wait_while_held()
            for unit, amount in (("requests", 1.0), ("tokens", num_tokens), ("images", float(num_images))):
                if amount:
                    await self._take(self._paces[unit], amount)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """End a turn."""
        self._num_in_flight -= 1
        self._wake()

    async def _take_slot(self) -> None:
        while self._num_in_flight >= max(1, int(self.concurrency)) or self._stop.is_set():
            if self._stop.is_set():
                raise Stopped
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await unless_stopped(turn, self._stop)
        self._num_in_flight += 1

    def _wake(self) -> None:
        free = max(1, int(self.concurrency)) - self._num_in_flight
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    async def _wait_while_held(self) -> None:
        while (seconds := self._held_until - time.monotonic()) > 0:
            await wait_or_stop(seconds, self._stop)
            if self._stop.is_set():
                raise Stopped

    async def _take(self, pace: Pace, amount: float) -> None:
        if not pace.must_wait(amount):
            await pace.take(amount)  # at once
            return
        await unless_stopped(asyncio.ensure_future(pace.take(amount)), self._stop)

    # ----------------------------------------------------------------------- learning

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over the limits that an answer announces (`x-ratelimit-*`)."""
        for unit in _UNITS:
            limit = _number(headers.get(f"x-ratelimit-limit-{unit}"))
            if limit:
                self._paces[unit].learn(limit)

    def note_answer(self) -> None:
        """An answer came."""
        self._failing_since = None
        self._refusals_in_a_row = self._failures_in_a_row = 0
        if self.is_out:
            self._outage_seconds, self._held_until = 0.0, 0.0
            self.concurrency = max(1.0, self._concurrency_before_outage * _CUT)
        self._num_successes += 1
        if self._num_successes % _SUCCESSES_PER_STEP == 0:
            self.concurrency = min(float(self._most), self.concurrency + 1)
        self._wake()

    def note_failure(self, failure: Failure) -> None:
        """No answer came: slow down after a 429, take single steps in an outage."""
        self._failing_since = self._failing_since or time.monotonic()
        if failure.is_rate_limit:
            self._note_refusal(failure)
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= max(_MIN_FAILURES_IN_A_ROW, int(self.concurrency)):
            if not self.is_out:
                self._concurrency_before_outage, self.concurrency = self.concurrency, 1.0
            self._outage_seconds = min(max(_FIRST_OUTAGE_SECONDS, 2 * self._outage_seconds), _LONGEST_OUTAGE_SECONDS)
            self._hold(self._outage_seconds)

    def _note_refusal(self, failure: Failure) -> None:
        now = time.monotonic()
        self._refusals_in_a_row += 1
        if now - self._last_cut >= _CUT_COOLDOWN_SECONDS:
            self._last_cut = now
            self.concurrency = max(1.0, self.concurrency * _CUT)
        if self._refusals_in_a_row > 1:  # a single one among answers concerns its own request alone
            self._hold(failure.retry_after_seconds or 0.0)

    def _hold(self, seconds: float) -> None:
        self._held_until = max(self._held_until, time.monotonic() + seconds)


async def unless_stopped(waited_for: "asyncio.Future[Result]", stop: asyncio.Event) -> Result:
    """The result of `waited_for`; raises [`Stopped`] when `stop` is set first."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((waited_for, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            raise Stopped
        return waited_for.result()
    finally:
        stopped.cancel()
        waited_for.cancel()


async def wait_or_stop(seconds: float, stop: asyncio.Event) -> None:
    """Sleep; ends early when `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
