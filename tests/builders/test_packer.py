# SPDX-License-Identifier: Apache-2.0
"""`pack`: pictures as received, same records same files, whole folder or none, and `datasets` reads it unaided."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, load_dataset
from picture_records import make_record, png

from sharegpt4o_image.builders.packer import REJECTION_FEATURES, PackSummary, pack
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record, published_features


@pytest.fixture
def records() -> list[Record]:
    return [make_record(index) for index in range(12)]


def _tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _stored(folder: Path, config: str) -> list[dict]:
    shards = sorted((folder / config).iterdir())
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


class TestRows:
    def test_pictures_are_stored_as_received(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        for task in ("text_to_image", "text_and_image_to_image"):
            given = [record for record in records if record.task == task]
            for record, row in zip(given, _stored(tmp_path / "set", task), strict=True):
                assert row["output_image"] == record.output_image.model_dump()
                assert row["input_image"] == [image.model_dump() for image in record.input_image]

    def test_loaded_rows_equal_the_records(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        rows = load_dataset(str(tmp_path / "set"), "text_and_image_to_image", split="train")
        assert rows.features == published_features()
        row = rows.cast_column("output_image", Image(decode=False))[0]
        expected = records[1].model_dump(exclude={"input_image"})
        assert {name: row[name] for name in expected} == expected

    def test_files_have_the_published_schema_and_layout(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        [shard] = (tmp_path / "set" / "text_to_image").iterdir()
        assert shard.name == "train-00000-of-00001.parquet"
        assert Features.from_arrow_schema(pq.read_schema(shard)) == published_features()
        metadata = pq.ParquetFile(shard).metadata
        assert b"content_defined_chunking" in metadata.metadata
        columns = {metadata.row_group(0).column(i).path_in_schema: i for i in range(metadata.num_columns)}
        assert metadata.row_group(0).column(columns["output_image.bytes"]).compression == "UNCOMPRESSED"
        assert metadata.row_group(0).column(columns["input_prompt"]).compression == "SNAPPY"
        assert metadata.row_group(0).column(columns["input_prompt"]).has_column_index

    def test_shards_and_row_groups_keep_to_their_sizes(self, tmp_path: Path) -> None:
        records = [make_record(2 * index) for index in range(9)]  # 2.9 kB each
        pack(iter(records), tmp_path / "set", shard_bytes=8_000, row_group_bytes=4_000)
        shards = sorted((tmp_path / "set" / "text_to_image").iterdir())
        assert [shard.name for shard in shards] == [f"train-{i:05d}-of-{len(shards):05d}.parquet" for i in range(3)]
        assert [pq.ParquetFile(shard).metadata.num_row_groups for shard in shards] == [2, 2, 2]
        assert [row["id"] for row in _stored(tmp_path / "set", "text_to_image")] == [record.id for record in records]

    def test_same_records_give_same_files(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "one" / "set")
        pack(iter(records), tmp_path / "two" / "set")
        assert _tree(tmp_path / "one") == _tree(tmp_path / "two")

    def test_a_task_without_rows_has_no_configuration(self, tmp_path: Path) -> None:
        summary = pack([make_record(1)], tmp_path / "set")
        assert list(summary.configs) == ["text_and_image_to_image"]
        assert load_dataset(str(tmp_path / "set"), split="train").num_rows == 1  # the only one is the default


FAULTS: dict[str, Callable[[Record], dict]] = {
    "output_image is unreadable: not a picture": lambda record: {"output_image": _file(b"<html>")},
    "output_image does not have the recorded sha256": lambda record: {"output_image": _file(png(99))},
    "output_image is 16x16, recorded as 8x8": lambda record: {"output_image_resolution": [8, 8]},
    "input_image is 16x16, recorded as 8x8": lambda record: {"input_image_resolution": [8, 8]},
    "input_image is missing": lambda record: {"input_image": []},
    "input_image is given, but the task is text_to_image": lambda record: {"task": "text_to_image"},
    "input_prompt is empty": lambda record: {"input_prompt": " "},
}


class TestRejections:
    @pytest.mark.parametrize("reason", FAULTS)
    def test_a_faulty_row_is_kept_out_and_listed(self, tmp_path: Path, reason: str) -> None:
        good, bad = make_record(1), make_record(3)
        change = FAULTS[reason](bad)
        if "unreadable" in reason:
            change["output_sha256"] = None
        summary = pack([good, bad.model_copy(update=change)], tmp_path / "set")
        assert [row["id"] for row in _stored(tmp_path / "set", "text_and_image_to_image")] == [good.id]
        [row] = pq.read_table(tmp_path / "set" / "rejections.parquet").to_pylist()
        assert (row["id"], row["reason"]) == (bad.id, reason)
        assert summary.rejections == {reason: 1}
        assert json.loads(summary.to_json())["rejections"] == {reason: 1}
        assert f"| {reason} | 1 |" in (tmp_path / "set" / "README.md").read_text()

    def test_a_cut_off_picture_is_unreadable(self, tmp_path: Path) -> None:
        cut = make_record(3)
        cut = cut.model_copy(update={"output_image": _file(cut.output_image.bytes[:-40]), "output_sha256": None})
        summary = pack([make_record(1), cut], tmp_path / "set")
        [reason] = summary.rejections
        assert reason.startswith("output_image is unreadable")

    def test_an_id_is_published_once(self, tmp_path: Path) -> None:
        summary = pack([make_record(1), make_record(1)], tmp_path / "set")
        assert summary.rejections == {"id occurs twice": 1}

    def test_the_list_is_no_part_of_the_data_set(self, tmp_path: Path) -> None:
        pack([make_record(1), make_record(1)], tmp_path / "set")
        assert set(REJECTION_FEATURES) == set(pq.read_schema(tmp_path / "set" / "rejections.parquet").names)
        assert load_dataset(str(tmp_path / "set"), split="train").num_rows == 1


class TestFolder:
    def test_no_record_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no finished record"):
            pack([], tmp_path / "set")
        assert list(tmp_path.iterdir()) == []

    def test_only_faulty_records_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        bad = make_record(1).model_copy(update={"input_prompt": ""})
        with pytest.raises(UserError, match="every record has a fault, 1 of 1 this one: input_prompt is empty"):
            pack([bad], tmp_path / "set")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_on_the_way_leaves_nothing(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            pack(_failing(records), tmp_path / "set", row_group_bytes=1)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_on_the_way_keeps_the_previous_set(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        before = _tree(tmp_path)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            pack(_failing(records), tmp_path / "set", row_group_bytes=1)
        assert _tree(tmp_path) == before

    def test_a_second_run_replaces_the_first(self, tmp_path: Path, records: list[Record]) -> None:
        pack([*records, make_record(1)], tmp_path / "set")
        pack(records[:3], tmp_path / "set", shard_bytes=1)
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
        assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
            "README.md",
            "text_and_image_to_image",
            "text_to_image",
        ]
        assert load_dataset(str(tmp_path / "set"), "text_to_image", split="train").num_rows == 2

    def test_codes_of_the_previous_set_go_with_it(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        (tmp_path / "set" / "codes").mkdir()
        (tmp_path / "set" / "codes" / "text_to_image.parquet").write_bytes(b"codes of these rows")
        pack(records[:3], tmp_path / "set")
        assert not (tmp_path / "set" / "codes").exists()

    def test_an_empty_folder_is_used(self, tmp_path: Path, records: list[Record]) -> None:
        (tmp_path / "set").mkdir()
        assert pack(records, tmp_path / "set").out_dir == tmp_path / "set"

    @pytest.mark.parametrize("name", ["notes.txt", "README.md", "text_to_image/train.json", ".git/config"])
    def test_a_folder_with_anything_else_is_refused(self, tmp_path: Path, records: list[Record], name: str) -> None:
        foreign = tmp_path / "set" / name
        foreign.parent.mkdir(parents=True)
        foreign.write_text("mine")
        with pytest.raises(UserError, match="holds something else"):
            pack(records, tmp_path / "set")
        assert _tree(tmp_path) == {f"set/{name}": hashlib.sha256(b"mine").hexdigest()}

    def test_a_set_that_someone_added_to_is_refused(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        (tmp_path / "set" / "text_to_image" / "labels.csv").write_text("mine")
        with pytest.raises(UserError, match=r"text_to_image/labels\.csv"):
            pack(records, tmp_path / "set")

    def test_parquet_files_without_our_card_are_refused(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        (tmp_path / "set" / "README.md").unlink()
        with pytest.raises(UserError, match="without the card"):
            pack(records, tmp_path / "set")

    def test_a_file_and_the_current_directory_are_refused(
        self, tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="is a file"):
            pack(records, tmp_path / "file")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(UserError, match="cannot be replaced as a whole"):
            pack(records, Path("."))

    def test_a_killed_run_is_cleared_by_the_next_and_locked_while_alive(self, tmp_path: Path) -> None:
        script = textwrap.dedent("""
            import sys, time
            from pathlib import Path
            from picture_records import make_record
            from sharegpt4o_image.builders.packer import pack

            def records():
                yield make_record(0)
                print("packing", flush=True)
                time.sleep(60)

            pack(records(), Path(sys.argv[1]), row_group_bytes=1)
        """)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", script, str(tmp_path / "set")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"packing\n"
            with pytest.raises(UserError, match="another process is writing"):
                pack([make_record(1)], tmp_path / "set")
            process.send_signal(signal.SIGKILL)
        assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]
        pack([make_record(1)], tmp_path / "set")
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_a_kill_between_the_two_renames_loses_nothing(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        before = _tree(tmp_path / "set")
        (tmp_path / "set").rename(tmp_path / ".set.replaced")
        with pytest.raises(RuntimeError, match="the disk is gone"):
            pack(_failing(records), tmp_path / "set")
        assert _tree(tmp_path) == {f"set/{name}": digest for name, digest in before.items()}


class TestSummary:
    def test_it_says_what_was_written_and_how_to_load_it(self, tmp_path: Path, records: list[Record]) -> None:
        summary = pack(records, tmp_path / "set")
        assert isinstance(summary, PackSummary)
        assert {name: config.num_rows for name, config in summary.configs.items()} == {
            "text_to_image": 6,
            "text_and_image_to_image": 6,
        }
        files = sum(path.stat().st_size for path in (tmp_path / "set").rglob("*.parquet"))
        assert sum(config.file_bytes for config in summary.configs.values()) == files
        assert summary.to_text().startswith("text_to_image: 6 rows in 1 file, 0.0")
        assert summary.to_text().endswith(f'load_dataset("{tmp_path / "set"}", "text_to_image", split="train")')


def test_the_bare_name_loads_in_a_process_without_this_package(tmp_path: Path, records: list[Record]) -> None:
    pack(records, tmp_path / "sharegpt4o-image")
    script = textwrap.dedent("""
        import sys
        sys.modules["sharegpt4o_image"] = None
        import datasets
        name = "sharegpt4o-image"
        assert datasets.get_dataset_config_names(name) == ["text_to_image", "text_and_image_to_image"]
        assert datasets.load_dataset(name, split="train")[0]["task"] == "text_to_image"
        for config in datasets.get_dataset_config_names(name):
            rows = datasets.load_dataset(name, config)["train"]
            streamed = list(datasets.load_dataset(name, config, split="train", streaming=True))
            assert [row["id"] for row in streamed] == rows["id"][:]
            assert streamed[0]["output_image"].size == (16, 16)
            assert rows[0]["image_params"] == {"size": "16x16"}
    """)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def _failing(records: list[Record]) -> Iterator[Record]:
    yield from records
    raise RuntimeError("the disk is gone")


def _file(data: bytes) -> ImageFile:
    return ImageFile(bytes=data, path="picture.png")
