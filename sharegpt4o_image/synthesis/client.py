# SPDX-License-Identifier: Apache-2.0
"""The connection to the teachers: `openai.AsyncOpenAI`, to an endpoint or to the offline teacher in this process."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import httpx2
import openai

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.answers import MAX_ANSWER_BYTES, AnswerTooLong
from sharegpt4o_image.synthesis.config import SynthesisConfig

KEY_VARIABLE = "OPENAI_API_KEY"
PROMPT_KEY_VARIABLE = "PROMPT_API_KEY"  # of the text teacher, where it has an endpoint of its own

_OFFLINE_URL = "http://offline-teacher/v1"
_NO_KEY = "no-key"  # the client wants one; servers without accounts do not
_CHECK_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Clients:
    """The connections of a run: to the text teacher and to the image teacher, which may be the same."""

    prompts: openai.AsyncOpenAI
    images: openai.AsyncOpenAI


def secret_key(variable: str = KEY_VARIABLE) -> str | None:
    """The key in the environment, without the line end that a file or a paste may have left on it."""
    return os.environ.get(variable, "").strip() or None


def can_be_sent(key: str) -> bool:
    """Whether a key fits into a header; the client's complaint about one that does not would repeat it."""
    return key.isascii() and key.isprintable() and " " not in key


def secrets() -> tuple[str, ...]:
    """The keys that must not be written down."""
    return tuple(key for key in map(secret_key, (KEY_VARIABLE, PROMPT_KEY_VARIABLE)) if key)


@asynccontextmanager
async def open_clients(config: SynthesisConfig) -> AsyncIterator[Clients]:
    """The clients of a run; they retry nothing themselves, so that every attempt is journalled."""
    async with _open_client(config, config.base_url, KEY_VARIABLE) as images:
        if config.prompt_base_url is None:
            yield Clients(images, images)
            return
        async with _open_client(config, config.prompt_base_url, PROMPT_KEY_VARIABLE) as prompts:
            yield Clients(prompts, images)


def _open_client(config: SynthesisConfig, base_url: str | None, key_variable: str) -> openai.AsyncOpenAI:
    if base_url is None:
        from sharegpt4o_image.offline_teacher.app import create_app

        transport = httpx2.ASGITransport(app=create_app(), raise_app_exceptions=False)
        return openai.AsyncOpenAI(
            base_url=_OFFLINE_URL,
            api_key=_NO_KEY,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        )
    key = secret_key(key_variable) or _NO_KEY
    if not can_be_sent(key):
        raise UserError(f"{key_variable} holds spaces or characters that no key has; set it again")
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        max_retries=0,
        timeout=config.timeout_seconds,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_limit_length]}),
    )


class _LimitedStream(httpx2.AsyncByteStream):
    """The bytes of an answer, cut off with an error where there are too many."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for chunk in self._stream:
            length += len(chunk)
            if length > MAX_ANSWER_BYTES:
                raise AnswerTooLong(f"the answer is longer than {MAX_ANSWER_BYTES // 2**20} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _limit_length(response: httpx2.Response) -> None:
    if response.request.url.path.endswith("/content"):  # of a file: read line by line, however long it is
        return
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _LimitedStream(response.stream)


# --------------------------------------------------------------------------- before a run


async def check_endpoints(clients: Clients, config: SynthesisConfig) -> None:
    """Ask for the models of the run before anything is written; a teacher that cannot serve it is a [`UserError`].

    An endpoint that has no such route is given the benefit of the doubt.
    """
    prompt_url, prompt_variable = _text_endpoint(config)
    asked = {
        config.prompt_model: (clients.prompts, prompt_url, prompt_variable),
        config.image_model: (clients.images, config.base_url, KEY_VARIABLE),
    }
    if config.gates.judge is not None:
        asked.setdefault(config.gates.judge.model, (clients.prompts, prompt_url, prompt_variable))
    for model, (client, url, variable) in asked.items():
        await _check_model(client, model, url, variable)


async def check_image_endpoint(clients: Clients, config: SynthesisConfig) -> None:
    """The same for what asks the image teacher alone."""
    await _check_model(clients.images, config.image_model, config.base_url, KEY_VARIABLE)


async def check_text_endpoint(clients: Clients, config: SynthesisConfig) -> None:
    """The same for what asks the text teacher alone."""
    await _check_model(clients.prompts, config.prompt_model, *_text_endpoint(config))


def _text_endpoint(config: SynthesisConfig) -> tuple[str | None, str]:
    """The address of the text teacher, and the variable that holds its key."""
    if config.prompt_base_url is not None:
        return config.prompt_base_url, PROMPT_KEY_VARIABLE
    return config.base_url, KEY_VARIABLE


async def _check_model(client: openai.AsyncOpenAI, model: str, url: str | None, key_variable: str) -> None:
    options: openai.RequestOptions = {"timeout": _CHECK_TIMEOUT_SECONDS}
    try:
        response = await client.get(f"/models/{quote(model, safe='')}", cast_to=httpx2.Response, options=options)
    except openai.APIStatusError as error:
        _refuse(error, model, url, key_variable)
        return
    except openai.APIConnectionError as error:
        reason = str(error.__cause__ or error).rstrip(".") or type(error).__name__
        raise UserError(f"cannot reach the teacher at {url} ({reason}); check its address and the network") from error
    try:
        json.loads(response.content)
    except ValueError as error:
        raise UserError(
            f"{url} does not speak OpenAI's API (its answer is not JSON); the base URL usually ends in /v1"
        ) from error


def _refuse(error: openai.APIStatusError, model: str, url: str | None, key_variable: str) -> None:
    if error.status_code in (401, 403):
        raise UserError(
            f"the teacher at {url} does not accept the key; set {key_variable} to one that may use {model}"
        ) from None
    if error.code == "model_not_found":
        where = url or "the offline teacher"
        raise UserError(f"{where} has no model {model!r}; name one that it lists under /v1/models") from None
