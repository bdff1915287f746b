# SPDX-License-Identifier: Apache-2.0
"""The offline teacher as an ASGI app: OpenAI's chat, images and models routes over the simple scenes.

    AsyncOpenAI(base_url="http://offline-teacher/v1", api_key="offline",
                http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=create_app())))

or, on a port: `python -m sharegpt4o_image.offline_teacher --port 8001`.
"""

import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sharegpt4o_image.offline_teacher.chat import complete_chat
from sharegpt4o_image.offline_teacher.images import edit_images, generate_images
from sharegpt4o_image.offline_teacher.protocol import MAX_BODY_BYTES, MODELS, ApiError, model_card

_IMAGE_FIELDS = ("image", "image[]")


def create_app() -> Starlette:
    """The teacher; it keeps no state between requests."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", _answering(_chat), methods=["POST"]),
            Route("/v1/images/generations", _answering(_generations), methods=["POST"]),
            Route("/v1/images/edits", _answering(_edits), methods=["POST"]),
            Route("/v1/models", _answering(_list_models)),
            Route("/v1/models/{model}", _answering(_show_model)),
        ],
        exception_handlers={HTTPException: _refuse_url, Exception: _report_failure},
    )


# --------------------------------------------------------------------------- answers


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(body, status, headers={"x-request-id": f"req_{uuid.uuid4().hex}"})


def _answering(handle: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """A Starlette endpoint out of a function that returns the body or raises [`ApiError`]."""

    async def endpoint(request: Request) -> Response:
        try:
            return _json(await handle(request))
        except ApiError as error:
            return _json(error.body, error.status)

    return endpoint


async def _refuse_url(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    refusal = ApiError(f"Invalid URL ({request.method} {request.url.path})", status=status)
    return _json(refusal.body, status)


async def _report_failure(request: Request, error: Exception) -> Response:
    """A fault of the teacher itself."""
    failure = ApiError("The server had an error while processing your request.", status=500, kind="server_error")
    return _json(failure.body, failure.status)


# --------------------------------------------------------------------------- requests


async def _read_body(request: Request) -> bytes:
    """The whole body; one that is too long is refused before it is in memory."""
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            message = f"Request too large: at most {MAX_BODY_BYTES:,} bytes are allowed."
            raise ApiError(message, code="request_too_large", status=413)
        chunks.append(chunk)
    return b"".join(chunks)


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await _read_body(request))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ApiError("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise ApiError("The JSON body of your request must be an object.")
    return body


async def _read_form(request: Request) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError("Send the request as multipart/form-data.", code="unsupported_content_type")
    body = await _read_body(request)

    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        return await Request(request.scope, replay).form()
    except (MultiPartException, HTTPException) as error:
        raise ApiError("We could not parse the form of your request.") from error


async def _chat(request: Request) -> dict[str, Any]:
    return complete_chat(await _read_json(request))


async def _generations(request: Request) -> dict[str, Any]:
    return generate_images(await _read_json(request))


async def _edits(request: Request) -> dict[str, Any]:
    form = await _read_form(request)
    try:
        fields: dict[str, str] = {}
        pictures: list[bytes] = []
        mask = None
        for name, value in form.multi_items():
            if isinstance(value, str):
                if name == "mask" or name in _IMAGE_FIELDS:
                    raise ApiError(f"Invalid type for '{name}': expected a file.", param=name, code="invalid_type")
                fields[name] = value
            elif name == "mask":
                mask = await value.read()
            elif name in _IMAGE_FIELDS:
                pictures.append(await value.read())
            else:
                raise ApiError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        return edit_images(fields, pictures, mask)
    finally:
        await form.close()


async def _list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(model) for model in MODELS]}


async def _show_model(request: Request) -> dict[str, Any]:
    return model_card(request.path_params["model"])
