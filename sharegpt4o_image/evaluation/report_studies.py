# SPDX-License-Identifier: Apache-2.0
"""Reports of human preference studies -> tables beside what the paper says of its own study."""

from collections.abc import Mapping, Sequence
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_statistics import wilson_interval
from sharegpt4o_image.evaluation.published_scores import PREFERENCE, PUBLISHED
from sharegpt4o_image.evaluation.report_tables import NO_INTERVAL, Cell, Footnotes, Group, Row, Table, published_group
from sharegpt4o_image.evaluation.score_files import StudyFile


def study_tables(studies: Sequence[StudyFile]) -> list[Table]:
    """Wins, ties and losses of every pair, then the ratings of the models."""
    published = PUBLISHED[PREFERENCE]
    footnotes = Footnotes()
    groups: list[Group] = []
    ratings: list[Group] = []
    for study in studies:
        try:
            groups.append(_pair_group(study, tuple(published.columns), footnotes))
            ratings.append(_rating_group(study))
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise UserError(
                f"{study.path} is no whole preference report ({error!r}); save `preference report --json` again"
            ) from error
    theirs = [published_group(group, published, footnotes) for group in published.groups]
    pairs = Table(
        published.title,
        tuple(published.columns.values()),
        (*groups, *theirs),
        footnotes=footnotes.texts,
        notes=(
            "Pairs are seen from their first model. Intervals are 95 %: Wilson for shares, a bootstrap clustered by "
            'prompt and rater for net wins. "Both bad" is a tie.',
            *published.notes,
        ),
    )
    note = "Ties are half a win; the mean is 1000. Groups of models that are not connected by votes are rated apart."
    rated = tuple(group for group in ratings if group.rows)
    return [pairs, *([Table("Bradley-Terry ratings", ("Rating",), rated, notes=(note,))] if rated else [])]


def _pair_group(study: StudyFile, columns: tuple[str, ...], footnotes: Footnotes) -> Group:
    votes = study.numbers["votes"]
    rows = []
    for name, pair in study.numbers["pairs"].items():
        cells = {"votes": Cell(f"{pair['n']:,}", "", pair["n"]), "net": _net_cell(pair)}
        cells |= {outcome: _share_cell(pair[outcome], pair["n"]) for outcome in ("win", "tie", "loss")}
        notes = footnotes.refer(_sign_test_note(pair), _marks_note(votes))
        detail = f"{pair['prompts']:,} prompts, {pair['raters']:,} raters"
        rows.append(Row(name, detail, tuple(cells[column] for column in columns), notes))
    return Group(f"Ours ({study.path.name}), with 95 % intervals", tuple(rows))


def _share_cell(count: int, total: int) -> Cell:
    low, high = (100 * limit for limit in wilson_interval(count / total, total))
    return Cell(f"{100 * count / total:.1f}", f"{low:.1f} to {high:.1f}", 100 * count / total, low, high)


def _net_cell(pair: Mapping[str, Any]) -> Cell:
    rate = 100 * pair["net_win_rate"]
    if pair["net_win_rate_bootstrap95"] is None:
        return Cell(f"{rate:+.1f}", NO_INTERVAL, rate)
    low, high = (100 * limit for limit in pair["net_win_rate_bootstrap95"])
    return Cell(f"{rate:+.1f}", f"{low:+.1f} to {high:+.1f}", rate, low, high)


def _sign_test_note(pair: Mapping[str, Any]) -> str:
    chance = pair["binomtest_two_sided_decided_p"]
    if chance is None:
        return "No vote was decided, so there is no sign test."
    return f"Exact two-sided sign test over {pair['win'] + pair['loss']:,} decided votes: p = {chance:.2g}."


def _marks_note(votes: Mapping[str, Any]) -> str | None:
    number = votes["unmarked_second_votes"]
    if not number:
        return None
    return f"{number:,} second votes of a rater on an item without a mark count in full."


def _rating_group(study: StudyFile) -> Group:
    rows = []
    for group in study.numbers["bradley_terry_groups"]:
        if "not_rated" in group:
            rows.append(Row(", ".join(group["competitors"]), f"not rated: {group['not_rated']}", (Cell(),)))
            continue
        lines = zip(group["competitors"], group["ratings"], group["rating_lower"], group["rating_upper"], strict=True)
        for name, rating, low, high in sorted(lines, key=lambda line: -line[1]):
            cell = Cell(f"{rating:.1f}", f"{low:.1f} to {high:.1f}", rating, low, high)
            rows.append(Row(name, f"{group['votes']:,} votes in its group", (cell,)))
        reason = group.get("left_out_reason")
        rows += [Row(name, f"not rated: {reason}", (Cell(),)) for name in group.get("left_out", ())]
    return Group(f"Ours ({study.path.name}), with 95 % intervals", tuple(rows))
