# SPDX-License-Identifier: Apache-2.0
"""`evaluate dpg-bench`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result
from sharegpt4o_image.errors import UserError


def dpg_bench(
    questions: Annotated[Path | None, typer.Option(help="The official CSV of questions.")] = None,
    from_answers: Annotated[Path | None, typer.Option(help="JSON of the answers to them.")] = None,
    num_pictures: Annotated[int | None, typer.Option(help="Use the first so many of each item.", min=1, max=4)] = None,
    first_row: Annotated[
        Literal["keep", "drop"] | None, typer.Option(help="The first question, which the official script drops.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored answers by DPG-Bench's rules."""
    from sharegpt4o_image.evaluation import dpg_scores

    if questions is None or from_answers is None:
        raise UserError("dpg-bench is scored from stored answers: give --questions FILE and --from-answers FILE")
    scores = dpg_scores.score_files(questions, from_answers, num_pictures, first_row)
    print_result(scores, dpg_scores.to_text(scores), as_json)
