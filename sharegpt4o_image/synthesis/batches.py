# SPDX-License-Identifier: Apache-2.0
"""The Batch API as a way to the image teacher: many requests in one file, answered within a day at half the price.

A job is written down before it is created and known to the teacher by its name, so that a run that was killed at any
moment finds it again: its answers are fetched before anything else is ordered.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

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

_NO_ANSWER = Failure("retry", "the job of the Batch API ended without an answer to this request")


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
            batch_id = await self._create(name, route, orders)
            await self._fetch(name, await self._ended(batch_id))
        except openai.OpenAIError as error:
            self._give_up(orders, StopRun(classify_failure(error).reason))
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._give_up(orders, error)

    def _give_up(self, orders: list[_Order], error: Exception) -> None:
        for order in orders:
            _fail(order.answer, error)

    async def _create(self, name: str, route: Route, orders: list[_Order]) -> str:
        try:
            file_ids = await self._upload_pictures(orders)
            lines = "\n".join(batch_line(order.request, file_ids) for order in orders).encode()
            uploaded = await self._client.files.create(file=(f"{name}.jsonl", lines), purpose="batch")
        except openai.OpenAIError as error:
            failure = classify_failure(error)
            for order in orders:
                self._books.ledger.settle(order.reserved_usd, 0.0)
            raise consequence_of(failure) from error
        self._journal.begin_submission(name, route)
        for order in orders:
            self._books.begin(order.request, order.reserved_usd, BATCH_DISCOUNT, name)
        try:
            batch = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=f"/v1{route}",  # type: ignore[arg-type]
                completion_window="24h",
                metadata={_METADATA_KEY: name},
            )
        except openai.APIStatusError as error:
            failure = classify_failure(error)
            self._close(name, failure)
            raise consequence_of(failure) from error
        except openai.APIConnectionError as error:
            raise StopRun(f"it is not known whether a job was created: {error.__cause__ or error}") from error
        self._journal.update_submission(name, "open", batch.id)
        return batch.id

    async def _upload_pictures(self, orders: list[_Order]) -> dict[str, str]:
        """sha256 -> file id of every source; each is uploaded once in the life of a run."""
        file_ids: dict[str, str] = {}
        for picture in (picture for order in orders for picture in order.request.pictures):
            if picture.sha256 in file_ids:
                continue
            file_id = self._journal.find_upload(picture.sha256)
            if file_id is None:
                data = self._journal.blobs.read(picture.sha256)
                content = (f"{picture.sha256}.{picture.format}", data, f"image/{picture.format}")
                file_id = (await self._client.files.create(file=content, purpose="vision")).id
                self._journal.write_upload(picture.sha256, file_id)
            file_ids[picture.sha256] = file_id
        return file_ids

    async def _ended(self, batch_id: str) -> Batch:
        """The job, once it is at its end."""
        seconds = _FIRST_POLL_SECONDS
        while True:
            batch = await self._patiently(self._client.batches.retrieve(batch_id))
            if batch is not None and batch.status in _ENDED:
                return batch
            await wait_or_stop(seconds, self._stop)
            if self._stop.is_set():
                raise Stopped
            seconds = min(2 * seconds, _LONGEST_POLL_SECONDS)

    async def _patiently(self, answer: Awaitable[Batch]) -> Batch | None:
        """An answer, or `None` where asking later may help."""
        try:
            return await answer
        except openai.OpenAIError as error:
            failure = classify_failure(error)
            if failure.stops_run or failure.is_final:
                raise StopRun(failure.reason) from error
            return None

    # ----------------------------------------------------------------------- answers

    async def _resume(self, submission: Submission) -> None:
        """Fetch the answers of a job that an earlier invocation created, or was about to."""
        self._books.ledger.adopt(len(self._journal.attempts_of(submission.name)))
        try:
            batch_id = submission.batch_id or await self._find(submission.name)
            if batch_id is None:
                self._close(submission.name, Failure("retry", "the job was never created"))
                return
            self._journal.update_submission(submission.name, "open", batch_id)
            await self._fetch(submission.name, await self._ended(batch_id))
        except openai.OpenAIError as error:
            raise StopRun(classify_failure(error).reason) from error

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
            self._close(name, Failure("retry", f"the teacher refuses the job: {reason}"))
            raise StopRun(f"the teacher refuses the job of the Batch API: {self._journal.clean(reason)}")
        attempts = {
            key: OpenAttempt(*fields, BATCH_DISCOUNT) for key, fields in self._journal.attempts_of(name).items()
        }
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            async with self._client.files.with_streaming_response.content(file_id) as content:
                async for text in content.iter_lines():
                    await self._take_line(text, attempts)
        self._close(name, _NO_ANSWER)

    async def _take_line(self, text: str, attempts: dict[str, OpenAttempt]) -> None:
        line = json.loads(text) if text.strip() else {}
        attempt = attempts.pop(str(line.get("custom_id")), None)
        if attempt is None:
            return
        waiting = self._waiting.pop(line["custom_id"], None)
        response = line.get("response") or {}
        try:
            if response.get("status_code") == 200:
                reply = Reply(json.dumps(response.get("body")).encode(), response.get("request_id"))
                answer = await self._books.store_answer(attempt, reply)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
                return
            raise consequence_of(self._books.store_failure(attempt, _failure_of(line)))
        except (InvalidAnswer, Unfinished, Rejected, Refused, StopRun) as error:
            _fail(waiting, error)

    def _close(self, name: str, failure: Failure) -> None:
        """End a job; requests of it without an answer may be sent again."""
        for key, fields in self._journal.attempts_of(name).items():
            self._books.store_failure(OpenAttempt(*fields, BATCH_DISCOUNT), failure)
            _fail(self._waiting.pop(key, None), consequence_of(failure))
        self._journal.update_submission(name, "done", None)


def _fail(waiting: "asyncio.Future[Answer] | None", error: Exception) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_exception(error)


def _failure_of(line: dict[str, Any]) -> Failure:
    """What a line of a job says that is no answer."""
    response = line.get("response") or {}
    if not response:
        error = line.get("error") or {}
        return Failure("retry", f"{error.get('code') or 'no answer'}: {error.get('message') or 'no reason given'}")
    body = response.get("body")
    return classify_status(
        int(response.get("status_code") or 0), body, json.dumps(body), {}, response.get("request_id")
    )
