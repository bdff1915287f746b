# SPDX-License-Identifier: Apache-2.0
"""Votes of a blind comparison as an `evaluate` metric: a row per vote -> ratios, intervals, Bradley-Terry ratings."""

from typing import Any

import datasets
import evaluate

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_report import report
from sharegpt4o_image.evaluation.preference_statistics import SEED
from sharegpt4o_image.evaluation.preference_votes import REQUIRED_FIELDS, check_votes

WITH_REPEATS = "with_repeats"

_DESCRIPTION = """
Scores of a blind pairwise comparison of models: win, tie and loss ratios with Wilson intervals, an exact sign test,
net wins with a clustered bootstrap, Bradley-Terry ratings, agreement of raters, and a check for side bias.
"""

_INPUTS = """
Args:
    prompt_id, rater (str): what was judged, and by whom.
    model_a, model_b (str): the models on the left and on the right.
    winner (str): `model_a`, `model_b`, `tie` or `both_bad`.
    is_repeat (bool, only in the configuration `with_repeats`): an item shown again to measure consistency.
    bootstrap_seed (int, optional): of the bootstrap, 0 by default.
Returns:
    votes, pairs, bradley_terry, bradley_terry_groups, agreement, side_bias_left, consistency_on_repeats,
    bootstrap_seed.
"""

_CITATION = """
@inproceedings{chiang2024chatbot,
  title={Chatbot Arena: An Open Platform for Evaluating LLMs by Human Preference},
  author={Chiang, Wei-Lin and Zheng, Lianmin and Sheng, Ying and Angelopoulos, Anastasios Nikolas and others},
  booktitle={International Conference on Machine Learning},
  year={2024}
}
"""


class PairwisePreference(evaluate.Metric):
    """The result is that of `sharegpt4o-image preference report --json`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", WITH_REPEATS):
            raise UserError(f"There is no configuration {self.config_name!r}; leave it out or give {WITH_REPEATS!r}.")
        features = {name: datasets.Value("string") for name in REQUIRED_FIELDS}
        if self.config_name == WITH_REPEATS:
            features["is_repeat"] = datasets.Value("int8")  # no bool: encoding would make True of the text "false"
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2506.18095"],
        )

    def _compute(self, *, bootstrap_seed: int = SEED, **columns: list[Any]) -> dict[str, Any]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return report(check_votes(list(enumerate(rows, start=1)), "the data"), bootstrap_seed)
