# SPDX-License-Identifier: Apache-2.0
"""A judge of edits on a loopback port: answers as it is told, and counts what it would have been paid for."""

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sharegpt4o_image.evaluation.imgedit_parsers import LABELS

MODEL = "loopback-judge"
_LONG_SECONDS = 2.0  # longer than the client of a test waits
USAGE = {"prompt_tokens": 2_000, "completion_tokens": 50, "total_tokens": 2_050}


@dataclass(frozen=True)
class Asked:
    """One question: its number, how often the same one was asked before, the text and the picture URLs."""

    number: int
    times_before: int
    text: str
    pictures: tuple[str, ...]
    body: dict[str, Any]

    @property
    def edit_type(self) -> str:
        """That of the template, see `template_of`."""
        return self.text.split("|")[1]


Says = Callable[[Asked], Response | str]


def template_of(edit_type: str) -> str:
    """A template of the tests' own."""
    return f"Rate this edit. |{edit_type}| editing instruction is : <edit_prompt>."


def three_scores(edit_type: str, *scores: int) -> str:
    """An answer in the form that is asked for."""
    lines = [f"{label}: {score}" for label, score in zip(LABELS[edit_type], scores, strict=True)]
    return "\n".join(["Brief reasoning: as told.", *lines])


def chat(content: str | None, **message: Any) -> JSONResponse:
    """An answer as the API sends it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    return JSONResponse(
        {"model": f"{MODEL}-2026", "system_fingerprint": "fp_test", "choices": [choice], "usage": USAGE}
    )


class LoopbackJudge:
    """A context manager; `paid` counts, for each distinct question, how often it was answered with a text."""

    def __init__(
        self,
        says: Says,
        delay_seconds: float = 0.0,
        key: str | None = None,
        hangs: Callable[[Asked], bool] = lambda asked: False,
        keeps_pictures: bool = True,
    ):
        self.says = says
        self.hangs = hangs
        self.keeps_pictures = keeps_pictures
        self.delay_seconds = delay_seconds
        self.key = key
        self.asked: list[Asked] = []
        self.paid: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        config = uvicorn.Config(self._app, interface="asgi3", log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> "LoopbackJudge":
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
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            await JSONResponse({"error": {"message": "wrong key"}}, 401)(scope, receive, send)
            return
        if request.method == "GET":
            await JSONResponse({"id": MODEL, "object": "model"})(scope, receive, send)
            return
        await asyncio.sleep(self.delay_seconds)
        name = hashlib.sha256(body).hexdigest()
        asked = self._read(name, json.loads(body))
        if self.hangs(asked):
            await asyncio.sleep(_LONG_SECONDS)
        said = self.says(asked)
        answer = chat(said) if isinstance(said, str) else said
        self.paid[name] += answer.status_code == 200
        await answer(scope, receive, send)

    def _read(self, name: str, body: dict[str, Any]) -> Asked:
        [message] = body["messages"]
        text, *pictures = message["content"]
        urls = tuple(part["image_url"]["url"] for part in pictures)
        asked = Asked(len(self.asked) + 1, self._times[name], text["text"], urls, body)
        if not self.keeps_pictures:
            asked = replace(asked, pictures=(), body={})
        self._times[name] += 1
        self.asked.append(asked)
        return asked
