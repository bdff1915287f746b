# SPDX-License-Identifier: Apache-2.0
"""`evaluate geneval`."""

from pathlib import Path
from typing import Annotated

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result
from sharegpt4o_image.errors import UserError


def geneval(
    from_detections: Annotated[
        Path | None, typer.Option(help="JSON lines with metadata, detections and colours of each picture.")
    ] = None,
    from_results: Annotated[Path | None, typer.Option(help="The official results.jsonl.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="evaluation_metadata.jsonl, to count missing images against.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored detections or verdicts by GenEval's rules."""
    from sharegpt4o_image.evaluation import geneval_scores
    from sharegpt4o_image.evaluation.geneval_prompts import read_metadata

    if (from_detections is None) == (from_results is None):
        raise UserError("geneval is scored from stored answers: give --from-detections FILE or --from-results FILE")
    prompts = None if metadata is None else read_metadata(metadata)
    if from_detections is not None:
        summary, rows = geneval_scores.score_detections(from_detections, prompts)
    else:
        assert from_results is not None
        summary, rows = geneval_scores.score_results(from_results, prompts)
    text = f"{geneval_scores.format_official(summary)}\n{geneval_scores.coverage_text(summary)}"
    print_result(geneval_scores.to_json(summary, rows), text, as_json)
