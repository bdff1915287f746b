# SPDX-License-Identifier: Apache-2.0
"""ImgEdit from stored answers: `basic_edit.json` and a judge's `result.json` -> scores of the types and their means.

The arithmetic of `official` is that of the benchmark's scripts (PKU-YuanGroup/ImgEdit@547185d,
`Benchmark/Basic/step1_get_avgscore.py` and `step2_typescore.py`), rounding included: a sample is rounded to two
decimals, then the mean of a type. The scripts print no overall score. Several are in use, and each has its name here.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_parsers import (
    LABELS,
    OFFICIAL,
    PARSERS,
    ParsedAnswer,
    parse_answer,
    parse_official,
)
from sharegpt4o_image.synthesis.journal import printable

# Columns of the ImgEdit table of the ShareGPT-4o-Image paper, in its order. It has no column for `adjust`.
PAPER_COLUMNS = {
    "add": "Add",
    "remove": "Rmv",
    "replace": "Repl",
    "action": "Mot",
    "style": "Style",
    "background": "Bkg",
    "extract": "Obj",
    "compose": "Hyb",
}
# Copies of `basic_edit.json` from May and June 2025 (UniWorld-V1) have another name for a type.
_OLD_TYPES = {"alter": "adjust"}
# Entries of `Benchmark/UGE/UGE_edit.json` at the same commit.
NUM_UGE_ITEMS = 47

# Our choices: replicates of the bootstrap, decimals of the means that no official script prints, and how many keys and
# failures the text names.
NUM_REPLICATES = 2_000
_DECIMALS = 4
_NUM_EXAMPLES = 3
_OUTCOMES = ("scored", "dropped", "failed", "missing")


@dataclass(frozen=True)
class ImgEditItem:
    """One entry of `basic_edit.json`; `source` is the path of the picture to edit, which several items share."""

    edit_type: str
    prompt: str
    source: str


# ------------------------------------------------------------------ reading


def read_items(path: Path) -> dict[str, ImgEditItem]:
    """`basic_edit.json`: key -> item, `alter` read as `adjust`."""
    items = {key: parse_item(path, key, entry) for key, entry in read_object(path).items()}
    if not items:
        raise UserError(f"{path} has no items; give ImgEdit's basic_edit.json.")
    return items


def parse_item(source: Path | str, key: str, entry: Any) -> ImgEditItem:
    """One entry, checked; `source` names the place in errors."""
    if not isinstance(entry, dict) or not isinstance(entry.get("edit_type"), str):
        raise UserError(f"{source}: item {key!r} has no text `edit_type`; give basic_edit.json.")
    edit_type = _OLD_TYPES.get(entry["edit_type"], entry["edit_type"])
    prompt, picture = str(entry.get("prompt", "")), str(entry.get("id", key))  # neither enters a score
    if edit_type not in LABELS:
        raise UserError(f"{source}: item {key!r} has the unknown type {edit_type!r}; known are {', '.join(LABELS)}.")
    return ImgEditItem(edit_type, prompt, picture)


def read_answers(path: Path) -> dict[str, Any]:
    """`result.json`: key -> the judge's text, or an object with `error` where there is none."""
    answers = read_object(path)
    if not answers:
        raise UserError(f"{path} has no answers; give the result.json of a finished judge run.")
    return answers


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object in which no key occurs twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r} occurs more than once")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique, parse_constant=refuse)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give an existing JSON file.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file that can be used: {error}; write it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; give an object of key -> entry, as ImgEdit writes.")
    return content


# ------------------------------------------------------------------ scores


def score_files(items: Path, judgements: Path) -> dict[str, Any]:
    """The scores of `result.json` by both parsers; see `score_answers`."""
    return score_answers(read_items(items), read_answers(judgements))


