# SPDX-License-Identifier: Apache-2.0
"""Taxonomy -> what a run would draw from it: coverage of every leaf, and numbers of objects against the formula.

Nothing is asked of a teacher: the topics are drawn and counted.
"""

import itertools
import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import Topic
from sharegpt4o_image.synthesis.taxonomy import EditTask, Taxonomy

MIN_EXPECTED = 5.0  # numbers of objects that are rarer go together in the chi-square test: its usual rule

_MAX_LISTED = 20  # leaves without a draw that are named in the text
_LEAST_SHOWN = 0.1  # topics; rarer numbers of objects are left out of the plot


@dataclass(frozen=True)
class GroupCoverage:
    """How often the leaves of one sub-dimension were drawn."""

    dimension: str
    group: str
    draws: dict[str, int]

    @property
    def uncovered(self) -> list[str]:
        """The leaves that were never drawn."""
        return [leaf for leaf, count in self.draws.items() if not count]

    def to_row(self) -> dict[str, str | int]:
        """The figures of the group."""
        return {
            "dimension": self.dimension,
            "group": self.group,
            "leaves": len(self.draws),
            "covered": len(self.draws) - len(self.uncovered),
            "least_draws": min(self.draws.values()),
            "most_draws": max(self.draws.values()),
        }


@dataclass(frozen=True)
class ObjectCounts:
    """How many topics name 1, 2, ... objects, and how many would by the formula.

    Args:
        chi_square (`float`): distance between both; rare numbers of objects are pooled.
        p_value (`float`): how often independent draws would be as far off; stratified ones are nearer: about 1.
    """

    drawn: list[int]
    expected: list[float]
    chi_square: float
    p_value: float

    @property
    def largest_deviation(self) -> float:
        """The most topics that one number of objects is off by."""
        return max(abs(drawn - expected) for drawn, expected in zip(self.drawn, self.expected, strict=True))


