# SPDX-License-Identifier: Apache-2.0
"""YAML files: what is read, and the sentence that a fault becomes."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.yaml_files import read_yaml


class Wheel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 0


class Cart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: str = "red"
    wheels: list[Wheel] = []
    loads: dict[str, list[int]] = {}


def written(folder: Path, text: str) -> Path:
    path = folder / "cart.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_yaml(path, Cart)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_empty_file_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert read_yaml(written(tmp_path, text), Cart) == Cart()


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = "loads: &loads {a: [1], b: [2]}\n"
    assert read_yaml(written(tmp_path, text), Cart).loads == {"a": [1], "b": [2]}
    text = "wheels:\n- &wheel {size: 3}\n- *wheel\n- {<<: *wheel, size: 4}\n"
    assert [wheel.size for wheel in read_yaml(written(tmp_path, text), Cart).wheels] == [3, 3, 4]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("color: red\nwheels: 4\n", 2, "wheels: Input should be a valid list, found 4"),
        ("color: red\nwheels:\n- size: 1\n- size: big\n", 4, "wheels.1.size: Input should be a valid integer"),
        ("wheels:\n- size: 1\n- sise: 1\n", 3, "unknown key 'wheels.1.sise'"),
        ("loads:\n  a: [1,\n    2,\n    x]\n", 4, "loads.a.2: Input should be a valid integer"),
        ("loads:\n  a:\n    - 1\n  a:\n    - 2\n", 4, "the key 'a' is written twice; keep one of them"),
        ("wheels:\n- {size: 1, size: 1}\n", 2, "the key 'size' is written twice"),
        ("color: red\n? [a, b]\n: c\n", 2, "a key must be a single value"),
        ("color: red\nloads: &a {a: *a}\n", 2, "an alias stands inside of what it names"),
        ("color: red\nwheels: !unknown [1]\n", 2, "not valid YAML (could not determine a constructor"),
        ("color: red\nwheels: [\n", 3, "not valid YAML"),
        ("color: red\n---\ncolor: blue\n", 2, "not valid YAML (but found another document)"),
    ],
)
def test_fault_names_file_line_and_place(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = written(tmp_path, text)
    assert fault(path).startswith(f"{path}, line {line}: {message}")


def test_what_is_not_keys_and_values(tmp_path: Path) -> None:
    assert fault(written(tmp_path, "- a\n- b\n")).endswith("found a list")
    assert fault(written(tmp_path, "word\n")).endswith("found a single value")


def test_impossible_date(tmp_path: Path) -> None:
    assert "not valid YAML" in fault(written(tmp_path, "color: 2024-99-99\n"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.yaml").startswith(f"cannot read {tmp_path / 'none.yaml'}: No such file")
    (tmp_path / "binary.yaml").write_bytes(b"color: \xff\n")
    assert "not UTF-8" in fault(tmp_path / "binary.yaml")
    (tmp_path / "control.yaml").write_bytes(b"color: \x01\n")
    assert "not valid YAML" in fault(tmp_path / "control.yaml")