def score_answers(items: Mapping[str, ImgEditItem], answers: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints: `official` and `strict` (see `scores_of`), and which keys do not fit the benchmark."""
    scores: dict[str, Any] = {parser: scores_of(items, answers, parser) for parser in PARSERS}
    missing = [key for key in items if key not in answers]
    unknown = [key for key in answers if key not in items]
    numbers = {"n_items": len(items), "n_answers": len(answers), "n_missing": len(missing), "n_unknown": len(unknown)}
    return scores | numbers | {"missing_keys": missing, "unknown_keys": unknown}


def parse_answers(
    items: Mapping[str, ImgEditItem], answers: Mapping[str, Any], parser: str
) -> dict[str, ParsedAnswer]:
    """Every answer, in their order, those to keys that are not in the benchmark too (they have no type)."""
    types = {key: item.edit_type for key, item in items.items()}
    return {key: parse_answer(answer, parser, types.get(key)) for key, answer in answers.items()}


def scores_of(items: Mapping[str, ImgEditItem], answers: Mapping[str, Any], parser: str) -> dict[str, Any]:
    """The scores by one parser.

    Returns:
        `types` (step 2); `macro`, `micro` and `paper8`: the means of the types present, of the samples and of the
        paper's eight types; `bagel_overall`; `intervals` of them; `counts` by type; `n_scored` and so on; `failures`,
        a row per answer without a score; `samples` (step 1). Keys that are not in the benchmark count, as in the
        official scripts, in `samples` and `bagel_overall`; also in the numbers of answers, and nowhere else.
    """
    parsed = parse_answers(items, answers, parser)
    samples = {key: answer.score for key, answer in parsed.items() if answer.score is not None}
    known = {key: score for key, score in samples.items() if key in items}
    types = type_scores(items, known)
    without = [edit_type for edit_type in PAPER_COLUMNS if edit_type not in types]
    return {
        "types": types,
        "macro": _mean(types.values(), _DECIMALS),
        "micro": _mean(known.values(), _DECIMALS),
        "paper8": None if without else _mean((types[name] for name in PAPER_COLUMNS), _DECIMALS),
        "paper8_reason": f"no score for {', '.join(without)}" if without else "",
        "bagel_overall": _mean(samples.values(), 2),
        "intervals": intervals_of(items, known),
        "counts": _counts(items, parsed),
        **_outcomes(parsed, len(items.keys() - answers.keys())),
        "failures": _failures(items, parsed),
        "samples": samples,
    }


def type_scores(items: Mapping[str, ImgEditItem], samples: Mapping[str, float]) -> dict[str, float]:
    """Step 2: the mean of each type that has a sample, rounded to two decimals; in order of first appearance.

    The order counts: the mean of eight such numbers is often a tie at the last decimal that is kept.
    """
    by_type: dict[str, list[float]] = {}
    for key, score in samples.items():
        by_type.setdefault(items[key].edit_type, []).append(score)
    return {edit_type: round(sum(scores) / len(scores), 2) for edit_type, scores in by_type.items()}


def score_uge(judgements: Path) -> dict[str, Any]:
    """The UGE suite: one mean over all answers by the official parser, as its `get_average_score.py` prints it."""
    return score_uge_answers(read_answers(judgements))


def score_uge_answers(answers: Mapping[str, Any]) -> dict[str, Any]:
    """As `score_uge`, of answers that were read."""
    parsed = {key: parse_official(answer) for key, answer in answers.items()}
    samples = {key: answer.score for key, answer in parsed.items() if answer.score is not None}
    replicates = resampled_means(list(samples.values()), list(samples), [0] * len(samples), 1)
    mean, interval = _mean(samples.values(), 2), interval_of(replicates[:, 0])
    return {
        OFFICIAL: {"mean": mean, "interval": interval, "failures": _failures({}, parsed), "samples": samples},
        "n_items": NUM_UGE_ITEMS,
        "n_answers": len(answers),
        **_outcomes(parsed, max(0, NUM_UGE_ITEMS - len(answers))),
    }


def _counts(items: Mapping[str, ImgEditItem], parsed: Mapping[str, ParsedAnswer]) -> dict[str, dict[str, int]]:
    present = {item.edit_type for item in items.values()}
    counts = {name: {"items": 0} | dict.fromkeys(_OUTCOMES, 0) for name in LABELS if name in present}
    for key, item in items.items():
        counts[item.edit_type]["items"] += 1
        counts[item.edit_type][parsed[key].status if key in parsed else "missing"] += 1
    return counts


def _outcomes(parsed: Mapping[str, ParsedAnswer], num_missing: int) -> dict[str, int]:
    numbers = Counter(answer.status for answer in parsed.values())
    return {f"n_{status}": numbers[status] for status in ("scored", "dropped", "failed")} | {"n_missing": num_missing}


def _failures(items: Mapping[str, ImgEditItem], parsed: Mapping[str, ParsedAnswer]) -> list[dict[str, str | None]]:
    return [
        {
            "key": key,
            "edit_type": items[key].edit_type if key in items else None,
            "status": answer.status,
            "reason": answer.reason,
        }
        for key, answer in parsed.items()
        if answer.score is None
    ]


def _mean(values: Iterable[float], decimals: int) -> float | None:
    # The built-in sum in the order of the file, as the scripts add: numpy adds in another order, which can round away.
    listed = list(values)
    return round(sum(listed) / len(listed), decimals) if listed else None


# ------------------------------------------------------------------ intervals


def intervals_of(items: Mapping[str, ImgEditItem], samples: Mapping[str, float]) -> dict[str, Any]:
    """The 95 % intervals of `types` (type -> interval), `macro`, `micro` and `paper8`; None where there is none."""
    present = {items[key].edit_type for key in samples}
    names = [edit_type for edit_type in LABELS if edit_type in present]
    sources = [items[key].source for key in samples]
    groups = [names.index(items[key].edit_type) for key in samples]
    means = resampled_means(list(samples.values()), sources, groups, len(names))
    of_paper = [names.index(edit_type) for edit_type in PAPER_COLUMNS if edit_type in names]
    micro = resampled_means(list(samples.values()), sources, [0] * len(samples), 1)
    return {
        "types": {name: interval_of(means[:, column]) for column, name in enumerate(names)},
        "macro": interval_of(means.mean(axis=1)) if names else None,
        "micro": interval_of(micro[:, 0]),
        "paper8": interval_of(means[:, of_paper].mean(axis=1)) if len(of_paper) == len(PAPER_COLUMNS) else None,
    }


def resampled_means(
    values: Sequence[float], sources: Sequence[str], groups: Sequence[int], num_groups: int, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap: the means of the groups when the source pictures are drawn again, with replacement.

    All items of a source come along together: they share its difficulty, so they are not independent.

    Args:
        values: A value per item.
        sources: The source picture of each item.
        groups: The group of each item, from 0 to `num_groups` - 1.
        num_groups: How many groups there are.
        seed: Of the draws.

    Returns:
        Of shape (`NUM_REPLICATES`, `num_groups`), NaN where a replicate has no item of a group or where the group
        comes from one source, whose spread is unknown.
    """
    if not values:
        return np.full((NUM_REPLICATES, num_groups), np.nan)
    names, source = np.unique(np.asarray(sources), return_inverse=True)
    sums, counts = np.zeros((2, len(names), num_groups))
    place = (source, np.asarray(groups))
    np.add.at(sums, place, values)
    np.add.at(counts, place, 1)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_REPLICATES)
    num_items = times_drawn @ counts
    num_items[:, (counts > 0).sum(axis=0) < 2] = 0
    return np.divide(times_drawn @ sums, num_items, out=np.full(num_items.shape, np.nan), where=num_items > 0)


