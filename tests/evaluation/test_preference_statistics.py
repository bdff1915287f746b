# SPDX-License-Identifier: Apache-2.0
"""Closed forms worked out by hand, and second, plain implementations on random votes."""

import math
import random
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_statistics import (
    bradley_terry,
    connected_models,
    consistency,
    net_win_interval,
    pair_statistics,
    rater_agreement,
    side_bias,
    wilson_half_width,
    wilson_interval,
)
from sharegpt4o_image.evaluation.preference_votes import Vote


def votes_on(*winners, models=("x", "y"), rater="r", first_prompt=0):
    return [
        Vote(str(prompt), rater, *models, winner=winner) for prompt, winner in enumerate(winners, start=first_prompt)
    ]


def random_votes(seed, num_votes, models="wxyz", num_prompts=30, num_raters=5):
    rng = random.Random(seed)
    strength = {model: index / 2 for index, model in enumerate(models)}
    votes = []
    for _ in range(num_votes):
        left, right = rng.sample(models, 2)
        wins = rng.random() < 1 / (1 + math.exp(strength[right] - strength[left]))
        winner = rng.choice(("tie", "both_bad")) if rng.random() < 0.2 else ("model_a" if wins else "model_b")
        votes.append(
            Vote(str(rng.randrange(num_prompts)), f"r{rng.randrange(num_raters)}", left, right, winner),
        )
    return votes


