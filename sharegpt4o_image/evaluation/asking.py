# SPDX-License-Identifier: Apache-2.0
"""Questions to an OpenAI-compatible endpoint -> their answers, through the journal of synthesis.

Retries, rate limits, costs and budget are those of `synthesis/`: what the journal holds is never asked or paid again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.client import check_image_endpoint, check_text_endpoint, open_clients, secrets
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.ledger import Ledger
from sharegpt4o_image.synthesis.planning import assume_costs
from sharegpt4o_image.synthesis.requests import Product, TeacherRequest
from sharegpt4o_image.synthesis.run_folder import check_run_dir
from sharegpt4o_image.synthesis.scheduler import (
    Bookkeeper,
    DirectTransport,
    Dispatcher,
    EndpointAtFault,
    Rejected,
    RejectedByAnswer,
    Unfinished,
    run_workers,
)
from sharegpt4o_image.synthesis.settling import Settling, check_prices, drained_on_signal, run_invocation
from sharegpt4o_image.synthesis.teachers import load_teachers

Kind = Literal["text", "image"]  # what the endpoint sends


class EndpointFault(UserError):
    """Nothing of use comes from the endpoint any more; what it was asked since its last useful answer is undecided."""


@dataclass(frozen=True)
class Question(Generic[Product]):
    """One request, and who waits for its answer.

    Args:
        request ([`TeacherRequest`]): its `parse` raises `InvalidAnswer` where the answer is to be asked for again.
        on_answer (callable): called once with the product.
        on_refusal (callable):
            Called instead with the reason, where the endpoint refuses it for good, or gave no answer of use however
            often it was asked. Such a question is called refused only once the endpoint has answered another one, so
            an endpoint that breaks down refuses nothing. What an earlier invocation gave up, of an endpoint that had
            answered others, comes last, and is refused if it is of no use once more.
        on_unfinished (callable, *optional*): called with the reason, where it is left for the next invocation.
    """

    request: TeacherRequest[Product]
    on_answer: Callable[[Product], None]
    on_refusal: Callable[[str], None]
    on_unfinished: Callable[[str], None] = field(default=lambda reason: None)


@dataclass
class Asking:
    """What one invocation asked, and what is left.

    Args:
        num_questions (`int`): all of them, those that an earlier invocation had answered included.
        num_answered (`int`): of these, with an answer of use.
        num_refused (`int`): refused for good.
        unfinished (`dict`): reason -> questions left for the next invocation.
        new_attempts (`int`): requests that were sent now.
        spent_usd (`float`): by all invocations; so is `possibly_spent_usd`, of requests with unknown outcome.
        end_of_budget (`str`, *optional*): why no more may be spent.
        is_interrupted (`bool`): it was told to stop.
    """

    num_questions: int = 0
    num_answered: int = 0
    num_refused: int = 0
    unfinished: Counter[str] = field(default_factory=Counter)
    new_attempts: int = 0
    spent_usd: float = 0.0
    possibly_spent_usd: float = 0.0
    end_of_budget: str | None = None
    is_interrupted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every question was answered or refused for good."""
        return self.num_answered + self.num_refused == self.num_questions and not self.is_interrupted


def endpoint_config(base_url: str | None, model: str, **settings: Any) -> SynthesisConfig:
    """The settings of a run that makes no samples, only asks `model`; without an address, the offline teacher.

    `settings` are fields of [`SynthesisConfig`], such as `num_workers`, `prices` or `prompt_params`.
    """
    from pydantic import ValidationError

    from sharegpt4o_image.synthesis.yaml_files import describe_fault

    nothing = {"num_topics": 0, "num_documents": 0, "num_described": 0, "num_edits": 0}
    models = {"prompt_model": model, "image_model": model, "base_url": base_url}
    try:
        return SynthesisConfig.model_validate(nothing | models | settings)
    except ValidationError as error:
        raise UserError(describe_fault(error)) from error


