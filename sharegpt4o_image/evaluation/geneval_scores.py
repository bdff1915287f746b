# SPDX-License-Identifier: Apache-2.0
"""GenEval's scores: stored detections, or rows of an official `results.jsonl` -> per task and overall, with intervals.

Nothing is loaded and nothing is drawn: both kinds of file hold all that the rules need.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_prompts import (
    IMAGES_PER_PROMPT,
    Prompt,
    generate_metadata,
    parse_prompt,
    read_json_lines,
)
from sharegpt4o_image.evaluation.geneval_rules import Detection, Kept, Verdict, decide, keep_detections

NUM_RESAMPLES = 5_000  # of the bootstrap; our choice
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ResultRow:
    """One picture's row of `results.jsonl`: the official columns in their order.

    `metadata` and `details` (`{class: [[x1, y1, x2, y2, score], ...]}` of the kept boxes) are JSON texts.
    """

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str

    @classmethod
    def of(cls, filename: str, prompt: Prompt, verdict: Verdict, kept: Kept) -> "ResultRow":
        """The row of a verdict on the detections that were kept."""
        return cls(
            filename=filename,
            tag=prompt.tag,
            prompt=prompt.prompt,
            correct=verdict.correct,
            reason=verdict.reason,
            metadata=json.dumps(prompt.to_json()),
            details=json.dumps({name: [one.to_json() for one in found] for name, found in kept.items()}),
        )

    def to_json(self) -> dict[str, Any]:
        """The row as it is written."""
        return asdict(self)


@dataclass(frozen=True)
class TaskScore:
    """The share of right pictures of a tag, and its Wilson interval, which takes pictures as independent."""

    score: float
    correct: int
    images: int
    low: float
    high: float


@dataclass(frozen=True)
class Coverage:
    """How many pictures there should be, how many of these are not there, and how many others are."""

    expected_images: int
    missing_images: int
    surplus_images: int


@dataclass(frozen=True)
class Summary:
    """GenEval's numbers of one set of pictures; shares are from 0 to 1."""

    overall: float  # unweighted mean of the tasks present
    low: float
    high: float
    tasks: dict[str, TaskScore]  # in order of first appearance
    num_images: int
    num_prompts: int
    correct_images: float
    correct_prompts: float  # with at least one right picture
    num_duplicates: int  # names that several rows have; each row counts, as in the official script
    coverage: Coverage | None  # None where nobody said which prompts there should be


# ------------------------------------------------------------------ from files


def score_detections(
    path: Path, prompts: Sequence[Prompt] | None = None, images_per_prompt: int = IMAGES_PER_PROMPT
) -> tuple[Summary, list[ResultRow]]:
    """Decide on stored detections and summarize; see [`summarize`].

    Reads: lines of `id`, `metadata`, `detections` and `colors`, each color that of the detection in the same place.
    """
    rows = [_decided_row(where, data) for where, data in read_json_lines(path)]
    return summarize(rows, prompts, images_per_prompt), rows


def score_results(
    path: Path, prompts: Sequence[Prompt] | None = None, images_per_prompt: int = IMAGES_PER_PROMPT
) -> tuple[Summary, list[ResultRow]]:
    """Summarize the verdicts of an official `results.jsonl`; see [`summarize`]."""
    rows = read_results(path)
    return summarize(rows, prompts, images_per_prompt), rows


def read_results(path: Path) -> list[ResultRow]:
    """The rows of a `results.jsonl`, checked."""
    return check_results(read_json_lines(path))


