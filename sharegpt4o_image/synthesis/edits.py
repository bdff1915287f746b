# SPDX-License-Identifier: Apache-2.0
"""Picture -> edit instruction -> edited picture: what is asked of both teachers."""

import json

from pydantic import BaseModel, ConfigDict

from sharegpt4o_image.schema import GeneratedImage, Prompt, SourceImage, Topic, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.images import check_picture, image_of
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.prompts import ask_writer, parse_reply, prompt_of, render_template, writer_id
from sharegpt4o_image.synthesis.requests import EDITS, TeacherRequest
from sharegpt4o_image.synthesis.taxonomy import EditTask

INSTRUCTION_TEMPLATE = "edit_instruction.v1"
TWO_SOURCES_TEMPLATE = "edit_two_sources.v1"

Sources = tuple[SourceImage, ...]


class InstructionReply(BaseModel):
    """The JSON in which the text teacher answers; not every task can be applied to every picture."""

    model_config = ConfigDict(extra="forbid")

    instruction: str
    is_applicable: bool


def plan_instruction(
    config: SynthesisConfig, sources: Sources, edit: EditTask, turn: int
) -> TeacherRequest[Prompt | None]:
    """Ask the text teacher, which sees the sources, for an edit instruction; `None` when the task does not apply.

    `turn` tells apart several edits of the same source.
    """
    template = INSTRUCTION_TEMPLATE if len(sources) == 1 else TWO_SOURCES_TEMPLATE
    task = {"source_prompt": sources[0].text, "edit_category": edit.category, "edit_task": edit.task}
    if turn:
        task["edit_number"] = str(turn + 1)  # so that the writer looks for another edit than the first one
    parents = [source.id for source in sources]
    key = writer_id(config, "instruction", template, parameters={**task, "turn": turn}, parents=parents)
    topic = Topic(id=key, pipeline="editing", edit_category=edit.category, edit_task=edit.task)

    def parse(answer: Answer) -> Prompt | None:
        reply = parse_reply(answer, InstructionReply)
        if not reply.is_applicable:
            return None
        if not reply.instruction.strip():
            raise InvalidAnswer("the instruction is empty")
        return prompt_of(key, topic, reply.instruction.strip(), template, config, answer)

    message = render_template(template, task=json.dumps(task, ensure_ascii=False))
    return ask_writer(config, key, "instruction", message, InstructionReply, parse, sources)


def plan_control(
    config: SynthesisConfig, blobs: BlobStore, source: SourceImage, edit: EditTask
) -> TeacherRequest[tuple[SourceImage, float]]:
    """Ask the image teacher to turn a picture into the sketch, pose or depth map that the task starts from.

    Gives the control picture and what it cost in US dollars.
    """
    assert edit.prepare is not None
    params = config.edit_params.sent()
    decisive = {"parameters": params, "instruction": edit.prepare, "parents": [source.id]}
    key = content_id(stage="control", model=config.image_model, **decisive)

    def parse(answer: Answer) -> tuple[SourceImage, float]:
        sha256, facts = check_picture(answer, blobs, params)
        control = SourceImage(
            id=key,
            sha256=sha256,
            format=facts.format,
            width=facts.width,
            height=facts.height,
            text=source.text,
            origin="synthesized",
            license=config.license,
        )
        return control, answer.cost_usd

    body = {"model": config.image_model, "prompt": edit.prepare, "n": 1, **params}
    return TeacherRequest(key, "control", config.image_model, EDITS, body, parse, (source,))


def plan_edit(
    config: SynthesisConfig, blobs: BlobStore, instruction: Prompt, sources: Sources
) -> TeacherRequest[GeneratedImage]:
    """Ask the image teacher for the edited picture."""
    params = config.edit_params.sent()
    parents = [instruction.id, *(source.id for source in sources)]
    key = content_id(stage="edit", model=config.image_model, parameters=params, parents=parents)

    def parse(answer: Answer) -> GeneratedImage:
        return image_of(key, instruction, config, params, blobs, answer, sources)

    body = {"model": config.image_model, "prompt": instruction.text, "n": 1, **params}
    return TeacherRequest(key, "edit", config.image_model, EDITS, body, parse, sources)
