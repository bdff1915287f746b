# SPDX-License-Identifier: Apache-2.0
"""The offline teacher as an ASGI app: OpenAI's chat, images, files, batches and models routes over what it can draw.

    AsyncOpenAI(base_url="http://offline-teacher/v1", api_key="offline",
                http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=create_app())))

or, on a port: `python -m sharegpt4o_image.offline_teacher --port 8001`.
"""

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from sharegpt4o_image.offline_teacher.batches import BatchQueue
from sharegpt4o_image.offline_teacher.chat import complete_chat
from sharegpt4o_image.offline_teacher.files import MAX_UPLOAD_BYTES, UPLOAD_PURPOSES, FileStore
from sharegpt4o_image.offline_teacher.images import edit_images, generate_images, read_json_edit
from sharegpt4o_image.offline_teacher.protocol import (
    MAX_BODY_BYTES,
    MODELS,
    SERVER_ERROR,
    ApiError,
    as_refusal,
    check_fields,
    model_card,
    parse_json,
    read_choice,
)
from sharegpt4o_image.offline_teacher.rate_limits import RateLimiter

_IMAGE_FIELDS = ("image", "image[]")


@dataclass(frozen=True)
class _Desk:
    """What one app remembers between requests; it lies in `app.state.desk`."""

    files: FileStore
    batches: BatchQueue
    limiter: RateLimiter | None


def create_app(
    *,
    batch_seconds_per_line: float = 0.0,
    batch_expires_after: int | None = None,
    requests_per_minute: int | None = None,
) -> Starlette:
    """The teacher. It remembers uploaded files and batches as long as the app lives, and nothing else.

    Args:
        batch_seconds_per_line (`float`, *optional*, defaults to 0): how long each line of a batch waits.
        batch_expires_after (`int`, *optional*): lines after which a batch expires.
        requests_per_minute (`int`, *optional*): how many requests a route takes for each model; no limit by default.
    """
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _answering(_chat), methods=["POST"]),
            Route("/v1/images/generations", _answering(_generations), methods=["POST"]),
            Route("/v1/images/edits", _answering(_edits), methods=["POST"]),
            Route("/v1/files", _answering(_upload), methods=["POST"]),
            Route("/v1/files/{file}", _answering(_show_file)),
            Route("/v1/files/{file}", _answering(_delete_file), methods=["DELETE"]),
            Route("/v1/files/{file}/content", _answering(_download)),
            Route("/v1/batches", _answering(_create_batch), methods=["POST"]),
            Route("/v1/batches", _answering(_list_batches)),
            Route("/v1/batches/{batch}", _answering(_show_batch)),
            Route("/v1/batches/{batch}/cancel", _answering(_cancel_batch), methods=["POST"]),
            Route("/v1/models", _answering(_list_models)),
            Route("/v1/models/{model}", _answering(_show_model)),
        ],
        exception_handlers={HTTPException: _refuse_url, Exception: _report_failure},
    )
    app.router.redirect_slashes = False  # a redirect would come without a request id
    files = FileStore()

    def answer(route: str, body: dict[str, Any]) -> dict[str, Any]:
        if route == "/v1/images/edits":
            return edit_images(*read_json_edit(body, files))
        return generate_images(body) if route == "/v1/images/generations" else complete_chat(body)

    app.state.desk = _Desk(
        files=files,
        batches=BatchQueue(files, answer, batch_seconds_per_line, batch_expires_after),
        limiter=RateLimiter(requests_per_minute) if requests_per_minute else None,
    )
    return app


# --------------------------------------------------------------------------- answers


