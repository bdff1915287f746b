# SPDX-License-Identifier: Apache-2.0
"""The offline teacher on a loopback port, which counts what it served and can be told to misbehave."""

import asyncio
import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from sharegpt4o_image.offline_teacher.app import create_app

# Given the number of the request (1, 2, ...) and its path, an answer instead of the teacher's own.
Fault = Callable[[int, str], Response | None]


class LoopbackTeacher:
    """A context manager that serves the teacher from a thread.

    `served` counts, for each distinct request, how often it was answered with a picture or a text: what a real
    teacher would have been paid for. `spoil` may damage an answer that was paid for on its way to the client.
    `tokens` sums up the token counts of all answers, as a real teacher's bill does.
    """

    def __init__(
        self,
        fault: Fault | None = None,
        delay_seconds: float = 0.0,
        spoil: "Spoil | None" = None,
        **teacher: Any,
    ):
        self.fault = fault
        self.spoil = spoil
        self.delay_seconds = delay_seconds
        self.num_requests = 0
        self.num_batches = 0
        self.hides_first_batch = False
        self.served: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.keys_seen: set[str] = set()
        self._teacher = create_app(**teacher)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = uvicorn.Server(
            uvicorn.Config(self._app, interface="asgi3", log_level="critical", lifespan="off")
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> "LoopbackTeacher":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.keys_seen.add(request.headers.get("authorization", ""))

        async def replay() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        path = request.url.path
        is_paid = request.method == "POST" and path.endswith(("/completions", "/generations", "/edits"))
        if request.method == "POST":
            self.num_requests += 1
            answer = self.fault(self.num_requests, path) if self.fault else None
            if answer is not None:
                await answer(scope, receive, send)
                return
        self.num_batches += request.method == "POST" and path.endswith("/batches")
        if self.hides_first_batch and request.method == "POST" and path.endswith("/batches"):
            self.hides_first_batch = False
            await self._teacher(scope, replay, _Collected().send)
            await JSONResponse({"error": {"message": "gateway timeout"}}, 504)(scope, receive, send)
            return
        if not is_paid:
            await self._teacher(scope, replay, send)
            return
        collected = _Collected()
        await self._teacher(scope, replay, collected.send)
        await asyncio.sleep(self.delay_seconds)
        name = _fingerprint(request, body)
        if collected.status == 200:
            self.served[name] += 1
            self._count_tokens(json.loads(collected.body))
        if collected.status == 200 and self.spoil is not None and self.spoil.damages(path):
            await self.spoil.deliver(collected, send)
            return
        if collected.status == 200:
            self.delivered[name] += 1
        for message in collected.messages:
            await send(message)

    def _count_tokens(self, answer: dict[str, Any]) -> None:
        usage = answer["usage"]
        details = usage.get("input_tokens_details", {})
        self.tokens["image_input"] += details.get("image_tokens", 0)
        self.tokens["text_input"] += (
            usage["prompt_tokens"] if "prompt_tokens" in usage else details.get("text_tokens", 0)
        )
        self.tokens["output"] += usage.get("completion_tokens", 0) + usage.get("output_tokens", 0)


@dataclass
class _Collected:
    """An answer of the teacher before it is sent on."""

    messages: list[Message] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


class Spoil:
    """Damages a part of the answers that were paid for; `hidden` and `spoiled` count them.

    Hidden answers never come: the connection breaks in the middle of the body, or nothing is sent for longer than the
    client waits. Spoiled ones come, and are of no use: truncated base64, or text that is no JSON.
    """

    def __init__(self, seed: int, timeout_seconds: float, share: float = 1.0):
        self._dice = random.Random(seed)
        self._timeout_seconds = timeout_seconds
        self._share = share
        self._kind = ""
        self.hidden: Counter[str] = Counter()
        self.spoiled: Counter[str] = Counter()

    def damages(self, path: str) -> bool:
        kinds = {"disconnect": 0.03, "timeout": 0.02, "truncated": 0.02, "not JSON": 0.02}
        draw = self._dice.random() / self._share
        self._kind = ""
        for kind, share in kinds.items():
            if 0 <= draw < share:
                self._kind = kind
            draw -= share
        return bool(self._kind)

    async def deliver(self, collected: _Collected, send: Send) -> None:
        kind, body = self._kind, collected.body
        start = collected.messages[0]
        if kind in ("disconnect", "timeout"):
            self.hidden[kind] += 1
            if kind == "timeout":
                await asyncio.sleep(self._timeout_seconds * 1.5)
            await send(start)
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            raise ConnectionAbortedError  # uvicorn closes the connection in the middle of the body
        self.spoiled[kind] += 1
        damaged = body[: len(body) // 2]
        if kind == "truncated" and b'"b64_json"' in body:
            answer = json.loads(body)
            answer["data"][0]["b64_json"] = answer["data"][0]["b64_json"][: -len(body) // 3]
            damaged = json.dumps(answer).encode()
        await Response(damaged, media_type="application/json")({"type": "http"}, _nothing, send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def storm_refusals(seed: int, share: float = 1.0, quota_at: int | None = None) -> Fault:
    """10 % 429 with and without Retry-After, 5 % 500, 3 % moderation on pictures; once `insufficient_quota`."""
    dice = random.Random(seed)
    slow_down = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}

    def fault(number: int, path: str) -> Response | None:
        draw = dice.random() / share
        if number == quota_at:
            return JSONResponse({"error": {"message": "no money", "code": "insufficient_quota"}}, 429)
        if draw < 0.05:
            return JSONResponse(slow_down, 429, {"retry-after-ms": "40"})
        if draw < 0.10:
            return JSONResponse(slow_down, 429)
        if draw < 0.15:
            return JSONResponse({"error": {"message": "oops"}}, 500)
        if draw < 0.18 and not path.endswith("/completions"):
            return JSONResponse({"error": {"message": "not allowed", "code": "moderation_blocked"}}, 400)
        return None

    return fault


def _fingerprint(request: Request, body: bytes) -> str:
    """The same for two equal requests, whatever boundary their forms have."""
    _, _, boundary = request.headers.get("content-type", "").partition("boundary=")
    content = body.replace(boundary.encode(), b"") if boundary else body
    return hashlib.sha256(request.url.path.encode() + content).hexdigest()
