# SPDX-License-Identifier: Apache-2.0
"""Picture and prompt -> the opinion of a judge model."""

import json

from pydantic import BaseModel, ConfigDict, Field

from sharegpt4o_image.schema import GeneratedImage
from sharegpt4o_image.synthesis.config import Judge, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.prompts import ask_writer, parse_reply, render_template, writer_id
from sharegpt4o_image.synthesis.requests import TeacherRequest

JUDGE_TEMPLATE = "judge.v1"


class JudgeReply(BaseModel):
    """How well a picture, or an edit, does what was asked: 0 (not at all) to 10."""

    model_config = ConfigDict(extra="forbid")

    score: int = Field(ge=0, le=10)
    reason: str


def plan_judgement(config: SynthesisConfig, judge: Judge, image: GeneratedImage) -> TeacherRequest[JudgeReply]:
    """Ask the judge; of an edit it sees the sources first and the result last."""
    task = {"judge": "text_to_image", "prompt": image.prompt.text}
    if image.sources:
        task = {"judge": "text_and_image_to_image", "instruction": image.prompt.text}
    key = writer_id(config, "judge", JUDGE_TEMPLATE, judge.model, parents=[image.id])

    def parse(answer: Answer) -> JudgeReply:
        return parse_reply(answer, JudgeReply)

    message = render_template(JUDGE_TEMPLATE, task=json.dumps(task, ensure_ascii=False))
    pictures = (*image.sources, image.as_source())
    return ask_writer(config, key, "judge", message, JudgeReply, parse, pictures, judge.model)
