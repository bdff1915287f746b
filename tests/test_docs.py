# SPDX-License-Identifier: Apache-2.0
"""What the documents show is run, and their numbers are computed again."""

import importlib
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def python_blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_examples_of_the_model_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sharegpt4o_image").symlink_to(ROOT / "sharegpt4o_image")
    names = {}
    torch.manual_seed(0)
    for block in python_blocks("docs/model.md"):
        exec(compile(block, "docs/model.md", "exec"), names)
    assert names["answer"].shape[0] == 1
    assert (tmp_path / "circle.png").is_file()


def test_the_memory_table_is_what_the_script_prints(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    memory = importlib.import_module("memory")
    assert memory.as_table(memory.rows()) in (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


def test_every_test_that_the_model_page_names_exists():
    page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "janus4o" / "test_against_transformers.py").read_text(encoding="utf-8")
    named = re.findall(r"\| `(test_\w+)` \|", page)
    assert len(named) == 10
    for name in named:
        assert f"def {name}(" in tests
