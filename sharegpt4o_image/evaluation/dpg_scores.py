# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench: questions and the stored raw answers of a VQA model -> scores, official and corrected. No model runs.

The official rule is `compute_dpg_bench.py` of TencentQQGYLab/ELLA@3c228f1 run with one process. It loses the first
row of the question file (and with it, as a rule, the first item) and takes its categories from the last picture,
before children of failed questions are zeroed. The corrected scores keep the row and use all pictures.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_questions import (
    FirstRow,
    Item,
    missing_parents,
    read_questions,
    repeated_questions,
    unknown_categories,
)

# Only the exact "yes" counts (`float(answer == 'yes')` in the official script); "no" only tells what else was said.
YES, NO = "yes", "no"
# A DPG grid is 2 x 2: top-left, top-right, bottom-left, bottom-right; fewer pictures are the first ones.
MAX_PICTURES = 4

NUM_RESAMPLES = 9999  # our choice; the official script gives no interval
RESAMPLES_AT_ONCE = 250  # our choice: 2 MB for 1,065 items
BOOTSTRAP_SEED = 0
NUM_NAMED = 5  # how many items a message names; our choice

# item -> picture -> proposition id as text -> raw answer
Answers = Mapping[str, Sequence[Mapping[str, str]]]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """How many of the questions asked count as yes."""

    yes: int
    asked: int

    @property
    def percent(self) -> float:
        return 100 * self.yes / self.asked

    def interval(self) -> Interval:
        """95 % Wilson interval in percent; it takes answers as independent, so it is narrow for several pictures."""
        limits = binomtest(self.yes, self.asked).proportion_ci(method="wilson")
        return 100 * float(limits.low), 100 * float(limits.high)


@dataclass(frozen=True)
class Categories:
    """Shares pooled over questions: a level-1 share is not the mean of its level-2 shares."""

    l1: dict[str, Share]
    l2: dict[str, Share]

    def to_json(self) -> dict[str, Any]:
        return {
            "l1": {name: share.percent for name, share in self.l1.items()},
            "l2": {name: share.percent for name, share in self.l2.items()},
            "l1_interval": {name: share.interval() for name, share in self.l1.items()},
            "l2_interval": {name: share.interval() for name, share in self.l2.items()},
        }


@dataclass(frozen=True)
class DpgScores:
    """Scores of the items that could be scored, and why the others could not.

    Args:
        overall: Mean over items in percent, `None` when no item could be scored.
        overall_interval: 95 % percentile bootstrap over items, `None` below two items.
        categories_official: Last picture, raw answers: what the official script prints with one process.
        categories_all: All pictures, raw answers.
        categories_dependency: All pictures, children of failed questions zeroed, as in `overall`.
        per_image: Item -> score of each picture and their mean, 0 to 1.
        n_missing: Items of the question file that have no answers.
        n_surplus_answers: Answers to questions that are not in the question file; they do not count.
        n_other_answers: Answers that are neither `yes` nor `no`; they count as no.
        failed: Item -> why it was left out.
    """

    overall: float | None
    overall_interval: Interval | None
    categories_official: Categories
    categories_all: Categories
    categories_dependency: Categories
    per_image: dict[str, list[float]]
    n_missing: int
    n_surplus_answers: int
    n_other_answers: int
    failed: dict[str, str]

    @property
    def n_items_scored(self) -> int:
        return len(self.per_image)

    def official_json(self) -> dict[str, Any]:
        """What the official script prints and writes, with the counts it does not print."""
        return {**self._overall_json(), **self.categories_official.to_json(), "per_image": self.per_image}

    def corrected_json(self) -> dict[str, Any]:
        """Categories from all pictures, once with raw answers and once with zeroed ones."""
        return {
            **self._overall_json(),
            "categories_all": self.categories_all.to_json(),
            "categories_dependency": self.categories_dependency.to_json(),
        }

    def _overall_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall,
            "overall_interval": self.overall_interval,
            "n_items_scored": self.n_items_scored,
            "n_missing": self.n_missing,
            "n_surplus_answers": self.n_surplus_answers,
            "n_other_answers": self.n_other_answers,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class _JudgedItem:
    """0 or 1 per picture and question, before and after the children of failed questions are zeroed."""

    item: Item
    raw: list[list[int]]
    zeroed: list[list[int]]
    num_surplus: int
    num_other: int

    def scores(self) -> list[float]:
        pictures = [sum(values) / len(values) for values in self.zeroed]
        return [*pictures, sum(pictures) / len(pictures)]


