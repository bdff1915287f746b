# SPDX-License-Identifier: Apache-2.0
"""Picture -> edit instruction -> edited picture: what is asked of both teachers."""

import base64
import io
import json
from typing import Any

import httpx2
import openai
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict

from sharegpt4o_image.schema import GeneratedImage, Prompt, Topic, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.images import image_of
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.prompts import ask_writer, parse_reply, prompt_of, render_template
from sharegpt4o_image.synthesis.scheduler import TeacherRequest
from sharegpt4o_image.synthesis.taxonomy import EditTask

INSTRUCTION_TEMPLATE = "edit_instruction.v1"


class InstructionReply(BaseModel):
    """The JSON in which the text teacher answers; not every task can be applied to every picture."""

    model_config = ConfigDict(extra="forbid")

    instruction: str
    is_applicable: bool


def plan_instruction(
    client: openai.AsyncOpenAI,
    config: SynthesisConfig,
    blobs: BlobStore,
    source: GeneratedImage,
    edit: EditTask,
    turn: int,
) -> TeacherRequest[Prompt | None]:
    """Ask the text teacher, which sees the picture, for an edit instruction; `None` when the task does not apply.

    `turn` tells apart several edits of the same source.
    """
    task = {"source_prompt": source.prompt.text, "edit_category": edit.category, "edit_task": edit.task}
    key = content_id(
        stage="instruction",
        template=INSTRUCTION_TEMPLATE,
        model=config.prompt_model,
        parameters={**task, "turn": turn},
        parents=[source.id],
    )
    topic = Topic(id=key, pipeline="editing", edit_category=edit.category, edit_task=edit.task)

    async def send() -> httpx2.Response:
        text = render_template(INSTRUCTION_TEMPLATE, task=json.dumps(task, ensure_ascii=False))
        picture = base64.b64encode(blobs.read(source.sha256)).decode()
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": f"data:image/{source.format};base64,{picture}"}},
        ]
        return await ask_writer(client, config.prompt_model, parts, InstructionReply)

    def parse(answer: Answer) -> Prompt | None:
        reply = parse_reply(answer, InstructionReply)
        if not reply.is_applicable:
            return None
        if not reply.instruction.strip():
            raise InvalidAnswer("the instruction is empty")
        return prompt_of(key, topic, reply.instruction.strip(), INSTRUCTION_TEMPLATE, config, answer)

    request = {"template": INSTRUCTION_TEMPLATE, "task": task, "source": source.sha256}
    return TeacherRequest(key, "instruction", config.prompt_model, request, send, parse)


def plan_edit(
    client: openai.AsyncOpenAI, config: SynthesisConfig, blobs: BlobStore, instruction: Prompt, source: GeneratedImage
) -> TeacherRequest[GeneratedImage]:
    """Ask the image teacher for the edited picture."""
    params = config.edit_params.sent()
    key = content_id(stage="edit", model=config.image_model, parameters=params, parents=[instruction.id, source.id])

    async def send() -> httpx2.Response:
        picture = (f"source.{source.format}", blobs.read(source.sha256), f"image/{source.format}")
        return await client.post(
            "/images/edits",
            cast_to=httpx2.Response,
            body={"model": config.image_model, "prompt": instruction.text, "n": 1, **params},
            files=[("image", picture)],
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )

    def parse(answer: Answer) -> GeneratedImage:
        return image_of(key, instruction, config.image_model, params, blobs, answer, source)

    request = {"prompt": instruction.text, "source": source.sha256, "n": 1, **params}
    return TeacherRequest(key, "edit", config.image_model, request, send, parse)


def is_unchanged(edited: bytes, source: bytes) -> bool:
    """Whether an edit left every pixel as it was."""
    if edited == source:
        return True
    with Image.open(io.BytesIO(edited)) as after, Image.open(io.BytesIO(source)) as before:
        return (
            after.size == before.size
            and ImageChops.difference(after.convert("RGB"), before.convert("RGB")).getbbox() is None
        )
