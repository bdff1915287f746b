# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench scores equal the official script's outputs, a plain transcription of its rule, and sums done by hand."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_questions import Item, Question
from sharegpt4o_image.evaluation.dpg_scores import Share, read_answers, score, score_files, to_text

DATA = Path(__file__).parents[1] / "data" / "evaluation" / "dpg"
EXPECTED = json.loads((DATA / "expected.json").read_text())
ONE_PROCESS = sorted(name for name in EXPECTED if not name.startswith("NOT_REPRODUCIBLE"))


def num_pictures(name):
    return next(count for count in (1, 2, 4) if f"_{count}pic" in name)


def assert_official(block, expected):
    assert block["overall"] == pytest.approx(expected["overall"], abs=1e-9)
    for level in ("l1", "l2"):
        assert block[level] == pytest.approx(expected[level], abs=1e-9)
    assert block["per_image"].keys() == expected["per_image"].keys()
    for item, scores in expected["per_image"].items():
        assert block["per_image"][item] == pytest.approx(scores, abs=1e-9)
    assert [f"{item}.png" for item in block["failed"]] == expected["failed"]


def test_there_are_seven_reproducible_runs():
    assert len(ONE_PROCESS) == 7


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_official_block_equals_the_official_script(name):
    questions = DATA / ("questions_dummy_first_row.csv" if name.startswith("dummy") else "questions.csv")
    result = score_files(questions, DATA / "answers.json", num_pictures(name))
    assert_official(result["official"], EXPECTED[name])


@pytest.mark.parametrize("name", [name for name in ONE_PROCESS if name.startswith("dummy")])
def test_a_kept_first_row_equals_the_run_with_a_dummy_row(name):
    result = score_files(DATA / "questions.csv", DATA / "answers.json", num_pictures(name), first_row="keep")
    assert_official(result["official"], EXPECTED[name])
    assert result["corrected"]["overall"] == pytest.approx(EXPECTED[name]["overall"], abs=1e-9)


def test_the_overall_of_scrambled_runs_is_the_same():
    result = score_files(DATA / "questions_dummy_first_row.csv", DATA / "answers.json")
    scrambled = [entry["overall"] for name, entry in EXPECTED.items() if name not in ONE_PROCESS]
    assert scrambled == pytest.approx([result["official"]["overall"]] * 4, abs=1e-9)


def test_with_one_picture_raw_categories_of_all_pictures_are_the_official_ones():
    result = score_files(DATA / "questions.csv", DATA / "answers.json", 1, first_row="keep")
    for level in ("l1", "l2", "l1_interval", "l2_interval"):
        assert result["corrected"]["categories_all"][level] == result["official"][level]


# ------------------------------------------------------------------ by hand


def item(name, *questions):
    """Each question is `(number, parents, tuple)`, for example `(2, (1,), "entity - whole (x)")`."""
    made = []
    for number, parents, cell in questions:
        level_2 = cell.split("(")[0].strip()
        made.append(Question(number, parents, level_2.split("-")[0].strip(), level_2, f"question {number}?"))
    return Item(name, f"prompt {name}", tuple(made))


CHAIN = item(
    "chain",
    (1, (0,), "entity - whole (a)"),
    (2, (1,), "attribute - color (a, red)"),
    (3, (2,), "attribute - size (a, big)"),
    (4, (0,), "global - (photo)"),
)


def test_a_failure_cascades_down_the_chain_but_not_into_raw_categories():
    first = {"1": "no", "2": "yes", "3": "yes", "4": "yes"}
    last = {"1": "yes", "2": "yes", "3": "no", "4": "Yes"}
    scores = score([CHAIN], {"chain": [first, last]}, 2)
    assert scores.per_image == {"chain": [0.25, 0.5, 0.375]}
    assert scores.overall == 37.5
    assert scores.categories_official.l1 == {"attribute": Share(1, 2), "entity": Share(1, 1), "global": Share(0, 1)}
    assert scores.categories_all.l1 == {"attribute": Share(3, 4), "entity": Share(1, 2), "global": Share(1, 2)}
    assert scores.categories_dependency.l2 == {
        "attribute - color": Share(1, 2),
        "attribute - size": Share(0, 2),
        "entity - whole": Share(1, 2),
        "global -": Share(1, 2),
    }
    assert scores.n_other_answers == 1


