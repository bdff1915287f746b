# SPDX-License-Identifier: Apache-2.0
"""Where a run stands: what is done, what failed and why, what was spent, and when it will be done."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sharegpt4o_image.schema import TASKS
from sharegpt4o_image.synthesis.journal import WORKS, Journal
from sharegpt4o_image.synthesis.run_folder import is_held

PLAN_FACT = "plan"  # the name under which the journal remembers how many samples each pipeline is to make
SETTINGS_FACT = "settings"  # what decided its rows, as JSON
TAXONOMY_FACT = "taxonomy"  # the name of what its topics are drawn from
STARTED_FACT = "started_at"  # when the last invocation began

_RATE_WINDOW = timedelta(minutes=5)  # what a rate is measured over, while the run goes on


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Args:
        records (`int`): finished samples, of both tasks.
        by_task (`dict`): task -> finished samples.
        planned (`dict`): pipeline -> samples that the last invocation was to make.
        decided (`dict`): pipeline -> samples that are finished or rejected, those of earlier plans included.
        rejected (`dict`): reason -> samples that are no record.
        attempts (`int`): requests that were sent, by all invocations together.
        by_status (`dict`): status -> attempts; see `journal.py`.
        spent_usd (`float`): what the answers cost.
        possibly_spent_usd (`float`): what requests of unknown outcome may have cost besides, those in flight included.
        is_running (`bool`): a process is working on it.
        samples_per_minute (`float`, *optional*): over the last five minutes, while it is running.
        eta_seconds (`float`, *optional*): until the plan is done at that rate.
    """

    records: int
    by_task: dict[str, int]
    planned: dict[str, int]
    decided: dict[str, int]
    rejected: dict[str, int]
    attempts: int
    by_status: dict[str, int]
    spent_usd: float
    possibly_spent_usd: float
    is_running: bool
    samples_per_minute: float | None
    eta_seconds: float | None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """A few lines for people."""
        statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(self.by_status.items()))
        lines = [f"{count:,} {task} records" for task, count in self.by_task.items()] or ["no records yet"]
        lines.append(f"{self.attempts:,} attempts ({statuses or 'none'}), {self.money}")
        lines += [f"rejected {count:,}: {reason}" for reason, count in self.rejected.items()]
        return "\n".join(lines)

    @property
    def money(self) -> str:
        """What was spent, in words."""
        lost = f", at most {self.possibly_spent_usd:.2f} more is unknown" if self.possibly_spent_usd else ""
        return f"{self.spent_usd:.2f} USD spent{lost}"


def read_status(run_dir: Path) -> RunStatus:
    """Where the run in `run_dir` stands; it may be going on."""
    with closing(Journal.open(run_dir)) as journal:
        return status_of(journal, is_held(run_dir))


def status_of(journal: Journal, is_running: bool) -> RunStatus:
    """Where a run stands, from its journal."""
    by_task, by_status, decided = journal.count_records(), journal.count_attempts(), journal.count_items()
    planned: dict[str, int] = json.loads(journal.read_fact(PLAN_FACT) or "{}")
    rate = _samples_per_minute(journal) if is_running else None
    left = sum(max(0, count - decided[pipeline]) for pipeline, count in planned.items())
    return RunStatus(
        records=by_task.total(),
        by_task={task: by_task[task] for task in TASKS if by_task[task]},
        planned=planned,
        decided={pipeline: decided[pipeline] for pipeline in WORKS if decided[pipeline]},
        rejected=dict(journal.count_rejections().most_common()),
        attempts=by_status.total(),
        by_status=dict(by_status),
        spent_usd=journal.spent_usd(),
        possibly_spent_usd=journal.reserved_usd(),
        is_running=is_running,
        samples_per_minute=rate,
        eta_seconds=60 * left / rate if rate else None,
    )


def _samples_per_minute(journal: Journal) -> float | None:
    """Samples decided lately; unknown right after the start, and where the clock was set back."""
    started_at = journal.read_fact(STARTED_FACT)
    now = datetime.now(UTC)
    began = max(datetime.fromisoformat(started_at), now - _RATE_WINDOW) if started_at else now
    minutes = (now - began).total_seconds() / 60
    return journal.count_decided_since(began.isoformat()) / minutes if minutes > 0 else None


# --------------------------------------------------------------------------- for the terminal


def render_status(status: RunStatus) -> RenderableType:
    """The status as tables."""
    lines = [_records(status), _requests(status), _pace(status)]
    return Group(_samples_table(status), *_rejections(status), Text("\n".join(lines)))


def _samples_table(status: RunStatus) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("pipeline")
    for name in ("decided", "planned", "%"):
        table.add_column(name, justify="right")
    for pipeline in WORKS:
        decided, planned = status.decided.get(pipeline, 0), status.planned.get(pipeline, 0)
        if decided or planned:
            share = f"{100 * decided / planned:.1f}" if planned else "-"
            table.add_row(pipeline, f"{decided:,}", f"{planned:,}", share)
    return table


def _records(status: RunStatus) -> str:
    tasks = ", ".join(f"{count:,} {task}" for task, count in status.by_task.items())
    return f"{status.records:,} records ({tasks})" if tasks else "no records yet"


def _rejections(status: RunStatus) -> Iterator[Table]:
    if not status.rejected:
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("rejected", justify="right")
    table.add_column("reason")
    for reason, count in status.rejected.items():
        table.add_row(f"{count:,}", Text(reason))
    yield table


def _requests(status: RunStatus) -> str:
    statuses = ", ".join(f"{count:,} {name}" for name, count in sorted(status.by_status.items()))
    return f"{status.attempts:,} attempts ({statuses or 'none'}), {status.money}"


def _pace(status: RunStatus) -> str:
    if not status.is_running:
        return "not running"
    if not status.samples_per_minute:
        return "running"
    eta = timedelta(seconds=round(status.eta_seconds or 0))
    return f"running at {status.samples_per_minute:,.1f} samples a minute, done in about {eta}"
