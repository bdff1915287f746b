# SPDX-License-Identifier: Apache-2.0
"""Questions to the offline teacher through the client that also reaches real teachers."""

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
import openai
import pytest
from PIL import Image
from starlette.types import ASGIApp

from sharegpt4o_image.offline_teacher.app import create_app
from sharegpt4o_image.offline_teacher.protocol import CHAT_MODEL, IMAGE_MODEL
from sharegpt4o_image.offline_teacher.scene import Scene, SceneObject

Result = TypeVar("Result")


def ask(question: Callable[[openai.AsyncOpenAI], Awaitable[Result]], app: ASGIApp | None = None) -> Result:
    """The answer to one question, by a client of its own."""

    async def talk() -> Result:
        transport = httpx2.ASGITransport(app=app or create_app(), raise_app_exceptions=False)
        http_client = httpx2.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://teacher/v1", api_key="none", max_retries=0, http_client=http_client
        ) as client:
            return await question(client)

    return asyncio.run(talk())


def refusal(question: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> openai.APIStatusError:
    """The error that a question is answered with."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(question)
    assert caught.value.request_id is not None
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
    return caught.value


def generate(prompt: str, **params: Any) -> list[Image.Image]:
    response = ask(lambda client: client.images.generate(model=IMAGE_MODEL, prompt=prompt, **params))
    return [opened(image.b64_json) for image in response.data or []]


def edit(sources: Any, prompt: str, **params: Any) -> Image.Image:
    response = ask(lambda client: client.images.edit(model=IMAGE_MODEL, image=sources, prompt=prompt, **params))
    assert response.data is not None
    return opened(response.data[0].b64_json)


def opened(encoded: str | None) -> Image.Image:
    assert encoded is not None
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    image.load()
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def scene(*objects: tuple[str, str, float, float], background: str = "gray") -> Scene:
    return Scene(background, tuple(SceneObject(shape, color, "small", x, y) for color, shape, x, y in objects))


def chat(content: Any, **params: Any) -> str:
    response = ask(
        lambda client: client.chat.completions.create(
            model=CHAT_MODEL, messages=[{"role": "user", "content": content}], **params
        )
    )
    assert response.choices[0].message.content is not None
    return response.choices[0].message.content


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}


def data_url(image: Image.Image) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
