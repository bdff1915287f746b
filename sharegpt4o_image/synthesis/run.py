# SPDX-License-Identifier: Apache-2.0
"""A synthesis run from plan to finished samples: the text-to-image pipelines, then the edits.

Reads: the taxonomy, photographs, the teachers' answers, and what the run directory already holds.
Writes: `RUN/journal.sqlite` and `RUN/blobs/`; a re-run asks only for what is missing.
"""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import GeneratedImage, Pipeline
from sharegpt4o_image.synthesis.batches import BatchTransport
from sharegpt4o_image.synthesis.client import Clients, check_endpoints, open_clients, secrets
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.edit_pipeline import Editing
from sharegpt4o_image.synthesis.gates import BenchmarkPrompts
from sharegpt4o_image.synthesis.inspection import Inspector, gates_id
from sharegpt4o_image.synthesis.journal import Item, Journal, utc_now
from sharegpt4o_image.synthesis.ledger import Ledger
from sharegpt4o_image.synthesis.limits import Stopped
from sharegpt4o_image.synthesis.pipelines import Sample, TextToImage, check_inputs
from sharegpt4o_image.synthesis.planning import assume_costs
from sharegpt4o_image.synthesis.requests import CHAT, TeacherRequest
from sharegpt4o_image.synthesis.run_folder import check_run_dir
from sharegpt4o_image.synthesis.scheduler import (
    Bookkeeper,
    DirectTransport,
    Dispatcher,
    Rejected,
    StopRun,
    Transport,
    run_workers,
)
from sharegpt4o_image.synthesis.settling import (
    Settling,
    check_prices,
    drained_on_signal,
    refuse_other_work,
    run_invocation,
)
from sharegpt4o_image.synthesis.status import (
    PLAN_FACT,
    SETTINGS_FACT,
    STARTED_FACT,
    TAXONOMY_FACT,
    RunStatus,
    status_of,
)
from sharegpt4o_image.synthesis.taxonomy import Taxonomy, load_taxonomy
from sharegpt4o_image.synthesis.teachers import Teachers, asked_models, check_teachers, load_teachers

