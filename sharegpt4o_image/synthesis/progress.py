# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: bars on stderr, and a table that follows a run of another process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sharegpt4o_image.schema import Pipeline
from sharegpt4o_image.synthesis.run import OnProgress
from sharegpt4o_image.synthesis.status import read_status, render_status

_REFRESHES_PER_SECOND = 1


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Show one bar for each pipeline that a run reports on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[Pipeline, TaskID] = {}
    progress = Progress(*columns, console=Console(stderr=True))

    def report(pipeline: Pipeline, num_done: int, total: int) -> None:
        if pipeline not in bars:
            bars[pipeline] = progress.add_task(pipeline, total=total)
            progress.start()
        progress.update(bars[pipeline], completed=num_done)

    try:
        yield report
    finally:
        if bars:
            progress.stop()


def follow_status(run_dir: Path) -> None:
    """Show the status of a run until it ends; Ctrl-C ends only the show."""
    status = read_status(run_dir)
    with suppress(KeyboardInterrupt), Live(render_status(status), refresh_per_second=_REFRESHES_PER_SECOND) as live:
        while status.is_running:
            time.sleep(1 / _REFRESHES_PER_SECOND)
            status = read_status(run_dir)
            live.update(render_status(status))
