# SPDX-License-Identifier: Apache-2.0
"""Document type and subject -> text of the document -> prompt for its picture (paper section 2.1, appendix C.2)."""

import json

from pydantic import BaseModel, ConfigDict

from sharegpt4o_image.schema import Prompt, Topic
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.prompts import (
    PromptReply,
    ask_writer,
    parse_reply,
    prompt_of,
    read_prompt,
    render_template,
    writer_id,
)
from sharegpt4o_image.synthesis.requests import TeacherRequest

CONTENT_TEMPLATE = "document_content.v1"
LAYOUT_TEMPLATE = "document_layout.v1"


class ContentReply(BaseModel):
    """The text of a document: its title, and its paragraphs, labels and data line by line."""

    model_config = ConfigDict(extra="forbid")

    title: str
    content: str


class DocumentText(BaseModel):
    """A document before it has a look; `answer_key` is the request that wrote it."""

    answer_key: str
    title: str
    content: str
    usage: dict[str, object]
    cost_usd: float


def plan_content(config: SynthesisConfig, topic: Topic) -> TeacherRequest[DocumentText]:
    """Ask the text teacher for what stands in the document."""
    key = writer_id(config, "content", CONTENT_TEMPLATE, parents=[topic.id])

    def parse(answer: Answer) -> DocumentText:
        reply = parse_reply(answer, ContentReply)
        if not reply.title.strip() or not reply.content.strip():
            raise InvalidAnswer("the document has no title or no text")
        return DocumentText(
            answer_key=key,
            title=reply.title.strip(),
            content=reply.content.strip(),
            usage=answer.usage,
            cost_usd=answer.cost_usd,
        )

    task = {"document_type": topic.document_type, "subject": topic.subject}
    message = render_template(CONTENT_TEMPLATE, task=json.dumps(task, ensure_ascii=False))
    return ask_writer(config, key, "content", message, ContentReply, parse)


def plan_layout(config: SynthesisConfig, topic: Topic, text: DocumentText) -> TeacherRequest[Prompt]:
    """Ask the text teacher for the visual prompt: layout, typography, colours and look around the text."""
    key = writer_id(config, "layout", LAYOUT_TEMPLATE, parents=[text.answer_key])

    def parse(answer: Answer) -> Prompt:
        prompt = prompt_of(key, topic, read_prompt(answer), LAYOUT_TEMPLATE, config, answer)
        both = {"content": text.usage, "layout": prompt.usage}
        return prompt.model_copy(update={"usage": both, "cost_usd": text.cost_usd + prompt.cost_usd})

    task = {"document_type": topic.document_type, "title": text.title, "content": text.content}
    message = render_template(LAYOUT_TEMPLATE, task=json.dumps(task, ensure_ascii=False))
    return ask_writer(config, key, "layout", message, PromptReply, parse)