# ------------------------------------------------------------------ scoring


def score(items: Sequence[Item], answers: Answers, num_pictures: int) -> DpgScores:
    """Score stored answers by the official rule, on the first `num_pictures` pictures of each item.

    An item without questions, with an answer or a picture missing, or with an unknown parent is named in `failed`
    and leaves the denominator, as in the official script.
    """
    judged, failed = _judge_all({item.id: item for item in items}, answers, num_pictures)
    per_image = {one.item.id: one.scores() for one in judged}
    means = 100 * np.array([scores[-1] for scores in per_image.values()])
    return DpgScores(
        overall=float(means.mean()) if len(means) else None,
        overall_interval=_bootstrap_interval(means),
        categories_official=_categories((one.item, one.raw[-1:]) for one in judged),
        categories_all=_categories((one.item, one.raw) for one in judged),
        categories_dependency=_categories((one.item, one.zeroed) for one in judged),
        per_image=per_image,
        n_missing=len({item.id for item in items} - answers.keys()),
        n_surplus_answers=sum(one.num_surplus for one in judged),
        n_other_answers=sum(one.num_other for one in judged),
        failed=failed,
    )


def _judge_all(
    items: Mapping[str, Item], answers: Answers, num_pictures: int
) -> tuple[list[_JudgedItem], dict[str, str]]:
    """Judged items, and the reason for each item that cannot be judged."""
    judged: list[_JudgedItem] = []
    failed: dict[str, str] = {}
    for name, pictures in answers.items():
        fault = _fault(items.get(name), pictures, num_pictures)
        if fault:
            failed[name] = fault
            continue
        try:
            judged.append(_judge(items[name], pictures[:num_pictures]))
        except KeyError as parent:
            failed[name] = f"a question depends on question {parent}, which is not in the question file"
    return judged, failed


def _fault(item: Item | None, pictures: Sequence[Mapping[str, str]], num_pictures: int) -> str | None:
    """Why the item cannot be scored, as far as that is plain without its answers."""
    if item is None:
        return "not in the question file"
    if len(pictures) < num_pictures:
        return f"answers for {len(pictures)} of {num_pictures} pictures"
    unanswered = [
        f"question {question.number} of picture {number}"
        for number, picture in enumerate(pictures[:num_pictures], start=1)
        for question in item.questions
        if str(question.number) not in picture
    ]
    return f"{len(unanswered)} answers missing: {_first(unanswered)}" if unanswered else None


def _judge(item: Item, pictures: Sequence[Mapping[str, str]]) -> _JudgedItem:
    raw, zeroed, num_surplus, num_other = [], [], 0, 0
    for picture in pictures:
        answers = {question.number: picture[str(question.number)] for question in item.questions}
        right = {number: int(answer == YES) for number, answer in answers.items()}
        raw.append(list(right.values()))
        zeroed.append(list(_zero_children(item, right).values()))
        num_surplus += len(picture) - len(answers)
        num_other += sum(answer not in (YES, NO) for answer in answers.values())
    return _JudgedItem(item, raw, zeroed, num_surplus, num_other)


def _zero_children(item: Item, right: dict[int, int]) -> dict[int, int]:
    """Zero in place in file order: failures cascade, a parent listed after its child still has its raw answer.

    Parents are tested until one failed, so an unknown parent (`KeyError`) behind a failed one is never met.
    """
    for question in item.questions:
        if any(parent != 0 and right[parent] == 0 for parent in question.parents):
            right[question.number] = 0
    return right


