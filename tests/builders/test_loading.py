# SPDX-License-Identifier: Apache-2.0
"""`load_rows`: a packed folder loads, anything else is refused in one sentence."""

from pathlib import Path

import pytest
from picture_records import make_record

from sharegpt4o_image.builders.loading import load_rows
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack([make_record(0), make_record(2)], tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_packed_folder_loads(folder: Path, streaming: bool) -> None:
    rows = list(load_rows(str(folder), "text_to_image", streaming=streaming))
    assert [row["id"] for row in rows] == [make_record(0).id, make_record(2).id]


def test_a_folder_without_readme_is_refused(folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README\.md.*`sharegpt4o-image pack` writes one"):
        load_rows(str(folder), "text_to_image")


def test_a_configuration_without_rows_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="has no rows for text_and_image_to_image, only for text_to_image"):
        load_rows(str(folder), "text_and_image_to_image")


@pytest.mark.parametrize("name", ["absent", "./absent", "some/absent"])
def test_a_missing_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither a folder here nor a repository"):
        load_rows(name, "text_to_image")
