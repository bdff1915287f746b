# SPDX-License-Identifier: Apache-2.0
"""Rows -> labels, through the synthesis engine: journal, budget, retries and resuming are those of `synthesize`.

Reads: the rows of a source; the answers that `RUN` holds.
Writes: `RUN/journal.sqlite`, and `RUN/blobs/` with the pictures as they were shown, small.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from sharegpt4o_image.builders.label_agreement import Agreement
from sharegpt4o_image.builders.row_source import RowFault, RowPlan, RowSource, SourceFacts
from sharegpt4o_image.builders.run_source import facts_of_run
from sharegpt4o_image.schema import LabelledRecord, Record, Task
from sharegpt4o_image.synthesis.answers import BlockedAnswer, InvalidAnswer
from sharegpt4o_image.synthesis.client import Clients, check_text_endpoint, open_clients, secrets
from sharegpt4o_image.synthesis.config import Gates, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Item, Journal, utc_now, without_particulars
from sharegpt4o_image.synthesis.labelling import (
    Labels,
    Subject,
    Vocabulary,
    plan_labels,
    settings_of_labels,
    show_pictures,
)
from sharegpt4o_image.synthesis.ledger import Ledger
from sharegpt4o_image.synthesis.pictures import UnreadablePicture
from sharegpt4o_image.synthesis.planning import assume_costs
from sharegpt4o_image.synthesis.requests import TeacherRequest
from sharegpt4o_image.synthesis.run_folder import check_run_dir
from sharegpt4o_image.synthesis.scheduler import Bookkeeper, DirectTransport, Dispatcher, Rejected, run_workers
from sharegpt4o_image.synthesis.settling import (
    Settling,
    check_prices,
    drained_on_signal,
    refuse_other_work,
    run_invocation,
)
from sharegpt4o_image.synthesis.status import PLAN_FACT, SETTINGS_FACT, STARTED_FACT, TAXONOMY_FACT
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy
from sharegpt4o_image.synthesis.teachers import Teachers, asked_models, check_teachers, load_teachers

OnProgress = Callable[[int, int], None]

NOT_ASKED = "not asked before the run ended"

log = logging.getLogger(__name__)


@dataclass
class Labelling:
    """The labels of a set, and what became of the rows that have none.

    Args:
        agreement ([`Agreement`]): of all rows with what they are labelled with now, be it new or what they came with.
        labels (`dict`): location of a row -> its labels.
        rows (`Counter`): task -> rows that were to be labelled, and others that the run has labels for.
        labelled (`Counter`): task -> rows that are.
        unlabelled (`Counter`): reason -> rows that will have no labels: blocked, or answered with nothing of use.
        unfinished (`dict`): reason -> rows that are left for the next invocation.
        dropped (`Counter`): names of objects in answers that could not be published -> rows.
        facts ([`SourceFacts`], *optional*): what the requests of the run came to, once they have ended.
    """

    agreement: Agreement
    labels: dict[str, Labels] = field(default_factory=dict)
    rows: Counter[Task] = field(default_factory=Counter)
    labelled: Counter[Task] = field(default_factory=Counter)
    unlabelled: Counter[str] = field(default_factory=Counter)
    unfinished: dict[str, int] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    facts: SourceFacts | None = None
    new_attempts: int = 0
    spent_usd: float = 0.0
    possibly_spent_usd: float = 0.0
    end_of_budget: str | None = None
    is_interrupted: bool = False


def rows_to_label(plans: Iterable[RowPlan], limit: int | None) -> list[RowPlan]:
    """The first rows of each task, or all; negatives get no labels."""
    counts: Counter[Task] = Counter()
    kept = []
    for plan in plans:
        if plan.is_negative or plan.fault is not None or (limit is not None and counts[plan.task] >= limit):
            continue
        counts[plan.task] += 1
        kept.append(plan)
    return kept


def text_only(config: SynthesisConfig) -> SynthesisConfig:
    """The configuration with nothing to make: its text teacher alone is asked."""
    nothing = {"num_topics": 0, "num_documents": 0, "num_described": 0, "num_edits": 0, "gates": Gates()}
    return config.model_copy(update=nothing)


def load_checked_teachers(config: SynthesisConfig) -> Teachers:
    """The registry, once the configuration has been compared with it."""
    teachers = load_teachers(config.teachers)
    for warning in check_teachers(config, teachers, datetime.now(UTC).date()):
        log.warning(warning)
    return teachers


def label_rows(
    source: RowSource,
    run_dir: Path,
    config: SynthesisConfig | None = None,
    *,
    limit: int | None = None,
    budget_usd: float | None = None,
    on_progress: OnProgress | None = None,
) -> Labelling:
    """The labels of the rows of a source, out of the run's journal or else from the model.

    What the journal holds is found for all rows, those past the limit or the end of the budget included. Ctrl-C ends
    the requests in flight and keeps their answers.

    Args:
        source (`RowSource`): the rows; it stays open.
        run_dir (`Path`): where the answers are kept.
        config ([`SynthesisConfig`], *optional*):
            Its text teacher (`prompt_model`) labels in the words of its `taxonomy`; defaults to the offline teacher.
        limit (`int`, *optional*): number of rows of each task, instead of all.
        budget_usd (`float`, *optional*): the most that the run may cost, all its invocations together.
        on_progress (callable, *optional*): called with the number of rows dealt with, and their total.
    """
    config = text_only(config or SynthesisConfig())
    vocabulary = Vocabulary.of(load_taxonomy(config.taxonomy))
    teachers = load_checked_teachers(config)
    if budget_usd is not None:
        check_prices(asked_models(config), config, teachers)
    check_run_dir(run_dir, "--run")
    plans = rows_to_label(source.plan(), None)
    job = _Job(source, plans, rows_to_label(plans, limit), config, vocabulary, teachers, budget_usd)
    return run_invocation(_label(job, run_dir, on_progress), run_dir)


@dataclass(frozen=True)
class _Job:
    """All that is decided before a row is labelled: `plans` are the rows that can be, `to_ask` the ones that shall."""

    source: RowSource
    plans: list[RowPlan]
    to_ask: list[RowPlan]
    config: SynthesisConfig
    vocabulary: Vocabulary
    teachers: Teachers
    budget_usd: float | None


async def _label(job: _Job, run_dir: Path, on_progress: OnProgress | None) -> Labelling:
    async with open_clients(job.config) as clients:
        await check_text_endpoint(clients, job.config)
        with closing(Journal.create_or_resume(run_dir, secrets())) as journal:
            refuse_other_work(journal, labels=True)
            labeller = _Labeller(job, journal, clients, on_progress)
            with drained_on_signal(labeller.settling.stop):
                await labeller.work_off()
            labeller.settling.raise_stop()
            return labeller.done


@dataclass(frozen=True)
class _Row:
    """A row in work; where it is not to be asked for, the journal is."""

    position: int
    plan: RowPlan
    record: Record
    is_asked: bool


class _Labeller:
    """One invocation: works through the rows and keeps the books of their labels."""

    def __init__(self, job: _Job, journal: Journal, clients: Clients, on_progress: OnProgress | None) -> None:
        self.settling = Settling(journal)
        self.done = Labelling(Agreement(job.vocabulary))
        self._job = job
        self._journal = journal
        self._on_progress = on_progress
        self._num_done = 0
        config, stop = job.config, self.settling.stop
        price = job.teachers.price_of(config.prompt_model, config)
        ledger = Ledger(journal, job.budget_usd, stop, assume_costs(config, job.teachers))
        books = Bookkeeper(journal, ledger, {config.prompt_model: price} if price else {})
        transport = DirectTransport(clients, books, config, stop)
        self._dispatcher = Dispatcher(journal, config, lambda request: transport)
        self._num_attempts_before = journal.count_attempts().total()

    async def work_off(self) -> None:
        """Label the rows that have no labels yet, and take note of those that have."""
        self._write_facts()
        self.done.rows = Counter(plan.task for plan in self._job.to_ask)
        rows = self._rows()
        await run_workers(rows, self._settle, self._job.config.num_workers, self.settling.stop)
        if self.settling.end_of_budget is not None:
            for row in rows:  # what is left: no more is asked, but the run may have answers
                await self._settle(row)
        self.settling.take_back()
        self._sum_up()

    def _write_facts(self) -> None:
        journal, job = self._journal, self._job
        journal.write_fact(PLAN_FACT, json.dumps({"labelling": len(job.to_ask)}))
        journal.write_fact(STARTED_FACT, utc_now())
        journal.write_fact(TAXONOMY_FACT, job.vocabulary.name)
        journal.write_fact(SETTINGS_FACT, json.dumps(settings_of_labels(job.config)))

    def _sum_up(self) -> None:
        done, journal = self.done, self._journal
        done.new_attempts = journal.count_attempts().total() - self._num_attempts_before
        done.spent_usd, done.possibly_spent_usd = journal.spent_usd(), journal.reserved_usd()
        done.end_of_budget = self.settling.end_of_budget
        done.is_interrupted = self.settling.is_interrupted
        unfinished = self.settling.unfinished.copy()
        settled = done.labelled.total() + done.unlabelled.total() + unfinished.total()
        unfinished[NOT_ASKED] += done.rows.total() - settled
        done.unfinished = {reason: count for reason, count in unfinished.most_common() if count}
        done.facts = facts_of_run(journal, journal.run_dir.resolve().name)

    def _rows(self) -> Iterator[_Row]:
        """The rows in order; they are read one by one, as workers become free."""
        to_ask = {plan.location for plan in self._job.to_ask}
        needs_others = self._num_attempts_before > 0 or issubclass(self._job.source.row, LabelledRecord)
        for position, plan in enumerate(self._job.plans):
            is_asked = plan.location in to_ask
            if not (is_asked or needs_others):
                continue  # neither the run nor the set has labels for it
            try:
                yield _Row(position, plan, self._job.source.load(plan), is_asked)
            except RowFault as fault:
                if is_asked:
                    self.done.unlabelled[without_particulars(fault.reason)] += 1
                    self._report()

    async def _settle(self, row: _Row) -> None:
        """See to it that the row has labels, or that the journal knows why it has none."""
        subject = await asyncio.to_thread(Subject.of, row.record)
        request = plan_labels(self._job.config, self._job.vocabulary, subject)
        labels = self._recall(request, row)
        if labels is None and row.is_asked:
            labels = await self._ask(request, row)
        self._keep(row, labels)

    def _recall(self, request: TeacherRequest[Labels], row: _Row) -> Labels | None:
        """The labels that the journal holds."""
        answer = self._journal.recall(request.key).answer
        if answer is None:
            return None
        try:
            labels = request.parse(answer)
        except (InvalidAnswer, BlockedAnswer):
            return None  # cut off before this was written down; asking will
        if self._journal.find_item(request.key) is None:
            self._decide(request, row, None)
        return labels

    async def _ask(self, request: TeacherRequest[Labels], row: _Row) -> Labels | None:
        """Labels from the teacher, for whom alone the pictures are made ready, unless the row is decided."""
        found = self._journal.find_item(request.key)
        if found is not None and found.reason is not None:
            self.done.unlabelled[without_particulars(found.reason)] += 1
        elif not self.settling.stop.is_set():
            with self.settling.noting_faults():
                return await self._obtain(request, row)
        return None

    async def _obtain(self, request: TeacherRequest[Labels], row: _Row) -> Labels | None:
        labels = reason = None
        try:
            shown = await asyncio.to_thread(show_pictures, row.record, self._journal.blobs)
            labels = await self._dispatcher.obtain(replace(request, pictures=shown))
        except UnreadablePicture as fault:
            reason = f"a picture cannot be read: {fault}"
        except Rejected as rejection:
            reason = self.settling.note_rejection(request.key, rejection)
        if reason is not None:
            self.done.unlabelled[without_particulars(reason)] += 1
        self._decide(request, row, reason)
        return labels

    def _decide(self, request: TeacherRequest[Labels], row: _Row, reason: str | None) -> None:
        item = Item(request.key, "labelling", row.plan.task, row.position, None, reason, "", utc_now())
        self._journal.decide(item)

    def _keep(self, row: _Row, labels: Labels | None) -> None:
        """Note the new labels of a row, and compare what it is labelled with now."""
        if labels is not None:
            self.done.labels[row.plan.location] = labels
            self.done.labelled[row.plan.task] += 1
            self.done.rows[row.plan.task] += not row.is_asked
            self.done.dropped.update(labels.dropped)
        if (labels := labels or Labels.of(row.record)) is not None:
            self.done.agreement.add(row.record, labels)
        if row.is_asked:
            self._report()

    def _report(self) -> None:
        self._num_done += 1
        if self._on_progress is not None:
            self._on_progress(self._num_done, len(self._job.to_ask))
