# SPDX-License-Identifier: Apache-2.0
"""ImgEdit-Bench as an `evaluate` metric: a judge's texts, a row each -> scores of the types and their means."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import OFFICIAL, PARSERS
from sharegpt4o_image.evaluation.imgedit_scores import parse_item, scores_of

_DESCRIPTION = """
ImgEdit-Bench (Basic) scores instruction-based editing of pictures by a judge that gives three scores from 1 to 5.
This module only reads the judge's texts; it asks no judge. The official scripts print the scores of the types; the
means in use have names: `macro` over types, `micro` over samples, `paper8` over the eight types of the
ShareGPT-4o-Image paper.
"""

_INPUTS = """
Args:
    key (str): the item's key in `basic_edit.json`.
    edit_type (str): its type; `alter` is read as `adjust`.
    source (str): the path of the picture to edit (`id` in `basic_edit.json`); intervals draw whole pictures.
    answer (str): the judge's text, empty where there is none.
    parser (str, optional): `official` (the default) or `strict`.
Returns:
    types, macro, micro, paper8, paper8_reason, bagel_overall, intervals, counts, n_scored, n_dropped, n_failed,
    n_missing, failures, samples, parser.
"""

_CITATION = """
@article{ye2025imgedit,
  title={ImgEdit: A Unified Image Editing Dataset and Benchmark},
  author={Ye, Yang and He, Xianyi and Li, Zongjian and Lin, Bin and Yuan, Shenghai
    and Yan, Zhiyuan and Hou, Bohan and Yuan, Li},
  journal={arXiv preprint arXiv:2505.20275},
  year={2025}
}
"""

_FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "edit_type": datasets.Value("string"),
        "source": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
)


class ImgeditBench(evaluate.Metric):
    """The result is one parser's block of `sharegpt4o-image evaluate imgedit --json`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=_FEATURES,
            reference_urls=["https://github.com/PKU-YuanGroup/ImgEdit"],
        )

    def _compute(
        self,
        *,
        key: Sequence[str],
        edit_type: Sequence[str],
        source: Sequence[str],
        answer: Sequence[str | None],
        parser: str = OFFICIAL,
    ) -> dict[str, Any]:
        if parser not in PARSERS:
            raise UserError(f"parser is {parser!r}; give one of {', '.join(PARSERS)}.")
        if not key:
            raise UserError("There is no item to score; give the items of basic_edit.json.")
        items: dict[str, Any] = {}
        answers = {}
        for number, (name, kind, picture, text) in enumerate(zip(key, edit_type, source, answer, strict=True), 1):
            if name in items or not name:
                raise UserError(f"row {number}: the key {name!r} is empty or there already; give each item one row.")
            entry = {"edit_type": kind, "prompt": "", "id": picture}
            items[name] = parse_item(f"row {number}", name, entry)
            if text:
                answers[name] = text
        return {"parser": parser, **scores_of(items, answers, parser)}