def test_a_parent_listed_after_its_child_is_tested_on_its_raw_answer():
    late = item(
        "late", (3, (2,), "entity - whole (c)"), (1, (0,), "other - count (a)"), (2, (1,), "entity - part (b)")
    )
    scores = score([late], {"late": [{"1": "no", "2": "yes", "3": "yes"}]}, 1)
    assert scores.per_image["late"] == [1 / 3, 1 / 3]  # 2 is zeroed by 1, too late for 3


@pytest.mark.parametrize("answer", ["Yes", "yes it is", " yes", "yes.", "YES", ""])
def test_only_the_exact_word_counts(answer):
    scores = score([item("a", (1, (0,), "entity - whole (a)"))], {"a": [{"1": answer}]}, 1)
    assert (scores.overall, scores.n_other_answers) == (0.0, 1)


def test_an_unknown_parent_fails_the_item_unless_a_known_parent_failed_before_it():
    broken = item("broken", (1, (0,), "entity - whole (a)"), (2, (1, 9), "entity - part (b)"))
    met = score([broken, CHAIN], {"broken": [{"1": "yes", "2": "yes"}]}, 1)
    assert (met.overall, met.n_items_scored, met.n_missing) == (None, 0, 1)
    assert met.failed == {"broken": "a question depends on question 9, which is not in the question file"}
    not_met = score([broken], {"broken": [{"1": "no", "2": "yes"}]}, 1)
    assert not_met.per_image == {"broken": [0.0, 0.0]}


def test_items_that_cannot_be_scored_leave_the_denominator_and_are_named():
    full = {"1": "yes", "2": "yes", "3": "yes", "4": "yes"}
    items = [Item(name, "", CHAIN.questions) for name in ("good", "short", "gap", "never")]
    gap = [full, {"1": "yes", "4": "no", "7": "yes"}]
    scores = score(items, {"good": [full, full | {"8": "no"}], "short": [full], "gap": gap, "odd": [full, full]}, 2)
    assert scores.per_image == {"good": [1.0, 1.0, 1.0]}
    assert (scores.overall, scores.overall_interval) == (100.0, None)
    assert (scores.n_missing, scores.n_surplus_answers) == (1, 1)
    assert scores.failed == {
        "short": "answers for 1 of 2 pictures",
        "gap": "2 answers missing: question 2 of picture 2, question 3 of picture 2",
        "odd": "not in the question file",
    }


# ------------------------------------------------------------------ against a second implementation


def transcription(rows, answers, num_pictures):
    """The protocol's pseudocode over plain rows `(item, number, parents, tuple)`."""
    graph = {}
    for name, number, parents, cell in rows:
        graph.setdefault(name, {})[number] = (parents, cell)
    per_image, failed, pools = {}, [], {}
    for name, pictures in answers.items():
        try:
            results = []
            for picture in pictures[:num_pictures]:
                s = {q: 1.0 if picture[str(q)] == "yes" else 0.0 for q in graph[name]}
                raw = dict(s)
                for q, (parents, _) in graph[name].items():
                    for p in parents:
                        if p != 0 and s[p] == 0:
                            s[q] = 0.0
                            break
                results.append(np.mean(list(s.values())))
        except KeyError:
            failed.append(f"{name}.png")
            continue
        per_image[name] = [*results, np.mean(results)]
        for q, (_, cell) in graph[name].items():
            pools.setdefault(cell.split("(")[0].strip(), []).append(raw[q])
    l1 = {}
    for category, values in pools.items():
        l1.setdefault(category.split("-")[0].strip(), []).extend(values)
    return {
        "overall": 100 * np.mean([scores[-1] for scores in per_image.values()]) if per_image else None,
        "l1": {category: 100 * np.mean(values) for category, values in l1.items()},
        "l2": {category: 100 * np.mean(values) for category, values in pools.items()},
        "per_image": per_image,
        "failed": failed,
    }


def random_rows(rng):
    """Shuffled graphs; one parent in fifty does not exist, and in one item of five a number is there twice."""
    cells = [
        "entity - whole (a)",
        "attribute - color (a, b)",
        "global - (c)",
        "relation-spatial(a, b-c)",
        "other - text",
    ]
    rows = []
    for index in range(rng.randint(3, 12)):
        numbers = rng.sample(range(1, 30), rng.randint(1, 9))
        numbers += rng.sample(numbers, 1) if rng.random() < 0.2 else []
        for number in numbers:
            parents = rng.sample([0, *numbers], rng.randint(1, min(3, len(numbers) + 1)))
            parents = [99 if rng.random() < 0.02 else parent for parent in parents]
            rows.append((f"item{index}", number, parents, rng.choice(cells)))
    return rows


