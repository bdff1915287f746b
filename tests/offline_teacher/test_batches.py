# SPDX-License-Identifier: Apache-2.0
"""Files and batches through the real client: what goes in, what comes out, and every way a batch can end."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Batch
from starlette.applications import Starlette
from teacher_client import ask, opened, png, refusal, scene

from sharegpt4o_image.offline_teacher import batches
from sharegpt4o_image.offline_teacher.app import create_app
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.protocol import CHAT_MODEL, IMAGE_MODEL
from sharegpt4o_image.offline_teacher.renderer import render

GENERATIONS = "/v1/images/generations"


def line(custom_id: str, url: str = GENERATIONS, **body: Any) -> dict[str, Any]:
    if url == GENERATIONS:
        body = {"model": IMAGE_MODEL, "prompt": "a red circle", "size": "64x64", **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def as_file(lines: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, lines)).encode()


async def start(client: openai.AsyncOpenAI, data: bytes, endpoint: Any = GENERATIONS, **params: Any) -> Batch:
    file = await client.files.create(file=("requests.jsonl", data), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **params)


async def finish(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    while batch.status not in ("failed", "completed", "expired", "cancelled"):
        await asyncio.sleep(0.01)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def read_lines(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    async with client.files.with_streaming_response.content(file_id) as response:
        return [json.loads(text) async for text in response.iter_lines()]


def work_off(data: bytes, app: Starlette | None = None, **params: Any) -> tuple[Batch, list[Any], list[Any]]:
    """A finished batch, its output and its errors."""

    async def talk(client: openai.AsyncOpenAI) -> tuple[Batch, list[Any], list[Any]]:
        batch = await finish(client, await start(client, data, **params))
        return batch, await read_lines(client, batch.output_file_id), await read_lines(client, batch.error_file_id)

    return ask(talk, app)


# --------------------------------------------------------------------------- files


def test_file_is_kept_until_it_is_deleted() -> None:
    async def talk(client: openai.AsyncOpenAI) -> None:
        file = await client.files.create(file=("a.jsonl", b"{}\n\xff"), purpose="batch")
        assert (file.filename, file.bytes, file.purpose) == ("a.jsonl", 4, "batch")
        assert file.expires_at == file.created_at + 30 * 24 * 3600
        assert await client.files.retrieve(file.id) == file
        content = await client.files.content(file.id)
        assert content.content == b"{}\n\xff"
        assert content.response.headers["x-request-id"].startswith("req_")
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)

    ask(talk)


def test_each_app_has_files_of_its_own() -> None:
    file = ask(lambda client: client.files.create(file=("a.png", b"x"), purpose="vision"))
    assert refusal(lambda client: client.files.retrieve(file.id)).status_code == 404


def test_bad_uploads() -> None:
    purpose: Any = "fine-tune"
    assert refusal(lambda client: client.files.create(file=b"x", purpose=purpose)).param == "purpose"
    assert refusal(lambda c: c.post("/files", cast_to=httpx2.Response, body={"purpose": "batch"})).status_code == 400
    options: Any = {"headers": {"Content-Type": "multipart/form-data"}}
    files = [("picture", ("a.png", b"x"))]
    error = refusal(lambda c: c.post("/files", cast_to=httpx2.Response, files=files, options=options))
    assert error.param == "picture"


def test_file_that_is_too_large_is_a_413(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharegpt4o_image.offline_teacher.app.MAX_UPLOAD_BYTES", 1000)
    assert refusal(lambda client: client.files.create(file=b"x" * 1001, purpose="batch")).status_code == 413


# --------------------------------------------------------------------------- batches that are completed


def test_batch_answers_every_line() -> None:
    lines = [line(f"request {i}", prompt=f"{color} circle") for i, color in enumerate(["red", "blue", "green"] * 7)]
    lines[4]["body"]["size"] = "7x7"
    batch, output, errors = work_off(as_file(lines) + b"\n\n", metadata={"run": "one"})
    assert batch.status == "completed"
    assert batch.metadata == {"run": "one"}
    assert batch.model == IMAGE_MODEL
    assert batch.expires_at == batch.created_at + 24 * 3600
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 21, "completed": 20, "failed": 1}
    assert batch.usage is not None
    assert batch.usage.output_tokens == 20 * 16  # 64 x 64 pixels, a token for 16 x 16
    assert {answer["custom_id"] for answer in output} == {f"request {i}" for i in range(21) if i != 4}
    assert [answer["custom_id"] for answer in output] != [f"request {i}" for i in range(21) if i != 4]
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in output)
    assert all(answer["response"]["request_id"].startswith("req_") for answer in output)
    [error] = errors
    assert (error["custom_id"], error["response"]["status_code"]) == ("request 4", 400)
    assert error["response"]["body"]["error"]["param"] == "size"


def test_answer_of_a_batch_is_that_of_the_route() -> None:
    _, [answer], _ = work_off(as_file([line("a", prompt="a pink heart")]))
    direct = ask(lambda client: client.images.generate(model=IMAGE_MODEL, prompt="a pink heart", size="64x64"))
    assert direct.data is not None
    assert answer["response"]["body"]["data"][0]["b64_json"] == direct.data[0].b64_json


def test_batch_of_chats() -> None:
    endpoint = "/v1/chat/completions"
    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "a red circle"}]}
    batch, [answer], _ = work_off(as_file([line("a", endpoint, **body)]), endpoint=endpoint)
    assert "red circle" in answer["response"]["body"]["choices"][0]["message"]["content"]
    assert batch.usage is not None
    assert batch.usage.total_tokens == answer["response"]["body"]["usage"]["total_tokens"]


def test_batch_of_edits_takes_pictures_from_files() -> None:
    async def talk(client: openai.AsyncOpenAI) -> list[dict[str, Any]]:
        source = png(render(scene(("red", "circle", 0.25, 0.5)), 96))
        file = await client.files.create(file=("a.png", source), purpose="vision")
        body = {"model": IMAGE_MODEL, "prompt": "make the red circle blue", "images": [{"file_id": file.id}]}
        lost = {**body, "images": [{"file_id": "file-lost"}]}
        data = as_file([line("a", "/v1/images/edits", **body), line("b", "/v1/images/edits", **lost)])
        batch = await finish(client, await start(client, data, "/v1/images/edits"))
        [error] = await read_lines(client, batch.error_file_id)
        assert error["response"]["status_code"] == 404
        return await read_lines(client, batch.output_file_id)

    [answer] = ask(talk)
    image = opened(answer["response"]["body"]["data"][0]["b64_json"])
    assert image.size == (96, 96)
    assert [item.color for item in perceive(image).scene.objects] == ["blue"]


def test_fault_of_the_teacher_does_not_end_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: dict[str, Any]) -> Any:
        return 1 / 0 if body["prompt"] == "fail" else {"usage": {"input_tokens": 1, "output_tokens": 2}}

    monkeypatch.setattr("sharegpt4o_image.offline_teacher.app.generate_images", fail)
    batch, output, errors = work_off(as_file([line("a", prompt="fail"), line("b")]))
    assert batch.status == "completed"
    assert [answer["custom_id"] for answer in output] == ["b"]
    assert errors[0]["response"]["status_code"] == 500


def test_statuses_are_passed_in_order() -> None:
    async def talk(client: openai.AsyncOpenAI) -> list[Batch]:
        seen = [await start(client, as_file([line("a"), line("b")]))]
        while seen[-1].status != "completed":
            await asyncio.sleep(0.01)
            seen.append(await client.batches.retrieve(seen[0].id))
        return seen

    seen = ask(talk, create_app(batch_seconds_per_line=0.1))
    statuses = list(dict.fromkeys(batch.status for batch in seen))
    assert statuses[:2] == ["validating", "in_progress"]
    assert statuses[2:] in (["completed"], ["finalizing", "completed"])
    counts = [batch.request_counts.completed for batch in seen if batch.request_counts]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}
    assert seen[-1].in_progress_at is not None
    assert seen[-1].finalizing_at is not None
    assert seen[0].output_file_id is None


# --------------------------------------------------------------------------- batches that are not


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        (b"\n", [("empty_file", None)]),
        (as_file([line("a")]) + b"\n{\n[]", [("invalid_json_line", 2), ("invalid_request", 3)]),
        (as_file([line("a"), line("b"), line("a")]), [("duplicate_custom_id", 3)]),
        (as_file([line("a", "/v1/chat/completions")]), [("invalid_url", 1)]),
        (as_file([{**line("a"), "method": "GET"}]), [("invalid_method", 1)]),
        (as_file([{**line("a"), "custom_id": 3}]), [("missing_required_parameter", 1)]),
        (as_file([{**line("a"), "body": []}]), [("invalid_request", 1)]),
    ],
)
def test_file_with_a_fault_fails_the_batch(data: bytes, faults: list[tuple[str, int | None]]) -> None:
    batch, output, errors = work_off(data)
    assert (batch.status, output, errors) == ("failed", [], [])
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(fault.code, fault.line) for fault in batch.errors.data or []] == faults


@pytest.mark.parametrize(
    ("limit", "code"), [("MAX_LINES", "too_many_requests"), ("MAX_BATCH_BYTES", "file_too_large")]
)
def test_file_that_is_too_long_fails_the_batch(monkeypatch: pytest.MonkeyPatch, limit: str, code: str) -> None:
    assert (batches.MAX_LINES, batches.MAX_BATCH_BYTES) == (50_000, 200_000_000)
    monkeypatch.setattr(batches, limit, 1)
    batch, _, _ = work_off(as_file([line("a"), line("b")]))
    assert batch.errors is not None
    assert [fault.code for fault in batch.errors.data or []] == [code]


def test_expired_batch_returns_what_it_finished() -> None:
    lines = [line(str(i)) for i in range(5)]
    batch, output, errors = work_off(as_file(lines), create_app(batch_expires_after=2))
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert {answer["custom_id"] for answer in output} == {"0", "1"}
    assert {error["custom_id"] for error in errors} == {"2", "3", "4"}
    assert all(error["response"] is None and error["error"]["code"] == "batch_expired" for error in errors)


def test_cancelled_batch_returns_what_it_finished() -> None:
    async def talk(client: openai.AsyncOpenAI) -> None:
        batch = await start(client, as_file([line(str(i)) for i in range(50)]))
        while batch.request_counts is None or batch.request_counts.completed < 1:
            await asyncio.sleep(0.01)
            batch = await client.batches.retrieve(batch.id)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await finish(client, batch)
        assert batch.status == "cancelled"
        output, errors = (
            await read_lines(client, batch.output_file_id),
            await read_lines(client, batch.error_file_id),
        )
        assert {line["custom_id"] for line in output + errors} == {str(i) for i in range(50)}
        assert output
        assert {error["error"]["code"] for error in errors} == {"batch_cancelled"}
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)

    ask(talk, create_app(batch_seconds_per_line=0.02))


def test_list_is_newest_first_and_in_pages() -> None:
    async def talk(client: openai.AsyncOpenAI) -> None:
        made = [(await start(client, as_file([line("a")]))).id for _ in range(3)]
        page = await client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == [made[2], made[1]]
        assert page.has_more
        assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
        assert not (await client.batches.list(after=made[0])).data

    ask(talk)


@pytest.mark.parametrize(
    ("params", "status", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"completion_window": None}, 400, "completion_window"),
        ({"input_file_id": "file-lost"}, 404, "input_file_id"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata"),
        ({"metadata": [1]}, 400, "metadata"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_bad_batches(params: dict[str, Any], status: int, param: str) -> None:
    async def talk(client: openai.AsyncOpenAI) -> Any:
        file = await client.files.create(file=b"{}", purpose="batch")
        body = {"input_file_id": file.id, "endpoint": GENERATIONS, "completion_window": "24h", **params}
        return await client.post("/batches", cast_to=httpx2.Response, body=body)

    error = refusal(talk)
    assert (error.status_code, error.param) == (status, param)


def test_input_must_be_a_batch_file_and_ids_must_exist() -> None:
    async def talk(client: openai.AsyncOpenAI) -> Any:
        file = await client.files.create(file=b"{}", purpose="vision")
        return await client.batches.create(input_file_id=file.id, endpoint=GENERATIONS, completion_window="24h")

    assert refusal(talk).code == "invalid_purpose"
    questions: list[Callable[[openai.AsyncOpenAI], Awaitable[Any]]] = [
        lambda client: client.batches.retrieve("batch_lost"),
        lambda client: client.batches.cancel("batch_lost"),
        lambda client: client.batches.list(after="batch_lost"),
    ]
    assert [refusal(question).status_code for question in questions] == [404, 404, 404]
    assert refusal(lambda client: client.batches.list(limit=101)).param == "limit"
