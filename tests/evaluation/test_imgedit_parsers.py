# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from sharegpt4o_image.evaluation.imgedit_parsers import LABELS, parse_answer, parse_official, parse_strict

ADD = "Brief reasoning: fine.\nPrompt Compliance: {}\nVisual Naturalness: {}\nPhysical & Detail Coherence: {}"


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("Label: 4", 4.0),
        ("Label : 4", 4.0),
        ("**Label**: 4", 4.0),
        ("- Label: 4", 4.0),
        ("Score - Label: 4", 4.0),
        ("Label: 04", 4.0),
        ("  Label: 4  \r", 4.0),
        ("Brief reasoning: 3", 3.0),
        ("Label: 77", 77.0),
        ("标签: 4", 4.0),
        ("Label: ٤", 4.0),  # ARABIC-INDIC DIGIT FOUR, which Python's int reads
    ],
)
def test_official_counts_any_label_and_any_integer(line, score):
    assert parse_official(line).score == score


@pytest.mark.parametrize(
    "line",
    [
        "**Label:** 4",
        "Label: 4/5",
        "Label: 4.",
        "Label: 4.0",
        "Label: 4 (good)",
        "Label:4",
        "Note: Label: 4",
        "标签：4",
        "-",
    ],
)
def test_official_drops_other_formats(line):
    parsed = parse_official(line)
    assert (parsed.status, parsed.score) == ("dropped", None)
    assert parsed.reason


def test_official_averages_every_scored_line_and_rounds():
    assert parse_official("Brief reasoning: 5\nA: 1\nB: 1\nC: 1\nOverall: 3").score == 2.2
    assert parse_official("A: 1\nB: 1\nC: 2").score == 1.33
    assert parse_official("A: 3").score == 3.0


@pytest.mark.parametrize("digits", ["4²", "③", "9" * 5000, "9" * 400])
def test_digits_that_crash_the_official_script_fail_with_a_reason(digits):
    parsed = parse_official(f"A: 4\nB: {digits}")
    assert (parsed.status, parsed.score) == ("failed", None)
    assert digits[:5] in parsed.reason
    assert len(parsed.reason) < 200


def test_strict_accepts_the_three_labels_in_any_markdown():
    for template in (
        "{}: {}",
        "**{}:** {}",
        "**{}**: {}",
        "- {}: {}",
        "2. {}: {}",
        "## {} : {}",
        "> `{}`:{}",
        "{}: **{}**",
    ):
        for edit_type, labels in LABELS.items():
            lines = [template.format(label, score) for label, score in zip(labels, (1, 5, 2), strict=True)]
            assert parse_strict("\n".join(lines), edit_type).score == 2.67, (template, edit_type)


def test_strict_looks_at_no_other_line():
    assert parse_strict(ADD.format(5, 4, 4).replace("fine.", "5") + "\nOverall: 1", "add").score == 4.33


@pytest.mark.parametrize("value", ["0", "6", "04", "4.0", "4/5", "4 (good)", "٤", "4²", "", "four", "-4"])
def test_strict_refuses_other_values(value):
    parsed = parse_strict(ADD.format(3, value, 3), "add")
    assert (parsed.status, parsed.score) == ("failed", None)
    assert "'Visual Naturalness' is" in parsed.reason


def test_strict_names_what_is_missing_or_twice():
    assert "'Visual Naturalness'" in parse_strict("Prompt Compliance: 4\nPhysical & Detail Coherence: 3", "add").reason
    assert (
        "'Prompt Compliance' is scored twice"
        in parse_strict(ADD.format(1, 1, 1) + "\nPrompt Compliance: 1", "add").reason
    )
    assert "Detail Integrity" in parse_strict(ADD.format(1, 1, 1), "remove").reason  # the labels of another type
    assert "not in the benchmark" in parse_strict(ADD.format(1, 1, 1), None).reason
    assert "no line scores" in parse_strict("提示遵循: 4\n视觉自然: 4\n细节: 4", "add").reason


@pytest.mark.parametrize("parser", ["official", "strict"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"error": "Connection\nerror."}, "the judge gave no answer: 'Connection error.'"),
        (None, "not a text but 'None'"),
        (4, "not a text but '4'"),
        (["A: 4"], "not a text"),
        ({"text": "A: 4"}, "not a text"),
    ],
)
def test_what_is_no_text_fails(parser, answer, reason):
    parsed = parse_answer(answer, parser, "add")
    assert parsed.status == "failed"
    assert reason in parsed.reason


def test_what_strict_accepts_in_plain_lines_official_reads_alike():
    rng = random.Random(0)
    for _ in range(200):
        edit_type = rng.choice(list(LABELS))
        scores = [rng.randint(0, 6) for _ in range(3)]
        text = "\n".join(f"{label}: {score}" for label, score in zip(LABELS[edit_type], scores, strict=True))
        official, strict = parse_official(text), parse_strict(text, edit_type)
        assert official.score == round(sum(scores) / 3, 2)
        assert strict.score == (official.score if set(scores) <= {1, 2, 3, 4, 5} else None)