@pytest.mark.parametrize("seed", range(60))
def test_random_benchmarks_equal_the_transcription(seed, tmp_path):
    rng = random.Random(seed)
    rows = random_rows(rng)
    words = ["yes"] * 6 + ["no"] * 3 + ["Yes"]
    answers = {}
    for name, number, _, _ in rows:
        for picture in answers.setdefault(name, [{} for _ in range(4)]):
            picture[str(number)] = rng.choice(words)
    count = rng.randint(1, 4)
    questions = write_files(tmp_path, rows, answers, rng)
    result = score_files(questions, tmp_path / "answers.json", count)
    assert_official(result["official"], transcription(rows[1:], answers, count))
    kept = score_files(questions, tmp_path / "answers.json", count, first_row="keep")
    assert_official(kept["official"], transcription(rows, answers, count))


def write_files(folder, rows, answers, rng):
    lines = ["item_id,text,proposition_id,dependency,tuple,question_natural_language"]
    for name, number, parents, cell in rows:
        dependency = rng.choice([",", ", ", " , "]).join(map(str, parents))
        lines.append(f'{name},"a, ""b""\nc",{number},"{dependency}","{cell}",Is it {number}?')
    (folder / "questions.csv").write_text("\n".join(lines) + "\n")
    (folder / "answers.json").write_text(json.dumps({"items": list(answers), "answers": answers}))
    return folder / "questions.csv"


# ------------------------------------------------------------------ intervals


def test_the_wilson_interval_equals_its_formula():
    yes, asked, z = 37, 52, 1.959963984540054
    share = yes / asked
    centre = (share + z**2 / (2 * asked)) / (1 + z**2 / asked)
    half = z / (1 + z**2 / asked) * math.sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    assert Share(yes, asked).interval() == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)


def test_the_bootstrap_interval_is_seeded_and_close_to_the_normal_one():
    result = score_files(DATA / "questions.csv", DATA / "answers.json")
    again = score_files(DATA / "questions.csv", DATA / "answers.json")
    low, high = result["official"]["overall_interval"]
    assert again["official"]["overall_interval"] == (low, high)
    means = [scores[-1] for scores in result["official"]["per_image"].values()]
    half = 100 * 1.96 * np.std(means) / math.sqrt(len(means))
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert low < result["official"]["overall"] < high


# ------------------------------------------------------------------ files and text


def test_the_number_of_pictures_defaults_to_all_of_them():
    result = score_files(DATA / "questions.csv", DATA / "answers.json")
    assert result == score_files(DATA / "questions.csv", DATA / "answers.json", 4)
    assert json.loads(json.dumps(result))["official"]["n_items_scored"] == 39


def test_the_text_says_how_many_items_are_missing_or_failed():
    lines = to_text(score_files(DATA / "questions_dummy_first_row.csv", DATA / "answers.json")).splitlines()
    assert lines[1].startswith("official (first row: drop): overall 43.54 [")
    assert lines[2] == "  40 items scored, 0 missing, 0 failed"
    assert "  40 items scored, 1 missing, 0 failed" in lines
    lost = to_text(score_files(DATA / "questions.csv", DATA / "answers.json"))
    assert "39 items scored, 0 missing, 1 failed\n  failed: synth0: a question depends on question 1" in lost
    assert "answers to questions that are not in the question file" not in lost
    assert "answers are neither 'yes' nor 'no' and count as no" in lost


def test_the_text_warns_of_missing_parents_and_unknown_categories(tmp_path):
    rows = [("a", 1, [0], "entity - whole (x)"), ("a", 2, [1, 7], "mood (x)"), ("b", 1, [0], "global - (x)")]
    answers = {"a": [{"1": "no", "2": "no"}], "b": [{"1": "yes"}]}
    questions = write_files(tmp_path, rows, answers, random.Random(0))
    text = to_text(score_files(questions, tmp_path / "answers.json", first_row="keep"))
    assert "warning: item a: question 2 depends on 7, not in the question file" in text
    assert "warning: unknown category 'mood': 1 questions" in text


