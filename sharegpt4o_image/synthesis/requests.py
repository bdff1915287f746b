# SPDX-License-Identifier: Apache-2.0
"""One question to a teacher, and the forms in which it travels: a request of its own, or a line of a batch."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import httpx2
import openai

from sharegpt4o_image.schema import SourceImage
from sharegpt4o_image.synthesis.answers import Reply
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.journal import Answer, Stage

Route = Literal["/chat/completions", "/images/generations", "/images/edits"]
Product = TypeVar("Product")

CHAT: Route = "/chat/completions"
GENERATIONS: Route = "/images/generations"
EDITS: Route = "/images/edits"


@dataclass(frozen=True)
class TeacherRequest(Generic[Product]):
    """One question to a teacher.

    Args:
        key (`str`): hash of everything that decides the answer; see `schema.content_id`.
        body (`dict`): the JSON of the request without its pictures.
        pictures (`tuple`): what is shown or edited, in order.
        parse (callable): makes the product of an answer, or raises `InvalidAnswer` or `BlockedAnswer`.
    """

    key: str
    stage: Stage
    model: str
    route: Route
    body: Mapping[str, Any]
    parse: Callable[[Answer], Product]
    pictures: tuple[SourceImage, ...] = ()

    @property
    def written(self) -> dict[str, Any]:
        """The request as the journal keeps it: a picture is named by its sha256."""
        return {"route": self.route, "body": self.body, "pictures": [picture.sha256 for picture in self.pictures]}

    @property
    def num_images(self) -> int:
        """How many pictures are asked for."""
        return 0 if self.route == CHAT else 1


def data_url(picture: SourceImage, blobs: BlobStore) -> str:
    """The picture as a URL that carries its bytes."""
    return f"data:image/{picture.format};base64,{base64.b64encode(blobs.read(picture.sha256)).decode()}"


def with_pictures(request: TeacherRequest[Any], blobs: BlobStore) -> dict[str, Any]:
    """The body of a chat request with the pictures behind the text of its message."""
    body = dict(request.body)
    if not request.pictures:
        return body
    [message] = body["messages"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": message["content"]}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(picture, blobs)}} for picture in request.pictures]
    return {**body, "messages": [{**message, "content": parts}]}


@dataclass(frozen=True)
class Parcel:
    """A request with the bytes of its pictures, ready to be sent."""

    route: Route
    body: dict[str, Any]
    files: list[tuple[str, tuple[str, bytes, str]]]


def pack_request(request: TeacherRequest[Any], blobs: BlobStore) -> Parcel:
    """Fetch the pictures of a request; raises `MissingBlob` where one is gone."""
    if request.route != EDITS:
        return Parcel(request.route, with_pictures(request, blobs), [])
    name = "image" if len(request.pictures) == 1 else "image[]"  # as the API's own client names them
    files = [
        (name, (f"{number}.{picture.format}", blobs.read(picture.sha256), f"image/{picture.format}"))
        for number, picture in enumerate(request.pictures)
    ]
    return Parcel(request.route, dict(request.body), files)


async def send(parcel: Parcel, client: openai.AsyncOpenAI) -> Reply:
    """Send a request, once; raises what the client raises where there is no 200 answer."""
    options: openai.RequestOptions = {"headers": {"Content-Type": "multipart/form-data"}} if parcel.files else {}
    response = await client.post(
        parcel.route, cast_to=httpx2.Response, body=parcel.body, files=parcel.files or None, options=options
    )
    return _reply(response)


def _reply(response: httpx2.Response) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.content, headers.get("x-request-id"), headers)


def batch_line(request: TeacherRequest[Any], file_ids: Mapping[str, str]) -> str:
    """A request as a line of a batch's input file, known by its key; edited pictures are named by their file ids."""
    body = dict(request.body)
    if request.route == EDITS:
        body["images"] = [{"file_id": file_ids[picture.sha256]} for picture in request.pictures]
    line = {"custom_id": request.key, "method": "POST", "url": f"/v1{request.route}", "body": body}
    return json.dumps(line, ensure_ascii=False)
