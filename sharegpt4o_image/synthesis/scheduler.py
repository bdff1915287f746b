# SPDX-License-Identifier: Apache-2.0
"""Requests -> journalled answers: bounded workers, retries, and the decision what is asked again.

A request is known by its key. What the journal holds for the key is never asked again, so a run that was stopped, or
killed, goes on where it was.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import openai
import tenacity

from sharegpt4o_image.synthesis.answers import (
    BlockedAnswer,
    ErrorAnswer,
    Failure,
    InvalidAnswer,
    Reply,
    classify_error_answer,
    classify_failure,
    cost_of,
    unpack_answer,
    usage_of,
)
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.client import Clients
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.images import facts_of
from sharegpt4o_image.synthesis.journal import Answer, Journal, Stage, printable
from sharegpt4o_image.synthesis.ledger import BudgetSpent, Ledger
from sharegpt4o_image.synthesis.limits import RouteLimits, Stopped, wait_or_stop
from sharegpt4o_image.synthesis.requests import CHAT, Parcel, Product, Route, TeacherRequest, pack_request, send

Job = TypeVar("Job")

FREE = Price()

_MIN_USELESS_IN_A_ROW = 9  # answers of no use, and nothing else, after which a run stops (our choice)
_MAX_REFUSALS_BEFORE_ANY_ANSWER = 3
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_MAX_WAITS_BELIEVED = 3  # refusals of one request after which more is waited than a teacher asks for
_TIMED_OUT = Failure("lost", "the teacher did not answer in time")

log = logging.getLogger(__name__)


class FailedAnswer(Exception):
    """An answer that is a failure in spite of its status 200."""

    def __init__(self, failure: Failure):
        super().__init__(failure.reason)
        self.failure = failure


class Rejected(Exception):
    """The item gets no picture; the message says why."""


class Unfinished(Exception):
    """The item is left for the next run; `failure` is the last one, where a teacher was asked."""

    def __init__(self, reason: str, failure: Failure | None = None):
        super().__init__(reason)
        self.failure = failure


class Refused(Exception):
    """The teacher finds fault with the request itself; it would with the same one again."""


class StopRun(Exception):
    """No further request would fare better; the message says why."""


class EndOfBudget(StopRun):
    """The run may not spend more."""


Endpoint = tuple[Route, str]  # a route and the model that is asked there


@dataclass(frozen=True)
class Doubt:
    """When an answer was judged: after so many useful ones of its endpoint."""

    endpoint: Endpoint
    num_useful: int


class RejectedByAnswer(Rejected):
    """The item is rejected for what the teacher sent; `doubt` tells whether the teacher worked at all then."""

    def __init__(self, reason: str, doubt: Doubt):
        super().__init__(reason)
        self.doubt = doubt


class EndpointAtFault(StopRun):
    """Nothing of use comes from an endpoint; what was rejected since the last useful answer was not at fault."""

    def __init__(self, reason: str, doubt: Doubt):
        super().__init__(reason)
        self.doubt = doubt


# --------------------------------------------------------------------------- keeping the books


@dataclass(frozen=True)
class OpenAttempt:
    """A request that was, or is about to be, sent; `discount` is the part of the price that is paid."""

    number: int
    stage: Stage
    model: str
    reserved_usd: float
    discount: float = 1.0


def _keep_picture(blobs: BlobStore, data: bytes) -> str:
    """Store a picture and look at it while the event loop goes on; a fault is told when its facts are asked for."""
    sha256 = blobs.write(data)
    with suppress(InvalidAnswer):
        facts_of(blobs, sha256)
    return sha256


class Bookkeeper:
    """Writes down what came of attempts: their answers, their costs, their failures.

    Args:
        prices (`dict`): model -> price; a model without one is counted as free.
    """

    def __init__(self, journal: Journal, ledger: Ledger, prices: dict[str, Price]):
        self.journal = journal
        self.ledger = ledger
        self._prices = prices
        self._rerouted: set[tuple[str, str]] = set()

    def begin(
        self, request: TeacherRequest[Any], reserved_usd: float, discount: float = 1.0, submission: str | None = None
    ) -> OpenAttempt:
        """Write down that a request is about to be sent."""
        number = self.journal.begin(
            request.key, request.stage, request.model, request.written, reserved_usd, submission
        )
        return OpenAttempt(number, request.stage, request.model, reserved_usd, discount)

    async def store_answer(self, attempt: OpenAttempt, reply: Reply, seconds: float | None = None) -> Answer:
        """Write an answer down, picture first, before anybody reads meaning into it.

        Raises [`InvalidAnswer`] when it is none.
        """
        columns = {"http_status": 200, "request_id": reply.request_id, "seconds": seconds}
        content = self.journal.clean_bytes(reply.content)
        try:
            unpacked = unpack_answer(content)
        except InvalidAnswer as fault:
            failure = classify_error_answer(fault) if isinstance(fault, ErrorAnswer) else None
            if failure is not None:
                raise FailedAnswer(self.store_failure(attempt, failure, seconds)) from fault
            raw = await asyncio.to_thread(self.journal.blobs.write, content)
            known = self._settle(attempt, fault.usage)
            self.journal.end(attempt.number, "invalid", reason=str(fault), blob=raw, **known, **columns)
            raise
        picture = None
        if unpacked.picture is not None:
            picture = await asyncio.to_thread(_keep_picture, self.journal.blobs, unpacked.picture)
        usage = usage_of(unpacked.body)
        known = self._settle(attempt, usage)
        named = unpacked.body.get("model")
        served_model = named if isinstance(named, str) else None
        self._compare_models(attempt.model, served_model)
        body = json.dumps(unpacked.body, ensure_ascii=False)
        ended_at = self.journal.end(
            attempt.number, "ok", answer=body, blob=picture, served_model=served_model, **known, **columns
        )
        return Answer(attempt.number, unpacked.body, picture, served_model, usage or {}, known["cost_usd"], ended_at)

    def _compare_models(self, asked: str, served: str | None) -> None:
        """Warn, once, of a teacher that lets another model answer."""
        if served is None or served.startswith(asked) or (asked, served) in self._rerouted:
            return
        self._rerouted.add((asked, served))
        log.warning("asked %s, answered by %s: the rows name both", asked, printable(served))

    def _settle(self, attempt: OpenAttempt, usage: dict[str, Any] | None) -> dict[str, Any]:
        """The columns that say what an answer cost; without its token counts the reservation stays."""
        if usage is None:
            self.ledger.settle(attempt.reserved_usd, None)
            return {"cost_usd": 0.0}
        cost_usd = cost_of(usage, self._prices.get(attempt.model, FREE))
        self.ledger.learn(attempt.stage, attempt.model, cost_usd)
        self.ledger.settle(attempt.reserved_usd, cost_usd * attempt.discount)
        return {"usage": json.dumps(usage), "cost_usd": cost_usd * attempt.discount, "reserved_usd": 0.0}

    def store_failure(self, attempt: OpenAttempt, failure: Failure, seconds: float | None = None) -> Failure:
        """Write a failure down; returns it without the secrets that the teacher may have repeated."""
        failure = self.cleaned(failure)
        is_open = failure.status == "lost" or (failure.status == "invalid" and failure.http_status == 200)
        self.ledger.settle(attempt.reserved_usd, None if is_open else 0.0)
        self.journal.end(
            attempt.number,
            failure.status,
            reason=failure.reason,
            http_status=failure.http_status,
            request_id=failure.request_id,
            retry_after_seconds=failure.retry_after_seconds,
            answer=failure.answer,
            reserved_usd=attempt.reserved_usd if is_open else 0.0,
            seconds=seconds,
        )
        return failure

    def cleaned(self, failure: Failure) -> Failure:
        """A failure without the secrets that the teacher may have repeated in it."""
        return replace(failure, reason=self.journal.clean(failure.reason))


# --------------------------------------------------------------------------- transports


class Transport(Protocol):
    """A way to the teacher."""

    async def ask(self, request: TeacherRequest[Any]) -> Answer:
        """The journalled answer; raises `InvalidAnswer`, [`Unfinished`], [`Rejected`] or [`StopRun`]."""


class DirectTransport:
    """Sends each request by itself, in turn, and again where the refusal passes."""

    def __init__(self, clients: Clients, books: Bookkeeper, config: SynthesisConfig, stop: asyncio.Event):
        self._clients = clients
        self._books = books
        self._config = config
        self._stop = stop
        self._limits: dict[tuple[Route, str], RouteLimits] = {}
        self._tokens: dict[str, float] = {}

    def limits_of(self, request: TeacherRequest[Any]) -> RouteLimits:
        """The turns of the request's route and model."""
        name = (request.route, request.model)
        if name not in self._limits:
            self._limits[name] = RouteLimits(self._config.num_workers, self._stop)
        return self._limits[name]

    async def ask(self, request: TeacherRequest[Any]) -> Answer:
        """Send a request until it is answered; refusals that pass by themselves are waited out."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=_StopAfterFailures(self._config.max_attempts),
            wait=_wait_seconds,
            sleep=lambda seconds: wait_or_stop(seconds, self._stop),
            reraise=True,
        )
        try:
            answer: Answer = await retrying(self._attempt, request)
        except Stopped:
            raise Unfinished("the run was stopped") from None
        return answer

    async def _attempt(self, request: TeacherRequest[Any]) -> Answer:
        limits, ledger = self.limits_of(request), self._books.ledger
        parcel = pack_request(request, self._books.journal.blobs)
        try:
            reserved_usd = await ledger.reserve(request.stage, request.model)
        except BudgetSpent as end:
            raise EndOfBudget(str(end)) from end
        try:
            await limits.enter(self._tokens.get(request.stage, 0.0), request.num_images)
        except BaseException:
            ledger.settle(reserved_usd, 0.0)
            raise
        try:
            return await self._send(request, parcel, limits, reserved_usd)
        finally:
            limits.leave()

    async def _send(
        self, request: TeacherRequest[Any], parcel: Parcel, limits: RouteLimits, reserved_usd: float
    ) -> Answer:
        client = self._clients.prompts if request.route == CHAT else self._clients.images
        attempt = self._books.begin(request, reserved_usd)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout_seconds):  # the client's own is between two bytes
                reply = await send(parcel, client)
        except (openai.OpenAIError, TimeoutError) as error:
            failure = _TIMED_OUT if isinstance(error, TimeoutError) else classify_failure(error)
            failure = self._books.store_failure(attempt, failure, time.monotonic() - started)
            raise self._note_failure(failure, limits) from error
        limits.learn(reply.headers)
        try:
            answer = await self._books.store_answer(attempt, reply, time.monotonic() - started)
        except FailedAnswer as failed:
            raise self._note_failure(failed.failure, limits) from failed
        except InvalidAnswer:
            limits.note_answer()
            raise
        limits.note_answer()
        total = answer.usage.get("total_tokens")
        self._tokens[request.stage] = float(total) if isinstance(total, int | float) else 0.0
        return answer

    def _note_failure(self, failure: Failure, limits: RouteLimits) -> Exception:
        """Slow down where the failure says so; returns what follows from it."""
        limits.learn(failure.headers)
        if failure.is_final:
            limits.note_answer()  # a refusal is an answer, too
        else:
            limits.note_failure(failure)
        patience = self._config.patience_seconds
        if (failure.retry_after_seconds or 0.0) > patience and not failure.is_final:
            return StopRun(f"the teacher asks to wait {failure.retry_after_seconds:.0f} s; {failure.reason}")
        if limits.seconds_without_answer > patience and not failure.is_final:
            return StopRun(f"no request was answered for {limits.seconds_without_answer:.0f} s; {failure.reason}")
        return consequence_of(failure)


def consequence_of(failure: Failure) -> Exception:
    """What a failure means for the item that asked."""
    if failure.stops_run:
        return StopRun(failure.reason)
    if failure.status == "blocked":
        return Rejected(failure.reason)
    return Refused(failure.reason) if failure.is_final else Unfinished(failure.reason, failure)


class _StopAfterFailures:
    """tenacity's `stop`: so many failures, not counting the refusals that only ask to wait."""

    def __init__(self, max_failures: int):
        self._left = max_failures

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        failure = _failure_of(state)
        self._left -= failure is None or not failure.is_rate_limit
        return self._left <= 0


