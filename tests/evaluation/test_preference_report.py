# SPDX-License-Identifier: Apache-2.0
"""The report equals the recorded values (`tests/data/evaluation/human`), says what it left out, and is drawn."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_report import plot, report, to_text
from sharegpt4o_image.evaluation.preference_votes import Vote, read_votes

HUMAN = Path(__file__).parents[1] / "data" / "evaluation" / "human"


@pytest.fixture(scope="module")
def numbers():
    return json.loads(json.dumps(report(read_votes(HUMAN / "votes.csv")), allow_nan=False))


@pytest.fixture(scope="module")
def expected():
    return json.loads((HUMAN / "expected.json").read_text())


def test_pairs_equal_the_recorded_values(numbers, expected):
    assert numbers["pairs"].keys() == expected["pairs"].keys()
    for name, pair in expected["pairs"].items():
        for key, value in pair.items():
            assert numbers["pairs"][name][key] == pytest.approx(value, abs=1e-9), (name, key)


def test_ratings_equal_the_recorded_values(numbers, expected):
    recorded = expected["arena_rank_bradley_terry_sandwich"]
    fit = numbers["bradley_terry"]
    assert fit["competitors"] == recorded["competitors"]
    assert fit["votes"] == 600
    for key in ("ratings", "rating_lower", "rating_upper", "variances"):
        assert fit[key] == pytest.approx(recorded[key], abs=1e-3)


def test_models_apart_are_rated_apart(numbers):
    groups = numbers["bradley_terry_groups"]
    assert groups[0] == numbers["bradley_terry"]
    assert groups[1]["competitors"] == ["janus-4o", "janus-pro"]
    assert sum(groups[1]["ratings"]) == pytest.approx(2000)
    assert "2 groups of models are not compared with each other" in to_text(numbers)


def test_second_votes_without_a_mark_are_counted_and_named(numbers):
    lines = numbers["votes"]["unmarked_second_vote_lines"]
    assert numbers["votes"]["unmarked_second_votes"] == len(lines) == 73
    assert numbers["votes"]["counted"] == numbers["votes"]["total"] == 652
    assert "73 of them are second votes of a rater on an item, without a mark (lines 92, 93," in to_text(numbers)


def test_marked_repeats_do_not_count_twice():
    votes = [Vote("1", "r", "x", "y", "model_a"), Vote("2", "r", "x", "y", "model_b")]
    repeated = [*votes, Vote("1", "r", "y", "x", "model_a", is_repeat=True)]
    once, twice = report(votes), report(repeated)
    assert twice["pairs"] == once["pairs"]
    assert twice["bradley_terry"] == once["bradley_terry"]
    assert twice["votes"] == once["votes"] | {"total": 3, "marked_repeats": 1}
    assert twice["consistency_on_repeats"]["share"] == 0
    assert (once["side_bias_left"]["n"], twice["side_bias_left"]["n"]) == (2, 3)


def test_ratings_that_do_not_exist_leave_the_pairs_and_the_reason(tmp_path):
    numbers = report([Vote(str(prompt), "r", "x|1", "y", "model_a") for prompt in range(3)])
    assert numbers["bradley_terry"]["competitors"] == ["x|1", "y"]
    assert "did y win or tie against x|1" in numbers["bradley_terry"]["not_rated"]
    assert numbers["pairs"]["x|1 vs y"]["win"] == 3
    text = to_text(numbers)
    assert "not rated. Bradley-Terry ratings do not exist" in text
    assert "| x&#124;1 vs y | 3 | 3 / 0 / 0 | 100.0 / 0.0 / 0.0 |" in text
    plot(numbers, tmp_path / "plot.png")


def test_the_largest_part_that_can_be_rated_is_rated_and_the_others_are_named(tmp_path):
    circle = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "c")]
    votes = [Vote(str(n), "r", *pair, "model_a") for n, pair in enumerate([*circle, ("best", "a"), ("b", "worst")])]
    fit = report(votes)["bradley_terry"]
    alone = report(votes[:4])["bradley_terry"]
    assert {key: fit[key] for key in alone} == alone
    assert fit["competitors"] == ["a", "b", "c"]
    assert fit["votes"] == 4
    assert fit["left_out"] == ["best", "worst"]
    assert "in no vote did a, b, c, worst win or tie against best" in fit["left_out_reason"]
    text = to_text(report(votes))
    assert "Not rated: best, worst. Bradley-Terry ratings do not exist" in text
    assert "The others are rated by the 4 votes among them" in text
    plot(report(votes), tmp_path / "plot.png")


def test_text_shows_the_numbers(numbers):
    text = to_text(numbers)
    assert "| janus-4o vs janus-pro | 52 | 36 / 8 / 8 | 69.2 / 15.4 / 15.4 | 55.7 to 80.1 | 68.0 to 90.5 |" in text
    assert "| model-w | 1096.6 | 1069.0 to 1124.3 |" in text


def test_text_ranks_by_rating():
    text = to_text(report([Vote(str(n), "r", "x", "y", winner) for n, winner in enumerate(("tie", "model_b"))]))
    assert text.index("| y | ") < text.index("| x | ")


def test_plot_draws_every_pair_and_model(numbers, tmp_path):
    plot(numbers, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x44, 0x77, 0xAA), (0xBB, 0xBB, 0xBB), (0xCC, 0x66, 0x77)} <= colors
    with pytest.raises(UserError, match="cannot write"):
        plot(numbers, tmp_path / "none" / "plot.png")
