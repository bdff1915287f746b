# SPDX-License-Identifier: Apache-2.0
"""Votes -> the report of a blind comparison: a dictionary for `--json`, Markdown tables, and a plot.

sharegpt4o-image preference report votes.csv
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_statistics import (
    SEED,
    bradley_terry,
    connected_models,
    consistency,
    pair_statistics,
    rateable_models,
    rater_agreement,
    side_bias,
)
from sharegpt4o_image.evaluation.preference_votes import Vote, second_votes

_NUM_LINES_SHOWN = 5
_COLORS = {"win": "#4477aa", "tie": "#bbbbbb", "loss": "#cc6677"}


def report(votes: Sequence[Vote], seed: int = SEED) -> dict[str, Any]:
    """All numbers of a study.

    Marked repeats count for side bias and consistency alone. `bradley_terry` is the group of connected models with the
    most votes, `bradley_terry_groups` all of them. Where a group has no maximum, the largest part of it that has one
    is rated, and `left_out` and `left_out_reason` tell of the others; without such a part the group has `not_rated`
    (the reason) instead of ratings.
    """
    counted = [vote for vote in votes if not vote.is_repeat]
    of_pair: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in counted:
        of_pair[vote.pair].append(vote)
    pairs = {
        f"{first} vs {second}": asdict(pair_statistics(of_pair[first, second], seed))
        | {"agreement": asdict(rater_agreement(of_pair[first, second]))}
        for first, second in sorted(of_pair)
    }
    groups = [_rated(group, counted) for group in connected_models(counted)]
    return {
        "votes": _vote_counts(votes),
        "pairs": pairs,
        "bradley_terry": groups[0],
        "bradley_terry_groups": groups,
        "agreement": asdict(rater_agreement(counted)),
        "side_bias_left": asdict(side_bias(votes)),
        "consistency_on_repeats": asdict(consistency(votes)),
        "bootstrap_seed": seed,
    }


def _vote_counts(votes: Sequence[Vote]) -> dict[str, Any]:
    unmarked = second_votes(votes)
    return {
        "total": len(votes),
        "counted": sum(not vote.is_repeat for vote in votes),
        "marked_repeats": sum(vote.is_repeat for vote in votes),
        "unmarked_second_votes": len(unmarked),
        "unmarked_second_vote_lines": [vote.line for vote in unmarked],
        "prompts": len({vote.prompt_id for vote in votes}),
        "raters": len({vote.rater for vote in votes}),
        "models": sorted({name for vote in votes for name in vote.pair}),
    }


def _rated(group: list[str], votes: Iterable[Vote]) -> dict[str, Any]:
    own = [vote for vote in votes if vote.model_a in group]
    try:
        return asdict(bradley_terry(own))
    except UserError as error:
        rateable = rateable_models(own)
        if len(rateable) == 1:
            return {"competitors": group, "votes": len(own), "not_rated": str(error)}
        left_out = [name for name in group if name not in rateable]
        part = [vote for vote in own if vote.model_a in rateable and vote.model_b in rateable]
        return asdict(bradley_terry(part)) | {"left_out": left_out, "left_out_reason": str(error)}


# ------------------------------------------------------------------ Markdown


def to_text(numbers: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts = [
        "# Human preference",
        _counts_text(numbers["votes"]),
        _pairs_text(numbers["pairs"]),
        _ratings_text(numbers["bradley_terry_groups"]),
        _raters_text(numbers),
    ]
    return "\n\n".join(parts) + "\n"


def _counts_text(votes: dict[str, Any]) -> str:
    text = (
        f"{votes['total']} votes on {votes['prompts']} prompts by {votes['raters']} raters; "
        f"{votes['counted']} count, {votes['marked_repeats']} are marked repeats."
    )
    if not votes["unmarked_second_votes"]:
        return text
    lines = votes["unmarked_second_vote_lines"]
    shown = ", ".join(map(str, lines[:_NUM_LINES_SHOWN])) + (", ..." if len(lines) > _NUM_LINES_SHOWN else "")
    return (
        f"{text}\n\n{len(lines)} of them are second votes of a rater on an item, without a mark (lines {shown}). "
        "They count in full. If they are slips, take them out; if they are repeats, add a column `is_repeat`."
    )


def _pairs_text(pairs: dict[str, Any]) -> str:
    rows = [
        (
            name,
            pair["n"],
            f"{pair['win']} / {pair['tie']} / {pair['loss']}",
            f"{_percent(pair['win_ratio'])} / {_percent(pair['tie_ratio'])} / {_percent(pair['loss_ratio'])}",
            _percents(pair["wilson95_win_of_all"]),
            _percents(pair["wilson95_win_of_decided"]),
            _number(pair["binomtest_two_sided_decided_p"], ".2g"),
            f"{100 * pair['net_win_rate']:+.1f} ({_percents(pair['net_win_rate_bootstrap95'])})",
        )
        for name, pair in pairs.items()
    ]
    head = ("pair", "votes", "win / tie / loss", "%", "wins of all", "wins of decided", "p", "net win")
    return (
        f"## Pairs\n\n{_table(head, rows)}\n\n"
        "From the view of the first model. Intervals are 95 %: Wilson for wins, a bootstrap clustered by prompt and "
        'rater for net wins. p: exact two-sided sign test over decided votes. "Both bad" is a tie.'
    )


def _ratings_text(groups: list[dict[str, Any]]) -> str:
    tables = [_group_text(group) for group in groups]
    apart = f"{len(groups)} groups of models are not compared with each other: each is rated by itself, around 1000."
    note = "Ties are half a win. Intervals: 95 %, sandwich."
    return "\n\n".join(["## Bradley-Terry ratings", *([apart] if len(groups) > 1 else []), *tables, note])


def _group_text(group: dict[str, Any]) -> str:
    if "not_rated" in group:
        return f"{', '.join(group['competitors'])}: not rated. {group['not_rated']}"
    columns = zip(group["competitors"], group["ratings"], group["rating_lower"], group["rating_upper"], strict=True)
    ranked = sorted(columns, key=lambda row: -row[1])
    rows = [(name, f"{rating:.1f}", f"{low:.1f} to {high:.1f}") for name, rating, low, high in ranked]
    table = _table(("model", "rating", "95 %"), rows)
    if "left_out" not in group:
        return table
    return (
        f"{table}\n\nNot rated: {', '.join(group['left_out'])}. {group['left_out_reason']} "
        f"The others are rated by the {group['votes']} votes among them, around 1000."
    )


def _raters_text(numbers: dict[str, Any]) -> str:
    side, repeats, agreement = (numbers[key] for key in ("side_bias_left", "consistency_on_repeats", "agreement"))
    rows = [
        ("the left picture wins, % of decided votes", side["n"], _percent(side["share"]), _percents(side["wilson95"])),
        ("same verdict on a repeat, %", repeats["n"], _percent(repeats["share"]), _percents(repeats["wilson95"])),
    ]
    for name, own in [*((name, pair["agreement"]) for name, pair in numbers["pairs"].items()), ("all", agreement)]:
        alpha, kappa = own["krippendorff_alpha_nominal"], own["fleiss_kappa"]
        rows.append((f"Krippendorff's alpha, {name}", own["items_with_two_raters"], _number(alpha, ".3f"), "-"))
        if kappa is not None:
            rows.append((f"Fleiss' kappa, {name}", own["items"], _number(kappa, ".3f"), "-"))
    return f"## Raters\n\n{_table(('', 'n', 'value', '95 %'), rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """On one line, bars not read as the end of the cell."""
    return " ".join(str(value).split()).replace("|", "&#124;")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _percents(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# ------------------------------------------------------------------ plot


def plot(numbers: dict[str, Any], path: Path) -> None:
    """Write a PNG: win, tie and loss of every pair, and the ratings with their intervals."""
    from matplotlib.figure import Figure

    rated = [group for group in numbers["bradley_terry_groups"] if "ratings" in group]
    num_rows = max(len(numbers["pairs"]), sum(len(group["competitors"]) for group in rated))
    figure = Figure(figsize=(13, 1.8 + 0.45 * num_rows), layout="constrained")
    bars, ratings = figure.subplots(1, 2, width_ratios=(3, 2))
    _plot_pairs(bars, numbers["pairs"])
    _plot_ratings(ratings, rated)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file for the plot") from error


def _plot_pairs(axes: Any, pairs: dict[str, Any]) -> None:
    places = range(len(pairs), 0, -1)
    left = [0.0] * len(pairs)
    for outcome, color in _COLORS.items():
        widths = [100 * pair[f"{outcome}_ratio"] for pair in pairs.values()]
        drawn = axes.barh(places, widths, left=left, color=color, label=outcome, height=0.7)
        labels = [f"{width:.0f}" if width >= 4 else "" for width in widths]
        axes.bar_label(drawn, labels, label_type="center", color="white" if outcome != "tie" else "black")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [_plain(f"{name} (n = {pair['n']})") for name, pair in pairs.items()])
    axes.set(title="Votes from the view of the first model", xlabel="% of votes", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)


def _plot_ratings(axes: Any, groups: list[dict[str, Any]]) -> None:
    rows = [
        row
        for group in groups
        for row in sorted(zip(*(group[key] for key in ("ratings", "rating_upper", "competitors")), strict=True))[::-1]
    ]
    places = range(len(rows), 0, -1)
    ratings = [rating for rating, _, _ in rows]
    axes.errorbar(ratings, places, xerr=[upper - rating for rating, upper, _ in rows], fmt="o", capsize=4)
    axes.set_yticks(places, [_plain(name) for _, _, name in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)
    apart = ", groups rated apart" if len(groups) > 1 else ""
    axes.set(title=f"Bradley-Terry rating, 95 %{apart}", xlabel="rating")
    axes.grid(axis="x", color="0.9")


def _plain(name: str) -> str:
    """A name as it is: matplotlib reads what stands between two dollar signs as a formula."""
    return name.replace("$", r"\$")