# ------------------------------------------------------------------ shares and pairs


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 9), (9, 9), (31, 52), (21, 35), (240, 400)])
def test_wilson_equals_scipy(count, n):
    interval = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson_interval(count / n, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_power_is_what_the_reference_says():
    # 60 % wins: 46-72 % for 52 votes, 44-74 % for 35; 400 votes give 5 points to each side.
    assert [round(100 * limit) for limit in wilson_interval(0.6, 52)] == [46, 72]
    assert [round(100 * limit) for limit in wilson_interval(0.6, 35)] == [44, 74]
    assert wilson_half_width(400) == pytest.approx(0.05, abs=0.002)
    assert wilson_half_width(400, share=0.6) < wilson_half_width(400)
    with pytest.raises(UserError, match="at least 1"):
        wilson_half_width(0)


def test_a_pair_by_hand():
    votes = votes_on("model_a", "model_a", "model_a", "tie", "both_bad")
    votes += votes_on("model_a", "tie", models=("y", "x"), rater="s")  # y wins once, on the left
    pair = pair_statistics(votes)
    assert (pair.n, pair.win, pair.tie, pair.loss, pair.both_bad, pair.prompts, pair.raters) == (7, 3, 3, 1, 1, 5, 2)
    assert (pair.win_ratio, pair.tie_ratio, pair.loss_ratio) == (3 / 7, 3 / 7, 1 / 7)
    assert (pair.net_win_rate, pair.score_tie_half) == (2 / 7, 4.5 / 7)
    assert pair.binomtest_two_sided_decided_p == pytest.approx(2 * (1 + 4) / 16)  # 3 or more of 4, both tails
    assert pair.wilson95_win_of_decided == wilson_interval(3 / 4, 4)
    low, high = pair.net_win_rate_bootstrap95
    assert -1 <= low < 2 / 7 < high <= 1


def test_ties_alone_decide_nothing():
    pair = pair_statistics(votes_on("tie", "both_bad"))
    assert pair.wilson95_win_of_decided is None
    assert pair.binomtest_two_sided_decided_p is None
    assert pair.net_win_rate_bootstrap95 == (0, 0)
    assert pair_statistics(votes_on("tie")).net_win_rate_bootstrap95 is None


# ------------------------------------------------------------------ bootstrap


def test_bootstrap_with_one_rater_is_that_of_prompts():
    """One vote a prompt: the spread is that of a mean, s / sqrt(n)."""
    votes = votes_on(*(["model_a"] * 240 + ["model_b"] * 160))
    low, high = net_win_interval(votes, num_resamples=20_000)
    spread = math.sqrt((1 - 0.2**2) / 400)
    assert (low, high) == pytest.approx((0.2 - 1.96 * spread, 0.2 + 1.96 * spread), abs=0.01)


def test_votes_of_one_prompt_move_together():
    """Twenty raters who agree on each of ten prompts tell about ten prompts, not two hundred."""
    together = [Vote(str(p), f"r{r}", "x", "y", ("model_a", "model_b")[p % 2]) for p in range(10) for r in range(20)]
    low, high = net_win_interval(together)
    assert high - low > 1.0
    low, high = net_win_interval(
        [Vote(f"{vote.prompt_id} {vote.rater}", "r", "x", "y", vote.winner) for vote in together]
    )
    assert high - low < 0.3


def test_bootstrap_equals_a_plain_loop():
    votes = random_votes(3, 120, models="xy", num_prompts=12, num_raters=4)
    rng = random.Random(5)
    prompts, raters = sorted({vote.prompt_id for vote in votes}), sorted({vote.rater for vote in votes})
    nets = []
    for _ in range(4_000):
        drawn_prompts, drawn_raters = rng.choices(prompts, k=len(prompts)), rng.choices(raters, k=len(raters))
        weights = [drawn_prompts.count(vote.prompt_id) * drawn_raters.count(vote.rater) for vote in votes]
        if sum(weights):
            nets.append(sum(w * (2 * v.score - 1) for w, v in zip(weights, votes, strict=True)) / sum(weights))
    expected = np.quantile(nets, [0.025, 0.975])
    assert net_win_interval(votes, num_resamples=4_000) == pytest.approx(expected, abs=0.04)


def test_bootstrap_depends_on_the_seed_alone():
    votes = random_votes(4, 200, models="xy")
    shuffled = random.Random(0).sample(votes, len(votes))
    assert net_win_interval(votes) == net_win_interval(shuffled) == net_win_interval(votes, seed=0)
    assert net_win_interval(votes) != net_win_interval(votes, seed=1)


# ------------------------------------------------------------------ Bradley-Terry


def test_two_models_in_closed_form():
    votes = votes_on("model_a", "model_a", "model_a", "model_b", "tie")  # 3.5 of 5
    fit = bradley_terry(votes)
    half = math.log(0.7 / 0.3) / 2 * 400 / math.log(10)
    assert fit.competitors == ["x", "y"]
    assert fit.ratings == pytest.approx([1000 + half, 1000 - half], abs=1e-9)
    squares = 3 * 0.3**2 + 0.7**2 + 0.2**2
    variance = (400 / math.log(10)) ** 2 * squares / (2 * 5 * 0.7 * 0.3 + 1e-5 * 5) ** 2
    assert fit.variances == pytest.approx([variance] * 2, rel=1e-12)
    assert fit.rating_upper[0] == pytest.approx(fit.ratings[0] + 1.959964 * math.sqrt(variance), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_ratings_equal_an_independent_optimum(seed):
    votes = random_votes(seed, 60 + 100 * seed)
    models = "wxyz"

    def loss(theta):
        total = 0.0
        for vote in votes:
            difference = theta[models.index(vote.model_a)] - theta[models.index(vote.model_b)]
            total += math.log1p(math.exp(difference)) - vote.left_score * difference
        return total

    # Zermelo's iteration on strengths: wins / sum of n / (own + other).
    strength = dict.fromkeys(models, 1.0)
    wins = {m: sum(v.left_score if v.model_a == m else 1 - v.left_score for v in votes if m in v.pair) for m in models}
    met = {(m, o): sum(v.pair == (min(m, o), max(m, o)) for v in votes) for m in models for o in models if m != o}
    for _ in range(500):
        strength = {
            m: wins[m] / sum(met[m, o] / (strength[m] + strength[o]) for o in models if o != m) for m in models
        }
    theta = np.log([strength[m] for m in models])
    fit = bradley_terry(votes)
    assert fit.ratings == pytest.approx(1000 + 400 / math.log(10) * (theta - theta.mean()), abs=1e-6)
    assert loss((np.array(fit.ratings) - 1000) * math.log(10) / 400) <= minimize(loss, np.zeros(4)).fun + 1e-9


def test_sandwich_equals_a_sum_over_votes():
    votes = random_votes(9, 150)
    fit = bradley_terry(votes)
    theta = dict(zip(fit.competitors, (np.array(fit.ratings) - 1000) * math.log(10) / 400, strict=True))
    hessian, covariance = 1e-5 * len(votes) * np.eye(4), np.zeros((4, 4))
    for vote in votes:
        direction = np.zeros(4)
        direction["wxyz".index(vote.model_a)], direction["wxyz".index(vote.model_b)] = 1, -1
        p = 1 / (1 + math.exp(theta[vote.model_b] - theta[vote.model_a]))
        hessian += p * (1 - p) * np.outer(direction, direction)
        covariance += (vote.left_score - p) ** 2 * np.outer(direction, direction)
    expected = np.linalg.inv(hessian) @ covariance @ np.linalg.inv(hessian)
    assert fit.variances == pytest.approx(
        (400 / math.log(10)) ** 2 * np.diag(expected), rel=1e-6
    )  # the inverse rounds at 1e-8


def test_ratings_do_not_depend_on_sides_or_order():
    votes = random_votes(2, 300)
    other = {"model_a": "model_b", "model_b": "model_a"}
    swapped = [
        Vote(v.prompt_id, v.rater, v.model_b, v.model_a, other.get(v.winner, v.winner)) for v in reversed(votes)
    ]
    assert bradley_terry(swapped).ratings == pytest.approx(bradley_terry(votes).ratings, abs=1e-9)


def test_strong_preferences_still_converge():
    votes = votes_on(*(["model_a"] * 5_000 + ["model_b"]))
    votes += votes_on(*(["model_a"] * 5_000 + ["tie"]), models=("y", "z"))
    fit = bradley_terry(votes)
    scale = 400 / math.log(10)
    assert fit.ratings[0] - fit.ratings[1] == pytest.approx(scale * math.log(5_000), abs=1e-6)
    assert fit.ratings[1] - fit.ratings[2] == pytest.approx(scale * math.log(5_000.5 / 0.5), abs=1e-6)


def test_models_that_no_vote_connects_are_named():
    votes = votes_on("model_a", "tie") + votes_on("tie", models=("p", "q"))
    assert connected_models(votes) == [["x", "y"], ["p", "q"]]
    with pytest.raises(UserError, match=r"No vote compares \(x, y\) and \(p, q\)"):
        bradley_terry(votes)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["xy", "yz", "zy"], "did y, z win or tie against x"),  # x never loses
        (["xy", "yx", "yz"], "did z win or tie against x, y"),  # z never wins
        (["wx", "xw", "yz", "zy", "xy"], "did y, z win or tie against w, x"),  # each wins and loses, no group returns
    ],
)
def test_ratings_without_a_maximum_are_refused(pairs, message):
    votes = [Vote(str(number), "r", *pair, "model_a") for number, pair in enumerate(pairs)]
    with pytest.raises(UserError, match=message):
        bradley_terry(votes)
    loser, winner = pairs[-1][1], pairs[0][0]
    assert bradley_terry([*votes, Vote("t", "r", winner, loser, "tie")]).votes == len(pairs) + 1


