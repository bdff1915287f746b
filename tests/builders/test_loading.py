# SPDX-License-Identifier: Apache-2.0
"""`load_rows`: a packed folder loads, anything else is refused in one sentence; `datasets` alone loads it as well."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from picture_records import ListSource, make_record

from sharegpt4o_image.builders.loading import load_rows
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(ListSource([make_record(0), make_record(2)]), tmp_path / "set")
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


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """Six edits and their splits, of two categories."""
    records = [make_record(index) for index in range(1, 13, 2)]
    records = [record.model_copy(update={"edit_category": "AB"[index % 2]}) for index, record in enumerate(records)]
    pack(ListSource(records), tmp_path / "sharegpt4o-image", splits={"test": 0.4}, shard_bytes=8_000)
    return tmp_path / "sharegpt4o-image"


EDITS = "text_and_image_to_image"


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_and_filters_choose(parted: Path, streaming: bool) -> None:
    filters = [("edit_category", "==", "A")]
    rows = load_rows(str(parted), EDITS, columns=["id", "edit_category"], streaming=streaming)
    assert {frozenset(row) for row in rows} == {frozenset({"id", "edit_category"})}
    expected = [row["id"] for row in rows if row["edit_category"] == "A"]
    assert 0 < len(expected) < len(list(rows))
    chosen = load_rows(str(parted), EDITS, filters=filters, streaming=streaming)
    assert [row["id"] for row in chosen] == expected
    ids = load_rows(str(parted), EDITS, columns=["id"], filters=filters, streaming=streaming)
    assert list(ids) == [{"id": row_id} for row_id in expected]


def test_splits_are_apart(parted: Path) -> None:
    ids = [{row["id"] for row in load_rows(str(parted), EDITS, split=split)} for split in ("train", "test")]
    assert all(ids)
    assert sorted(ids[0] | ids[1]) == sorted(make_record(index).id for index in range(1, 13, 2))
    assert not ids[0] & ids[1]


def test_unknown_names_are_refused(parted: Path) -> None:
    with pytest.raises(UserError, match="has no split dev of text_and_image_to_image, only train and test; name one"):
        load_rows(str(parted), EDITS, split="dev")
    with pytest.raises(UserError, match="has no column category; the columns are id, task, input_prompt"):
        load_rows(str(parted), EDITS, columns=["id", "category"])
    with pytest.raises(UserError, match="has no column category"):
        load_rows(str(parted), EDITS, filters=[("category", "==", "A")])


def test_the_bare_name_loads_beside_the_folder_without_this_package(parted: Path) -> None:
    """Streaming, worker processes, columns and filters, by `datasets` alone, from the directory of the folder."""
    script = textwrap.dedent("""
        import sys
        sys.modules["sharegpt4o_image"] = None
        from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

        def load(**options):
            return load_dataset("sharegpt4o-image", "text_and_image_to_image", split="train", **options)

        if __name__ == "__main__":
            assert get_dataset_config_names("sharegpt4o-image") == ["text_and_image_to_image"]
            assert get_dataset_split_names("sharegpt4o-image") == ["train", "test"]
            ids = [row["id"] for row in load(streaming=True)]
            assert load(num_proc=2)["id"][:] == ids
            assert len(load_dataset("sharegpt4o-image")["test"]) == 6 - len(ids)
            assert load(columns=["id"])[:] == {"id": ids}
            filters = [("edit_category", "==", "A")]
            stream = load(columns=["id", "edit_category"], filters=filters, streaming=True)
            chosen = [row["id"] for row in stream]
            assert 0 < len(chosen) < len(ids)
            rows = load(filters=filters, verification_mode="no_checks")  # the card counts all rows
            assert rows["id"][:] == chosen
            assert rows[0]["output_image"].size == rows[0]["input_image"][0].size == (16, 16)
    """)
    environment = {**os.environ, "HF_HOME": str(parted.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=parted.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
