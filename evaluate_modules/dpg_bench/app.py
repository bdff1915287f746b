# SPDX-License-Identifier: Apache-2.0
"""The metric as a Space: a question file and stored answers -> scores."""

from pathlib import Path
from typing import Any

import evaluate
import gradio

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_scores import read_answers

MODULE = Path(__file__).with_name("dpg_bench.py")


def score(questions: str, answers: str) -> dict[str, Any]:
    """Scores of a question file and stored answers."""
    try:
        rows = [
            (item, number, int(question), answer)
            for item, pictures in read_answers(Path(answers)).items()
            for number, picture in enumerate(pictures, start=1)
            for question, answer in picture.items()
        ]
        columns = dict(zip(("item_id", "picture", "proposition_id", "answer"), zip(*rows, strict=True), strict=True))
        return evaluate.load(str(MODULE)).compute(questions=questions, **columns)
    except UserError as error:
        raise gradio.Error(str(error)) from error


demo = gradio.Interface(
    score,
    [gradio.File(label="dpg_bench.csv", type="filepath"), gradio.File(label="answers.json", type="filepath")],
    gradio.JSON(label="scores"),
    title="DPG-Bench",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
