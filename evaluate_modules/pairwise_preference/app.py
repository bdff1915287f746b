# SPDX-License-Identifier: Apache-2.0
"""The metric as a Space: a file of votes -> scores."""

from pathlib import Path
from typing import Any

import evaluate
import gradio

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_votes import REQUIRED_FIELDS, read_votes

MODULE = Path(__file__).with_name("pairwise_preference.py")


def score(votes: str) -> dict[str, Any]:
    """Scores of a file of votes."""
    try:
        read = read_votes(Path(votes))
        columns: dict[str, list[Any]] = {name: [getattr(vote, name) for vote in read] for name in REQUIRED_FIELDS}
        configuration = None
        if any(vote.is_repeat for vote in read):
            configuration, columns["is_repeat"] = "with_repeats", [vote.is_repeat for vote in read]
        return evaluate.load(str(MODULE), configuration).compute(**columns)
    except UserError as error:
        raise gradio.Error(str(error)) from error


demo = gradio.Interface(
    score,
    gradio.File(label="votes.csv or votes.jsonl", type="filepath"),
    gradio.JSON(label="scores"),
    title="Pairwise preference",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