def _categories(judged: Iterable[tuple[Item, list[list[int]]]]) -> Categories:
    asked: Counter[tuple[str, str]] = Counter()
    yes: Counter[tuple[str, str]] = Counter()
    for item, pictures in judged:
        for question, values in zip(item.questions, zip(*pictures, strict=True), strict=True):
            for key in (("l1", question.level_1), ("l2", question.level_2)):
                asked[key] += len(values)
                yes[key] += sum(values)
    levels: dict[str, dict[str, Share]] = {"l1": {}, "l2": {}}
    for level, name in sorted(asked):
        levels[level][name] = Share(yes[level, name], asked[level, name])
    return Categories(**levels)


def _bootstrap_interval(means: np.ndarray) -> Interval | None:
    if len(means) < 2:
        return None
    limits = bootstrap(
        (means,), np.mean, n_resamples=NUM_RESAMPLES, batch=RESAMPLES_AT_ONCE, method="percentile", rng=BOOTSTRAP_SEED
    ).confidence_interval
    return float(limits.low), float(limits.high)


# ------------------------------------------------------------------ files


def score_files(
    questions: Path, answers: Path, num_pictures: int | None = None, first_row: FirstRow | None = None
) -> dict[str, Any]:
    """Scores of a question file and an answer file, as `--json` prints them.

    Args:
        questions: `dpg_bench.csv` or a file with its columns.
        answers: `{"items": [item, ...], "answers": {item: [{proposition id: raw answer}, ...]}}`.
        num_pictures: Score the first pictures only; by default as many as the item with the most has.
        first_row: Use this for both blocks; by default the official block drops the first row and the corrected
            one keeps it.
    """
    stored = read_answers(answers)
    pictures = _num_pictures(answers, stored, num_pictures)
    blocks = score_blocks(
        read_questions(questions, first_row or "keep"),
        read_questions(questions, first_row or "drop"),
        stored,
        pictures,
        first_row,
    )
    if not blocks.corrected.n_items_scored:
        reasons = _first([f"{item}: {reason}" for item, reason in blocks.corrected.failed.items()])
        raise UserError(f"{answers}: no item can be scored with {questions} ({reasons}); check that the two match.")
    return blocks.to_json()


@dataclass(frozen=True)
class ScoreBlocks:
    """The official scores beside the corrected ones; `items` are those of the corrected ones."""

    items: Sequence[Item]
    num_pictures: int
    official_row: FirstRow
    corrected_row: FirstRow
    official: DpgScores
    corrected: DpgScores

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        repeated = repeated_questions(self.items)
        return {
            "benchmark": "dpg_bench",
            "num_pictures": self.num_pictures,
            "official": {"first_row": self.official_row, **self.official.official_json()},
            "corrected": {"first_row": self.corrected_row, **self.corrected.corrected_json()},
            "missing_parents": missing_parents(self.items),
            "unknown_categories": unknown_categories(self.items),
            **({"repeated_questions": repeated} if repeated else {}),
        }


def score_blocks(
    items: Sequence[Item],
    official_items: Sequence[Item],
    answers: Answers,
    num_pictures: int,
    first_row: FirstRow | None = None,
) -> ScoreBlocks:
    """Score twice: `official_items`, as a rule without the first row, and `items`."""
    return ScoreBlocks(
        items,
        num_pictures,
        first_row or "drop",
        first_row or "keep",
        score(official_items, answers, num_pictures),
        score(items, answers, num_pictures),
    )


