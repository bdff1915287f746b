# SPDX-License-Identifier: Apache-2.0
"""Judgements of the ImgEdit edits -> the record of scores: by the official parser, unless only `strict` was asked for.

With several judgements of each edit, a score is the mean of those of the repeats, and its interval that of the items'
means; how much the repeats differ stands beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_items import UGE, Benchmark
from sharegpt4o_image.evaluation.imgedit_judgement import Judgement, JudgeSettings
from sharegpt4o_image.evaluation.imgedit_parsers import LABELS, OFFICIAL, STRICT
from sharegpt4o_image.evaluation.imgedit_scores import (
    PAPER_COLUMNS,
    interval_of,
    intervals_of,
    resampled_means,
    score_answers,
    score_uge_answers,
)
from sharegpt4o_image.evaluation.judge_agreement import spread_of
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine

Answers = Mapping[str, str]  # item -> text, of one repeat


def reported_parser(settings: JudgeSettings) -> str:
    """Whose scores the record gives: published numbers are those of the official one."""
    return STRICT if settings.parser == STRICT else OFFICIAL


def name_of(benchmark: Benchmark, settings: JudgeSettings) -> str:
    """What the numbers may be called: the judge always, and what else differs from the benchmark."""
    suite = benchmark.suite
    parts = [f"judge={settings.model}"]
    if not benchmark.is_official:
        parts.append("items=other")
    if len(benchmark.items) != len(benchmark.all_items):
        parts.append(f"items={len(benchmark.items)} of {len(benchmark.all_items)}")
    if suite.templates_sha256 not in (None, benchmark.templates_sha256):
        parts.append(f"templates={benchmark.templates_sha256[:8]}")
    if reported_parser(settings) != OFFICIAL:
        parts.append(f"parser={settings.parser}")
    return f"{suite.name}[{', '.join(parts)}]"


def score_repeats(benchmark: Benchmark, repeats: Sequence[Answers]) -> list[dict[str, Any]]:
    """The scores of every repeat, as `evaluate imgedit --from-judgements --json` prints them."""
    if benchmark.suite is UGE:
        return [score_uge_answers(answers) for answers in repeats]
    return [score_answers(benchmark.items, answers) for answers in repeats]


def item_scores(scored: Sequence[Mapping[str, Any]], parser: str) -> dict[str, float]:
    """Item -> the mean of the scores that the repeats gave it."""
    runs = [scores[parser]["samples"] for scores in scored]
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key: fmean(run[key] for run in runs if key in run) for key in keys}


def score_lines(benchmark: Benchmark, scored: Sequence[Mapping[str, Any]], parser: str) -> tuple[ScoreLine, ...]:
    """The overall score first (the mean of the types), then the types, and the other views."""
    samples = item_scores(scored, parser)
    if not samples:
        raise UserError("no edit has a score, so there is nothing to report; see the reasons in judgements.jsonl")
    if benchmark.suite is UGE:
        replicates = resampled_means(list(samples.values()), list(samples), [0] * len(samples), 1)
        means = [scores[OFFICIAL]["mean"] for scores in scored]
        return (_line("overall", means, interval_of(replicates[:, 0]), len(samples)),)
    intervals = intervals_of(benchmark.items, samples)
    counts = Counter(benchmark.items[key].edit_type for key in samples)
    blocks = [scores[parser] for scores in scored]
    lines = [_line("overall", [block["macro"] for block in blocks], intervals["macro"], len(samples))]
    for name in LABELS:
        if counts[name]:
            values = [block["types"].get(name) for block in blocks]
            lines.append(_line(name, values, intervals["types"][name], counts[name]))
    lines.append(_line("micro", [block["micro"] for block in blocks], intervals["micro"], len(samples)))
    of_paper = sum(counts[name] for name in PAPER_COLUMNS)
    if any(block["paper8"] is not None for block in blocks):
        lines.append(_line("paper8", [block["paper8"] for block in blocks], intervals["paper8"], of_paper))
    other = STRICT if parser == OFFICIAL else OFFICIAL
    others = item_scores(scored, other)
    if others:
        interval = intervals_of(benchmark.items, others)["macro"]
        lines.append(_line(f"overall ({other})", [scores[other]["macro"] for scores in scored], interval, len(others)))
    return tuple(lines)


def _line(name: str, values: Sequence[float | None], interval: Sequence[float] | None, count: int) -> ScoreLine:
    known = [value for value in values if value is not None]
    low, high = interval or (None, None)
    return ScoreLine(name, fmean(known), low, high, count)


def missing_items(
    benchmark: Benchmark,
    reasons: Mapping[str, str],
    judgements: Mapping[tuple[str, int], Judgement],
    scored: Sequence[Mapping[str, Any]],
    parser: str,
) -> tuple[MissingItem, ...]:
    """Every item without a score, with its reason: its picture's, the judge's or the parser's."""
    with_score = item_scores(scored, parser)
    failures = {row["key"]: row for scores in scored for row in scores[parser]["failures"]}
    missing = []
    for key in benchmark.items:
        if key in with_score:
            continue
        reason = reasons.get(key) or _reason_of(judgements.get((key, 0)), failures.get(key))
        missing.append(MissingItem(key, reason))
    return tuple(missing)


def _reason_of(judgement: Judgement | None, failure: Mapping[str, Any] | None) -> str:
    if judgement is None:
        return "not judged"
    if judgement.text is None:
        return f"the judge gave no text: {judgement.reason}"
    return f"{failure['status']}: {failure['reason']}" if failure else judgement.reason


def repeats_of(benchmark: Benchmark, scored: Sequence[Mapping[str, Any]], parser: str) -> dict[str, Any] | None:
    """How much the repeats differ (standard deviations), without single items; None of one repeat."""
    runs = [scores[parser]["samples"] for scores in scored]
    complete = [key for key in benchmark.items if all(key in run for run in runs)]
    if len(runs) < 2 or not complete or benchmark.suite is UGE:
        return None
    found = spread_of(runs, benchmark.items)
    del found["item_deviations"]
    return found


def without_samples(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without single pictures; failures stay."""
    return {
        name: {key: part for key, part in value.items() if key != "samples"} if isinstance(value, dict) else value
        for name, value in scores.items()
    }
