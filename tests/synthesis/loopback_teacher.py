# SPDX-License-Identifier: Apache-2.0
"""The offline teacher on a loopback port, which counts what it served and can be told to misbehave."""

import asyncio
import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sharegpt4o_image.offline_teacher.app import create_app

# Given the number of the request (1, 2, ...) and its path, an answer instead of the teacher's own.
Fault = Callable[[int, str], Response | None]


class LoopbackTeacher:
    """A context manager that serves the teacher from a thread.

    `served` counts, for each distinct request, how often it was answered with a picture or a text: what a real
    teacher would have been paid for.
    """

    def __init__(self, fault: Fault | None = None, delay_seconds: float = 0.0):
        self.fault = fault
        self.delay_seconds = delay_seconds
        self.num_requests = 0
        self.served: Counter[str] = Counter()
        self.keys_seen: set[str] = set()
        self._teacher = create_app()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(self._app, interface="asgi3", log_level="error", lifespan="off"))
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
        if request.method == "POST":
            self.num_requests += 1
            answer = self.fault(self.num_requests, request.url.path) if self.fault else None
            if answer is not None:
                await answer(scope, receive, send)
                return
            self.served[_fingerprint(request, body)] += 1
            await asyncio.sleep(self.delay_seconds)

        async def replay() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._teacher(scope, replay, send)


def _fingerprint(request: Request, body: bytes) -> str:
    """The same for two equal requests, whatever boundary their forms have."""
    _, _, boundary = request.headers.get("content-type", "").partition("boundary=")
    content = body.replace(boundary.encode(), b"") if boundary else body
    return hashlib.sha256(request.url.path.encode() + content).hexdigest()
