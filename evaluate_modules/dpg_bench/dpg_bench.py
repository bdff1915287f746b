# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench as an `evaluate` metric: raw answers of a VQA model, a row each -> scores, official and corrected."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import evaluate

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_questions import read_questions
from sharegpt4o_image.evaluation.dpg_scores import MAX_PICTURES, score_blocks

_DESCRIPTION = """
DPG-Bench scores how well pictures follow dense prompts, by yes/no questions that depend on each other. This module
only adds up answers; it runs no VQA model. `official` is what the official script gives with one process, which
loses the first question; `corrected` keeps it and takes categories from all pictures.
"""

_INPUTS = """
Args:
    item_id (str): the item of the question file.
    picture (int): 1 to 4, in the order top-left, top-right, bottom-left, bottom-right of a grid.
    proposition_id (int): the question.
    answer (str): the raw text of the VQA model; only the exact `yes` counts.
    questions (str): the question file, `dpg_bench.csv` or one with its columns.
    num_pictures (int, optional): score the first pictures only; by default as many as the item with the most has.
    first_row (str, optional): `keep` or `drop` the file's first row in both blocks; by default `official` drops it.
Returns:
    official, corrected (both with overall, overall_interval, n_items_scored, n_missing, failed, ...), num_pictures,
    missing_parents, unknown_categories, repeated_questions (where there are some).
    Scores are in percent, those of `per_image` from 0 to 1.
"""

_CITATION = """
@article{hu2024ella,
  title={ELLA: Equip Diffusion Models with LLM for Enhanced Semantic Alignment},
  author={Hu, Xiwei and Wang, Rui and Fang, Yixiao and Fu, Bin and Cheng, Pei and Yu, Gang},
  journal={arXiv preprint arXiv:2403.05135},
  year={2024}
}
"""

_FEATURES = datasets.Features(
    {
        "item_id": datasets.Value("string"),
        "picture": datasets.Value("int32"),
        "proposition_id": datasets.Value("int32"),
        "answer": datasets.Value("string"),
    }
)

_Answers = dict[str, list[dict[str, str]]]


class DpgBench(evaluate.Metric):
    """The result has the shape of `sharegpt4o-image evaluate dpg-bench --json`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=_FEATURES,
            reference_urls=["https://github.com/TencentQQGYLab/ELLA"],
        )

    def _compute(
        self,
        *,
        item_id: Sequence[str],
        picture: Sequence[int],
        proposition_id: Sequence[int],
        answer: Sequence[str],
        questions: str | None = None,
        num_pictures: int | None = None,
        first_row: Literal["keep", "drop"] | None = None,
    ) -> dict[str, Any]:
        if questions is None:
            raise UserError("No question file; give `questions=`, the path of dpg_bench.csv.")
        if first_row not in (None, "keep", "drop"):
            raise UserError(f"first_row is {first_row!r}; give 'keep' or 'drop'.")
        if not answer:
            raise UserError("There is no answer to score; run the VQA model first.")
        answers = _grouped(zip(item_id, picture, proposition_id, answer, strict=True))
        return _scores(Path(questions), answers, num_pictures, first_row)


def _scores(
    questions: Path, answers: _Answers, num_pictures: int | None, first_row: Literal["keep", "drop"] | None
) -> dict[str, Any]:
    most = max(map(len, answers.values()))
    pictures = most if num_pictures is None else num_pictures
    if not 1 <= pictures <= most:
        raise UserError(f"{pictures} pictures were asked for, there are answers for {most}; give 1 to {most}.")
    items, official_items = (read_questions(questions, first_row or row) for row in ("keep", "drop"))
    blocks = score_blocks(items, official_items, answers, pictures, first_row)
    if not blocks.corrected.n_items_scored:
        item, reason = next(iter(blocks.corrected.failed.items()))
        raise UserError(f"No item can be scored with {questions} ({item}: {reason}); check that the two match.")
    return blocks.to_json()


def _grouped(rows: Any) -> _Answers:
    """Item -> picture -> question -> answer; a picture that is left out has no answers, which fails its item."""
    answers: _Answers = {}
    for number, (item, picture, question, answer) in enumerate(rows, start=1):
        where = f"row {number} (item {item!r}, picture {picture}, question {question})"
        if None in (item, picture, question, answer):
            raise UserError(f"{where}: a value is missing; store the raw answer, or leave the row out.")
        if not 1 <= picture <= MAX_PICTURES:
            raise UserError(f"{where}: number pictures from 1 to {MAX_PICTURES}.")
        pictures = answers.setdefault(item, [])
        pictures.extend({} for _ in range(picture - len(pictures)))
        if str(question) in pictures[picture - 1]:
            raise UserError(f"{where}: there is an answer already; keep one row for each question.")
        pictures[picture - 1][str(question)] = answer
    return answers
