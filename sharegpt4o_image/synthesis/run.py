# SPDX-License-Identifier: Apache-2.0
"""A synthesis run from plan to finished samples: prompt-first text-to-image, then edits of those pictures.

Reads: the taxonomy, the teacher's answers, and what the run directory already holds.
Writes: `RUN/journal.sqlite` and `RUN/blobs/`; a re-run asks only for what is missing.
"""

import asyncio
import json
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import openai

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, GeneratedImage, Task
from sharegpt4o_image.synthesis.client import check_endpoint, open_client, secret_key
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal, check_run_dir
from sharegpt4o_image.synthesis.pipelines import Pipelines, Sample
from sharegpt4o_image.synthesis.records import LICENSE_FACT
from sharegpt4o_image.synthesis.scheduler import Dispatcher, Rejected, StopRun, Unfinished, run_workers
from sharegpt4o_image.synthesis.taxonomy import Taxonomy, load_taxonomy

OnProgress = Callable[[Task, int, int], None]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Args:
        records (`int`): finished samples, of both tasks.
        by_task (`dict`): task -> finished samples.
        attempts (`int`): requests that were sent, by all invocations together.
        by_status (`dict`): status -> attempts; see `journal.py`.
        rejected (`dict`): reason -> samples that get no picture.
        spent_usd (`float`): what the answers cost.
    """

    records: int
    by_task: dict[str, int]
    attempts: int
    by_status: dict[str, int]
    rejected: dict[str, int]
    spent_usd: float

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """A few lines for people."""
        statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(self.by_status.items()))
        lines = [f"{count:,} {task} records" for task, count in self.by_task.items()] or ["no records yet"]
        lines.append(f"{self.attempts:,} attempts ({statuses or 'none'}), {self.spent_usd:.2f} USD spent")
        lines += [f"rejected {count:,}: {reason}" for reason, count in self.rejected.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class RunSummary:
    """What one invocation of `synthesize` did, and where the run stands after it.

    Args:
        run_dir (`str`): the run.
        new_attempts (`int`): requests that this invocation sent.
        unfinished (`int`): samples that were tried and are left for the next invocation.
        is_interrupted (`bool`): it was told to stop before the plan was done.
        seconds (`float`): how long it took.
        status ([`RunStatus`]): the whole run.
    """

    run_dir: str
    new_attempts: int
    unfinished: int
    is_interrupted: bool
    seconds: float
    status: RunStatus

    def to_json(self) -> str:
        """One line of JSON: the run's status with the invocation's own numbers beside it."""
        own = {name: value for name, value in asdict(self).items() if name != "status"}
        return json.dumps(asdict(self.status) | own)

    def to_text(self) -> str:
        """A few lines for people."""
        lines = [self.status.to_text(), f"{self.new_attempts:,} of the attempts just now, in {self.seconds:.1f} s"]
        if self.is_interrupted:
            lines.append("interrupted: run the same command again to go on")
        elif self.unfinished:
            lines.append(f"{self.unfinished:,} samples unfinished: run the same command again to ask for them")
        return "\n".join(lines)


def read_status(run_dir: Path) -> RunStatus:
    """Where the run in `run_dir` stands; it may be going on."""
    with closing(Journal.open(run_dir)) as journal:
        return _status_of(journal)


def _status_of(journal: Journal) -> RunStatus:
    by_task, by_status = journal.count_records(), journal.count_attempts()
    return RunStatus(
        records=by_task.total(),
        by_task={task: by_task[task] for task in TASKS if by_task[task]},
        attempts=by_status.total(),
        by_status=dict(by_status),
        rejected=dict(journal.count_rejections()),
        spent_usd=journal.spent_usd(),
    )


def synthesize(
    run_dir: Path,
    config: SynthesisConfig | None = None,
    *,
    limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> RunSummary:
    """Start a run, or go on with it; nothing that was answered is asked or paid again.

    Ctrl-C ends the requests in flight, keeps their answers and returns.

    Args:
        run_dir (`Path`): where journal and pictures go.
        config ([`SynthesisConfig`], *optional*): what to make; defaults to the offline run.
        limit (`int`, *optional*): number of topics, and of edits, instead of the configuration's.
        on_progress (callable, *optional*): called with task, number of samples dealt with, and their total.
    """
    config = (config or SynthesisConfig()).with_limit(limit)
    taxonomy = load_taxonomy(config.taxonomy)
    check_run_dir(run_dir)
    try:
        return asyncio.run(_synthesize(run_dir, config, taxonomy, on_progress))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # the second Ctrl-C
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to {run_dir} ({reason}); put that right and run the same command again"
        ) from error


async def _synthesize(
    run_dir: Path, config: SynthesisConfig, taxonomy: Taxonomy, on_progress: OnProgress | None
) -> RunSummary:
    started = time.monotonic()
    async with open_client(config) as client:
        await check_endpoint(client, config)
        with closing(Journal.create_or_resume(run_dir, secrets=(secret_key() or "",))) as journal:
            journal.write_fact(LICENSE_FACT, config.license)
            invocation = _Invocation(journal, config, on_progress)
            with _drained_on_signal(invocation.stop):
                await invocation.work_off(client, taxonomy)
            if invocation.stop_reason is not None:
                reason = invocation.stop_reason
                raise UserError(f"the run stopped ({reason}); put that right and run the same command again")
            return RunSummary(
                run_dir=str(run_dir),
                new_attempts=invocation.dispatcher.num_attempts,
                unfinished=invocation.num_unfinished,
                is_interrupted=invocation.stop.is_set(),
                seconds=round(time.monotonic() - started, 3),
                status=_status_of(journal),
            )


@contextmanager
def _drained_on_signal(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) sets `stop`, a second one cancels; other threads than the main one get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Invocation:
    """One invocation of `synthesize`: works through the pipelines and keeps the books of their samples."""

    def __init__(self, journal: Journal, config: SynthesisConfig, on_progress: OnProgress | None):
        self.stop = asyncio.Event()
        self.stop_reason: str | None = None
        self.num_unfinished = 0
        self._journal = journal
        self._config = config
        self._on_progress = on_progress
        self.dispatcher = Dispatcher(journal, config, self.stop)
        self._num_done: Counter[Task] = Counter()

    async def work_off(self, client: openai.AsyncOpenAI, taxonomy: Taxonomy) -> None:
        """Make the samples that are missing: text-to-image first, whose pictures are the sources of the edits."""
        pipelines = Pipelines(client, self._config, taxonomy, self._journal.blobs, self._find_source)
        for samples in (pipelines.prompt_first(), pipelines.editing()):
            await run_workers(samples, self._settle, self._config.num_workers, self.stop)

    def _find_source(self, item: str) -> GeneratedImage | None:
        found = self._journal.find_item(item)
        return found.image if found else None

    async def _settle(self, sample: Sample) -> None:
        """See to it that the journal knows what became of a sample."""
        if self._journal.find_item(sample.item) is None:
            try:
                image = await sample.make(self.dispatcher)
                self._journal.finish_item(sample.item, sample.task, sample.position, image)
            except Rejected as rejection:
                self._journal.reject_item(sample.item, sample.task, sample.position, str(rejection))
            except Unfinished:
                self.num_unfinished += 1
            except StopRun as end:
                self.stop_reason = self.stop_reason or str(end)
                self.num_unfinished += 1
                self.stop.set()
        self._report(sample.task)

    def _report(self, task: Task) -> None:
        self._num_done[task] += 1
        if self._on_progress is not None:
            total = self._config.num_topics if task == "text_to_image" else self._config.num_edits
            self._on_progress(task, self._num_done[task], total)
