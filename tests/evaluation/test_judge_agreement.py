# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import LABELS
from sharegpt4o_image.evaluation.judge_agreement import agreement, agreement_of_files, quadratic_kappa, spread_of_files


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def answer(edit_type, score):
    return "\n".join(f"{label}: {score}" for label in LABELS[edit_type])


@pytest.fixture
def items(tmp_path):
    types = {"1": "add", "2": "add", "3": "style", "4": "style"}
    entries = {key: {"id": f"{key}.jpg", "prompt": "p", "edit_type": name} for key, name in types.items()}
    return write(tmp_path / "items.json", entries)


def results(tmp_path, name, add, style):
    texts = {"1": answer("add", add[0]), "2": answer("add", add[1])}
    return write(tmp_path / name, texts | {"3": answer("style", style[0]), "4": answer("style", style[1])})


def kappa_without_a_matrix(first, second):
    # 1 - E(x - y)^2 / (var x + var y + (mean x - mean y)^2): the expectation over all pairs in closed form.
    first, second = np.asarray(first), np.asarray(second)
    by_chance = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return 1 - ((first - second) ** 2).mean() / by_chance


def test_kappa_by_hand():
    # Observed squares: 0, 1, 0, 1 -> 0.5. All 16 pairs of (1, 2, 3, 4) and (1, 3, 3, 5): mean square 3.5.
    pairs = [(x - y) ** 2 for x in (1, 2, 3, 4) for y in (1, 3, 3, 5)]
    assert sum(pairs) / 16 == 3.5
    assert quadratic_kappa([1, 2, 3, 4], [1, 3, 3, 5]) == pytest.approx(1 - 0.5 / 3.5)


def test_kappa_limits():
    assert quadratic_kappa([1, 2, 5], [1, 2, 5]) == 1
    assert quadratic_kappa([1, 5], [5, 1]) == -1
    assert quadratic_kappa([1, 1, 5, 5], [1, 5, 1, 5]) == 0
    assert quadratic_kappa([3, 3], [3, 3]) is None
    assert quadratic_kappa([3, 3], [4, 4]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_kappa_equals_a_second_implementation(seed):
    rng = np.random.default_rng(seed)
    first = np.round(rng.integers(3, 16, 200) / 3, 2)
    second = np.round(np.clip(first + rng.integers(-2, 3, 200) / 3, 1, 5), 2)
    assert quadratic_kappa(first, second) == pytest.approx(kappa_without_a_matrix(first, second), abs=1e-12)


def test_agreement_by_hand():
    got = agreement([1, 2, 3, 4], [1, 3, 3, 5], ["a", "b", "c", "d"])
    assert (got["n"], got["share_equal"], got["mean_difference"]) == (4, 0.5, 0.5)
    assert got["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 3, 3, 5])[0, 1])
    assert got["spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1])
    low, high = got["mean_difference_interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_a_judge_that_always_says_the_same_has_no_correlation():
    got = agreement([3, 3, 3], [1, 2, 3], ["a", "b", "c"])
    assert (got["pearson"], got["spearman"]) == (None, None)
    json.dumps(got, allow_nan=False)


def test_agreement_of_files_says_what_is_left_out(tmp_path, items):
    first = write(tmp_path / "a.json", {"1": answer("add", 4), "2": answer("add", 2), "3": answer("style", 1)})
    second = write(
        tmp_path / "b.json", {"1": answer("add", 5), "2": answer("add", 2), "3": "I cannot help.", "9": "A: 1"}
    )
    got = agreement_of_files(items, first, second)
    assert (got["agreement"]["n"], got["n_only_first"], got["n_only_second"], got["n_neither"]) == (2, 1, 0, 1)
    assert got["agreement"]["mean_difference"] == 0.5
    assert list(got["types"]) == ["add"]


def test_the_parser_decides_what_is_compared(tmp_path, items):
    first = write(tmp_path / "a.json", {"1": answer("add", 4), "2": "Score: 3"})
    assert agreement_of_files(items, first, first)["agreement"]["n"] == 1
    assert agreement_of_files(items, first, first, parser="official")["agreement"]["n"] == 2


def test_judges_without_a_common_item(tmp_path, items):
    first, second = (
        write(tmp_path / "a.json", {"1": answer("add", 4)}),
        write(tmp_path / "b.json", {"2": answer("add", 4)}),
    )
    with pytest.raises(UserError, match="no scored item in common"):
        agreement_of_files(items, first, second)


def test_spread_by_hand(tmp_path, items):
    runs = [
        results(tmp_path, "a.json", (1, 3), (4, 4)),
        results(tmp_path, "b.json", (3, 3), (4, 2)),
    ]
    got = spread_of_files(items, runs)
    root2 = np.sqrt(2)
    assert got["item_deviations"] == pytest.approx({"1": root2, "2": 0, "3": 0, "4": root2})
    assert got["item_deviation"] == pytest.approx(root2 / 2)
    assert got["types"]["add"] == {"mean": 2.5, "deviation": pytest.approx(1 / root2), "values": [2.0, 3.0]}
    assert got["types"]["style"]["values"] == [4.0, 3.0]
    assert got["macro"] == {"mean": 3.0, "deviation": 0.0, "values": [3.0, 3.0]}


def test_a_type_that_a_run_lacks_is_left_out_of_macro(tmp_path, items):
    whole = results(tmp_path, "a.json", (1, 3), (5, 5))
    part = write(tmp_path / "b.json", {"1": answer("add", 1), "2": answer("add", 3)})
    got = spread_of_files(items, [whole, part])
    assert (list(got["types"]), got["macro"]["values"], got["n_complete"], got["n_items"]) == (
        ["add"],
        [2.0, 2.0],
        2,
        4,
    )


def test_a_spread_needs_two_runs(tmp_path, items):
    one = results(tmp_path, "a.json", (1, 3), (5, 5))
    with pytest.raises(UserError, match="two or more"):
        spread_of_files(items, [one])
