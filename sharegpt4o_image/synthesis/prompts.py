# SPDX-License-Identifier: Apache-2.0
"""Topic -> prompt: what is asked of the text teacher, and how its answer is read."""

import json
import string
from importlib.resources import files
from typing import Any, TypeVar

import httpx2
import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sharegpt4o_image.schema import Prompt, Topic, content_id
from sharegpt4o_image.synthesis.answers import BlockedAnswer, InvalidAnswer
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.scheduler import TeacherRequest
from sharegpt4o_image.synthesis.yaml_files import describe_fault

PROMPT_TEMPLATE = "prompt_first.v1"

# The attributes that a writer is told of a topic.
TOPIC_WORDS = ("objects", "background", "style", "lighting", "camera", "composition")

Reply = TypeVar("Reply", bound=BaseModel)


class PromptReply(BaseModel):
    """The JSON in which the text teacher answers."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)


def render_template(version: str, **slots: str) -> str:
    """A meta-prompt: `templates/<version>.txt` with every slot filled; a slot too many or too few is an error."""
    text = (files("sharegpt4o_image.synthesis") / "templates" / f"{version}.txt").read_text(encoding="utf-8")
    template = string.Template(text)
    if set(template.get_identifiers()) != set(slots):
        raise ValueError(f"template {version} has the slots {template.get_identifiers()}, got {sorted(slots)}")
    return template.substitute(slots)


def json_schema_of(reply: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` that asks for `reply`; length limits are left to our own check."""
    schema = reply.model_json_schema()
    properties = {name: {"type": part["type"]} for name, part in schema["properties"].items()}
    plain = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": reply.__name__, "schema": plain, "strict": True}}


async def ask_writer(
    client: openai.AsyncOpenAI, model: str, content: str | list[dict[str, Any]], reply: type[BaseModel]
) -> httpx2.Response:
    """Send one message and ask for an answer in the JSON schema of `reply`."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "response_format": json_schema_of(reply),
    }
    return await client.post("/chat/completions", cast_to=httpx2.Response, body=body)


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


def plan_prompt(client: openai.AsyncOpenAI, config: SynthesisConfig, topic: Topic) -> TeacherRequest[Prompt]:
    """Ask the text teacher for a prompt on `topic`."""
    words = topic.model_dump(include=set(TOPIC_WORDS))
    key = content_id(stage="prompt", template=PROMPT_TEMPLATE, model=config.prompt_model, parents=[topic.id])

    async def send() -> httpx2.Response:
        text = render_template(PROMPT_TEMPLATE, topic=json.dumps(words, ensure_ascii=False))
        return await ask_writer(client, config.prompt_model, text, PromptReply)

    def parse(answer: Answer) -> Prompt:
        reply = parse_reply(answer, PromptReply)
        if not reply.prompt.strip():
            raise InvalidAnswer("the prompt is empty")
        return prompt_of(key, topic, reply.prompt.strip(), PROMPT_TEMPLATE, config, answer)

    request = {"template": PROMPT_TEMPLATE, "topic": words}
    return TeacherRequest(key, "prompt", config.prompt_model, request, send, parse)


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
