# SPDX-License-Identifier: Apache-2.0
"""One answer of an ImgEdit judge (a text, or what stands in its place) -> its score, or why it has none.

Two parsers. `official` counts what the benchmark's own script counts, for numbers that can be compared with published
ones. `strict` accepts an answer only if it gives the three scores that were asked for, each once.
"""

import re
from dataclasses import dataclass
from typing import Literal

from sharegpt4o_image.synthesis.journal import printable

OFFICIAL, STRICT = "official", "strict"
PARSERS = (OFFICIAL, STRICT)

# The three lines that a judge is asked for, by edit type: "Example Response Format" in `Benchmark/Basic/prompts.json`
# of PKU-YuanGroup/ImgEdit@547185d. The headings of the rubric in the same file are longer for some types.
LABELS: dict[str, tuple[str, str, str]] = {
    "add": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Coherence"),
    "remove": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
    "replace": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
    "action": ("Action Fidelity", "Identity Preservation", "Visual & Anatomical Coherence"),
    "style": ("Style Fidelity", "Content Preservation", "Rendering Quality"),
    "background": ("Instruction Compliance", "Visual Seamlessness", "Physical Consistency"),
    "extract": ("Object Identity", "Mask Precision", "Visual Quality"),
    "compose": ("Instruction Compliance", "Visual Naturalness", "Physical Consistency & Fine Detail"),
    "adjust": ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity"),
}

# What may stand before a label: quote, heading, bullet or number of a list. Emphasis and code marks go everywhere.
_LINE_START = re.compile(r"^[\s>#+•\-]*(?:\d+[.)]\s+)?")
_EMPHASIS = re.compile(r"[*_`]")
# How much of an error or of a bad value a reason quotes (our choice).
_QUOTED_CHARACTERS = 80


@dataclass(frozen=True)
class ParsedAnswer:
    """What a parser made of one answer.

    Args:
        status: `scored`; `dropped`: a text in which the official script finds no score and which it leaves out without
            a word; `failed`: no text, a text that crashes the official script, or one that `strict` does not accept.
        score: The mean of the scores, rounded to two decimals; None unless scored.
        reason: Why there is no score.
    """

    status: Literal["scored", "dropped", "failed"]
    score: float | None = None
    reason: str = ""


# Our choice: the official script takes any integer; sums of larger ones are no numbers any more.
_LARGEST = 10**15


def parse_official(answer: object) -> ParsedAnswer:
    """The mean of every line `anything: digits`, as `step1_get_avgscore.py` counts them.

    Neither the label nor the range nor the number of scores is looked at. Digits that `int` cannot read (a superscript
    passes `isdigit`) crash the script; here the answer fails.
    """
    if not isinstance(answer, str):
        return _failure(answer)
    values = [parts[1] for line in answer.splitlines() if len(parts := line.strip().split(": ")) == 2]
    digits = [value for value in values if value.isdigit()]
    if not digits:
        return ParsedAnswer("dropped", reason="no line is a label, ': ' and an integer")
    try:
        scores = [int(value) for value in digits]
        if max(scores) > _LARGEST:
            raise OverflowError
        return _scored(scores)
    except (ValueError, OverflowError):
        unreadable = next((value for value in digits if not value.isdecimal()), max(digits, key=len))
        return ParsedAnswer(
            "failed", reason=f"{_quoted(unreadable)} crashes the official script: not a usable integer"
        )


def parse_strict(answer: object, edit_type: str | None) -> ParsedAnswer:
    """The mean of the three scores of `edit_type`: each label once, each an integer from 1 to 5.

    Lines that do not start with one of the labels are not looked at: the reasoning, and an overall score nobody asked
    for. Case matters; marks of Markdown do not. Without a type (a key that is not in the benchmark) an answer fails.
    """
    if not isinstance(answer, str):
        return _failure(answer)
    if edit_type is None:
        return ParsedAnswer("failed", reason="the key is not in the benchmark, so its labels are not known")
    found: dict[str, str] = {}
    for line in answer.splitlines():
        label, colon, value = (part.strip() for part in _without_markdown(line).partition(":"))
        if not colon or label not in LABELS[edit_type]:
            continue
        if label in found:
            return ParsedAnswer("failed", reason=f"'{label}' is scored twice")
        found[label] = value
    return _three_scores(found, edit_type)


def parse_answer(answer: object, parser: str, edit_type: str | None) -> ParsedAnswer:
    """By the parser of that name, one of `PARSERS`."""
    return parse_strict(answer, edit_type) if parser == STRICT else parse_official(answer)


def _three_scores(found: dict[str, str], edit_type: str) -> ParsedAnswer:
    missing = [label for label in LABELS[edit_type] if label not in found]
    if missing:
        return ParsedAnswer("failed", reason=f"no line scores {', '.join(repr(label) for label in missing)}")
    for label, value in found.items():
        if not re.fullmatch("[1-5]", value):
            return ParsedAnswer("failed", reason=f"'{label}' is {_quoted(value)}, not an integer from 1 to 5")
    return _scored([int(value) for value in found.values()])


def _scored(scores: list[int]) -> ParsedAnswer:
    return ParsedAnswer("scored", round(sum(scores) / len(scores), 2))


def _failure(answer: object) -> ParsedAnswer:
    if isinstance(answer, dict) and "error" in answer:
        return ParsedAnswer("failed", reason=f"the judge gave no answer: {_quoted(str(answer['error']))}")
    return ParsedAnswer("failed", reason=f"the answer is not a text but {_quoted(repr(answer))}")


def _without_markdown(line: str) -> str:
    return _LINE_START.sub("", _EMPHASIS.sub("", line))


def _quoted(text: str) -> str:
    text = printable(" ".join(text.split()))  # a reason is one line, and steers no terminal
    return f"'{text}'" if len(text) <= _QUOTED_CHARACTERS else f"'{text[:_QUOTED_CHARACTERS]}...'"
