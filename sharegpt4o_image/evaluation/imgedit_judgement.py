# SPDX-License-Identifier: Apache-2.0
"""What is asked of an ImgEdit judge, how, and what is kept of its answer."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import endpoint_config
from sharegpt4o_image.evaluation.imgedit_items import fill_template
from sharegpt4o_image.synthesis.answers import BlockedAnswer, InvalidAnswer
from sharegpt4o_image.synthesis.client import PROMPT_KEY_VARIABLE, secret_key
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.teachers import load_teachers

BOTH = "both"  # parsers have to read an answer


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how it is asked.

    Args:
        model (`str`): its name at the endpoint.
        base_url (`str`): of the endpoint.
        parser (`str`): what has to read an answer, else it is asked for again: `official`, `strict` or `both`.
        repeats (`int`): judgements of each edit.
        temperature (`float`, *optional*): sent only when given, as the official scripts send none.
        max_asks (`int`): how often one judgement is asked for when the answers cannot be read.
        num_workers (`int`): most requests at a time.
        timeout_seconds (`float`): how long an answer may take.
        max_attempts (`int`): how often a request is sent that fails or is not answered in time.
        price ([`Price`], *optional*): where the registry of teachers has none.
        budget_usd (`float`, *optional*): the most that judging may cost, all invocations together.
    """

    model: str
    base_url: str
    parser: str = BOTH
    repeats: int = 1
    temperature: float | None = None
    max_asks: int = 3
    num_workers: int = 8
    timeout_seconds: float = 600.0
    max_attempts: int = 5
    price: Price | None = None
    budget_usd: float | None = None

    def config(self) -> SynthesisConfig:
        """As the journal's machinery takes it; a key of its own, where there is one, goes first."""
        own_key = {"prompt_base_url": self.base_url} if secret_key(PROMPT_KEY_VARIABLE) else {}
        return endpoint_config(
            self.base_url,
            self.model,
            prompt_params=self.params,
            max_asks=self.max_asks,
            num_workers=self.num_workers,
            timeout_seconds=self.timeout_seconds,
            max_attempts=self.max_attempts,
            prices={self.model: self.price} if self.price else {},
            **own_key,
        )

    def check_price(self) -> None:
        """A budget means nothing for a judge whose price is not known."""
        if self.budget_usd is not None and load_teachers(None).price_of(self.model, self.config()) is None:
            raise UserError(
                f"--budget needs the price of {self.model}, which is not known; add --price-in and --price-out, "
                "in US dollars for a million tokens"
            )

    @property
    def params(self) -> dict[str, float]:
        """What is sent beside the message."""
        return {} if self.temperature is None else {"temperature": self.temperature}


@dataclass(frozen=True)
class Edit:
    """An edited picture that waits for a judge; `message` is the filled template."""

    key: str
    edit_type: str
    message: str
    template_sha256: str
    instruction: str
    source: Path
    edited: Path

    @classmethod
    def of(cls, key: str, edit_type: str, template: str, instruction: str, source: Path, edited: Path) -> "Edit":
        """With the question made of its template."""
        digest = hashlib.sha256(template.encode()).hexdigest()
        return cls(key, edit_type, fill_template(template, instruction), digest, instruction, source, edited)


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one edit, as `judgements.jsonl` keeps it.

    Args:
        item (`str`): key of the edit.
        repeat (`int`): from 0.
        status (`str`):
            `read`; `unreadable`: a text that could not be read however often it was asked for; `refused`: no text.
        text (`str`, *optional*): raw.
        reason (`str`): why it is not `read`.
        parser (`str`): that had to read it.
        model (`str`): that was asked; `served_model` is what the answer names.
        answered_at (`str`, *optional*): UTC, ISO 8601.
    """

    item: str
    repeat: int
    edit_type: str
    status: Literal["read", "unreadable", "refused"]
    text: str | None
    reason: str
    parser: str
    model: str
    served_model: str | None
    system_fingerprint: str | None
    answered_at: str | None
    source_sha256: str
    edited_sha256: str
    template_sha256: str


def read_text(answer: Answer) -> tuple[str, str]:
    """The text of a chat answer, and what is wrong with it; raises `BlockedAnswer` or `InvalidAnswer` without one."""
    try:
        [choice] = answer.body["choices"]
        message = choice["message"]
        content = message.get("content")
        refusal = message.get("refusal")
        finish_reason = choice.get("finish_reason")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidAnswer("the chat answer has no single choice with a message") from error
    if refusal or finish_reason == "content_filter":
        raise BlockedAnswer(f"refused: {refusal or 'content filter'}")
    if not isinstance(content, str) or not content.strip():
        raise InvalidAnswer("the chat answer holds no text")
    return content, "the answer was cut off at the token limit" if finish_reason == "length" else ""
