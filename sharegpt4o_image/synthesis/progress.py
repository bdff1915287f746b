# SPDX-License-Identifier: Apache-2.0
"""Progress of a run as bars on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sharegpt4o_image.schema import Task
from sharegpt4o_image.synthesis.run import OnProgress


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Show one bar for each task that a run reports on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[Task, TaskID] = {}
    progress = Progress(*columns, console=Console(stderr=True))

    def report(task: Task, num_done: int, total: int) -> None:
        if task not in bars:
            bars[task] = progress.add_task(task, total=total)
            progress.start()
        progress.update(bars[task], completed=num_done)

    try:
        yield report
    finally:
        if bars:
            progress.stop()
