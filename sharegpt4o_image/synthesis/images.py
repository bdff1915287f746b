# SPDX-License-Identifier: Apache-2.0
"""Prompt -> picture: what is asked of the image teacher, and how its picture is checked."""

import io
import re
import warnings
from dataclasses import dataclass

import httpx2
import numpy as np
import openai
from PIL import Image

from sharegpt4o_image.schema import GeneratedImage, Prompt, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.scheduler import TeacherRequest

_HASH_SIDE = 8


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture once it is decoded."""

    format: str
    width: int
    height: int
    phash: str


def difference_hash(image: Image.Image) -> str:
    """64-bit dHash in hexadecimal: bit k says whether the k-th of 8 x 8 patches is darker than its right neighbour."""
    gray = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    patches = np.asarray(gray)  # (8, 9)
    return np.packbits(patches[:, :-1] < patches[:, 1:]).tobytes().hex()


def inspect_picture(data: bytes) -> PictureFacts:
    """Decode every pixel of a picture.

    Raises [`InvalidAnswer`] when it is not whole, or too large to be opened safely.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return PictureFacts(str(image.format).lower(), image.width, image.height, difference_hash(image))
    except Exception as error:  # Pillow's decoders let anything through on broken data: struct.error, KeyError, ...
        raise InvalidAnswer(f"the picture cannot be read: {error}") from error


def plan_image(
    client: openai.AsyncOpenAI, config: SynthesisConfig, blobs: BlobStore, prompt: Prompt
) -> TeacherRequest[GeneratedImage]:
    """Ask the image teacher for the picture of a prompt."""
    params = config.image_params.sent()
    key = content_id(stage="image", model=config.image_model, parameters=params, parents=[prompt.id])

    async def send() -> httpx2.Response:
        body = {"model": config.image_model, "prompt": prompt.text, "n": 1, **params}
        return await client.post("/images/generations", cast_to=httpx2.Response, body=body)

    def parse(answer: Answer) -> GeneratedImage:
        return image_of(key, prompt, config.image_model, params, blobs, answer)

    request = {"prompt": prompt.text, "n": 1, **params}
    return TeacherRequest(key, "image", config.image_model, request, send, parse)


def image_of(
    key: str,
    prompt: Prompt,
    model: str,
    params: dict[str, str | int],
    blobs: BlobStore,
    answer: Answer,
    source: GeneratedImage | None = None,
) -> GeneratedImage:
    """The picture that an answer holds, checked: it can be decoded and has the size that was asked for."""
    if answer.picture is None:
        raise InvalidAnswer("the answer holds no picture")
    facts = inspect_picture(blobs.read(answer.picture))
    asked = str(params.get("size", "auto"))
    if re.fullmatch(r"\d+x\d+", asked) and asked != f"{facts.width}x{facts.height}":
        raise InvalidAnswer(f"the picture is {facts.width}x{facts.height}, asked for {asked}")
    return GeneratedImage(
        id=key,
        prompt=prompt,
        sha256=answer.picture,
        phash=facts.phash,
        format=facts.format,
        width=facts.width,
        height=facts.height,
        image_model=model,
        image_params=params,
        source=source,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        created_at=answer.ended_at,
    )