# ------------------------------------------------------------------ raters


def test_alpha_of_the_published_example():
    """Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), A: binary data, two observers: 0.095."""
    verdicts = {"r": "0100000010", "s": "1110010000"}
    votes = [
        vote
        for rater, row in verdicts.items()
        for vote in votes_on(*(("model_a", "model_b")[int(digit)] for digit in row), rater=rater)
    ]
    agreement = rater_agreement(votes)
    assert agreement.krippendorff_alpha_nominal == pytest.approx(0.095, abs=5e-4)
    assert (agreement.items, agreement.items_with_two_raters, agreement.raters_per_item) == (10, 10, 2)


def test_kappa_by_hand():
    # Items (3, 0, 0) and (1, 2, 0): observed (1 + 1/3) / 2, by chance (4/6)^2 + (2/6)^2.
    votes = votes_on("model_a", "model_a") + votes_on("model_a", "tie", rater="s")
    votes += votes_on("model_a", "tie", rater="t")
    assert rater_agreement(votes).fleiss_kappa == pytest.approx((2 / 3 - 5 / 9) / (1 - 5 / 9))


@pytest.mark.parametrize("seed", range(3))
def test_alpha_equals_a_count_of_pairs(seed):
    """1 - share of differing pairs within items (weighted by 1 / (m - 1)) over the share among all pairs of votes."""
    votes = list({(v.rater, v.item): v for v in random_votes(seed, 90, models="xy", num_prompts=20)}.values())
    items = {}
    for vote in votes:
        items.setdefault(vote.item, []).append(vote.score)
    items = [scores for scores in items.values() if len(scores) > 1]
    observed = sum(2 * sum(a != b for a, b in combinations(scores, 2)) / (len(scores) - 1) for scores in items)
    pooled = [score for scores in items for score in scores]
    expected = 2 * sum(a != b for a, b in combinations(pooled, 2)) / (len(pooled) - 1)
    assert rater_agreement(votes).krippendorff_alpha_nominal == pytest.approx(1 - observed / expected)


def test_agreement_is_not_defined_without_second_raters_or_variety():
    alone = rater_agreement(votes_on("model_a", "tie"))
    assert (alone.krippendorff_alpha_nominal, alone.fleiss_kappa, alone.raters_per_item) == (None, None, 1)
    same = rater_agreement(votes_on("tie", "tie") + votes_on("tie", "tie", rater="s"))
    assert (same.krippendorff_alpha_nominal, same.fleiss_kappa) == (None, None)
    uneven = rater_agreement(votes_on("tie", "model_a") + votes_on("tie", rater="s"))
    assert (uneven.raters_per_item, uneven.items_with_two_raters, uneven.fleiss_kappa) == (None, 1, None)


def test_side_bias_and_consistency():
    votes = votes_on("model_a", "model_a", "tie", "model_b")
    # x again, y this time, no preference again, x this time
    swapped = [("0", "model_b"), ("1", "model_a"), ("2", "both_bad"), ("3", "model_b")]
    votes += [Vote(prompt, "r", "y", "x", winner, is_repeat=True) for prompt, winner in swapped]
    left = side_bias(votes)
    assert (left.count, left.n, left.share) == (3, 6, 0.5)  # x won 4 of 6
    assert left.wilson95 == wilson_interval(0.5, 6)
    repeats = consistency(votes)
    assert (repeats.count, repeats.n) == (2, 4)
    assert consistency(votes[:4]).share is None
