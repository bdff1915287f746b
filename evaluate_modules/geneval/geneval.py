# SPDX-License-Identifier: Apache-2.0
"""GenEval as an `evaluate` metric: rows of the official `results.jsonl` -> per task and overall, with intervals."""

from pathlib import Path
from typing import Any

import datasets
import evaluate

from sharegpt4o_image.evaluation.geneval_prompts import IMAGES_PER_PROMPT, read_metadata
from sharegpt4o_image.evaluation.geneval_scores import check_results, summarize, to_json

_DESCRIPTION = """
GenEval scores object-focused text-to-image generation. This module only adds up verdicts; it runs no detector.
The overall score is the unweighted mean of the tasks that are there, as in the official `summary_scores.py`.
"""

_INPUTS = """
Args:
    filename, tag, prompt, reason (str): the official columns of a picture.
    correct (bool): the verdict.
    metadata (str): the prompt's line of `evaluation_metadata.jsonl`, JSON text.
    details (str): the boxes that counted, JSON text.
    metadata_file (str, optional): `evaluation_metadata.jsonl`, to count missing pictures against its prompts.
    images_per_prompt (int, optional): how many pictures of each prompt there should be, 4 by default.
Returns:
    overall, overall_interval, tasks, num_images, num_prompts, num_duplicates, correct_images, correct_prompts,
    coverage, images.
"""

_CITATION = """
@inproceedings{ghosh2023geneval,
  title={GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment},
  author={Ghosh, Dhruba and Hajishirzi, Hannaneh and Schmidt, Ludwig},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}
"""

_FEATURES = datasets.Features(
    {
        "filename": datasets.Value("string"),
        "tag": datasets.Value("string"),
        "prompt": datasets.Value("string"),
        "correct": datasets.Value("int8"),  # no bool: encoding would make True of the text "false"
        "reason": datasets.Value("string"),
        "metadata": datasets.Value("string"),
        "details": datasets.Value("string"),
    }
)


class Geneval(evaluate.Metric):
    """Shares are from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=_FEATURES,
            reference_urls=["https://github.com/djghosh13/geneval"],
        )

    def _compute(
        self, *, metadata_file: str | None = None, images_per_prompt: int = IMAGES_PER_PROMPT, **columns: list[Any]
    ) -> dict[str, Any]:
        columns["correct"] = [_verdict(value) for value in columns["correct"]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        results = check_results((f"row {number}", row) for number, row in enumerate(rows, start=1))
        prompts = read_metadata(Path(metadata_file)) if metadata_file is not None else None
        return to_json(summarize(results, prompts, images_per_prompt), results)


def _verdict(value: int | None) -> bool | int | None:
    """0 and 1 as the bool that they were; anything else stays, and is refused."""
    return bool(value) if value in (0, 1) else value