def _failure_of(state: tenacity.RetryCallState) -> Failure | None:
    error = state.outcome.exception() if state.outcome else None
    return error.failure if isinstance(error, Unfinished) else None


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may fare better later."""
    return isinstance(error, Unfinished) and error.failure is not None


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    """What the teacher asks for, or else an exponential wait with jitter."""
    failure = _failure_of(state)
    exponential = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)
    if failure is None or failure.retry_after_seconds is None:
        return exponential
    is_believed = state.attempt_number <= _MAX_WAITS_BELIEVED
    return failure.retry_after_seconds if is_believed else max(failure.retry_after_seconds, exponential)


# --------------------------------------------------------------------------- questions


class Dispatcher:
    """Answers questions: out of the journal, or else by asking a teacher.

    Args:
        journal ([`Journal`]): where every attempt is written down.
        config ([`SynthesisConfig`]): how often a question is asked.
        transports (callable): the way that a request takes.
    """

    def __init__(
        self, journal: Journal, config: SynthesisConfig, transports: Callable[[TeacherRequest[Any]], Transport]
    ):
        self._journal = journal
        self._config = config
        self._transport_of = transports
        self._useless: Counter[Endpoint] = Counter()  # answers of no use in a row
        self._useful: Counter[Endpoint] = Counter()
        self._in_work: dict[str, asyncio.Event] = {}
        self._given_up: set[str] = set()  # keys

    async def obtain(self, request: TeacherRequest[Product]) -> Product:
        """The product of a request: out of the journal if it was answered before, else from the teacher.

        Two that want the same at the same time share one answer. Raises [`Rejected`], [`Unfinished`] or [`StopRun`]
        where there is none.
        """
        while (other := self._in_work.get(request.key)) is not None:
            await other.wait()
        done = self._in_work[request.key] = asyncio.Event()
        try:
            return await self._obtain(request)
        finally:
            del self._in_work[request.key]
            done.set()

    async def _obtain(self, request: TeacherRequest[Product]) -> Product:
        memory = self._journal.recall(request.key)
        answer, last_fault = memory.answer, "no useful answer"
        if answer is None and memory.block is not None:
            raise Rejected(memory.block)
        endpoint = (request.route, request.model)
        asked = memory.num_useless
        if request.key not in self._given_up:  # earlier, it may have been the endpoint's fault: one more chance
            asked = min(asked, self._config.max_asks - 1)
        while True:
            try:
                if answer is not None:
                    return request.parse(answer)  # of an earlier invocation: it tells nothing of the endpoint
                if asked >= self._config.max_asks:
                    self._given_up.add(request.key)
                    raise self._give_up(endpoint, f"{last_fault} ({asked} answers)")
                asked += 1
                answer = await self._transport_of(request).ask(request)
                product = request.parse(answer)
                self._useful[endpoint] += 1
                self._useless[endpoint] = 0
                return product
            except InvalidAnswer as fault:
                last_fault = self._journal.clean(str(fault))
                if answer is not None:
                    self._journal.mark(answer.attempt, "invalid", last_fault)
                answer = None
                self._note_useless(endpoint, last_fault)
            except Refused as refusal:
                self._note_useless(endpoint, str(refusal))
                raise self._give_up(endpoint, str(refusal)) from refusal
            except BlockedAnswer as fault:
                if answer is not None:
                    self._journal.mark(answer.attempt, "blocked", str(fault))
                raise Rejected(str(fault)) from fault

    def _note_useless(self, endpoint: Endpoint, fault: str) -> None:
        """Stop the run where the fault seems to be the endpoint's: nothing but answers of no use comes from it."""
        self._useless[endpoint] += 1
        if (count := self._useless[endpoint]) >= max(_MIN_USELESS_IN_A_ROW, self._config.num_workers):
            reason = f"{count} answers in a row were of no use, the last one: {fault}"
            raise EndpointAtFault(reason, self._doubt(endpoint))

    def _give_up(self, endpoint: Endpoint, reason: str) -> Exception:
        """Reject an item for good only where the endpoint has been seen to work."""
        doubt = self._doubt(endpoint)
        if doubt.num_useful:
            return RejectedByAnswer(reason, doubt)
        if self._useless[endpoint] >= _MAX_REFUSALS_BEFORE_ANY_ANSWER:
            return EndpointAtFault(f"the teacher answers nothing on {endpoint[0]} but: {reason}", doubt)
        return Unfinished(reason)

    def _doubt(self, endpoint: Endpoint) -> Doubt:
        return Doubt(endpoint, self._useful[endpoint])


async def run_workers(
    jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]], num_workers: int, stop: asyncio.Event
) -> None:
    """Work through `jobs` with `num_workers` at a time; jobs are drawn when a worker is free, never all at once.

    When `stop` is set, or drawing a job fails, jobs in work are ended and no other is begun; then the failure is
    raised. An exception of `work` ends all of it.
    """
    iterator = iter(jobs)
    faults: list[Exception] = []  # of the jobs' own making

    async def work_off() -> None:
        while not (stop.is_set() or faults):
            try:
                job = next(iterator)  # shared: each worker takes the next one
            except StopIteration:
                return
            except Exception as fault:
                faults.append(fault)
                return
            await work(job)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_workers):
                tasks.create_task(work_off())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # the first one ended the others
    if faults:
        raise faults[0]
