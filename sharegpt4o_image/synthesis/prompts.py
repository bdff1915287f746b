# SPDX-License-Identifier: Apache-2.0
"""Topic or picture -> prompt: what is asked of the text teacher, and how its answer is read."""

import json
import string
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sharegpt4o_image.schema import Prompt, SourceImage, Topic, content_id
from sharegpt4o_image.synthesis.answers import BlockedAnswer, InvalidAnswer
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer, Stage
from sharegpt4o_image.synthesis.requests import CHAT, Product, TeacherRequest
from sharegpt4o_image.synthesis.yaml_files import describe_fault

PROMPT_TEMPLATE = "prompt_first.v1"
DESCRIPTION_TEMPLATE = "image_first.v1"

# The attributes that a writer is told of a topic.
TOPIC_WORDS = ("objects", "background", "style", "lighting", "camera", "composition")

Reply = TypeVar("Reply", bound=BaseModel)


class PromptReply(BaseModel):
    """The JSON in which the text teacher answers."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)


@cache
def _read_template(version: str) -> string.Template:
    text = (files("sharegpt4o_image.synthesis") / "templates" / f"{version}.txt").read_text(encoding="utf-8")
    return string.Template(text)


def render_template(version: str, **slots: str) -> str:
    """A meta-prompt: `templates/<version>.txt` with every slot filled; a slot too many or too few is an error."""
    template = _read_template(version)
    if set(template.get_identifiers()) != set(slots):
        raise ValueError(f"template {version} has the slots {template.get_identifiers()}, got {sorted(slots)}")
    return template.substitute(slots)


@cache
def json_schema_of(reply: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` that asks for `reply`; limits of lengths and numbers are left to our own check."""
    schema = reply.model_json_schema()
    properties = {
        name: {key: part[key] for key in ("type", "enum", "items") if key in part}
        for name, part in schema["properties"].items()
    }
    plain = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": reply.__name__, "schema": plain, "strict": True}}


def ask_writer(
    config: SynthesisConfig,
    key: str,
    stage: Stage,
    message: str,
    reply: type[BaseModel],
    parse: Callable[[Answer], Product],
    pictures: tuple[SourceImage, ...] = (),
    model: str | None = None,
) -> TeacherRequest[Product]:
    """One message to the text teacher, or to `model`, that asks for an answer in the JSON schema of `reply`."""
    asked = model or config.prompt_model
    body = {
        "model": asked,
        "messages": [{"role": "user", "content": message}],
        "response_format": json_schema_of(reply),
        **config.prompt_params.sent(),
    }
    return TeacherRequest(key, stage, asked, CHAT, body, parse, pictures)


def writer_id(config: SynthesisConfig, stage: Stage, template: str, model: str | None = None, **decisive: Any) -> str:
    """The key of a question to the text teacher, or to `model`."""
    params = config.prompt_params.sent()
    if params:
        decisive["prompt_parameters"] = params
    return content_id(stage=stage, template=template, model=model or config.prompt_model, **decisive)


def parse_reply(answer: Answer, reply: type[Reply]) -> Reply:
    """Read a chat answer as `reply`; fences around the JSON are tolerated.

    Raises [`InvalidAnswer`] or [`BlockedAnswer`].
    """
    try:
        [choice] = answer.body["choices"]
        message = choice["message"]
        content = message.get("content")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidAnswer("the chat answer has no single choice with a message") from error
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise BlockedAnswer(f"refused: {message.get('refusal') or 'content filter'}")
    if choice.get("finish_reason") == "length":
        raise InvalidAnswer("the chat answer was cut off at the token limit")
    text = str(content or "").strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        return reply.model_validate_json(text)
    except ValidationError as error:
        raise InvalidAnswer(f"the chat answer does not fit: {describe_fault(error)}"[:300]) from error


def plan_prompt(config: SynthesisConfig, topic: Topic) -> TeacherRequest[Prompt]:
    """Ask the text teacher for a prompt on `topic` (prompt-first, paper section 2.1)."""
    words = topic.model_dump(include=set(TOPIC_WORDS))
    key = writer_id(config, "prompt", PROMPT_TEMPLATE, parents=[topic.id])

    def parse(answer: Answer) -> Prompt:
        return prompt_of(key, topic, read_prompt(answer), PROMPT_TEMPLATE, config, answer)

    message = render_template(PROMPT_TEMPLATE, topic=json.dumps(words, ensure_ascii=False))
    return ask_writer(config, key, "prompt", message, PromptReply, parse)


def plan_description(config: SynthesisConfig, source: SourceImage) -> TeacherRequest[Prompt]:
    """Ask the text teacher for the prompt that a picture could have been made from (image-first, appendix C.1)."""
    key = writer_id(config, "description", DESCRIPTION_TEMPLATE, parents=[source.id])
    topic = Topic(id=key, pipeline="image_first")

    def parse(answer: Answer) -> Prompt:
        prompt = prompt_of(key, topic, read_prompt(answer), DESCRIPTION_TEMPLATE, config, answer)
        return prompt.model_copy(update={"described": source})

    message = render_template(DESCRIPTION_TEMPLATE)
    return ask_writer(config, key, "description", message, PromptReply, parse, (source,))


def read_prompt(answer: Answer) -> str:
    """The prompt in an answer; an empty one is an [`InvalidAnswer`]."""
    prompt = parse_reply(answer, PromptReply).prompt.strip()
    if not prompt:
        raise InvalidAnswer("the prompt is empty")
    return prompt


def prompt_of(key: str, topic: Topic, text: str, template: str, config: SynthesisConfig, answer: Answer) -> Prompt:
    """The prompt, or edit instruction, that an answer holds."""
    return Prompt(
        id=key,
        topic=topic,
        text=text,
        prompt_model=config.prompt_model,
        served_model=answer.served_model,
        template_version=template,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
    )