@dataclass(frozen=True)
class TaxonomyReport:
    """What was drawn.

    Args:
        edits (`list`): how often each task is the first to be tried on a source.
        seconds (`float`): how long drawing and counting took.
        peak_mib (`float`): how far the peak memory of the process rose meanwhile, in MiB.
    """

    taxonomy: str
    seed: int
    num_topics: int
    num_edits: int
    num_documents: int
    groups: list[GroupCoverage]
    object_counts: ObjectCounts | None
    edits: list[dict[str, Any]]
    seconds: float
    peak_mib: float
    uncovered: list[str] = field(init=False)

    def __post_init__(self) -> None:
        leaves = [" / ".join((part.dimension, part.group, leaf)) for part in self.groups for leaf in part.uncovered]
        tasks = [f"edits / {row['category']} / {row['task']}" for row in self.edits if not row["draws"]]
        object.__setattr__(self, "uncovered", leaves + tasks)

    def to_json(self) -> str:
        """One JSON object, for programs."""
        values = asdict(self) | {"groups": [part.to_row() for part in self.groups]}
        if self.object_counts:
            values["object_counts"]["largest_deviation"] = self.object_counts.largest_deviation
        return json.dumps(values, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """Tables, for people."""
        counts = f"{self.num_topics:,} topics, {self.num_edits:,} edits, {self.num_documents:,} documents"
        lines = [f"taxonomy {self.taxonomy}, seed {self.seed}: {counts}", ""]
        if self.groups:
            header = ("dimension", "sub-dimension", "leaves", "covered", "least", "most draws")
            lines += [*_table(header, [list(part.to_row().values()) for part in self.groups]), ""]
        if self.object_counts:
            lines += [*_object_count_lines(self.object_counts), ""]
        if self.edits:
            rows = [[row["category"], row["task"], row["draws"]] for row in self.edits]
            lines += [*_table(("edit category", "task", "tried first"), rows), ""]
        return "\n".join([*lines, *self._summary()])

    def _summary(self) -> Iterator[str]:
        if self.uncovered:
            yield f"never drawn: {len(self.uncovered):,}, among them (--json lists all)"
            yield from (f"  {leaf}" for leaf in self.uncovered[:_MAX_LISTED])
        else:
            yield "every leaf is drawn"
        yield f"{self.seconds:.1f} s of drawing and counting; peak memory rose by {self.peak_mib:.0f} MiB"


def _object_count_lines(counts: ObjectCounts) -> Iterator[str]:
    shown = [
        [index, drawn, expected]
        for index, (drawn, expected) in enumerate(zip(counts.drawn, counts.expected, strict=True), start=1)
        if drawn or expected >= 1
    ]
    yield from _table(("objects", "topics", "by the formula"), shown)
    yield (
        f"largest deviation {counts.largest_deviation:.1f} topics; chi-square {counts.chi_square:.3f}, "
        f"p = {counts.p_value:.3f}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Aligned columns: words to the left, numbers to the right."""
    formats = [{str: "", int: ",", float: ",.1f"}[type(cell)] for cell in rows[0]]
    cells = [header, *([format(*cell) for cell in zip(row, formats, strict=True)] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    is_word = [isinstance(cell, str) for cell in rows[0]]
    for row in cells:
        parts = (
            f"{cell:{'<' if word else '>'}{width}}" for cell, word, width in zip(row, is_word, widths, strict=True)
        )
        yield "  ".join(parts).rstrip()


# --------------------------------------------------------------------------- drawing and counting


def report_coverage(
    taxonomy: Taxonomy, num_topics: int, num_edits: int, num_documents: int, seed: int
) -> TaxonomyReport:
    """Draw what a run of that size would draw, and count it.

    An edit counts under the task that is tried first. The topics stand for the sources, over and over; those of a run
    have other ids, so that its counts are another sample of the same weights.
    """
    if num_edits and not taxonomy.edits:
        raise UserError(f"the taxonomy {taxonomy.name!r} has no edit tasks; add `edits` to it, or ask for none")
    start, memory = time.perf_counter(), _peak_mib()
    tally = _Tally(taxonomy)
    for topic in taxonomy.draw_topics(num_topics, seed):
        tally.count_scene(topic)
    for topic in taxonomy.draw_documents(num_documents, seed):
        tally.count_document(topic)
    tasks = Counter(edit.task for edit in _first_tasks(taxonomy, tally.topic_ids, num_edits, seed))
    seconds, peak_mib = time.perf_counter() - start, _peak_mib() - memory
    edits = taxonomy.edits if num_edits else []
    groups = [*_scene_groups(taxonomy, tally.words)] if num_topics else []
    groups += _document_groups(taxonomy, tally.words) if num_documents else ()
    return TaxonomyReport(
        taxonomy=taxonomy.name,
        seed=seed,
        num_topics=num_topics,
        num_edits=num_edits,
        num_documents=num_documents,
        groups=groups,
        object_counts=_compare_counts(taxonomy, tally.object_counts) if num_topics else None,
        edits=[{"category": edit.category, "task": edit.task, "draws": tasks[edit.task]} for edit in edits],
        seconds=seconds,
        peak_mib=peak_mib,
    )


def _peak_mib() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def _first_tasks(taxonomy: Taxonomy, topic_ids: Sequence[str], num_edits: int, seed: int) -> Iterator[EditTask]:
    """The first task to be tried, of every edit."""
    sources = topic_ids or [f"source {index}" for index in range(num_edits)]
    for index in range(num_edits):
        turn, place = divmod(index, len(sources))
        tasks = taxonomy.draw_edit_tasks(sources[place], seed)
        yield tasks[turn % len(tasks)]  # as the editing pipeline does where a source comes again


class _Tally:
    """How often each word was drawn, by the list that it stands in."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._things = set(taxonomy.object_leaves)
        self._person = re.compile(_joined([*taxonomy.person.groups.values()], " ") if taxonomy.person else "")
        self.topic_ids: list[str] = []
        self.object_counts: Counter[int] = Counter()
        self.words: Counter[tuple[str, str]] = Counter()

    def count_scene(self, topic: Topic) -> None:
        """Count the words of a picture."""
        self.topic_ids.append(topic.id)
        self.object_counts[len(topic.objects)] += 1
        for name in topic.objects:
            if name in self._things:
                self.words["objects", name] += 1
            else:
                self._count_person(name)
        for dimension in self._taxonomy.dimensions:
            self.words[dimension, getattr(topic, dimension)] += 1

    def _count_person(self, name: str) -> None:
        """Count the descriptors that a person is made of."""
        found, person = self._person.fullmatch(name), self._taxonomy.person
        assert found is not None
        assert person is not None
        self.words.update(
            (f"person: {group}", word) for group, word in zip(person.groups, found.groups(), strict=True)
        )

    def count_document(self, topic: Topic) -> None:
        """Count the words of a document."""
        documents = self._taxonomy.documents
        assert documents is not None
        pattern = _joined([documents.types[str(topic.document_type)], documents.subjects], " about ")
        found = re.fullmatch(pattern, str(topic.subject))
        assert found is not None
        kind, subject = found.groups()
        self.words[f"documents: {topic.document_type}", kind] += 1
        self.words["documents: subjects", subject] += 1


def _joined(lists: Sequence[Sequence[str]], separator: str) -> str:
    """The regular expression of a word of each list; every list is a group."""
    return separator.join(f"({'|'.join(map(re.escape, words))})" for words in lists)


Words = Mapping[tuple[str, str], int]


def _coverage(words: Words, dimension: str, group: str, leaves: Sequence[str], key: str) -> GroupCoverage:
    return GroupCoverage(dimension, group, {leaf: words.get((key, leaf), 0) for leaf in leaves})


def _scene_groups(taxonomy: Taxonomy, words: Words) -> Iterator[GroupCoverage]:
    for name, leaves in taxonomy.objects.items():
        yield _coverage(words, "objects", name, leaves, "objects")
    for name, leaves in taxonomy.person.groups.items() if taxonomy.person else ():
        yield _coverage(words, "person", name, leaves, f"person: {name}")
    for dimension, values in taxonomy.dimensions.items():
        for name, group in values.groups.items():
            yield _coverage(words, dimension, name, group.leaves, dimension)


def _document_groups(taxonomy: Taxonomy, words: Words) -> Iterator[GroupCoverage]:
    assert taxonomy.documents is not None
    for name, kinds in taxonomy.documents.types.items():
        yield _coverage(words, "documents", name, kinds, f"documents: {name}")
    yield _coverage(words, "documents", "subjects", taxonomy.documents.subjects, "documents: subjects")


def _compare_counts(taxonomy: Taxonomy, drawn: Counter[int]) -> ObjectCounts:
    """The numbers of objects against `w(x)`."""
    from scipy.stats import chisquare

    weights = taxonomy.object_count.weights
    expected = [drawn.total() * weight / sum(weights) for weight in weights]
    observed = [drawn[count] for count in range(1, len(weights) + 1)]
    # The weights fall, so the numbers apart come first; what is pooled must itself be expected often enough.
    apart = sum(
        each >= MIN_EXPECTED and sum(expected[index:]) >= MIN_EXPECTED for index, each in enumerate(expected, start=1)
    )
    pooled = ([*values[:apart], sum(values[apart:])] for values in (observed, expected))
    test = chisquare(next(pooled), next(pooled)) if apart else None
    return ObjectCounts(
        drawn=observed,
        expected=expected,
        chi_square=float(test.statistic) if test else 0.0,
        p_value=float(test.pvalue) if test else 1.0,
    )


# --------------------------------------------------------------------------- plot


def plot_coverage(report: TaxonomyReport, path: Path) -> None:
    """Write a PNG: the numbers of objects beside the formula, and the draws of every leaf by dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.5), layout="constrained")
    histogram, leaves = figure.subplots(1, 2, width_ratios=(1, 2))
    figure.suptitle(f"Taxonomy {report.taxonomy}: {report.num_topics:,} topics, {report.num_documents:,} documents")
    if report.object_counts:
        _plot_object_counts(histogram, report.object_counts)
    _plot_leaves(leaves, report.groups)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file for the plot") from error


def _plot_object_counts(axes: Any, counts: ObjectCounts) -> None:
    num_shown = sum(expected >= _LEAST_SHOWN for expected in counts.expected)
    numbers = range(1, num_shown + 1)
    axes.bar(numbers, counts.drawn[:num_shown], color="#9ecae1", label="drawn")
    axes.plot(numbers, counts.expected[:num_shown], "o-", color="#d62728", markersize=3, linewidth=1, label="formula")
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST_SHOWN)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set(title="Objects in a topic", xlabel="number of objects", ylabel="topics")
    axes.legend()


def _plot_leaves(axes: Any, groups: Sequence[GroupCoverage]) -> None:
    """A column for each sub-dimension, a dot for each leaf; a leaf that was never drawn is a red cross at 0."""
    for column, part in enumerate(groups):
        draws = [*part.draws.values()]
        spread = [column + 0.7 * ((index + 0.5) / len(draws) - 0.5) for index in range(len(draws))]
        missed = [place for place, count in zip(spread, draws, strict=True) if not count]
        axes.scatter(spread, draws, s=5)
        axes.scatter(missed, [0] * len(missed), s=25, color="red", marker="x", zorder=3)
    for dimension, columns in itertools.groupby(range(len(groups)), key=lambda column: groups[column].dimension):
        first, *_, last = [*columns] * 2
        axes.axvline(last + 0.5, color="0.8", linewidth=0.8)
        axes.text((first + last) / 2, 1.01, dimension, transform=axes.get_xaxis_transform(), ha="center", fontsize=7.5)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlim=(-0.5, max(len(groups), 1) - 0.5), ylabel="draws of each leaf")
    axes.set_ylim(-0.3, 2 * max([1, *(count for part in groups for count in part.draws.values())]))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xticks(range(len(groups)), [part.group for part in groups], rotation=60, ha="right", fontsize=7)
    axes.grid(axis="y", linewidth=0.3)
