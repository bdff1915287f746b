# SPDX-License-Identifier: Apache-2.0
"""The metric as a Space: `basic_edit.json` and a judge's `result.json` -> scores."""

from pathlib import Path
from typing import Any

import evaluate
import gradio

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import OFFICIAL, PARSERS
from sharegpt4o_image.evaluation.imgedit_scores import read_answers, read_items

MODULE = Path(__file__).with_name("imgedit_bench.py")


def score(items: str, judgements: str, parser: str) -> dict[str, Any]:
    """Scores of `basic_edit.json` and a judge's `result.json`."""
    try:
        read, answers = read_items(Path(items)), read_answers(Path(judgements))
        keys = [key for key in answers if key in read] + [key for key in read if key not in answers]
        return evaluate.load(str(MODULE)).compute(
            key=keys,
            edit_type=[read[key].edit_type for key in keys],
            source=[read[key].source for key in keys],
            answer=[_text(answers.get(key)) for key in keys],
            parser=parser,
        )
    except UserError as error:
        raise gradio.Error(str(error)) from error


def _text(answer: Any) -> str:
    """A judge's text; an error object in its place has none."""
    return answer if isinstance(answer, str) else ""


demo = gradio.Interface(
    score,
    [
        gradio.File(label="basic_edit.json", type="filepath"),
        gradio.File(label="result.json", type="filepath"),
        gradio.Radio(list(PARSERS), value=OFFICIAL, label="parser"),
    ],
    gradio.JSON(label="scores"),
    title="ImgEdit-Bench",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