def _finish(
    answer: Mapping[str, Any] | bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    headers = {**(headers or {}), "x-request-id": f"req_{uuid.uuid4().hex}"}
    if isinstance(answer, bytes):
        return Response(answer, status, headers, "application/octet-stream")
    # Escaped, because JSON may carry half a surrogate pair, which UTF-8 cannot.
    return Response(json.dumps(answer), status, headers, "application/json")


def _answering(
    handle: Callable[[Request], Awaitable[dict[str, Any] | bytes]],
) -> Callable[[Request], Awaitable[Response]]:
    """A Starlette endpoint out of a function that returns the body or raises [`ApiError`]."""

    async def endpoint(request: Request) -> Response:
        request.state.headers = {}
        try:
            return _finish(await handle(request), headers=request.state.headers)
        except Exception as error:
            refusal = as_refusal(error)
            if refusal is None:
                raise
            return _finish(refusal.body, refusal.status, {**request.state.headers, **refusal.headers})

    return endpoint


def _admit(request: Request, model: Any) -> None:
    """Count a request against the limit of its route and model, if there is one."""
    limiter = _desk(request).limiter
    if limiter is not None and model in MODELS:
        request.state.headers = limiter.admit(request.url.path, str(model))


async def _refuse_url(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    refusal = ApiError(f"Invalid URL ({request.method} {request.url.path})", status=status)
    return _finish(refusal.body, status)


async def _report_failure(request: Request, error: Exception) -> Response:
    """A fault of the teacher itself."""
    return _finish(SERVER_ERROR.body, SERVER_ERROR.status)


# --------------------------------------------------------------------------- requests


def _desk(request: Request) -> _Desk:
    desk: _Desk = request.app.state.desk
    return desk


def _limited(request: Request, max_bytes: int) -> Request:
    """`request`, whose body is refused before it is in memory where it is too long."""
    length = 0

    async def receive() -> Message:
        nonlocal length
        message = await request.receive()
        length += len(message.get("body", b""))
        if length > max_bytes:
            message_text = f"Request too large: at most {max_bytes:,} bytes are allowed."
            raise ApiError(message_text, code="request_too_large", status=413)
        return message

    return Request(request.scope, receive)


async def _read_json(request: Request) -> dict[str, Any]:
    body = parse_json(await _limited(request, MAX_BODY_BYTES).body())
    if not isinstance(body, dict):
        raise ApiError("The JSON body of your request must be an object.")
    return body


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _read_form(request: Request, max_bytes: int) -> FormData:
    try:
        return await _limited(request, max_bytes).form()
    except (MultiPartException, HTTPException) as error:
        raise ApiError("We could not parse the form of your request.") from error


async def _chat(request: Request) -> dict[str, Any]:
    body = await _read_json(request)
    _admit(request, body.get("model"))
    return complete_chat(body)


async def _generations(request: Request) -> dict[str, Any]:
    body = await _read_json(request)
    _admit(request, body.get("model"))
    return generate_images(body)


async def _edits(request: Request) -> dict[str, Any]:
    if _is_form(request):
        fields, pictures, mask = await _read_edit_form(request)
    else:
        body = await _read_json(request)
        fields, pictures, mask = read_json_edit(body, _desk(request).files)
    _admit(request, fields.get("model"))
    return edit_images(fields, pictures, mask)


async def _read_edit_form(request: Request) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    """The fields, the pictures and the mask of an edit."""
    form = await _read_form(request, MAX_BODY_BYTES)
    try:
        fields: dict[str, Any] = {}
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
        return fields, pictures, mask
    finally:
        await form.close()


async def _upload(request: Request) -> dict[str, Any]:
    if not _is_form(request):
        raise ApiError("Send the file as multipart/form-data.", code="unsupported_content_type")
    form = await _read_form(request, MAX_UPLOAD_BYTES)
    try:
        check_fields(form, {"file", "purpose"})
        purpose = read_choice(form, "purpose", None, UPLOAD_PURPOSES)
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ApiError("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        return _desk(request).files.add(await file.read(), file.filename or "file", purpose).card
    finally:
        await form.close()


async def _show_file(request: Request) -> dict[str, Any]:
    return _desk(request).files.find(request.path_params["file"]).card


async def _download(request: Request) -> bytes:
    return _desk(request).files.find(request.path_params["file"]).data


async def _delete_file(request: Request) -> dict[str, Any]:
    return _desk(request).files.remove(request.path_params["file"])


async def _create_batch(request: Request) -> dict[str, Any]:
    return _desk(request).batches.create(await _read_json(request))


async def _list_batches(request: Request) -> dict[str, Any]:
    return _desk(request).batches.list_newest(request.query_params)


async def _show_batch(request: Request) -> dict[str, Any]:
    return _desk(request).batches.show(request.path_params["batch"])


async def _cancel_batch(request: Request) -> dict[str, Any]:
    return _desk(request).batches.cancel(request.path_params["batch"])


async def _list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [model_card(model) for model in MODELS]}


async def _show_model(request: Request) -> dict[str, Any]:
    return model_card(request.path_params["model"])
