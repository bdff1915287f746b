# SPDX-License-Identifier: Apache-2.0
"""Pictures and questions -> answers of a vision-language model over the OpenAI API, through the journal."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import Asking, Question, ask_all, endpoint_config
from sharegpt4o_image.evaluation.vqa import CHAT_PROMPT, KeepAnswer, Unanswered, VqaAnswer, VqaQuestion, yes_or_no
from sharegpt4o_image.schema import SourceImage, content_id
from sharegpt4o_image.synthesis.answers import BlockedAnswer, InvalidAnswer, cost_of
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.client import PROMPT_KEY_VARIABLE, secret_key
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.requests import CHAT, TeacherRequest
from sharegpt4o_image.synthesis.teachers import load_teachers

MAX_TOKENS = 16  # of an answer (our choice); a model that thinks first needs more
ASSUMED_USAGE = {"prompt_tokens": 1050, "completion_tokens": 5}  # of a question with its picture (our choice)


@dataclass(frozen=True)
class EndpointSettings:
    """Who is asked, and how.

    Args:
        base_url (`str`): OpenAI-compatible; the key is that of synthesis: PROMPT_API_KEY, else OPENAI_API_KEY.
        model (`str`): its name there.
        temperature (`float`, *optional*): sent only when given.
        max_tokens (`int`): of an answer.
        num_workers (`int`): most requests at a time.
        price ([`Price`], *optional*): where the registry of teachers has none.
        budget_usd (`float`, *optional*): the most that the journal's run may cost, drawing included.
    """

    base_url: str
    model: str
    temperature: float | None = None
    max_tokens: int = MAX_TOKENS
    num_workers: int = 8
    price: Price | None = None
    budget_usd: float | None = None

    @property
    def params(self) -> dict[str, float]:
        """What is sent beside the message."""
        given = {} if self.temperature is None else {"temperature": self.temperature}
        return given | {"max_completion_tokens": self.max_tokens}

    def config(self) -> SynthesisConfig:
        """As the journal's machinery takes it; a key of its own, where there is one, goes first."""
        own_key = {"prompt_base_url": self.base_url} if secret_key(PROMPT_KEY_VARIABLE) else {}
        return endpoint_config(
            self.base_url,
            self.model,
            prompt_params=self.params,
            num_workers=self.num_workers,
            prices={self.model: self.price} if self.price else {},
            **own_key,
        )


class VqaEndpoint:
    """Answers by an endpoint; what it answered once is never asked or paid again.

    Args:
        settings ([`EndpointSettings`]): who is asked.
        run_dir (`Path`): of the journal.
    """

    asks_alone = True

    def __init__(self, settings: EndpointSettings, run_dir: Path) -> None:
        self._config = settings.config()
        self._settings = settings
        self._run_dir = run_dir
        if settings.budget_usd is not None and self.usd_for(0) is None:
            raise UserError(
                f"--budget needs the price of {settings.model}, which is not known; add --price-in and --price-out, "
                "in US dollars for a million tokens"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every answer; of the address only the host."""
        return {
            "kind": "endpoint",
            "host": urlsplit(self._settings.base_url).hostname,
            "model": self._settings.model,
            "prompt": CHAT_PROMPT,
            "params": self._settings.params,
        }

    def usd_for(self, num_questions: int) -> float | None:
        """What so many answers are assumed to cost; `None` where the price is not known."""
        price = load_teachers(None).price_of(self._settings.model, self._config)
        return None if price is None else num_questions * cost_of(ASSUMED_USAGE, price)

    def answer(self, questions: Iterable[VqaQuestion], keep: KeepAnswer) -> Unanswered:
        """Ask for all; what is refused, or was not asked any more, has a reason."""
        reasons: dict[str, str] = {}

        def plan(blobs: BlobStore) -> Iterator[Question[VqaAnswer]]:
            shown, picture = None, None
            for question in questions:
                if picture is None or question.crop is not shown:
                    shown, picture = question.crop, _store(question, blobs)
                yield self._question(question, picture, keep, reasons)

        asking = ask_all(plan, self._run_dir, self._config, "text", self._settings.budget_usd)
        notes = {"new_requests": asking.new_attempts, "spent_usd": asking.spent_usd}
        return Unanswered(reasons, _why_stopped(asking), notes)

    def _question(
        self, question: VqaQuestion, picture: SourceImage, keep: KeepAnswer, reasons: dict[str, str]
    ) -> Question[VqaAnswer]:
        text = CHAT_PROMPT.format(question=question.text)
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": text}],
            **self._config.prompt_params.sent(),
        }
        key = content_id(stage="judge", vqa=question.key)
        request = TeacherRequest(key, "judge", self._settings.model, CHAT, body, self._read, (picture,))
        return Question(
            request,
            on_answer=lambda answer: keep(question, answer),
            on_refusal=lambda reason: reasons.update({question.key: reason}),
            on_unfinished=lambda reason: reasons.update({question.key: f"not answered yet: {reason}"}),
        )

    def _read(self, answer: Answer) -> VqaAnswer:
        """The text of an answer; one that begins with neither word is kept as it is and counts as no."""
        try:
            [choice] = answer.body["choices"]
            message, end = choice["message"], choice.get("finish_reason")
            refusal, text = message.get("refusal"), message.get("content")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InvalidAnswer("the chat answer has no single choice with a message") from error
        if refusal or end == "content_filter":
            raise BlockedAnswer(f"refused: {refusal or 'content filter'}")
        if not isinstance(text, str) or not text.strip():
            raise InvalidAnswer(f"the answer has no text (it ended with {end!r}; --vqa-max-tokens gives it more room)")
        word = yes_or_no(text)
        if word is None and end == "length":
            raise InvalidAnswer("the answer was cut off before a yes or no; raise --vqa-max-tokens")
        served = {"served_model": answer.served_model, "answered_at": answer.ended_at}
        return VqaAnswer(word or text.strip(), text, self._settings.model, served)


def _store(question: VqaQuestion, blobs: BlobStore) -> SourceImage:
    buffer = io.BytesIO()
    question.crop.save(buffer, "PNG")
    sha256 = blobs.write(buffer.getvalue())
    width, height = question.crop.size
    return SourceImage(id=sha256, sha256=sha256, format="png", width=width, height=height, origin="judged picture")


def _why_stopped(asking: Asking) -> str | None:
    if asking.end_of_budget is not None:
        return f"not asked: {asking.end_of_budget}"
    return "not asked: interrupted" if asking.is_interrupted else None
