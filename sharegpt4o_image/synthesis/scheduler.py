# SPDX-License-Identifier: Apache-2.0
"""Requests -> journalled answers: bounded workers, retries, and the decision what is asked again.

A request is known by its key. What the journal holds for the key is never asked again, so a run that was stopped, or
killed, goes on where it was.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import httpx2
import openai
import tenacity

from sharegpt4o_image.synthesis.answers import (
    BlockedAnswer,
    Failure,
    InvalidAnswer,
    classify_failure,
    cost_of,
    unpack_answer,
    usage_of,
)
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer, Journal, Stage

Job = TypeVar("Job")
Product = TypeVar("Product")

_FREE = Price()
_MIN_FAILURES_IN_A_ROW = 3  # a run with one worker does not stop at the first failure
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0  # of what a teacher may ask for: it may mean a day


@dataclass(frozen=True)
class TeacherRequest(Generic[Product]):
    """One question to a teacher.

    Args:
        key (`str`): hash of everything that decides the answer; see `schema.content_id`.
        request (`dict`): what is asked, for the journal; without pictures.
        send (callable): sends it, once.
        parse (callable): makes the product of an answer, or raises [`InvalidAnswer`] or [`BlockedAnswer`].
    """

    key: str
    stage: Stage
    model: str
    request: Mapping[str, Any]
    send: Callable[[], Awaitable[httpx2.Response]]
    parse: Callable[[Answer], Product]


class Rejected(Exception):
    """The item gets no picture; the message says why."""


class Unfinished(Exception):
    """The item is left for the next run; `failure` is the last one, where a teacher was asked."""

    def __init__(self, reason: str, failure: Failure | None = None):
        super().__init__(reason)
        self.failure = failure


class StopRun(Exception):
    """No further request would fare better; the message says why."""


class Dispatcher:
    """Sends requests and keeps the journal.

    Args:
        journal ([`Journal`]): where every attempt is written down.
        config ([`SynthesisConfig`]): limits and prices.
        stop (`asyncio.Event`): once set, nothing is sent any more.
    """

    def __init__(self, journal: Journal, config: SynthesisConfig, stop: asyncio.Event):
        self._journal = journal
        self._config = config
        self._stop = stop
        self._failures_in_a_row = 0
        self.num_attempts = 0

    async def obtain(self, request: TeacherRequest[Product]) -> Product:
        """The product of a request: out of the journal if it was answered before, else from the teacher.

        Raises [`Rejected`], [`Unfinished`] or [`StopRun`] where there is none.
        """
        answer: Answer | None = self._journal.find_answer(request.key)
        last_fault = "no useful answer"
        if answer is None:
            block = self._journal.find_block(request.key)
            if block is not None:
                raise Rejected(block)
        asked = self._journal.count_invalid(request.key)
        while True:
            try:
                if answer is None:
                    if asked >= self._config.max_asks:
                        raise Rejected(f"{last_fault} ({asked} answers)")
                    asked += 1
                    answer = await self._ask(request)
                return request.parse(answer)
            except InvalidAnswer as fault:
                last_fault = str(fault)
                if answer is not None:
                    self._journal.mark(answer.attempt, "invalid", last_fault)
                answer = None
            except BlockedAnswer as fault:
                if answer is not None:
                    self._journal.mark(answer.attempt, "blocked", str(fault))
                raise Rejected(str(fault)) from fault

    async def _ask(self, request: TeacherRequest[Any]) -> Answer:
        """Send a request until it is answered; refusals that pass by themselves are waited out."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(self._config.max_attempts),
            wait=_wait_seconds,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer: Answer = await retrying(self._attempt, request)
        except Unfinished as error:
            self._count_failure(error)
            raise
        self._failures_in_a_row = 0
        return answer

    def _count_failure(self, error: Unfinished) -> None:
        """Give up the run when as many requests in a row as there are workers found no teacher."""
        self._failures_in_a_row += error.failure is not None
        if self._failures_in_a_row >= max(_MIN_FAILURES_IN_A_ROW, self._config.num_workers):
            raise StopRun(f"{self._failures_in_a_row} requests in a row failed, the last one with: {error}") from error

    async def _sleep(self, seconds: float) -> None:
        """Wait before a retry; ends early when the run is stopped."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    async def _attempt(self, request: TeacherRequest[Any]) -> Answer:
        if self._stop.is_set():
            raise Unfinished("the run was stopped")
        attempt = self._journal.begin(request.key, request.stage, request.model, request.request)
        self.num_attempts += 1
        try:
            response = await request.send()
        except openai.OpenAIError as error:
            failure = classify_failure(error)
            failure = replace(failure, reason=self._journal.clean(failure.reason))
            self._journal.end(attempt, failure.status, **_columns(failure))
            raise _consequence(failure) from error
        return await self._store(attempt, request, response)

    async def _store(self, attempt: int, request: TeacherRequest[Any], response: httpx2.Response) -> Answer:
        """Write an answer down, picture first, before anybody reads meaning into it."""
        columns = {"http_status": response.status_code, "request_id": response.headers.get("x-request-id")}
        try:
            unpacked = unpack_answer(response.content)
        except InvalidAnswer as fault:
            raw = await asyncio.to_thread(self._journal.blobs.write, self._journal.clean_bytes(response.content))
            self._journal.end(attempt, "invalid", reason=str(fault), blob=raw, **columns)
            raise
        usage = usage_of(unpacked.body)
        cost_usd = cost_of(usage, self._config.prices.get(request.model, _FREE))
        named = unpacked.body.get("model")
        served_model = named if isinstance(named, str) else None
        picture = None
        if unpacked.picture is not None:
            picture = await asyncio.to_thread(self._journal.blobs.write, unpacked.picture)
        ended_at = self._journal.end(
            attempt,
            "ok",
            answer=json.dumps(unpacked.body, ensure_ascii=False),
            blob=picture,
            served_model=served_model,
            usage=json.dumps(usage),
            cost_usd=cost_usd,
            **columns,
        )
        return Answer(attempt, unpacked.body, picture, served_model, usage, cost_usd, ended_at)


def _columns(failure: Failure) -> dict[str, Any]:
    return {
        "reason": failure.reason,
        "http_status": failure.http_status,
        "request_id": failure.request_id,
        "retry_after_seconds": failure.retry_after_seconds,
        "answer": failure.answer,
    }


def _consequence(failure: Failure) -> Exception:
    if failure.stops_run:
        return StopRun(failure.reason)
    if failure.is_final:
        return Rejected(failure.reason)
    return Unfinished(failure.reason, failure)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may fare better later."""
    return isinstance(error, Unfinished) and error.failure is not None


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """What the teacher asks for, or else an exponential wait with jitter."""
    error = state.outcome.exception() if state.outcome else None
    failure = error.failure if isinstance(error, Unfinished) else None
    if failure and failure.retry_after_seconds is not None:
        return min(failure.retry_after_seconds, _LONGEST_RETRY_AFTER_SECONDS)
    return tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)


async def run_workers(
    jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]], num_workers: int, stop: asyncio.Event
) -> None:
    """Work through `jobs` with `num_workers` at a time; jobs are drawn when a worker is free, never all at once.

    When `stop` is set, jobs in work are ended and no other is begun. An exception of `work` ends all of it.
    """
    iterator = iter(jobs)

    async def work_off() -> None:
        for job in iterator:  # shared: each worker takes the next one
            if stop.is_set():
                return
            await work(job)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_workers):
                group.create_task(work_off())
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None  # the first fault ended the others
