# SPDX-License-Identifier: Apache-2.0
"""`preference`: blind human comparison of pictures."""

from pathlib import Path
from typing import Annotated

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result

preference_app = typer.Typer(no_args_is_help=True, help="Blind human comparison of pictures.")


@preference_app.callback()
def preference() -> None:
    """Blind human comparison of pictures."""


@preference_app.command("report")
def preference_report(
    votes: Annotated[Path, typer.Argument(help="Votes as CSV or JSON lines.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw wins and ratings into this picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print who wins how often, with intervals, exact tests and Bradley-Terry ratings."""
    from sharegpt4o_image.evaluation import preference_report as reporting
    from sharegpt4o_image.evaluation.preference_votes import read_votes

    report = reporting.report(read_votes(votes))
    if plot is not None:
        reporting.plot(report, plot)
    print_result(report, reporting.to_text(report), as_json)
