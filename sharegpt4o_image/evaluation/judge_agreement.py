# SPDX-License-Identifier: Apache-2.0
"""Two ImgEdit judges' `result.json` of the same pictures -> how far they agree; one judge's repeated -> its spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import STRICT
from sharegpt4o_image.evaluation.imgedit_scores import (
    ImgEditItem,
    interval_of,
    parse_answers,
    read_answers,
    read_items,
    resampled_means,
    type_scores,
)

_NEARLY_ZERO = 1e-9  # what rounding leaves of the chance of a replicate in which all scores are the same


def agreement_of_files(items: Path, first: Path, second: Path, parser: str = STRICT) -> dict[str, Any]:
    """How far two judges agree, over all items and by type.

    Args:
        items: The benchmark's `basic_edit.json`.
        first: `result.json` of one judge.
        second: `result.json` of the other judge, of the same edited pictures.
        parser: `strict` or `official`, for both.

    Returns:
        `agreement` and `types` (type -> agreement), each as of `agreement`; `n_only_first`, `n_only_second` and
        `n_neither`: the items that are left out because a judge gave them no score.
    """
    benchmark = read_items(items)
    one, other = (_item_scores(benchmark, path, parser) for path in (first, second))
    keys = [key for key in benchmark if key in one and key in other]
    if not keys:
        raise UserError(f"{first} and {second} have no scored item in common; give two judges of the same items.")
    by_type: dict[str, list[str]] = {}
    for key in keys:
        by_type.setdefault(benchmark[key].edit_type, []).append(key)

    def of_keys(chosen: Sequence[str]) -> dict[str, Any]:
        sources = [benchmark[key].source for key in chosen]
        return agreement([one[key] for key in chosen], [other[key] for key in chosen], sources)

    return {
        "parser": parser,
        "agreement": of_keys(keys),
        "types": {edit_type: of_keys(chosen) for edit_type, chosen in by_type.items()},
        "n_items": len(benchmark),
        "n_only_first": len(one.keys() - other.keys()),
        "n_only_second": len(other.keys() - one.keys()),
        "n_neither": len(benchmark.keys() - one.keys() - other.keys()),
    }


def agreement(first: Sequence[float], second: Sequence[float], sources: Sequence[str]) -> dict[str, Any]:
    """Of two judges' scores of the same items; None where a number is not defined.

    Args:
        first: The scores of one judge.
        second: The scores of the other, in the same order.
        sources: The source picture of each item: the interval of the difference draws sources, not items.

    Returns:
        `n`, `quadratic_kappa`, `pearson`, `spearman`, `share_equal`, `mean_difference` (second minus first), and
        `quadratic_kappa_interval` and `mean_difference_interval` (95 %, bootstrap).
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    difference = other - one
    replicates = resampled_means(difference.tolist(), sources, [0] * len(sources), 1)
    can_correlate = np.ptp(one) > 0 and np.ptp(other) > 0
    return {
        "n": len(one),
        "quadratic_kappa": quadratic_kappa(one, other),
        "quadratic_kappa_interval": interval_of(_resampled_kappas(one, other, sources)),
        "pearson": float(stats.pearsonr(one, other).statistic) if can_correlate else None,
        "spearman": float(stats.spearmanr(one, other).statistic) if can_correlate else None,
        "share_equal": float(np.mean(one == other)),
        "mean_difference": float(difference.mean()),
        "mean_difference_interval": interval_of(replicates[:, 0]),
    }


def quadratic_kappa(first: ArrayLike, second: ArrayLike) -> float | None:
    """Cohen's kappa, a disagreement weighted by its square: 1 is equality, 0 what the judges' habits give by chance.

    The categories are the scores that occur, and their distance is that of the scores, so that rounded means of three
    scores serve as well as integers. None if both judges give one and the same score throughout.
    """
    values = np.unique(np.concatenate([np.ravel(first), np.ravel(second)]))
    confusion: NDArray[np.float64] = np.zeros((len(values), len(values)))
    np.add.at(confusion, (np.searchsorted(values, first), np.searchsorted(values, second)), 1)
    by_chance = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / confusion.sum()
    weights = np.subtract.outer(values, values) ** 2
    expected = (weights * by_chance).sum()
    return float(1 - (weights * confusion).sum() / expected) if expected > 0 else None


