# SPDX-License-Identifier: Apache-2.0
"""The connection to the teacher: `openai.AsyncOpenAI`, to an endpoint or to the offline teacher in this process."""

import json
import os
from urllib.parse import quote

import httpx2
import openai

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.config import SynthesisConfig

KEY_VARIABLE = "OPENAI_API_KEY"

_OFFLINE_URL = "http://offline-teacher/v1"
_NO_KEY = "no-key"  # the client wants one; servers without accounts do not
_CHECK_TIMEOUT_SECONDS = 15.0


def secret_key() -> str | None:
    """The key in the environment, without the line end that a file or a paste may have left on it."""
    return os.environ.get(KEY_VARIABLE, "").strip() or None


def open_client(config: SynthesisConfig) -> openai.AsyncOpenAI:
    """The client of a run; it retries nothing itself, so that every attempt is journalled."""
    if config.base_url is None:
        from sharegpt4o_image.offline_teacher.app import create_app

        transport = httpx2.ASGITransport(app=create_app(), raise_app_exceptions=False)
        return openai.AsyncOpenAI(
            base_url=_OFFLINE_URL,
            api_key=_NO_KEY,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        )
    return openai.AsyncOpenAI(
        base_url=config.base_url,
        api_key=secret_key() or _NO_KEY,
        max_retries=0,
        timeout=config.timeout_seconds,
    )


async def check_endpoint(client: openai.AsyncOpenAI, config: SynthesisConfig) -> None:
    """Ask for the models of the run before anything is written; a teacher that cannot serve it is a [`UserError`].

    An endpoint that has no such route is given the benefit of the doubt.
    """
    for model in dict.fromkeys((config.prompt_model, config.image_model)):
        try:
            options: openai.RequestOptions = {"timeout": _CHECK_TIMEOUT_SECONDS}
            response = await client.get(f"/models/{quote(model, safe='')}", cast_to=httpx2.Response, options=options)
        except openai.APIStatusError as error:
            _refuse(error, model, config)
            continue
        except openai.APIConnectionError as error:
            reason = str(error.__cause__ or error).rstrip(".") or type(error).__name__
            raise UserError(
                f"cannot reach the teacher at {config.base_url} ({reason}); check --base-url and the network"
            ) from error
        try:
            json.loads(response.content)
        except ValueError as error:
            raise UserError(
                f"{config.base_url} does not speak OpenAI's API (its answer is not JSON); "
                "the base URL usually ends in /v1"
            ) from error


def _refuse(error: openai.APIStatusError, model: str, config: SynthesisConfig) -> None:
    if error.status_code in (401, 403):
        raise UserError(
            f"the teacher at {config.base_url} does not accept the key; set {KEY_VARIABLE} to one that may use {model}"
        ) from None
    if error.code == "model_not_found":
        where = config.base_url or "the offline teacher"
        raise UserError(f"{where} has no model {model!r}; name one that it lists under /v1/models") from None
