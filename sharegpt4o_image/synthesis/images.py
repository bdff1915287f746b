# SPDX-License-Identifier: Apache-2.0
"""Prompt -> picture: what is asked of the image teacher, and how its picture is checked."""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sharegpt4o_image.schema import GeneratedImage, Prompt, SourceImage, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer, utc_now
from sharegpt4o_image.synthesis.requests import GENERATIONS, TeacherRequest

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


def plan_image(config: SynthesisConfig, blobs: BlobStore, prompt: Prompt) -> TeacherRequest[GeneratedImage]:
    """Ask the image teacher for the picture of a prompt."""
    params = config.image_params.sent()
    key = content_id(stage="image", model=config.image_model, parameters=params, parents=[prompt.id])

    def parse(answer: Answer) -> GeneratedImage:
        return image_of(key, prompt, config, params, blobs, answer)

    body = {"model": config.image_model, "prompt": prompt.text, "n": 1, **params}
    return TeacherRequest(key, "image", config.image_model, GENERATIONS, body, parse)


def check_picture(answer: Answer, blobs: BlobStore, params: dict[str, str | int]) -> tuple[str, PictureFacts]:
    """The sha256 and the facts of the picture in an answer: it can be decoded and has the size that was asked for."""
    if answer.picture is None:
        raise InvalidAnswer("the answer holds no picture")
    facts = inspect_picture(blobs.read(answer.picture))
    asked = str(params.get("size", "auto"))
    if re.fullmatch(r"\d+x\d+", asked) and asked != f"{facts.width}x{facts.height}":
        raise InvalidAnswer(f"the picture is {facts.width}x{facts.height}, asked for {asked}")
    return answer.picture, facts


def image_of(
    key: str,
    prompt: Prompt,
    config: SynthesisConfig,
    params: dict[str, str | int],
    blobs: BlobStore,
    answer: Answer,
    sources: tuple[SourceImage, ...] = (),
) -> GeneratedImage:
    """The picture that an answer holds."""
    sha256, facts = check_picture(answer, blobs, params)
    return GeneratedImage(
        id=key,
        prompt=prompt,
        sha256=sha256,
        phash=facts.phash,
        format=facts.format,
        width=facts.width,
        height=facts.height,
        image_model=config.image_model,
        served_model=answer.served_model,
        image_params=dict(params),
        sources=sources,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        created_at=answer.ended_at,
        license=config.license,
    )


def original_of(prompt: Prompt, blobs: BlobStore, default_license: str) -> GeneratedImage:
    """The described photograph itself, as the picture of its description."""
    photo = prompt.described
    assert photo is not None
    facts = inspect_picture(blobs.read(photo.sha256))
    return GeneratedImage(
        id=content_id(stage="original", parents=[prompt.id]),
        prompt=prompt,
        sha256=photo.sha256,
        phash=facts.phash,
        format=facts.format,
        width=facts.width,
        height=facts.height,
        image_model=None,
        image_params={"target": "original"},
        created_at=utc_now(),
        license=photo.license or default_license,
    )
