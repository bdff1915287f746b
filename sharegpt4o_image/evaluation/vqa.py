# SPDX-License-Identifier: Apache-2.0
"""Pictures and yes/no questions -> answers: what DPG-Bench asks a VQA model for, whatever model that is."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

# What a chat model is asked; mPLUG is asked the question alone. The wording is our choice.
CHAT_PROMPT = "{question} Answer yes or no."

_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class VqaQuestion:
    """One question about one picture.

    Args:
        key (`str`): hash of the picture's pixels, the question and the identity of the VQA model.
        item (`str`): of the benchmark.
        picture (`int`): of the item's, from 1.
        number (`int`): of the item's questions: the proposition id.
        crop (`PIL.Image.Image`): RGB.
        text (`str`): as it stands in the question file.
    """

    key: str
    item: str
    picture: int
    number: int
    crop: Image.Image
    text: str


@dataclass(frozen=True)
class VqaAnswer:
    """What a VQA model said.

    Args:
        text (`str`): what is scored; only the exact `yes` counts.
        raw (`str`): as the model wrote it.
        model (`str`): that answered.
        details (`dict`): what else is known of the answer.
    """

    text: str
    raw: str
    model: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unanswered:
    """What is left without an answer.

    Args:
        reasons (`dict`): key of a question -> why.
        stopped (`str`, *optional*): why the others were not asked, if some were not.
        notes (`dict`): numbers of the invocation, such as dollars spent.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)
    stopped: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


KeepAnswer = Callable[[VqaQuestion, VqaAnswer], None]


class Vqa(Protocol):
    """Answers questions about pictures: a model in this process, a worker process, or an endpoint."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON; known before the first one. No keys, no addresses with keys."""

    @property
    def asks_alone(self) -> bool:
        """Whether one process asks for all, however many draw."""

    def answer(self, questions: Iterable[VqaQuestion], keep: KeepAnswer) -> Unanswered:
        """Answer questions, drawn one by one, calling `keep` for each as soon as its answer is there."""


def yes_or_no(text: str) -> str | None:
    """`yes` or `no` where a text begins so: "Yes, there is." -> "yes"; else nothing."""
    match = _YES_OR_NO.match(text)
    return match[1].lower() if match else None