OnProgress = Callable[[Pipeline, int, int], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """What one invocation of `synthesize` did, and where the run stands after it.

    Args:
        run_dir (`str`): the run.
        new_attempts (`int`): requests that this invocation sent.
        unfinished (`dict`): reason -> samples that were tried and are left for the next invocation.
        is_interrupted (`bool`): it was told to stop before the plan was done.
        end_of_budget (`str`, *optional*): why no more may be spent, where that ended the invocation.
        seconds (`float`): how long it took.
        status ([`RunStatus`]): the whole run.
    """

    run_dir: str
    new_attempts: int
    unfinished: dict[str, int]
    is_interrupted: bool
    end_of_budget: str | None
    seconds: float
    status: RunStatus

    def to_json(self) -> str:
        """One line of JSON: the run's status with the invocation's own numbers beside it."""
        own = {name: value for name, value in asdict(self).items() if name != "status"}
        return json.dumps(asdict(self.status) | own)

    def to_text(self) -> str:
        """A few lines for people."""
        lines = [self.status.to_text(), f"{self.new_attempts:,} of the attempts just now, in {self.seconds:.1f} s"]
        lines += [f"unfinished {count:,}: {reason}" for reason, count in self.unfinished.items()]
        if self.is_interrupted:
            lines.append("interrupted: run the same command again to go on")
        elif self.end_of_budget:
            lines.append(f"stopped: {self.end_of_budget}; a larger --budget goes on")
        elif self.unfinished:
            lines.append("run the same command again to ask for the unfinished ones")
        return "\n".join(lines)


def synthesize(
    run_dir: Path,
    config: SynthesisConfig | None = None,
    *,
    limit: int | None = None,
    budget_usd: float | None = None,
    uses_batches: bool = False,
    on_progress: OnProgress | None = None,
) -> RunSummary:
    """Start a run, or go on with it; nothing that was answered is asked or paid again.

    Ctrl-C ends the requests in flight, keeps their answers and returns.

    Args:
        run_dir (`Path`): where journal and pictures go.
        config ([`SynthesisConfig`], *optional*): what to make; defaults to the offline run.
        limit (`int`, *optional*): number of samples of each pipeline, instead of the configuration's.
        budget_usd (`float`, *optional*): the most that the run may cost, all its invocations together.
        uses_batches (`bool`, *optional*, defaults to `False`): order pictures through the Batch API.
        on_progress (callable, *optional*): called with pipeline, number of samples dealt with, and their total.
    """
    config = (config or SynthesisConfig()).with_limit(limit)
    taxonomy = load_taxonomy(config.taxonomy)
    teachers = load_teachers(config.teachers)
    for warning in check_teachers(config, teachers, datetime.now(UTC).date()):
        log.warning(warning)
    if budget_usd is not None:
        check_prices(asked_models(config), config, teachers)
    benchmarks = check_inputs(config)
    check_run_dir(run_dir)
    plan = _Plan(run_dir, config, taxonomy, teachers, benchmarks, budget_usd, uses_batches)
    return run_invocation(_synthesize(plan, on_progress), run_dir)


@dataclass(frozen=True)
class _Plan:
    """All that is decided before a run begins."""

    run_dir: Path
    config: SynthesisConfig
    taxonomy: Taxonomy
    teachers: Teachers
    benchmarks: BenchmarkPrompts
    budget_usd: float | None
    uses_batches: bool


async def _synthesize(plan: _Plan, on_progress: OnProgress | None) -> RunSummary:
    started = time.monotonic()
    async with open_clients(plan.config) as clients:
        await check_endpoints(clients, plan.config)
        with closing(Journal.create_or_resume(plan.run_dir, secrets())) as journal:
            refuse_other_work(journal, labels=False)
            invocation = _Invocation(plan, journal, clients, on_progress)
            with drained_on_signal(invocation.settling.stop):
                await invocation.work_off()
            invocation.settling.raise_stop()
            return invocation.summarize(round(time.monotonic() - started, 3))


class _Invocation:
    """One invocation of `synthesize`: works through the pipelines and keeps the books of their samples."""

    def __init__(self, plan: _Plan, journal: Journal, clients: Clients, on_progress: OnProgress | None):
        config = plan.config
        self.settling = Settling(journal)
        stop = self.settling.stop
        self._plan = plan
        self._journal = journal
        self._on_progress = on_progress
        self._gates = gates_id(config.gates)
        self._inspector = Inspector(journal, config, plan.taxonomy, self._gates)
        prices = {model: price for model in asked_models(config) if (price := plan.teachers.price_of(model, config))}
        ledger = Ledger(journal, plan.budget_usd, stop, assume_costs(config, plan.teachers))
        books = Bookkeeper(journal, ledger, prices)
        self._direct = DirectTransport(clients, books, config, stop)
        self._batches = BatchTransport(clients.images, books, config, stop) if plan.uses_batches else None
        self._dispatcher = Dispatcher(journal, config, self._transport_of)
        self._num_attempts_before = journal.count_attempts().total()
        self._num_done: Counter[Pipeline] = Counter()
        self._planned: dict[Pipeline, int] = {
            "prompt_first": config.num_topics,
            "image_first": config.num_described,
            "document": config.num_documents,
            "editing": config.num_edits,
        }

    def _transport_of(self, request: TeacherRequest[Any]) -> Transport:
        if self._batches is None or request.route == CHAT:
            return self._direct
        return self._batches

    async def work_off(self) -> None:
        """Make the samples that are missing: text-to-image first, whose pictures are the sources of the edits."""
        config, journal = self._plan.config, self._journal
        journal.write_fact(PLAN_FACT, json.dumps({name: count for name, count in self._planned.items() if count}))
        journal.write_fact(STARTED_FACT, utc_now())
        journal.write_fact(TAXONOMY_FACT, self._plan.taxonomy.name)
        journal.write_fact(SETTINGS_FACT, json.dumps(config.settings_of_rows()))
        pictures = TextToImage(config, self._plan.taxonomy, journal.blobs, self._plan.benchmarks)
        editing = Editing(config, self._plan.taxonomy, journal, pictures, self._gates)
        phases: list[Iterable[Sample]] = [
            itertools.chain(pictures.prompt_first(), pictures.image_first(), pictures.documents()),
            *(editing.edits(depth) for depth in range(config.edit_turns if config.num_edits else 0)),
        ]
        if self._batches is None:
            self._refuse_open_batches()
            await self._work_off(phases, config.num_workers)
            return
        try:
            async with self._batches.working():
                await self._work_off(phases, config.batch_size * config.open_batches)
        except StopRun as end:
            self.settling.stop_reason = str(end)
        except Stopped:
            return  # interrupted while an earlier job was waited for

    async def _work_off(self, phases: Iterable[Iterable[Sample]], num_workers: int) -> None:
        for samples in phases:
            await run_workers(samples, self._settle, num_workers, self.settling.stop)
        self.settling.take_back()

    def _refuse_open_batches(self) -> None:
        """What was ordered through the Batch API must not be ordered again."""
        if (count := len(self._journal.pending_submissions())) > 0:
            raise UserError(f"{count} jobs of the Batch API are open in this run; go on with --batch to fetch them")

    async def _settle(self, sample: Sample) -> None:
        """See to it that the journal knows what became of a sample."""
        found = self._journal.find_item(sample.item)
        if found is None or found.gates != self._gates:
            with self.settling.noting_faults():
                await self._decide(sample)
        self._report(sample.pipeline)

    async def _decide(self, sample: Sample) -> None:
        image: GeneratedImage | None = None
        thumbnail = reason = None
        try:
            image = await sample.make(self._dispatcher)
            verdict = await self._inspector.inspect(sample.item, image, self._dispatcher)
            image, reason, thumbnail = verdict.image, verdict.reason, verdict.thumbnail
        except Rejected as rejection:
            reason = self.settling.note_rejection(sample.item, rejection)
        item = Item(sample.item, sample.pipeline, sample.task, sample.position, image, reason, self._gates, utc_now())
        self._journal.decide(item, thumbnail)

    def _report(self, pipeline: Pipeline) -> None:
        self._num_done[pipeline] += 1
        if self._on_progress is not None:
            self._on_progress(pipeline, self._num_done[pipeline], self._planned[pipeline])

    def summarize(self, seconds: float) -> RunSummary:
        """What was done."""
        return RunSummary(
            run_dir=str(self._plan.run_dir),
            new_attempts=self._journal.count_attempts().total() - self._num_attempts_before,
            unfinished=dict(self.settling.unfinished.most_common()),
            is_interrupted=self.settling.is_interrupted,
            end_of_budget=self.settling.end_of_budget,
            seconds=seconds,
            status=status_of(self._journal, is_running=False),
        )
