# SPDX-License-Identifier: Apache-2.0
"""`load_rows`: a packed folder loads, anything else is refused in one sentence; `datasets` alone loads it as well."""

import io
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pytest
from loopback_hub import LoopbackHub, environment
from picture_records import ListSource, make_record
from PIL import Image

from sharegpt4o_image.builders.loading import load_rows
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` 5.2 takes two folders for one if their names and what their cards say are the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_may_be_joined(parted: Path, streaming: bool) -> None:
    for split in ("train+test", "all"):
        assert len(list(load_rows(str(parted), EDITS, split=split, streaming=streaming))) == 6


def test_a_part_of_a_split(parted: Path) -> None:
    ids = [row["id"] for row in load_rows(str(parted), EDITS)]
    assert load_rows(str(parted), EDITS, split="train[:2]")["id"][:] == ids[:2]
    assert len(load_rows(str(parted), EDITS, split="train[1:]+test")) == 5
    with pytest.raises(UserError, match=r"has no split dev\[:2\] of .*, only train and test; name one"):
        load_rows(str(parted), EDITS, split="dev[:2]")
    with pytest.raises(UserError, match=r"has no split train\[ of .*, only train and test; name one"):
        load_rows(str(parted), EDITS, split="train[")
    with pytest.raises(UserError, match=r"train\[50:60\] of .* cannot be read .*; name another part"):
        load_rows(str(parted), EDITS, split="train[50:60]")
    with pytest.raises(UserError, match="is a part of a split, which cannot be streamed; stream all of it"):
        load_rows(str(parted), EDITS, split="train[:2]", streaming=True)


def test_what_chooses_no_row_is_refused(parted: Path) -> None:
    with pytest.raises(UserError, match=r"no row in train of .* meets the filters; give other ones"):
        load_rows(str(parted), EDITS, filters=[("edit_category", "==", "C")])
    with pytest.raises(UserError, match=r"columns is an empty list, .*; name at least one"):
        load_rows(str(parted), EDITS, columns=[])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ([("edit_category", "~", "A")], '"~" is not a valid operator'),
        ([("edit_category", "<", 3)], "no kernel matching input types"),
        ([("output_image", "==", "A")], "no kernel matching input types"),
        ([("edit_category", "==")], "not enough values"),
        ([], "Malformed filters"),
    ],
)
def test_filters_that_cannot_be_used(
    parted: Path, filters: list[tuple[str, str, object]], reason: str, streaming: bool
) -> None:
    with pytest.raises(
        UserError, match=rf"the filters cannot be used \(.*{reason}.*; give a list of \(column, operator"
    ):
        load_rows(str(parted), EDITS, filters=filters, streaming=streaming)


def test_files_are_missing_behind_the_card(parted: Path) -> None:
    files = sorted((parted / EDITS).glob("train-*.parquet"))
    assert len(files) > 1
    files[0].unlink()
    with pytest.raises(UserError, match="does not hold the rows that its README counts; pack or download it again"):
        load_rows(str(parted), EDITS)
    for file in files[1:]:
        file.unlink()
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"lacks files that its README names .*; pack or download it again"):
            load_rows(str(parted), EDITS, split="test", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_files_of_one_task_are_missing(tmp_path: Path, streaming: bool) -> None:
    pack(ListSource([make_record(0), make_record(1)]), tmp_path / "set")
    for path in (tmp_path / "set" / EDITS).iterdir():
        path.unlink()
    assert len(list(load_rows(str(tmp_path / "set"), "text_to_image", streaming=streaming))) == 1
    with pytest.raises(UserError, match=r"lacks files that its README names \(of .*, train\); pack or"):
        load_rows(str(tmp_path / "set"), EDITS, streaming=streaming)


def test_a_damaged_file(parted: Path) -> None:
    for path in (parted / EDITS).glob("train-*.parquet"):
        path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot be read .*; pack or download it again"):
        load_rows(str(parted), EDITS)


def test_columns_of_a_repository_are_read_without_the_pictures(tmp_path: Path) -> None:
    """Three pictures of 2 MB: more than the 5 MiB that would be read ahead."""
    noise = io.BytesIO()
    side = 830
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(noise, "PNG")
    update = {"output_image": ImageFile(bytes=noise.getvalue(), path="noise.png"), "output_sha256": None}
    update |= {"output_image_resolution": [side, side]}
    records = [make_record(index).model_copy(update=update) for index in range(0, 12, 2)]
    pack(ListSource(records), tmp_path / "set")
    script = textwrap.dedent("""
        from sharegpt4o_image.builders.loading import load_rows
        rows = load_rows("owner/set", "text_to_image", columns=["id", "input_prompt"], streaming=True)
        print(sum(1 for _ in rows))
    """)
    with LoopbackHub() as hub:
        hub.serve_folder("owner/set", tmp_path / "set")
        variables = os.environ | environment(hub.endpoint, str(tmp_path / "home"))
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == "6"
        assert hub.bytes_sent < len(noise.getvalue()) / 4


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