def test_questions_with_one_number_are_warned_of(tmp_path):
    rows = [("a", 1, [0], "entity - whole (x)"), ("a", 2, [1], "global - (y)"), ("a", 1, [0], "global - (z)")]
    questions = write_files(tmp_path, rows, {"a": [{"1": "yes", "2": "yes"}]}, random.Random(0))
    result = score_files(questions, tmp_path / "answers.json", first_row="keep")
    assert result["official"]["l2"] == {"global -": 100.0}
    warning = "question 1 is there more than once; the last one counts"
    assert result["repeated_questions"] == {"a": warning}
    assert f"warning: item a: {warning}" in to_text(result)


def test_many_failures_are_counted_and_the_first_are_named(tmp_path):
    rows = [("a", 1, [0], "entity - whole (x)")]
    answers = {"a": [{"1": "yes"}]} | {f"odd{index}": [{"1": "yes"}] for index in range(8)}
    questions = write_files(tmp_path, rows, answers, random.Random(0))
    result = score_files(questions, tmp_path / "answers.json")
    assert (result["official"]["overall"], result["corrected"]["overall"]) == (None, 100.0)
    assert "1 items scored, 0 missing, 8 failed" in to_text(result)
    assert "failed: odd4: not in the question file\n  failed: and 3 more" in to_text(result)


PICTURE = '{"1": "yes"}'


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "is not valid JSON in UTF-8"),
        ("[]", 'expected an object with "answers"'),
        ('{"items": []}', 'expected an object with "answers"'),
        ('{"items": "a", "answers": {}}', '"items" must be a list of item ids'),
        ('{"items": [null], "answers": {}}', '"items" must be a list of item ids'),
        ('{"items": ["a"], "answers": []}', 'expected an object with "answers"'),
        ('{"items": ["a", "a"], "answers": {}}', '1 items are in "items" twice: a'),
        ('{"items": ["a"], "answers": {"a": {"1": "yes"}}}', "item 'a': expected a list with one object"),
        ('{"items": ["a"], "answers": {"a": [null]}}', "item 'a': expected a list with one object"),
        ('{"items": ["a"], "answers": {"a": [{"1": "yes", "1": "no"}]}}', "the key '1' is there twice"),
        (f'{{"items": ["a"], "answers": {{"a": [{", ".join([PICTURE] * 5)}]}}}}', "has 5 pictures"),
        ('{"items": ["a"], "answers": {}}', "holds no answers"),
        ('{"items": ["x"], "answers": {"x": [{"1": "yes"}]}}', "no item can be scored"),
    ],
)
def test_bad_answers_are_refused_in_one_sentence(document, sentence, tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(document)
    with pytest.raises(UserError) as caught:
        score_files(DATA / "questions.csv", path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_text_is_no_answer_and_items_need_not_be_listed(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('{"items": [7], "answers": {"a": [{"1": NaN, "2": true, "3": "yes"}], "7": [{"1": "no"}]}}')
    assert read_answers(path) == {"7": [{"1": "no"}], "a": [{"3": "yes"}]}
    document = json.loads((DATA / "answers.json").read_text())
    item = document.pop("items")[5]
    document["answers"][item][1]["1"] = None
    path.write_text(json.dumps(document))
    found = score_files(DATA / "questions.csv", path)["corrected"]
    assert list(found["failed"]) == [item]
    assert found["n_items_scored"] == 39


@pytest.mark.parametrize("count", [0, 5, -1])
def test_more_pictures_than_were_answered_are_refused(count):
    with pytest.raises(UserError, match=f"{count} pictures were asked for, .* has answers for 4; give 1 to 4"):
        score_files(DATA / "questions.csv", DATA / "answers.json", count)


def test_an_item_listed_without_answers_fails(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('{"items": ["a", "b"], "answers": {"b": [{"1": "yes"}]}}')
    assert read_answers(path) == {"a": [], "b": [{"1": "yes"}]}
    made = [item(name, (1, (0,), "entity - whole (a)")) for name in "ab"]
    assert score(made, read_answers(path), 1).failed == {"a": "answers for 0 of 1 pictures"}


def test_a_missing_answer_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        score_files(DATA / "questions.csv", tmp_path / "none.json")