def ask_all(
    questions: Callable[[BlobStore], Iterable[Question[Any]]],
    run_dir: Path,
    config: SynthesisConfig,
    kind: Kind,
    budget_usd: float | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Asking:
    """Ask all questions, `config.num_workers` at a time; answers arrive in any order.

    Ctrl-C ends the requests in flight, keeps their answers and returns. Raises [`UserError`] where the endpoint, or
    the disk, would serve no further question: [`EndpointFault`] where its answers are of no use.

    Args:
        questions (callable):
            Makes the questions, given the store that their pictures are to be written to; drawn one by one as workers
            become free.
        run_dir (`Path`): of the journal; made when it is missing.
        config ([`SynthesisConfig`]): see [`endpoint_config`].
        kind (`str`): `text` or `image`: which of the configuration's models is asked.
        budget_usd (`float`, *optional*): the most that the run may cost, all its invocations together.
        on_progress (callable, *optional*): called after each question that was dealt with.
    """
    model = config.prompt_model if kind == "text" else config.image_model
    if budget_usd is not None:
        check_prices([model], config, load_teachers(config.teachers))
    check_run_dir(run_dir)
    return run_invocation(_ask_all(questions, run_dir, config, kind, budget_usd, on_progress), run_dir)


async def _ask_all(
    questions: Callable[[BlobStore], Iterable[Question[Any]]],
    run_dir: Path,
    config: SynthesisConfig,
    kind: Kind,
    budget_usd: float | None,
    on_progress: Callable[[], None] | None,
) -> Asking:
    async with open_clients(config) as clients:
        await (check_text_endpoint if kind == "text" else check_image_endpoint)(clients, config)
        with closing(Journal.create_or_resume(run_dir, secrets())) as journal:
            settling = Settling(journal)
            dispatcher = _dispatcher(journal, config, settling, budget_usd, clients)
            done, before = Asking(), journal.count_attempts().total()
            inquiry = _Inquiry(dispatcher, done, journal, config.max_asks)

            async def settle(question: Question[Any]) -> None:
                with settling.noting_faults():
                    await inquiry.settle(question)
                if on_progress is not None:
                    on_progress()

            with drained_on_signal(settling.stop):
                first = inquiry.defer_given_up(questions(journal.blobs))
                await run_workers(first, settle, config.num_workers, settling.stop)
                await run_workers(inquiry.deferred, settle, config.num_workers, settling.stop)
            inquiry.finish()
            try:
                settling.raise_stop()
            except UserError as stop:
                raise (EndpointFault(str(stop)) if inquiry.is_at_fault else stop) from None
            done.unfinished = settling.unfinished
            done.new_attempts = journal.count_attempts().total() - before
            done.spent_usd, done.possibly_spent_usd = journal.spent_usd(), journal.reserved_usd()
            done.end_of_budget, done.is_interrupted = settling.end_of_budget, settling.is_interrupted
            return done


def _dispatcher(
    journal: Journal, config: SynthesisConfig, settling: Settling, budget_usd: float | None, clients: Any
) -> Dispatcher:
    teachers = load_teachers(config.teachers)
    models = {config.prompt_model, config.image_model}
    prices = {model: price for model in models if (price := teachers.price_of(model, config)) is not None}
    ledger = Ledger(journal, budget_usd, settling.stop, assume_costs(config, teachers))
    transport = DirectTransport(clients, Bookkeeper(journal, ledger, prices), config, settling.stop)
    return Dispatcher(journal, config, lambda request: transport)


class _Inquiry:
    """Questions -> who waits for their answers; refusals that may be the endpoint's fault wait for the next answer."""

    def __init__(self, dispatcher: Dispatcher, done: Asking, journal: Journal, max_asks: int) -> None:
        self.is_at_fault = False
        self.deferred: list[Question[Any]] = []  # given up by an earlier invocation
        self._dispatcher = dispatcher
        self._done = done
        self._journal = journal
        self._max_asks = max_asks
        # stages and models that gave answers of use in earlier invocations
        self._working = {(stage, model) for stage, model, status, _ in journal.count_requests() if status == "ok"}
        self._doubtful: list[tuple[Question[Any], str]] = []

    def defer_given_up(self, questions: Iterable[Question[Any]]) -> Iterator[Question[Any]]:
        """Those that are not: first it must be seen whether the endpoint is at fault."""
        for question in questions:
            self._done.num_questions += 1
            is_working = (question.request.stage, question.request.model) in self._working
            if is_working and self._count_useless(question) >= self._max_asks:
                self.deferred.append(question)
            else:
                yield question

    async def settle(self, question: Question[Any]) -> None:
        """Answer a question; what is left of it is the caller's."""
        useless_before = self._count_useless(question)
        try:
            product = await self._dispatcher.obtain(question.request)
        except RejectedByAnswer as rejection:
            self._doubtful.append((question, str(rejection)))
        except Rejected as rejection:
            self._refuse(question, str(rejection))
        except (Unfinished, EndpointAtFault) as fault:
            num_useless = self._count_useless(question)
            if question in self.deferred and num_useless > useless_before:
                self._refuse(question, f"it got no answer of use in several runs ({num_useless} answers)")
                return
            if isinstance(fault, EndpointAtFault):
                self.is_at_fault = True
            else:
                question.on_unfinished(str(fault))
            raise
        else:
            self._done.num_answered += 1
            question.on_answer(product)
            self._settle_doubtful()

    def finish(self) -> None:
        """Decide on the refusals after which no answer came."""
        if not self.is_at_fault:
            self._settle_doubtful()

    def _count_useless(self, question: Question[Any]) -> int:
        return self._journal.recall(question.request.key).num_useless

    def _settle_doubtful(self) -> None:
        while self._doubtful:
            self._refuse(*self._doubtful.pop())

    def _refuse(self, question: Question[Any], reason: str) -> None:
        self._done.num_refused += 1
        question.on_refusal(reason)