def check_results(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[ResultRow]:
    """Rows of the official columns, each with its place, checked; `tag`, `correct` and `metadata` must be there."""
    return [_result_row(where, data) for where, data in rows]


def _result_row(where: str, data: Mapping[str, Any]) -> ResultRow:
    missing = [name for name in ("tag", "correct", "metadata") if name not in data]
    if missing:
        raise UserError(f"{where}: no {', '.join(missing)}; give rows as GenEval's evaluate_images.py writes them.")
    if not isinstance(data["correct"], bool):
        raise UserError(f"{where}: `correct` is {data['correct']!r}; give true or false, or evaluate the image again.")
    for name in ("tag", "metadata"):
        if not isinstance(data[name], str):
            raise UserError(f"{where}: `{name}` is {data[name]!r}; give a string.")
    _metadata_key(data["metadata"], where)
    others = {name: str(data.get(name) or "") for name in ("filename", "prompt", "reason", "details")}
    return ResultRow(tag=data["tag"], correct=data["correct"], metadata=data["metadata"], **others)


def _decided_row(where: str, data: Mapping[str, Any]) -> ResultRow:
    name = str(data.get("id", ""))
    where = f"{where} (image {name})" if name else where
    prompt = parse_prompt(data.get("metadata"), where)
    detections, colors = _detections(data.get("detections"), where), data.get("colors", {})
    kept = keep_detections(detections, prompt.tag, where)
    verdict = decide(prompt, kept, lambda name, indices: _stored_colors(colors, name, indices, where))
    row = ResultRow.of(name, prompt, verdict, kept)
    return replace(row, metadata=json.dumps(data["metadata"]))  # with all that the file says of the prompt


def _detections(data: Any, where: str) -> dict[str, list[Detection]]:
    try:
        return {
            name: [
                Detection((float(x1), float(y1), float(x2), float(y2)), float(score)) for x1, y1, x2, y2, score in rows
            ]
            for name, rows in data.items()
        }
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: `detections` must be {{class: [[x1, y1, x2, y2, score], ...]}}.") from None


def _stored_colors(colors: Any, name: str, indices: Sequence[int], where: str) -> list[str]:
    try:
        return [colors[name][index] for index in indices]
    except (KeyError, IndexError, TypeError):
        raise UserError(
            f"{where}: no color is stored for detections {list(indices)} of {name!r}; `colors` must hold "
            "{class: [color of each detection]}."
        ) from None


def _num_duplicates(rows: Iterable[ResultRow]) -> int:
    return sum(count > 1 for name, count in Counter(row.filename for row in rows).items() if name)


# ------------------------------------------------------------------ aggregation


def summarize(
    rows: Sequence[ResultRow], prompts: Sequence[Prompt] | None = None, images_per_prompt: int = IMAGES_PER_PROMPT
) -> Summary:
    """GenEval's numbers, 95 % intervals, and how many images are missing.

    Args:
        rows: at least one.
        prompts: what there should be pictures of; by default the official prompts, if the rows name no other.
        images_per_prompt: how many pictures of each there should be.
    """
    if not rows:
        raise UserError("There is no verdict to summarize; evaluate some images first.")
    counts = _counts_by_prompt(rows)
    tasks = {tag: _task_score(np.array(list(of_tag.values()))) for tag, of_tag in counts.items()}
    low, high = _wider(_bootstrap_by_prompt(counts.values()), _square_and_add(tasks.values()))
    right_prompts: dict[str, bool] = {}
    for row in rows:
        right_prompts[row.metadata] = right_prompts.get(row.metadata, False) or row.correct
    return Summary(
        overall=float(np.mean([task.score for task in tasks.values()])),
        low=low,
        high=high,
        tasks=tasks,
        num_images=len(rows),
        num_prompts=len(right_prompts),
        correct_images=sum(row.correct for row in rows) / len(rows),
        correct_prompts=sum(right_prompts.values()) / len(right_prompts),
        num_duplicates=_num_duplicates(rows),
        coverage=_coverage(rows, prompts, images_per_prompt),
    )


def _counts_by_prompt(rows: Iterable[ResultRow]) -> dict[str, dict[str, list[int]]]:
    """Tag -> metadata -> [right pictures, pictures]."""
    counts: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        count = counts.setdefault(row.tag, {}).setdefault(row.metadata, [0, 0])
        count[0] += row.correct
        count[1] += 1
    return counts


def _task_score(counts: np.ndarray) -> TaskScore:  # counts: (prompts, 2)
    correct, images = (int(total) for total in counts.sum(axis=0))
    interval = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return TaskScore(correct / images, correct, images, float(interval.low), float(interval.high))


def _wider(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """At either end the farther one: where the pictures of each prompt agree, a bootstrap has hardly any width."""
    return min(one[0], other[0]), max(one[1], other[1])


def _bootstrap_by_prompt(counts_by_task: Iterable[Mapping[str, Sequence[int]]], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap; a prompt is drawn with all its pictures, because these are not independent."""
    tasks = [np.array(list(of_task.values())) for of_task in counts_by_task]
    rng = np.random.default_rng(seed)
    scores = np.zeros(NUM_RESAMPLES)
    for counts in tasks:  # (prompts, 2)
        drawn = rng.integers(len(counts), size=(NUM_RESAMPLES, len(counts)))
        scores += counts[:, 0][drawn].sum(axis=1) / counts[:, 1][drawn].sum(axis=1) / len(tasks)
    low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _square_and_add(tasks: Iterable[TaskScore]) -> tuple[float, float]:
    """The interval of the mean of independent scores out of their own intervals (Zou and Donner, 2008)."""
    scores = np.array([(task.score, task.low, task.high) for task in tasks])  # (tasks, 3)
    mean = scores[:, 0].mean()
    below, above = (np.linalg.norm(scores[:, 0] - scores[:, end]) / len(scores) for end in (1, 2))
    return float(mean - below), float(mean + above)


def _coverage(rows: Iterable[ResultRow], prompts: Sequence[Prompt] | None, images_per_prompt: int) -> Coverage | None:
    found = Counter(_metadata_key(row.metadata, row.filename) for row in rows)
    wanted = {_key_of(prompt.to_json()) for prompt in prompts or generate_metadata()}
    if prompts is None and not wanted.issuperset(found):
        return None
    missing = sum(max(images_per_prompt - found[key], 0) for key in wanted)
    surplus = sum(max(count - images_per_prompt * (key in wanted), 0) for key, count in found.items())
    return Coverage(images_per_prompt * len(wanted), missing, surplus)


def _metadata_key(metadata: str, where: str) -> str:
    try:
        return _key_of(json.loads(metadata))
    except ValueError:
        raise UserError(f"{where}: `metadata` is no JSON text: {metadata[:60]!r}; give the prompt's line.") from None


def _key_of(metadata: Any) -> str:
    return json.dumps(metadata, sort_keys=True)


# ------------------------------------------------------------------ output


def format_official(summary: Summary) -> str:
    """What the official `summary_scores.py` prints, without the last line's end."""
    lines = [
        "Summary",
        "=======",
        f"Total images: {summary.num_images}",
        f"Total prompts: {summary.num_prompts}",
        f"% correct images: {summary.correct_images:.2%}",
        f"% correct prompts: {summary.correct_prompts:.2%}",
        "",
        "Task breakdown",
        "==============",
        *(f"{tag:<16} = {task.score:.2%} ({task.correct} / {task.images})" for tag, task in summary.tasks.items()),
        "",
        f"Overall score (avg. over tasks): {summary.overall:.5f}",
    ]
    return "\n".join(lines)


def coverage_text(summary: Summary) -> str:
    """How many images are missing, to be said beside the scores."""
    coverage, num = summary.coverage, summary.num_duplicates
    twice = f"; {num} have several rows, which all count" if num else ""
    if coverage is None:
        return f"{summary.num_images} images; give the prompts' metadata file to learn how many are missing{twice}"
    return (
        f"{summary.num_images} images, {coverage.expected_images} expected: "
        f"{coverage.missing_images} missing, {coverage.surplus_images} surplus{twice}"
    )


def to_json(summary: Summary, rows: Iterable[ResultRow]) -> dict[str, Any]:
    """`overall`, `tasks` and `images` (in the order of the input), with intervals and counts."""
    return {
        "overall": summary.overall,
        "overall_interval": {
            "low": summary.low,
            "high": summary.high,
            "method": (
                f"bootstrap by prompt within tasks, {NUM_RESAMPLES} resamples; at least the tasks' Wilson intervals "
                "by square-and-add"
            ),
        },
        "tasks": {tag: asdict(task) for tag, task in summary.tasks.items()},
        "num_images": summary.num_images,
        "num_prompts": summary.num_prompts,
        "num_duplicates": summary.num_duplicates,
        "correct_images": summary.correct_images,
        "correct_prompts": summary.correct_prompts,
        "coverage": asdict(summary.coverage) if summary.coverage else None,
        "images": [{"correct": row.correct, "reason": row.reason, "filename": row.filename} for row in rows],
    }