def _resampled_kappas(
    first: NDArray[np.float64], second: NDArray[np.float64], sources: Sequence[str]
) -> NDArray[np.float64]:
    """The kappa of each replicate; in closed form, as squared distances have their mean over all pairs in moments."""

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return resampled_means(values.tolist(), sources, [0] * len(sources), 1)[:, 0]  # the same draws each time

    disagreement = means((first - second) ** 2)
    by_chance = means(first**2) + means(second**2) - 2 * means(first) * means(second)
    ratio = np.divide(disagreement, by_chance, out=np.full(len(by_chance), np.nan), where=by_chance > _NEARLY_ZERO)
    return 1 - ratio


def spread_of_files(items: Path, judgements: Sequence[Path], parser: str = STRICT) -> dict[str, Any]:
    """How much one judge's scores vary when it is asked again; every number is a standard deviation (n - 1).

    Args:
        items: The benchmark's `basic_edit.json`.
        judgements: A `result.json` for each time, two or more, all of the same edited pictures.
        parser: `strict` or `official`, for all.

    Returns:
        `item_deviation` (the mean over items that have a score each time, of which there are `n_complete`),
        `item_deviations` (key -> deviation), `types` and `macro`: each with the scores of every time (`values`), their
        `mean` and `deviation`. Type scores are those that `imgedit_scores` prints for each file; a type that a file
        lacks is left out, of the macro means too.
    """
    if len(judgements) < 2:
        raise UserError(f"A spread needs two or more result.json of one judge, not {len(judgements)}; judge again.")
    benchmark = read_items(items)
    return spread_of([_item_scores(benchmark, path, parser) for path in judgements], benchmark) | {"parser": parser}


def spread_of(runs: Sequence[Mapping[str, float]], benchmark: Mapping[str, ImgEditItem]) -> dict[str, Any]:
    """As `spread_of_files`, of key -> score for each time."""
    complete = [key for key in benchmark if all(key in run for run in runs)]
    if not complete:
        raise UserError("No item has a score in every file; give result.json files of the same items.")
    deviations = np.std([[run[key] for key in complete] for run in runs], axis=0, ddof=1)
    types = [type_scores(benchmark, run) for run in runs]
    shared = [edit_type for edit_type in types[0] if all(edit_type in scores for scores in types)]
    return {
        "n_runs": len(runs),
        "n_items": len(benchmark),
        "n_complete": len(complete),
        "item_deviation": float(deviations.mean()),
        "item_deviations": dict(zip(complete, deviations.tolist(), strict=True)),
        "types": {edit_type: _spread([scores[edit_type] for scores in types]) for edit_type in shared},
        "macro": _spread([sum(scores[edit_type] for edit_type in shared) / len(shared) for scores in types]),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)), "values": values}


def _item_scores(items: Mapping[str, ImgEditItem], judgements: Path, parser: str) -> dict[str, float]:
    parsed = parse_answers(items, read_answers(judgements), parser)
    return {key: answer.score for key, answer in parsed.items() if answer.score is not None and key in items}


# ------------------------------------------------------------------ text


def agreement_to_text(found: Mapping[str, Any]) -> str:
    """A table for people, of `agreement_of_files`: what is left out first."""
    rows = {"all": found["agreement"], **found["types"]}
    lines = [
        f"{rows['all']['n']} of {found['n_items']} items have a score of both judges ({found['parser']} parser); "
        f"{found['n_only_first']} only of the first, {found['n_only_second']} only of the second, "
        f"{found['n_neither']} of neither",
        f"  {'type':<11} {'n':>4}  {'kappa':>6} {'95 %':<15} {'equal':>6}  {'second - first':>14} 95 %",
    ]
    for name, row in rows.items():
        kappa, difference = row["quadratic_kappa"], row["mean_difference"]
        lines.append(
            f"  {name:<11} {row['n']:>4}  {'-' if kappa is None else format(kappa, '.3f'):>6} "
            f"{_limits(row['quadratic_kappa_interval']):<15} {row['share_equal']:>6.1%}  {difference:>+14.2f} "
            f"{_limits(row['mean_difference_interval'])}".rstrip()
        )
    return "\n".join(lines)


def spread_to_text(found: Mapping[str, Any]) -> str:
    """A table for people, of `spread_of_files`."""
    lines = [
        f"{found['n_runs']} judgements of each item; {found['n_complete']} of {found['n_items']} items have a score "
        f"each time ({found['parser']} parser); an item's scores differ by {found['item_deviation']:.3f} (standard "
        "deviation) on average"
    ]
    for name, row in {**found["types"], "macro": found["macro"]}.items():
        values = " ".join(f"{value:.2f}" for value in row["values"])
        lines.append(f"  {name:<11} mean {row['mean']:.3f}, deviation {row['deviation']:.3f}: {values}")
    return "\n".join(lines)


def _limits(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