def interval_of(replicates: NDArray[np.float64]) -> list[float] | None:
    """The 95 % percentile interval of the replicates that have a value; None where there are none."""
    known = replicates[~np.isnan(replicates)]
    return [round(float(limit), _DECIMALS) for limit in np.percentile(known, (2.5, 97.5))] if len(known) else None


# ------------------------------------------------------------------ text


def to_text(scores: Mapping[str, Any]) -> str:
    """The scores for people, of `score_answers`: what is missing first, then a table per parser."""
    lines = [
        f"{scores['n_answers']} answers to {scores['n_items']} items; {scores['n_missing']} items have no answer."
    ]
    if scores["n_unknown"]:
        keys = printable(", ".join(scores["unknown_keys"][:_NUM_EXAMPLES]))
        lines.append(f"{scores['n_unknown']} not in the benchmark, counted in bagel_overall only, such as {keys}")
    for parser in PARSERS:
        lines += ["", *_parser_lines(parser, scores[parser])]
    return "\n".join(lines)


def uge_to_text(scores: Mapping[str, Any]) -> str:
    """The mean of `score_uge` for people, behind what it leaves out."""
    heading = ", ".join(f"{scores[f'n_{outcome}']} {outcome}" for outcome in _OUTCOMES)
    official = scores[OFFICIAL]
    lines = [f"UGE, official: {heading} of {scores['n_items']} items"]
    lines.append(f"  {'mean':<18}{_cells(official['mean'], official['interval'])}".rstrip())
    return "\n".join(lines + _example_lines(official["failures"]))


def _parser_lines(parser: str, scores: Mapping[str, Any]) -> list[str]:
    heading = ", ".join(f"{scores[f'n_{outcome}']} {outcome}" for outcome in _OUTCOMES)
    lines = [f"{parser}: {heading}", f"  {'type':<11}{'paper':<7}{'score':>6}  {'95 %':<13} scored of items"]
    for name, count in scores["counts"].items():
        cells = _cells(scores["types"].get(name), scores["intervals"]["types"].get(name))
        lines.append(f"  {name:<11}{PAPER_COLUMNS.get(name, '-'):<7}{cells} {count['scored']} of {count['items']}")
    for name in ("macro", "micro", "paper8", "bagel_overall"):
        note = scores["paper8_reason"] if name == "paper8" else ""
        lines.append(f"  {name:<18}{_cells(scores[name], scores['intervals'].get(name))} {note}".rstrip())
    return lines + _example_lines(scores["failures"])


def _example_lines(failures: Sequence[Mapping[str, str | None]]) -> list[str]:
    return [
        f"  {row['status']}, such as {printable(str(row['key']))}: {row['reason']}" for row in failures[:_NUM_EXAMPLES]
    ]


def _cells(score: float | None, interval: Sequence[float] | None) -> str:
    limits = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return f"{'-' if score is None else format(score, '.2f'):>6}  {limits:<13}"
