# SPDX-License-Identifier: Apache-2.0
"""Votes -> win, tie and loss with intervals, Bradley-Terry ratings, rater agreement. Pure; "both bad" counts as a tie.

Legend: K models, V votes, R resamples, I items, C = 3 verdicts. A vote's score is 1, 0.5 or 0 (win, tie, loss).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, ndtri
from scipy.stats import binomtest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_votes import Vote, first_votes

CONFIDENCE = 0.95
# Resamples of the bootstrap and their seed: our choice. 2,000 settle a 95 % limit to about a tenth of its width.
NUM_RESAMPLES = 2_000
SEED = 0
_VALUES_AT_ONCE = 1_000_000  # of the bootstrap's weights: 8 MB

# lmarena/arena-rank@3900eae, models/bradley_terry.py: `scale`, `base`, `init_rating` and `hessian_reg`.
RATING_SCALE = 400 / np.log(10)
RATING_CENTER = 1000
HESSIAN_RIDGE = 1e-5
_NEWTON_STEPS = 200
_NEWTON_TOLERANCE = 1e-12  # of theta; a rating is 174 times as large

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with the Wilson interval; None where `n` is 0."""

    n: int
    count: int
    share: float | None
    wilson95: Interval | None


@dataclass(frozen=True)
class PairStatistics:
    """A pair from the view of its first model, sides undone. What rests on decided votes is None where there are none.

    `net_win_rate_bootstrap95` is None for one prompt and one rater: there is nothing to resample.
    """

    n: int
    win: int
    tie: int  # those of `both_bad` included
    loss: int
    both_bad: int
    prompts: int
    raters: int
    win_ratio: float
    tie_ratio: float
    loss_ratio: float
    net_win_rate: float
    net_win_rate_bootstrap95: Interval | None
    score_tie_half: float
    wilson95_win_of_all: Interval
    wilson95_win_of_decided: Interval | None
    binomtest_two_sided_decided_p: float | None


@dataclass(frozen=True)
class BradleyTerry:
    """Ratings of models that are connected by votes, by name; `variances` are those of the ratings."""

    competitors: list[str]
    votes: int
    ratings: list[float]
    rating_lower: list[float]
    rating_upper: list[float]
    variances: list[float]


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement on items with at least two raters, sides undone. None where it is not defined."""

    items: int
    items_with_two_raters: int
    raters_per_item: int | None  # where it is the same for all items
    krippendorff_alpha_nominal: float | None
    fleiss_kappa: float | None


# ------------------------------------------------------------------ shares


def wilson_interval(share: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share among `n` votes; `share * n` need not be a whole number."""
    z = float(ndtri((1 + confidence) / 2))
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


def wilson_half_width(n: int, share: float = 0.5, confidence: float = CONFIDENCE) -> float:
    """What `n` votes can show: half the width of Wilson's interval, widest at a share of 0.5."""
    if n < 1:
        raise UserError(f"{n} votes tell nothing; plan at least 1.")
    low, high = wilson_interval(share, n, confidence)
    return (high - low) / 2


def share_of(count: int, n: int) -> Share:
    """`count` of `n` with its interval."""
    return Share(n, count, count / n if n else None, wilson_interval(count / n, n) if n else None)


def side_bias(votes: Sequence[Vote]) -> Share:
    """How often the left picture won among decided votes, repeats included; 0.5 without bias."""
    left = [vote.left_score for vote in votes if vote.left_score != 0.5]
    return share_of(int(sum(left)), len(left))


def consistency(votes: Sequence[Vote]) -> Share:
    """How often a later vote of a rater on an item (a repeat) says the same as the first, sides undone."""
    first = first_votes(votes)
    pairs = [(vote, first[(vote.rater, vote.item)]) for vote in votes]
    same = [vote.score == earlier.score for vote, earlier in pairs if vote is not earlier]
    return share_of(sum(same), len(same))


# ------------------------------------------------------------------ pairs