def read_answers(path: Path) -> dict[str, list[dict[str, str]]]:
    """Read stored answers, in the order of `items`; an item that is listed without answers has no pictures."""
    document = _load(path)
    if not isinstance(document, dict) or not isinstance(document.get("answers"), dict):
        raise UserError(f'{path}: expected an object with "answers", from item id to a list of pictures.')
    answers = document["answers"]
    items = document.get("items", list(answers))
    if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
        raise UserError(f'{path}: "items" must be a list of item ids.')
    items = list(map(str, items))
    twice = [item for item, count in Counter(items).items() if count > 1]
    if twice:
        raise UserError(f'{path}: {len(twice)} items are in "items" twice: {_first(twice)}; list each once.')
    for item, pictures in answers.items():
        _check_pictures(path, item, pictures)
    return {item: _texts(answers.get(item, [])) for item in dict.fromkeys([*items, *answers])}


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the file of stored answers.") from error
    except (ValueError, RecursionError) as error:  # bad JSON, a key that is there twice, or not UTF-8
        raise UserError(f"{path}: is not valid JSON in UTF-8 ({error}); store the answers again.") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"the key {twice[0]!r} is there twice in one object")
    return keys


def _check_pictures(path: Path, item: str, pictures: object) -> None:
    if not isinstance(pictures, list) or not all(isinstance(picture, dict) for picture in pictures):
        raise UserError(f"{path}, item {item!r}: expected a list with one object of answers for each picture.")
    if len(pictures) > MAX_PICTURES:
        raise UserError(
            f"{path}, item {item!r}: has {len(pictures)} pictures; a DPG grid holds {MAX_PICTURES}, store those."
        )


def _texts(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is no text is no answer, and its item fails by name."""
    return [
        {question: answer for question, answer in picture.items() if isinstance(answer, str)} for picture in pictures
    ]


def _num_pictures(path: Path, answers: Answers, wanted: int | None) -> int:
    most = max(map(len, answers.values()), default=0)
    if not most:
        raise UserError(f"{path}: holds no answers; run the VQA model first.")
    if wanted is None:
        return most
    if not 1 <= wanted <= most:
        raise UserError(f"{wanted} pictures were asked for, {path} has answers for {most}; give 1 to {most}.")
    return wanted


# ------------------------------------------------------------------ text


def to_text(result: Mapping[str, Any]) -> str:
    """Lines for people from what `score_files` returned; they always say how many items are not scored."""
    official, corrected = result["official"], result["corrected"]
    lines = [
        f"DPG-Bench, {result['num_pictures']} pictures per item",
        *_block_lines(f"official (first row: {official['first_row']})", official),
        *_category_lines("  last picture, raw answers", official),
        *_block_lines(f"corrected (first row: {corrected['first_row']})", corrected),
        *_category_lines("  all pictures, raw answers", corrected["categories_all"]),
        *_category_lines("  all pictures, dependent answers zeroed", corrected["categories_dependency"]),
        *(f"warning: item {item}: {fault}" for item, fault in result["missing_parents"].items()),
        *(f"warning: item {item}: {fault}" for item, fault in result.get("repeated_questions", {}).items()),
        *(
            f"warning: unknown category {name!r}: {num} questions"
            for name, num in result["unknown_categories"].items()
        ),
    ]
    return "\n".join(lines)


def _block_lines(title: str, block: Mapping[str, Any]) -> list[str]:
    failed = block["failed"]
    lines = [
        f"{title}: overall {_number(block['overall'], block['overall_interval'])}",
        f"  {block['n_items_scored']} items scored, {block['n_missing']} missing, {len(failed)} failed",
        *(f"  failed: {item}: {failed[item]}" for item in list(failed)[:NUM_NAMED]),
    ]
    if len(failed) > NUM_NAMED:
        lines.append(f"  failed: and {len(failed) - NUM_NAMED} more")
    if block["n_surplus_answers"]:
        lines.append(f"  {block['n_surplus_answers']} answers to questions that are not in the question file")
    if block["n_other_answers"]:
        lines.append(f"  {block['n_other_answers']} answers are neither 'yes' nor 'no' and count as no")
    return lines


def _category_lines(title: str, categories: Mapping[str, Any]) -> list[str]:
    values, intervals = categories["l1"], categories["l1_interval"]
    return [title, *(f"    {name:<10} {_number(values[name], intervals[name])}" for name in values)]


def _number(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "none"
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _first(names: Sequence[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
