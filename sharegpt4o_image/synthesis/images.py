# SPDX-License-Identifier: Apache-2.0
"""Prompt -> picture: what is asked of the image teacher, and how its picture is checked."""

import re
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from sharegpt4o_image.schema import GeneratedImage, Prompt, SourceImage, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.gates import Signature, find_blank, sign
from sharegpt4o_image.synthesis.journal import Answer, utc_now
from sharegpt4o_image.synthesis.pictures import difference_hash, open_picture
from sharegpt4o_image.synthesis.requests import GENERATIONS, TeacherRequest

_CHECKED_SIDE = 128  # pictures are checked for blankness, and signed, at about this size (our choice)
_MAX_REMEMBERED = 4096  # pictures whose facts are kept, 300 bytes each


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture once it is decoded; `blank` is the reason if it is of one colour."""

    format: str
    width: int
    height: int
    signature: Signature
    blank: str | None


@lru_cache(_MAX_REMEMBERED)
def facts_of(blobs: BlobStore, sha256: str) -> PictureFacts:
    """The facts of a picture of the run, decoded once.

    Raises [`InvalidAnswer`] when it is not whole, or too large to be opened safely.
    """
    data = blobs.read(sha256)
    try:
        return _look_at(open_picture(data))
    except Exception as fault:  # of the picture's own: Pillow's readers of pixels and EXIF raise whatever comes
        raise InvalidAnswer(f"the picture cannot be read: {fault}") from fault


def _look_at(image: Image.Image) -> PictureFacts:
    factor = max(image.size) // _CHECKED_SIDE
    small = image.reduce(factor) if factor > 1 and image.mode in ("L", "RGB", "RGBA") else image
    signature = Signature(difference_hash(image), sign(small).thumbnail)
    return PictureFacts(str(image.format).lower(), image.width, image.height, signature, find_blank(small))


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
    facts = facts_of(blobs, answer.picture)
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
        phash=facts.signature.phash,
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
    facts = facts_of(blobs, photo.sha256)
    return GeneratedImage(
        id=content_id(stage="original", parents=[prompt.id]),
        prompt=prompt,
        sha256=photo.sha256,
        phash=facts.signature.phash,
        format=photo.format,
        width=photo.width,
        height=photo.height,
        image_model=None,
        image_params={"target": "original"},
        created_at=utc_now(),
        license=photo.license or default_license,
    )
