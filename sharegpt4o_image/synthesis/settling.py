# SPDX-License-Identifier: Apache-2.0
"""What every invocation of a run has in common: how it is stopped, and what becomes of items that have a fault."""

import asyncio
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.blobs import MissingBlob
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal, printable
from sharegpt4o_image.synthesis.scheduler import (
    Doubt,
    EndOfBudget,
    EndpointAtFault,
    Rejected,
    RejectedByAnswer,
    StopRun,
    Unfinished,
)
from sharegpt4o_image.synthesis.teachers import Teachers

Result = TypeVar("Result")


def run_invocation(work: Coroutine[Any, Any, Result], run_dir: Path) -> Result:
    """Run `work` to its end; a second Ctrl-C is a `KeyboardInterrupt`, a full or broken disk a [`UserError`]."""
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # the second Ctrl-C
    except (OSError, sqlite3.DatabaseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write to {run_dir} ({reason}); put that right and run the same command again"
        ) from error


@contextmanager
def drained_on_signal(stop: asyncio.Event) -> Iterator[None]:
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


def check_prices(models: Iterable[str], config: SynthesisConfig, teachers: Teachers) -> None:
    """A budget means nothing for a model whose price is not known."""
    for model in models:
        if teachers.price_of(model, config) is None:
            raise UserError(
                f"--budget needs the price of {model}, which the registry does not have; add it under `prices` "
                "in the configuration, in US dollars for a million tokens"
            )


def refuse_other_work(journal: Journal, labels: bool) -> None:
    """Keep labels and samples in runs of their own: each has its budget, and its status."""
    kinds = {(work == "labelling") for work in journal.count_items()}
    if kinds - {labels}:
        holds, other = ("samples", "--run") if labels else ("labels", "--output")
        raise UserError(f"{journal.run_dir} is a run that holds {holds}; choose another directory with {other}")


class Settling:
    """What one invocation notes of the items that it could not settle, and why it ends before its time.

    `stop` ends it; `stop_reason` is set where no endpoint or disk would serve further items, `end_of_budget` where no
    more may be spent. `unfinished` counts, by reason, the items that are left for the next invocation.
    """

    def __init__(self, journal: Journal) -> None:
        self.stop = asyncio.Event()
        self.stop_reason: str | None = None
        self.end_of_budget: str | None = None
        self.unfinished: Counter[str] = Counter()
        self._journal = journal
        self._doubtful: list[tuple[str, Doubt]] = []  # rejected for an answer; the endpoint may be at fault
        self._faulty: list[Doubt] = []

    @property
    def is_interrupted(self) -> bool:
        """Whether the user told it to stop."""
        return self.stop.is_set() and self.end_of_budget is None

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        """Take what ends the work on one item for a note; [`Rejected`] is for the caller to decide upon."""
        try:
            yield
        except (Unfinished, MissingBlob) as fault:
            self.unfinished[str(fault)] += 1
        except EndpointAtFault as end:
            self._faulty.append(end.doubt)
            self._end(str(end))
        except EndOfBudget as end:
            self.end_of_budget = str(end)
            self.stop.set()
        except StopRun as end:
            self._end(str(end))

    def _end(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        self.stop.set()

    def note_rejection(self, item: str, rejection: Rejected) -> str:
        """The reason why an item is rejected, which is taken back should the endpoint turn out to be at fault."""
        if isinstance(rejection, RejectedByAnswer):
            self._doubtful.append((item, rejection.doubt))
        return str(rejection)

    def take_back(self) -> None:
        """Have the next invocation decide what was rejected while the endpoint was at fault."""
        self._journal.undecide(item for item, doubt in self._doubtful if doubt in self._faulty)

    def raise_stop(self) -> None:
        """Tell the user of what ended the run, if it was a fault."""
        if self.stop_reason is not None:
            reason = printable(self.stop_reason)
            raise UserError(f"the run stopped ({reason}); put that right and run the same command again")
