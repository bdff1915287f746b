# SPDX-License-Identifier: Apache-2.0
"""The report on what a run would draw: closed forms on small taxonomies, and the size of the upstream release."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.taxonomy import Taxonomy, load_taxonomy
from sharegpt4o_image.synthesis.taxonomy_report import TaxonomyReport, plot_coverage, report_coverage


def taxonomy(**parts: Any) -> Taxonomy:
    start = {"name": "small", "object_count": {"max": 2}, "objects": {"pets": ["cat", "dog"], "fish": ["cod", "eel"]}}
    return Taxonomy.model_validate(start | parts)


def draws(report: TaxonomyReport, dimension: str, group: str) -> dict[str, int]:
    [found] = [part.draws for part in report.groups if (part.dimension, part.group) == (dimension, group)]
    return found


@pytest.fixture(scope="module")
def upstream_size() -> TaxonomyReport:
    return report_coverage(load_taxonomy("paper"), num_topics=45_717, num_edits=46_539, num_documents=1000, seed=0)


def test_run_of_the_upstream_size_covers_the_paper_taxonomy(upstream_size: TaxonomyReport) -> None:
    assert upstream_size.uncovered == []
    assert sum(len(part.draws) for part in upstream_size.groups if part.dimension == "objects") == 1000
    assert len(upstream_size.edits) == 14
    assert sum(row["draws"] for row in upstream_size.edits) == 46_539
    for row in upstream_size.edits:  # five standard deviations of a binomial count
        assert row["draws"] == pytest.approx(46_539 / 14, abs=5 * math.sqrt(46_539 / 14 * 13 / 14))
    assert upstream_size.seconds > 0


def test_object_counts_of_the_upstream_size_follow_the_formula(upstream_size: TaxonomyReport) -> None:
    counts = upstream_size.object_counts
    assert counts is not None
    weights = [math.exp(-0.5 * (x - 1)) for x in range(1, 101)]
    assert counts.expected == pytest.approx([45_717 * weight / sum(weights) for weight in weights])
    assert sum(counts.drawn) == 45_717
    assert counts.largest_deviation <= 4
    assert counts.chi_square < 1
    assert counts.p_value > 0.99


def test_every_word_is_counted_once() -> None:
    drawing = taxonomy(
        object_count={"max": 1},
        person={"share": 1.0, "groups": {"age": ["young", "very young"], "gender": ["woman", "young woman"]}},
        dimensions={"style": {"groups": {"a": {"leaves": ["x", "y"]}}}},
        documents={"types": {"Slide": ["slide", "slide about"]}, "subjects": ["a fair about boats", "tea"]},
    )
    report = report_coverage(drawing, num_topics=8, num_edits=0, num_documents=4, seed=0)
    assert draws(report, "objects", "pets") == {"cat": 0, "dog": 0}
    assert sum(draws(report, "person", "age").values()) == sum(draws(report, "person", "gender").values()) == 8
    assert sum(draws(report, "style", "a").values()) == 8
    assert draws(report, "documents", "Slide") == {"slide": 2, "slide about": 2}
    assert draws(report, "documents", "subjects") == {"a fair about boats": 2, "tea": 2}
    assert report.uncovered == [
        "objects / pets / cat",
        "objects / pets / dog",
        "objects / fish / cod",
        "objects / fish / eel",
    ]


def test_chi_square_closed_form() -> None:
    report = report_coverage(taxonomy(object_count={"max": 2, "decay": 0.0}), 101, 0, 0, seed=0)
    counts = report.object_counts
    assert counts is not None
    assert counts.expected == [50.5, 50.5]
    deviation = abs(counts.drawn[0] - 50.5)
    assert counts.largest_deviation == deviation
    assert counts.chi_square == pytest.approx(2 * deviation**2 / 50.5)


def test_too_few_topics_for_a_test() -> None:
    counts = report_coverage(taxonomy(), 3, 0, 0, seed=0).object_counts
    assert counts is not None
    assert (counts.chi_square, counts.p_value) == (0.0, 1.0)


def test_leaf_that_cannot_be_drawn_is_named() -> None:
    groups = {"one": {"leaves": ["x"]}, "crowd": {"leaves": ["y"], "for_objects": [3, 100]}}
    report = report_coverage(taxonomy(dimensions={"camera": {"groups": groups}}), 20, 0, 0, seed=0)
    assert report.uncovered == ["camera / crowd / y"]
    assert "never drawn: 1" in report.to_text()
    assert "camera / crowd / y" in report.to_text()


def test_edits_without_topics_and_sources_that_come_again() -> None:
    edits = [{"category": "c", "task": "t"}, {"category": "c", "task": "u"}]
    report = report_coverage(taxonomy(edits=edits), num_topics=0, num_edits=200, num_documents=0, seed=0)
    assert report.groups == []
    assert sum(row["draws"] for row in report.edits) == 200
    # The one source gets its tasks in turn.
    report = report_coverage(taxonomy(edits=edits), num_topics=1, num_edits=10, num_documents=0, seed=0)
    assert [row["draws"] for row in report.edits] == [5, 5]


def test_json_and_text_say_the_same(upstream_size: TaxonomyReport) -> None:
    values = json.loads(upstream_size.to_json())
    assert values["groups"][0] == {
        "dimension": "objects",
        "group": "fish",
        "leaves": 16,
        "covered": 16,
        "least_draws": min(upstream_size.groups[0].draws.values()),
        "most_draws": max(upstream_size.groups[0].draws.values()),
    }
    assert values["object_counts"]["drawn"][0] == upstream_size.object_counts.drawn[0]  # type: ignore[union-attr]
    text = upstream_size.to_text()
    assert "45,717 topics, 46,539 edits, 1,000 documents" in text
    assert "every leaf is drawn" in text
    for row in values["edits"]:
        assert any(row["task"] in line and f"{row['draws']:,}" in line for line in text.splitlines())


def test_no_edit_tasks() -> None:
    with pytest.raises(UserError, match="has no edit tasks"):
        report_coverage(taxonomy(), 1, 1, 0, seed=0)


def test_plot(tmp_path: Path) -> None:
    report = report_coverage(load_taxonomy("offline"), num_topics=50, num_edits=0, num_documents=3, seed=0)
    plot_coverage(report, tmp_path / "coverage.png")
    with Image.open(tmp_path / "coverage.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 500
    with pytest.raises(UserError, match="choose another file"):
        plot_coverage(report, tmp_path / "none" / "coverage.png")


def test_plot_of_nothing(tmp_path: Path) -> None:
    plot_coverage(report_coverage(load_taxonomy("offline"), 0, 5, 0, seed=0), tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").stat().st_size > 0
