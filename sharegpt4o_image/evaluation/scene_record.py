# SPDX-License-Identifier: Apache-2.0
"""Verdicts of the scene benchmark -> its record of scores.

A kind's interval is Wilson's over its pictures, as published with the tiny checkpoints. Kinds with few combinations
ask for the same one again, in other words and with another seed: how many there are stands beside the score, and the
interval of the overall score comes from a bootstrap that draws a combination with all its pictures.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_scores import ResultRow, summarize
from sharegpt4o_image.evaluation.scene_benchmark import EditItem, Verdict, aggregate
from sharegpt4o_image.evaluation.scene_runner import Item, text_of
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord
from sharegpt4o_image.offline_teacher.sampling import combination, edit_combination
from sharegpt4o_image.synthesis.journal import utc_now

SCENES, SCENE_EDITS = "scenes", "scene-edits"
JUDGE = {"detector": "scene detector", "rules": "exact"}


def scene_record(
    name: str,
    items: Sequence[Item],
    verdicts: Sequence[Verdict | None],
    missing: Sequence[MissingItem] = (),
    generator: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> ScoreRecord:
    """The record of `scenes` or `scene-edits`.

    Args:
        name: of the benchmark.
        items: all that it asks for.
        verdicts: one for each item, `None` where there is no picture.
        missing: why not.
        generator: identity and recipe of what drew the pictures; by default they are of a folder that does not tell.
        command: what to run for it.
    """
    judged = [(item, verdict) for item, verdict in zip(items, verdicts, strict=True) if verdict is not None]
    if not judged:
        raise UserError(f"there is no picture of {name} that can be judged, so there is no score")
    table = aggregate([item.kind for item, _ in judged], [verdict for _, verdict in judged])
    for kind, row in table.items():
        row["combinations"] = len({combination_of(item) for item, _ in judged if item.kind == kind})
    return ScoreRecord(
        benchmark=name,
        name=name,
        unit=1,
        scores=_score_lines(judged, table),
        num_expected=len(items),
        num_scored=len(judged),
        missing=tuple(missing),
        model=generator.get("model") if generator else None,
        generator=generator or {},
        judge=JUDGE,
        command=command,
        details=table,
        created_at=utc_now(),
    )


def combination_of(item: Item) -> str:
    """What an item asks for, whatever its words; equal for items that ask for the same."""
    if isinstance(item, EditItem):
        return repr(edit_combination(item.source, item.edit))
    return repr(combination(item.request))


def _score_lines(
    judged: Sequence[tuple[Item, Verdict]], table: Mapping[str, Mapping[str, float]]
) -> tuple[ScoreLine, ...]:
    rows = [
        ResultRow("", item.kind, text_of(item), verdict.correct, verdict.reason, json.dumps(combination_of(item)), "")
        for item, verdict in judged
    ]
    summary = summarize(rows)  # a mean over kinds is what GenEval's is over tasks
    kinds = [ScoreLine(kind, row["score"], row["low"], row["high"], int(row["images"])) for kind, row in table.items()]
    return (ScoreLine("overall", summary.overall, summary.low, summary.high, len(judged)), *kinds)


def combinations_text(record: ScoreRecord) -> str:
    """How many different things were asked for, to be said beside the scores."""
    counts = ", ".join(
        f"{kind}: {row['combinations']:.0f} of {row['images']:.0f}" for kind, row in record.details.items()
    )
    return f"different combinations among the pictures: {counts}"