def pair_statistics(votes: Sequence[Vote], seed: int = SEED) -> PairStatistics:
    """Counts, ratios and intervals of the votes on one pair."""
    scores = np.array([vote.score for vote in votes])
    n, win, loss = len(votes), int((scores == 1).sum()), int((scores == 0).sum())
    decided = win + loss
    return PairStatistics(
        n=n,
        win=win,
        tie=n - decided,
        loss=loss,
        both_bad=sum(vote.winner == "both_bad" for vote in votes),
        prompts=len({vote.prompt_id for vote in votes}),
        raters=len({vote.rater for vote in votes}),
        win_ratio=win / n,
        tie_ratio=(n - decided) / n,
        loss_ratio=loss / n,
        net_win_rate=(win - loss) / n,
        net_win_rate_bootstrap95=net_win_interval(votes, seed=seed),
        score_tie_half=float(scores.mean()),
        wilson95_win_of_all=wilson_interval(win / n, n),
        wilson95_win_of_decided=wilson_interval(win / decided, decided) if decided else None,
        binomtest_two_sided_decided_p=float(binomtest(win, decided).pvalue) if decided else None,
    )


def net_win_interval(votes: Sequence[Vote], num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> Interval | None:
    """Percentile bootstrap of (win - loss) / n, clustered by prompt and by rater.

    Prompts and raters are drawn with replacement, each by themselves; a vote weighs the product of how often its
    prompt and its rater were drawn (the pigeonhole bootstrap, Owen 2007). With one rater it is clustered by prompt.
    """
    net_V = np.array([2 * vote.score - 1 for vote in votes])
    prompts, prompt_of_V = np.unique([vote.prompt_id for vote in votes], return_inverse=True)
    raters, rater_of_V = np.unique([vote.rater for vote in votes], return_inverse=True)
    if len(prompts) == len(raters) == 1:
        return None
    rng = np.random.default_rng(seed)
    at_once = max(1, _VALUES_AT_ONCE // len(votes))
    nets = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        weights_RV = _times_drawn(rng, len(prompts), size)[:, prompt_of_V]
        weights_RV *= _times_drawn(rng, len(raters), size)[:, rater_of_V]
        totals_R = weights_RV.sum(axis=1)
        is_filled = totals_R > 0  # a draw may hold raters who never saw the prompts drawn
        nets.append((weights_RV @ net_V)[is_filled] / totals_R[is_filled])
    low, high = np.quantile(np.concatenate(nets), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _times_drawn(rng: np.random.Generator, num_clusters: int, size: int) -> NDArray[np.int64]:
    return rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=size)


# ------------------------------------------------------------------ Bradley-Terry


def connected_models(votes: Sequence[Vote]) -> list[list[str]]:
    """The models in groups that are compared with each other, directly or by way of others; by number of votes."""
    names, a_V, b_V, _ = _arrays(votes)
    compared = np.zeros((len(names), len(names)), dtype=bool)
    compared[a_V, b_V] = True
    count, group_of = connected_components(compared, directed=False)
    votes_of = np.bincount(group_of[a_V], minlength=count)
    order = np.argsort(-votes_of, kind="stable")
    return [[name for name, own in zip(names, group_of, strict=True) if own == group] for group in order]


def rateable_models(votes: Sequence[Vote]) -> list[str]:
    """The largest group of models in which each has beaten or tied each other, directly or by way of others.

    Within it the ratings exist (Ford 1957). The largest is the one with most models, then with most votes among them.
    """
    names, a_V, b_V, score_V = _arrays(votes)
    count, group_of = _unbeaten_groups(len(names), a_V, b_V, score_V)
    is_within = group_of[a_V] == group_of[b_V]
    num_votes = np.bincount(group_of[a_V][is_within], minlength=count)
    largest = max(range(count), key=lambda group: ((group_of == group).sum(), num_votes[group]))
    return [name for name, group in zip(names, group_of, strict=True) if group == largest]


def bradley_terry(votes: Sequence[Vote]) -> BradleyTerry:
    """Maximum likelihood, a tie being half a win for each; intervals by the sandwich of arena-rank, unweighted.

    Raises:
        UserError: where models are not connected, or some never lost to the others: there is no maximum.
    """
    groups = connected_models(votes)
    if len(groups) > 1:
        named = " and ".join(f"({', '.join(group)})" for group in groups)
        raise UserError(f"No vote compares {named}; rate each group by itself or collect votes between them.")
    names, a_V, b_V, score_V = _arrays(votes)
    _check_maximum(names, a_V, b_V, score_V)
    theta = _maximum(len(names), a_V, b_V, score_V)
    variances = RATING_SCALE**2 * _sandwich_variances(theta, a_V, b_V, score_V)
    ratings = RATING_SCALE * theta + RATING_CENTER
    half = ndtri((1 + CONFIDENCE) / 2) * np.sqrt(variances)
    return BradleyTerry(
        competitors=names,
        votes=len(votes),
        ratings=ratings.tolist(),
        rating_lower=(ratings - half).tolist(),
        rating_upper=(ratings + half).tolist(),
        variances=variances.tolist(),
    )


def _arrays(votes: Sequence[Vote]) -> tuple[list[str], NDArray[np.intp], NDArray[np.intp], Floats]:
    """The models' names, and of each vote both models' numbers and the score of the first."""
    names = sorted({name for vote in votes for name in vote.pair})
    number = {name: index for index, name in enumerate(names)}
    a_V = np.array([number[vote.pair[0]] for vote in votes], dtype=np.intp)
    b_V = np.array([number[vote.pair[1]] for vote in votes], dtype=np.intp)
    return names, a_V, b_V, np.array([vote.score for vote in votes])


def _check_maximum(names: list[str], a_V: NDArray[np.intp], b_V: NDArray[np.intp], score_V: Floats) -> None:
    """The maximum exists if and only if no group of models is unbeaten by the rest (Ford 1957)."""
    count, group_of = _unbeaten_groups(len(names), a_V, b_V, score_V)
    if count == 1:
        return
    has_beaten = _has_beaten(len(names), a_V, b_V, score_V)
    unbeaten = next(g for g in range(count) if not has_beaten[group_of != g][:, group_of == g].any())
    above = ", ".join(name for name, group in zip(names, group_of, strict=True) if group == unbeaten)
    below = ", ".join(name for name, group in zip(names, group_of, strict=True) if group != unbeaten)
    raise UserError(
        f"Bradley-Terry ratings do not exist: in no vote did {below} win or tie against {above}; "
        "collect more votes, or read the win ratios of the pairs instead."
    )


def _has_beaten(num_models: int, a_V: NDArray[np.intp], b_V: NDArray[np.intp], score_V: Floats) -> NDArray[np.bool_]:
    """(K, K): whether the model of a row won or tied against that of a column."""
    has_beaten = np.zeros((num_models, num_models), dtype=bool)
    has_beaten[a_V[score_V > 0], b_V[score_V > 0]] = True
    has_beaten[b_V[score_V < 1], a_V[score_V < 1]] = True
    return has_beaten


def _unbeaten_groups(
    num_models: int, a_V: NDArray[np.intp], b_V: NDArray[np.intp], score_V: Floats
) -> tuple[int, NDArray[np.int32]]:
    """How many groups of models beat each other in a circle, and the group of each model."""
    has_beaten = _has_beaten(num_models, a_V, b_V, score_V)
    count, group_of = connected_components(has_beaten, connection="strong")
    return int(count), group_of


def _maximum(num_models: int, a_V: NDArray[np.intp], b_V: NDArray[np.intp], score_V: Floats) -> Floats:
    """Newton's method with step halving, on theta of mean 0."""

    def loss(theta: Floats) -> float:
        difference = theta[a_V] - theta[b_V]
        return float((np.logaddexp(0, difference) - score_V * difference).sum())

    theta = np.zeros(num_models)
    for _ in range(_NEWTON_STEPS):
        p_V = expit(theta[a_V] - theta[b_V])
        gradient = np.bincount(a_V, p_V - score_V, num_models) - np.bincount(b_V, p_V - score_V, num_models)
        # Shifting all theta changes nothing; the added constant makes the matrix regular and keeps the mean.
        step = np.linalg.solve(_laplacian(a_V, b_V, p_V * (1 - p_V), num_models) + 1 / num_models, gradient)
        limit = loss(theta) * (1 + 1e-12)
        while loss(theta - step) > limit:
            step /= 2
        theta = theta - step
        if np.abs(step).max() < _NEWTON_TOLERANCE:
            break
    return theta - theta.mean()


def _sandwich_variances(theta: Floats, a_V: NDArray[np.intp], b_V: NDArray[np.intp], score_V: Floats) -> Floats:
    """The diagonal of H^-1 G H^-1."""
    p_V = expit(theta[a_V] - theta[b_V])
    hessian = _laplacian(a_V, b_V, p_V * (1 - p_V), len(theta)) + HESSIAN_RIDGE * len(score_V) * np.eye(len(theta))
    gradient_covariance = _laplacian(a_V, b_V, (score_V - p_V) ** 2, len(theta))
    # G sums to 0 along the constant direction, where H holds the small ridge alone: its inverse would blow up what
    # rounding left there (1e-8 of the result). Adding a constant to H changes nothing else.
    inverse = np.linalg.inv(hessian + 1 / len(theta))
    return np.diag(inverse @ gradient_covariance @ inverse)


def _laplacian(a_V: NDArray[np.intp], b_V: NDArray[np.intp], weight_V: Floats, num_models: int) -> Floats:
    """Sum over votes of +weight at (a, a) and (b, b), -weight at (a, b) and (b, a)."""
    between = np.bincount(a_V * num_models + b_V, weight_V, num_models**2).reshape(num_models, num_models)
    between = between + between.T
    return np.diag(between.sum(axis=1)) - between  # (K, K)


# ------------------------------------------------------------------ agreement


def rater_agreement(votes: Sequence[Vote]) -> RaterAgreement:
    """Krippendorff's alpha and Fleiss' kappa over first votes.

    The verdicts are "first model by name wins", "tie" and "second wins". Over several pairs this pools them as they
    are: read the values of single pairs there.
    """
    first = first_votes(votes).values()
    number = {item: index for index, item in enumerate(dict.fromkeys(vote.item for vote in first))}
    places = [3 * number[vote.item] + int(2 * vote.score) for vote in first]
    counts_IC = np.bincount(places, minlength=3 * len(number)).reshape(-1, 3)
    raters_I = counts_IC.sum(axis=1)
    same = int(raters_I[0]) if (raters_I == raters_I[0]).all() else None
    return RaterAgreement(
        items=len(number),
        items_with_two_raters=int((raters_I >= 2).sum()),
        raters_per_item=same,
        krippendorff_alpha_nominal=_krippendorff_alpha(counts_IC[raters_I >= 2]),
        fleiss_kappa=_fleiss_kappa(counts_IC) if same and same >= 2 else None,
    )


def _krippendorff_alpha(counts_IC: NDArray[np.int64]) -> float | None:
    """Nominal alpha (Krippendorff 2011) of items with at least two votes: 1 - observed / expected disagreement."""
    raters_I = counts_IC.sum(axis=1)
    n = raters_I.sum()
    agreeing_I = (counts_IC * (counts_IC - 1)).sum(axis=1)
    totals_C = counts_IC.sum(axis=0)
    expected = n * (n - 1) - (totals_C * (totals_C - 1)).sum()
    if not expected:  # no such item, or one verdict throughout
        return None
    observed = n - (agreeing_I / (raters_I - 1)).sum()
    return float(1 - (n - 1) * observed / expected)


def _fleiss_kappa(counts_IC: NDArray[np.int64]) -> float | None:
    """Fleiss' kappa (1971): every item has the same number of votes, at least two."""
    raters = counts_IC[0].sum()
    observed = ((counts_IC**2).sum(axis=1) - raters).mean() / (raters * (raters - 1))
    by_chance = ((counts_IC.sum(axis=0) / counts_IC.sum()) ** 2).sum()
    return float((observed - by_chance) / (1 - by_chance)) if (counts_IC.sum(axis=0) > 0).sum() > 1 else None
