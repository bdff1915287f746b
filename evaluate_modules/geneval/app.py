# SPDX-License-Identifier: Apache-2.0
"""The metric as a Space: an official `results.jsonl` -> scores."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import evaluate
import gradio

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_scores import read_results

MODULE = Path(__file__).with_name("geneval.py")


def score(results: str) -> dict[str, Any]:
    """Scores of an official `results.jsonl`."""
    try:
        rows = [asdict(row) for row in read_results(Path(results))]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return evaluate.load(str(MODULE)).compute(**columns)
    except UserError as error:
        raise gradio.Error(str(error)) from error


demo = gradio.Interface(
    score,
    gradio.File(label="results.jsonl", type="filepath"),
    gradio.JSON(label="scores"),
    title="GenEval",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
