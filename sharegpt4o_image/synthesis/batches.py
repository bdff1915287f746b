# SPDX-License-Identifier: Apache-2.0
"""The Batch API as a way to the image teacher: many requests in one file, answered within a day at half the price.

A job is written down before it is created and known to the teacher by its name, so that a run that was killed at any
moment finds it again: its answers are fetched before anything else is ordered.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai
from openai.types import Batch

from sharegpt4o_image.synthesis.answers import (
    BATCH_DISCOUNT,
    Failure,
    InvalidAnswer,
    Reply,
    classify_failure,
    classify_status,
)
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer, Submission
from sharegpt4o_image.synthesis.ledger import BudgetSpent
from sharegpt4o_image.synthesis.limits import Stopped, unless_stopped, wait_or_stop
from sharegpt4o_image.synthesis.requests import Route, TeacherRequest, batch_line
from sharegpt4o_image.synthesis.scheduler import (
    Bookkeeper,
    EndOfBudget,
    FailedAnswer,
    OpenAttempt,
    Refused,
    Rejected,
    StopRun,
    Unfinished,
    consequence_of,
)

MAX_FILE_BYTES = 190 * 2**20  # of an input file; the API takes 200 MB

_METADATA_KEY = "sharegpt4o_image_submission"
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 1.0, 60.0
_MAX_LIST_PAGES = 20  # pages of jobs that are looked through for one whose name was not learned
_ENDED = ("completed", "failed", "expired", "cancelled")

_LOST = Failure("lost", "the teacher does not know the job of the Batch API any more")
_NO_ANSWER = Failure("retry", "the job of the Batch API ended without an answer to this request")


log = logging.getLogger(__name__)


class _UnknownJob(Exception):
    """The teacher has no job of that name."""


@dataclass(frozen=True)
class _Order:
    """A request that waits for its answer."""

    request: TeacherRequest[Any]
    reserved_usd: float
    answer: "asyncio.Future[Answer]"


class BatchTransport:
    """Gathers requests into jobs and fetches their answers.

    Args:
        client (`openai.AsyncOpenAI`): the image teacher.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        books: Bookkeeper,
        config: SynthesisConfig,
        stop: asyncio.Event,
    ):
        self._client = client
        self._endpoint = str(client.base_url)
        self._books = books
        self._journal = books.journal
        self._config = config
        self._stop = stop
        self._orders: dict[Route, list[_Order]] = {}
        self._came = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(config.open_batches)

    async def ask(self, request: TeacherRequest[Any]) -> Answer:
        """Order a request and wait for its job; ordered again where the job leaves it out."""
        last = Unfinished("the run was stopped")
        for _ in range(self._config.max_attempts):
            try:
                return await self._order(request)
            except Stopped:
                raise Unfinished("its job of the Batch API goes on; run again with --batch to fetch it") from None
            except Unfinished as unfinished:
                last = unfinished
                if unfinished.failure is None:
                    raise
        raise last

    async def _order(self, request: TeacherRequest[Any]) -> Answer:
        for picture in request.pictures:
            self._journal.blobs.require(picture.sha256)
        reserved_usd = await self._reserve(request)
        order = _Order(request, reserved_usd, asyncio.get_running_loop().create_future())
        self._orders.setdefault(request.route, []).append(order)
        self._came.set()
        return await unless_stopped(order.answer, self._stop)

    async def _reserve(self, request: TeacherRequest[Any]) -> float:
        ledger = self._books.ledger
        if ledger.is_limited and not ledger.knows(request.stage, request.model):
            raise StopRun(
                "a budget with --batch needs to know what a picture costs: "
                "run the same command with --limit 5 and without --batch first"
            )
        try:
            return await ledger.reserve(request.stage, request.model, BATCH_DISCOUNT)
        except BudgetSpent as end:
            raise EndOfBudget(str(end)) from end

    # ----------------------------------------------------------------------- jobs

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Fetch what earlier invocations ordered; then send and fetch jobs as long as the context lasts."""
        for submission in self._journal.pending_submissions():
            await self._resume(submission)
        sender = asyncio.create_task(self._send_jobs())
        try:
            yield
        finally:
            for task in (sender, *self._jobs):
                task.cancel()
            await asyncio.gather(sender, *self._jobs, return_exceptions=True)

    async def _send_jobs(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            smallest = await self._gather()
            for route in list(self._orders):
                while len(self._orders[route]) >= smallest:
                    orders = self._take(route)
                    await self._slots.acquire()
                    task = asyncio.create_task(self._see_through(route, orders))
                    self._jobs.add(task)
                    task.add_done_callback(self._forget)
            if any(self._orders.values()):
                self._came.set()

    async def _gather(self) -> int:
        """Wait for a full job, or until no more requests come; returns the size from which on jobs are to be sent."""
        num_before = -1
        while num_before != (num := sum(map(len, self._orders.values()))):
            if any(len(orders) >= self._config.batch_size for orders in self._orders.values()):
                return self._config.batch_size
            num_before = num
            await asyncio.sleep(self._config.batch_gather_seconds)
        return 1

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._slots.release()
        self._jobs.discard(task)

    def _take(self, route: Route) -> list[_Order]:
        """The orders of the next job: no more than the configuration and the size of a file allow."""
        waiting, length, count = self._orders[route], 0, 0
        for order in waiting[: self._config.batch_size]:
            length += len(json.dumps(order.request.body)) + 1000
            if count and length > MAX_FILE_BYTES:
                break
            count += 1
        self._orders[route] = waiting[count:]
        return waiting[:count]

    async def _see_through(self, route: Route, orders: list[_Order]) -> None:
        """One job from its creation to its last answer; what goes wrong is told to those that wait."""
        self._waiting.update({order.request.key: order.answer for order in orders})
        name = uuid.uuid4().hex
        try:
            await self._harvest(name, await self._create(name, route, orders))
        except Exception as error:  # whatever it is, nobody may wait for ever
            for order in orders:
                self._waiting.pop(order.request.key, None)
                _fail(order.answer, error)

    async def _harvest(self, name: str, batch_id: str) -> None:
        """Wait for a job and write its answers down."""
        try:
            await self._fetch(name, await self._ended(batch_id))
        except _UnknownJob:
            log.warning("the teacher does not know the job %s any more; its requests count as lost", batch_id)
            self._close(name, _LOST)
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            reason = self._journal.clean(str(error.__cause__ or error))
            raise StopRun(f"the answers of a job could not be fetched: {reason}") from error

    async def _create(self, name: str, route: Route, orders: list[_Order]) -> str:
        try:
            file_ids = await self._upload_pictures(orders)
            lines = "\n".join(batch_line(order.request, file_ids) for order in orders).encode()
            uploaded = await self._client.files.create(file=(f"{name}.jsonl", lines), purpose="batch")
        except Exception as error:
            for order in orders:
                self._books.ledger.settle(order.reserved_usd, 0.0)
            raise self._stop_for(error, "the files of a job could not be uploaded") from error
        for order in orders:
            self._books.begin(order.request, order.reserved_usd, BATCH_DISCOUNT, name)
        self._journal.begin_submission(name, route)
        try:
            batch = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=f"/v1{route}",  # type: ignore[arg-type]
                completion_window="24h",
                metadata={_METADATA_KEY: name},
            )
        except openai.OpenAIError as error:
            failure = self._books.cleaned(classify_failure(error))
            if failure.http_status in range(400, 500) and failure.http_status not in (408, 409):
                end = StopRun(f"the teacher creates no job: {failure.reason}")
                self._close(name, replace(failure, status="retry", is_final=False), end)
                raise end from error
            raise StopRun(f"it is not known whether a job was created: {failure.reason}") from error
        self._journal.update_submission(name, "open", batch.id)
        return batch.id

    def _stop_for(self, error: Exception, what: str) -> Exception:
        """What a fault that concerns the whole job means for the run."""
        if not isinstance(error, openai.OpenAIError):
            return error
        return StopRun(f"{what}: {self._books.cleaned(classify_failure(error)).reason}")

    async def _upload_pictures(self, orders: list[_Order]) -> dict[str, str]:
        """sha256 -> file id of every source; each is uploaded once in the life of a run."""
        file_ids: dict[str, str] = {}
        for picture in (picture for order in orders for picture in order.request.pictures):
            if picture.sha256 in file_ids:
                continue
            file_id = self._journal.find_upload(self._endpoint, picture.sha256)
            if file_id is None:
                data = self._journal.blobs.read(picture.sha256)
                content = (f"{picture.sha256}.{picture.format}", data, f"image/{picture.format}")
                file_id = (await self._client.files.create(file=content, purpose="vision")).id
                self._journal.write_upload(self._endpoint, picture.sha256, file_id)
            file_ids[picture.sha256] = file_id
        return file_ids

    async def _ended(self, batch_id: str) -> Batch:
        """The job, once it is at its end; raises [`_UnknownJob`] where the teacher has none of that name."""
        seconds, failing_since = _FIRST_POLL_SECONDS, None
        while True:
            try:
                batch = await self._client.batches.retrieve(batch_id)
                failing_since = None
                if batch.status in _ENDED:
                    return batch
            except openai.NotFoundError as error:
                raise _UnknownJob(batch_id) from error
            except openai.OpenAIError as error:
                failure = self._books.cleaned(classify_failure(error))
                failing_since = failing_since or time.monotonic()
                is_out = time.monotonic() - failing_since > self._config.patience_seconds
                if failure.stops_run or failure.is_final or is_out:
                    raise StopRun(f"a job cannot be asked after: {failure.reason}") from error
            await wait_or_stop(seconds, self._stop)
            if self._stop.is_set():
                raise Stopped
            seconds = min(2 * seconds, _LONGEST_POLL_SECONDS)

    # ----------------------------------------------------------------------- answers

    async def _resume(self, submission: Submission) -> None:
        """Fetch the answers of a job that an earlier invocation created, or was about to."""
        self._books.ledger.adopt(len(self._journal.attempts_of(submission.name)))
        try:
            batch_id = submission.batch_id or await self._find(submission.name)
        except openai.OpenAIError as error:
            raise self._stop_for(error, "the jobs of an earlier run cannot be asked after") from error
        if batch_id is None:
            self._close(submission.name, Failure("retry", "the job was never created"))
            return
        self._journal.update_submission(submission.name, "open", batch_id)
        await self._harvest(submission.name, batch_id)

    async def _find(self, name: str) -> str | None:
        """What the teacher calls the job `name`, if it has it."""
        page = await self._client.batches.list(limit=100)
        for _ in range(_MAX_LIST_PAGES):
            for batch in page.data:
                if (batch.metadata or {}).get(_METADATA_KEY) == name:
                    return batch.id
            if not page.has_next_page():
                return None
            page = await page.get_next_page()
        return None

    async def _fetch(self, name: str, batch: Batch) -> None:
        """Write down the answers of a job that has ended; those that wait for one get it."""
        if batch.status == "failed":
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            reason = "; ".join(str(error.message) for error in errors[:3]) or "no reason given"
            end = StopRun(f"the teacher refuses the job of the Batch API: {self._journal.clean(reason)}")
            self._close(name, Failure("retry", str(end)), end)
            raise end
        attempts = {
            key: OpenAttempt(*fields, BATCH_DISCOUNT) for key, fields in self._journal.attempts_of(name).items()
        }
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            async with self._client.files.with_streaming_response.content(file_id) as content:
                async for text in content.iter_lines():
                    await self._take_line(text, attempts)
        self._close(name, _NO_ANSWER)

    async def _take_line(self, text: str, attempts: dict[str, OpenAttempt]) -> None:
        try:
            line = json.loads(text or "null")
            attempt = attempts.pop(line["custom_id"])
        except (ValueError, TypeError, LookupError):
            return  # no answer to anything that is still open: an empty line, or one that was read before
        waiting = self._waiting.pop(line["custom_id"], None)
        try:
            answer = await self._read_answer(attempt, line)
        except (InvalidAnswer, Unfinished, Rejected, Refused, StopRun) as error:
            _fail(waiting, error)
            return
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _read_answer(self, attempt: OpenAttempt, line: dict[str, Any]) -> Answer:
        response = line.get("response") or {}
        if response.get("status_code") == 200:
            reply = Reply(json.dumps(response.get("body")).encode(), response.get("request_id"))
            try:
                return await self._books.store_answer(attempt, reply)
            except FailedAnswer as failed:
                raise consequence_of(failed.failure) from failed
        failure = _failure_of_line(line)
        if failure.http_status in (400, 404) and failure.status != "blocked" and "file" in failure.reason.lower():
            self._journal.forget_uploads()
            failure = replace(failure, status="retry", is_final=False, stops_run=False)
        raise consequence_of(self._books.store_failure(attempt, failure))

    def _close(self, name: str, failure: Failure, told: Exception | None = None) -> None:
        """End a job; those that wait for an answer of it are `told`, or else what the failure means for them."""
        for key, fields in self._journal.attempts_of(name).items():
            self._books.store_failure(OpenAttempt(*fields, BATCH_DISCOUNT), failure)
            _fail(self._waiting.pop(key, None), told or consequence_of(failure))
        self._journal.update_submission(name, "done")


def _fail(waiting: "asyncio.Future[Answer] | None", error: Exception) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_exception(error)


def _failure_of_line(line: dict[str, Any]) -> Failure:
    """What a line of a job says that is no answer."""
    response = line.get("response") or {}
    if not response:
        error = line.get("error") or {}
        return Failure("retry", f"{error.get('code') or 'no answer'}: {error.get('message') or 'no reason given'}")
    body = response.get("body")
    return classify_status(
        int(response.get("status_code") or 0), body, json.dumps(body), {}, response.get("request_id")
    )
