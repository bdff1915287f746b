# SPDX-License-Identifier: Apache-2.0
"""`evaluate imgedit`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result
from sharegpt4o_image.errors import UserError


def imgedit(
    items: Annotated[Path | None, typer.Option(help="The official basic_edit.json.")] = None,
    from_judgements: Annotated[Path | None, typer.Option(help="result.json of the judge's texts.")] = None,
    suite: Annotated[Literal["basic", "uge"], typer.Option(help="basic, or uge, which has no items.")] = "basic",
    as_json: AsJson = False,
) -> None:
    """Score a judge's stored texts by ImgEdit's rules."""
    from sharegpt4o_image.evaluation import imgedit_scores

    if from_judgements is None or (items is None) != (suite == "uge"):
        wanted = "--from-judgements FILE" if suite == "uge" else "--items FILE and --from-judgements FILE"
        raise UserError(f"imgedit's {suite} is scored from stored answers: give {wanted}, nothing else")
    if items is None:
        uge = imgedit_scores.score_uge(from_judgements)
        print_result(uge, imgedit_scores.uge_to_text(uge), as_json)
        return
    scores = imgedit_scores.score_files(items, from_judgements)
    print_result(scores, imgedit_scores.to_text(scores), as_json)
