# SPDX-License-Identifier: Apache-2.0
"""`demo --fast`, as a user runs it: in an empty directory, with the installed command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sharegpt4o_image.checkpoints import TINY_JANUS_4O, TINY_JANUS_PRO
from sharegpt4o_image.evaluation.score_record import read_scores


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The directory in which the demo ran, and what it printed."""
    directory = tmp_path_factory.mktemp("demo")
    command = Path(sys.executable).with_name("sharegpt4o-image")
    result = subprocess.run(
        [command, "demo", "--fast"], cwd=directory, capture_output=True, text=True, timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "2", "COLUMNS": "100"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return directory, result.stdout


def test_the_data_set_loads_from_there(demo):
    directory, _ = demo
    script = """
from datasets import load_dataset
for task in ("text_to_image", "text_and_image_to_image"):
    rows = load_dataset("sharegpt4o-image", task, split="train")
    print(len(rows), len(rows[0]["input_image"] or []), rows[0]["output_image"].size)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    plain, edits = (line.split(" ", 2) for line in result.stdout.splitlines())
    assert (int(plain[0]) >= 200, plain[1:]) == (True, ["0", "(256, 256)"])
    assert (int(edits[0]) >= 200, edits[1:]) == (True, ["1", "(256, 256)"])


def test_the_report_needs_nothing_but_itself(demo):
    directory, _ = demo
    page = (directory / "demo" / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="(.{0,5})', page)
    assert links
    assert set(links) == {"data:"}
    for word in ("single object", "recolor", "before", "after", "teacher"):
        assert word in page
    with Image.open(directory / "demo" / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.width > 300


def test_editing_is_what_fine_tuning_adds(demo):
    directory, stdout = demo
    scores = json.loads((directory / "demo" / "scores.json").read_text(encoding="utf-8"))
    edits = {
        column: sum(score["correct"] for kind, score in kinds.items() if kind in ("recolor", "remove", "background"))
        for column, kinds in scores.items()
    }
    assert edits["after"] > edits["before"]
    assert "recolor" in stdout
    assert stdout.count("  sharegpt4o-image ") == 3


def test_genevals_rules_score_each_column(demo):
    directory, stdout = demo
    page = (directory / "demo" / "report.html").read_text(encoding="utf-8")
    for column, model in (("before", TINY_JANUS_PRO), ("after", TINY_JANUS_4O)):
        records = {path.stem: read_scores(path) for path in (directory / "demo" / column / "scores").glob("*.json")}
        assert records.keys() == {"scenes", "scene-edits", "scene-geneval"}
        assert {record.model for record in records.values()} == {model}
        overall = records["scene-geneval"].overall
        assert (overall.count, overall.low < overall.value < overall.high) == (30, True)
        assert f"{overall.value:.2f} <small>[{overall.low:.2f}, {overall.high:.2f}] n=30</small>" in page
    assert "color_attr" in stdout


def test_the_columns_say_which_checkpoints_they_are(demo):
    directory, _ = demo
    page = (directory / "demo" / "report.html").read_text(encoding="utf-8")
    assert TINY_JANUS_PRO in page
    assert TINY_JANUS_4O in page
