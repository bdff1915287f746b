# SPDX-License-Identifier: Apache-2.0
"""`pack`: pictures as received, same records same files, whole folder or none, and `datasets` reads it unaided."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, load_dataset
from picture_records import ListSource, make_record, png
from PIL import Image as Pillow
from PIL import ImageCms

from sharegpt4o_image.builders import packer
from sharegpt4o_image.builders.light_variant import check_encoding, lighten
from sharegpt4o_image.builders.pack_plan import PackOptions, make_plan
from sharegpt4o_image.builders.packed_set import PackedSet
from sharegpt4o_image.builders.packer import REJECTION_FEATURES, PackSummary
from sharegpt4o_image.builders.row_source import ImageEncoding, RowFault, RowPlan
from sharegpt4o_image.builders.splits import assign_splits, parse_splits
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record, RejectedRecord, published_features


def pack(records: Iterable[Record], folder: Path, **options: Any) -> PackSummary:
    return packer.pack(ListSource(records), folder, **options)


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
        pack(iter(records), tmp_path / "set", shard_bytes=9_000, row_group_bytes=6_000)
        shards = sorted((tmp_path / "set" / "text_to_image").iterdir())
        assert [shard.name for shard in shards] == [f"train-{i:05d}-of-{len(shards):05d}.parquet" for i in range(3)]
        assert [pq.ParquetFile(shard).metadata.num_row_groups for shard in shards] == [2, 2, 2]
        assert [row["id"] for row in _stored(tmp_path / "set", "text_to_image")] == [record.id for record in records]

    def test_the_first_file_is_small_whatever_the_rows(self) -> None:
        options = PackOptions({}, False, None, shard_bytes=100_000_000, row_group_bytes=1)
        rows = [RowPlan(str(index), "text_to_image", "", 1_900_000, "") for index in range(120)]
        counts = [len(shard.rows) for shard in make_plan(rows, options).shards]
        assert counts == [2, 52, 52, 14]  # 4 MiB, then 100 MB each

    def test_same_records_give_same_files(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "one" / "set")
        pack(iter(records), tmp_path / "two" / "set")
        assert _tree(tmp_path / "one") == _tree(tmp_path / "two")

    def test_a_task_without_rows_has_no_configuration(self, tmp_path: Path) -> None:
        summary = pack([make_record(1)], tmp_path / "set")
        assert list(summary.configs) == ["text_and_image_to_image"]
        assert load_dataset(str(tmp_path / "set"), split="train").num_rows == 1  # the only one is the default


OTHER_SIZE = "does not have the recorded size: it is 16x16, not 8x8"
FAULTS: dict[str, Callable[[Record], dict]] = {
    "output_image is unreadable: not a picture": lambda record: {"output_image": _file(b"<html>")},
    "output_image does not have the recorded sha256": lambda record: {"output_image": _file(png(99))},
    "output_image does not have the recorded size: it is 16x16, not 8x8": lambda record: {
        "output_image_resolution": [8, 8]
    },
    "input_image does not have the recorded size: it is 16x16, not 8x8": lambda record: {
        "input_image_resolution": [8, 8]
    },
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
        counted = reason.split(": ")[0]  # particulars are for the list
        assert summary.rejections == {counted: 1}
        assert json.loads(summary.to_json())["rejections"] == {counted: 1}
        assert f"| `{counted}` | 1 |" in (tmp_path / "set" / "README.md").read_text()

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
            packer.pack(FailingSource(records[:1]), tmp_path / "set")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_on_the_way_keeps_the_previous_set(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        before = _tree(tmp_path)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records[:1]), tmp_path / "set")
        assert _tree(tmp_path) == before

    def test_a_second_run_replaces_the_first(self, tmp_path: Path, records: list[Record]) -> None:
        pack([*records, make_record(1)], tmp_path / "set")
        pack(records[:3], tmp_path / "set", shard_bytes=1)
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
        assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
            "README.md",
            "card",
            "croissant.json",
            "text_and_image_to_image",
            "text_to_image",
        ]
        assert load_dataset(str(tmp_path / "set"), "text_to_image", split="train").num_rows == 2

    def test_codes_of_the_previous_set_go_with_it(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        codes = tmp_path / "set" / "codes" / "0123456789abcdef" / "text_to_image"
        codes.mkdir(parents=True)
        (codes / "train-00000-of-00001.parquet").write_bytes(b"codes of these rows")
        pack(records[:3], tmp_path / "set")
        assert not (tmp_path / "set" / "codes").exists()

    def test_what_is_added_while_it_is_packed_is_not_lost(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")

        class Source(ListSource):
            def load(self, plan: RowPlan) -> Record:
                (tmp_path / "set" / "notes.txt").write_text("mine")
                return super().load(plan)

        with pytest.raises(UserError, match=r"holds something else \(notes.txt\)"):
            packer.pack(Source(records), tmp_path / "set")
        assert (tmp_path / "set" / "notes.txt").read_text() == "mine"
        (tmp_path / "set" / "notes.txt").unlink()
        source = ListSource(records)
        packer.pack(source, tmp_path / "set")
        assert source.loaded == []  # the finished files were kept

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

    def test_a_folder_that_is_being_packed_is_locked(self, tmp_path: Path, records: list[Record]) -> None:
        with _stopped_pack(tmp_path / "set", row=10), pytest.raises(UserError, match="another process is writing"):
            pack(records, tmp_path / "set")
        assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]

    def test_a_kill_between_the_two_renames_loses_nothing(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        before = _tree(tmp_path / "set")
        (tmp_path / "set").rename(tmp_path / ".set.replaced")
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records[:1]), tmp_path / "set")
        assert _tree(tmp_path) == {f"set/{name}": digest for name, digest in before.items()}


class TestResume:
    def test_a_killed_pack_goes_on_from_the_finished_shards(self, tmp_path: Path, records: list[Record]) -> None:
        with _stopped_pack(tmp_path / "set", row=10):
            pass  # two shards of two rows each are finished, and half of the third
        source = ListSource(records)
        packer.pack(source, tmp_path / "set", **SHARDS_OF_TWO)
        assert sorted(source.loaded) == sorted([record.id for record in in_order(records)[4:]])
        pack(records, tmp_path / "whole" / "set", **SHARDS_OF_TWO)
        assert _tree(tmp_path / "set") == _tree(tmp_path / "whole" / "set")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]

    def test_a_failure_keeps_finished_shards_too(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        source = ListSource(records)
        packer.pack(source, tmp_path / "set", **SHARDS_OF_TWO)
        assert sorted(source.loaded) == sorted([record.id for record in records[-3::2]])

    def test_a_kill_while_the_card_is_written_costs_no_shard(
        self, tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr(packer, "render_card", fail)
        with pytest.raises(KeyboardInterrupt):
            pack(records, tmp_path / "set", **SHARDS_OF_TWO)
        monkeypatch.undo()
        source = ListSource(records)
        packer.pack(source, tmp_path / "set", **SHARDS_OF_TWO)
        assert sorted(source.loaded) == sorted([])

    def test_only_shards_whose_rows_changed_are_written_again(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        records[4] = records[4].model_copy(update={"input_prompt": "another prompt"})
        source = ListSource(records)
        packer.pack(source, tmp_path / "set", **SHARDS_OF_TWO)
        assert sorted(source.loaded) == sorted([records[index].id for index in (4, 6, 9, 11)])

    def test_other_options_start_anew(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        pack(records, tmp_path / "set", shard_bytes=12_000, row_group_bytes=2_900)
        pack(records, tmp_path / "whole" / "set", shard_bytes=12_000, row_group_bytes=2_900)
        assert _tree(tmp_path / "set") == _tree(tmp_path / "whole" / "set")

    def test_a_shard_that_a_power_cut_emptied_is_written_again(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        (tmp_path / ".set.partial" / ".work" / "text_to_image.train.00000.parquet").write_bytes(b"")
        packer.pack(ListSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        pack(records, tmp_path / "whole" / "set", **SHARDS_OF_TWO)
        assert _tree(tmp_path / "set") == _tree(tmp_path / "whole" / "set")

    def test_a_damaged_note_is_no_note(self, tmp_path: Path, records: list[Record]) -> None:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            packer.pack(FailingSource(records), tmp_path / "set", **SHARDS_OF_TWO)
        for note in (tmp_path / ".set.partial" / ".work").glob("*.json"):
            note.write_text('{"fingerprint": "half')
        source = ListSource(records)
        packer.pack(source, tmp_path / "set", **SHARDS_OF_TWO)
        assert len(source.loaded) == 12

    def test_a_shard_without_good_rows_leaves_no_gap(self, tmp_path: Path) -> None:
        records = [make_record(index) for index in range(0, 12, 2)]
        for index in (2, 3):
            records[index] = records[index].model_copy(update={"input_prompt": " "})
        summary = pack(records, tmp_path / "set", **SHARDS_OF_TWO)
        assert summary.rejections == {"input_prompt is empty": 2}
        names = sorted(path.name for path in (tmp_path / "set" / "text_to_image").iterdir())
        assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]

    def test_a_row_that_cannot_be_read_is_kept_out(self, tmp_path: Path, records: list[Record]) -> None:
        class Source(ListSource):
            def load(self, plan: RowPlan) -> Record:
                if plan.locator == (3,):
                    raise RowFault("image/3.png is in no tar part", input_prompt="a prompt")
                return super().load(plan)

        packer.pack(Source(records), tmp_path / "set")
        [row] = pq.read_table(tmp_path / "set" / "rejections.parquet").to_pylist()
        assert row == {
            "id": records[3].id,
            "task": "text_and_image_to_image",
            "reason": "image/3.png is in no tar part",
            "location": "record 3",
            "input_prompt": "a prompt",
            "output_sha256": None,
            "image_model": None,
        }


class TestSplits:
    SHARES: ClassVar = {"validation": 0.2, "test": 0.3}

    def test_shares_are_about_what_was_asked_for_and_nothing_is_lost(self) -> None:
        plans = list(ListSource(make_record(2 * index) for index in range(2000)).plan())
        counts = Counter(assign_splits(plans, self.SHARES))
        assert counts.total() == 2000
        assert abs(counts["validation"] - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5  # four standard deviations
        assert abs(counts["test"] - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5

    def test_a_row_stays_in_its_split_when_rows_come_and_go(self) -> None:
        plans = list(ListSource(make_record(index) for index in range(40)).plan())
        whole = dict(zip([plan.id for plan in plans], assign_splits(plans, self.SHARES), strict=True))
        few = plans[5:30:3]
        assert assign_splits(few, self.SHARES) == [whole[plan.id] for plan in few]
        assert assign_splits(few[::-1], self.SHARES) == [whole[plan.id] for plan in few[::-1]]

    def test_rows_that_share_a_picture_stay_together(self) -> None:
        links = [("a",), ("a", "b"), ("b", "c"), ("x",), ("c", "d"), ("x", "y"), ("e", "d")]
        plans = [
            RowPlan(str(n), "text_to_image", "", 1, "", pictures=pictures)
            for k in range(200)
            for n, pictures in enumerate(tuple(f"{k}{name}" for name in names) for names in links)
        ]
        splits = assign_splits(plans, self.SHARES)
        for start in range(0, len(plans), len(links)):
            assert len({splits[start + index] for index in (0, 1, 2, 4, 6)}) == 1
            assert splits[start + 3] == splits[start + 5]
        assert set(splits) == {"train", "validation", "test"}

    def test_every_split_loads(self, tmp_path: Path) -> None:
        records = [make_record(index) for index in range(60)]
        summary = pack(records, tmp_path / "set", splits=self.SHARES)
        assert list(summary.splits["text_to_image"]) == ["train", "test", "validation"]
        loaded = load_dataset(str(tmp_path / "set"), "text_to_image")
        assert {name: rows.num_rows for name, rows in loaded.items()} == {
            name: counts.num_rows for name, counts in summary.splits["text_to_image"].items()
        }
        assert sum(rows.num_rows for rows in loaded.values()) == 30

    def test_a_split_is_named_once(self) -> None:
        with pytest.raises(UserError, match="names test twice"):
            parse_splits(["test=0.1", "test=0.2"])

    @pytest.mark.parametrize(
        "option",
        [
            "test",
            "test=",
            "test=1",
            "test=0",
            "all=0.1",
            "train=0.1",
            "Test=0.1",
            "a/b=0.1",
            "=0.1",
            f"{'x' * 33}=0.1",
        ],
    )
    def test_what_is_no_split_is_refused(self, option: str) -> None:
        with pytest.raises(UserError, match="is no split"):
            parse_splits([option])

    def test_shares_must_leave_something_for_training(self) -> None:
        assert parse_splits(["validation=0.01", "test=0.02"]) == {"validation": 0.01, "test": 0.02}
        with pytest.raises(UserError, match="leave nothing for train"):
            parse_splits(["validation=0.5", "test=0.5"])


class TestNegatives:
    @pytest.fixture
    def source(self, records: list[Record]) -> ListSource:
        negatives = [RejectedRecord(**dict(make_record(index)), reject_reason="it is blank") for index in (20, 21, 22)]
        return ListSource(records, negatives)

    def test_they_are_left_out_unless_asked_for(self, tmp_path: Path, source: ListSource) -> None:
        assert list(packer.pack(source, tmp_path / "set").configs) == ["text_to_image", "text_and_image_to_image"]

    def test_they_have_configurations_of_their_own(self, tmp_path: Path, source: ListSource) -> None:
        packer.pack(source, tmp_path / "set", includes_negatives=True)
        rows = load_dataset(str(tmp_path / "set"), "text_to_image_negatives", split="train")
        assert rows["reject_reason"][:] == ["it is blank"] * 2
        assert "reject_reason" not in load_dataset(str(tmp_path / "set"), "text_to_image", split="train").features


class TestLightVariant:
    def test_pictures_are_smaller_and_the_row_says_how_large(self, tmp_path: Path) -> None:
        picture = Pillow.effect_noise((640, 320), 50).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        record = make_record(1).model_copy(
            update={
                "output_image": _file(buffer.getvalue()),
                "output_image_resolution": [640, 320],
                "output_sha256": None,
            }
        )
        encoding = ImageEncoding(max_side=64, format="webp", quality=90)
        pack([record], tmp_path / "set", encoding=encoding)
        [row] = _stored(tmp_path / "set", "text_and_image_to_image")
        stored = Pillow.open(io.BytesIO(row["output_image"]["bytes"]))
        assert (stored.format, stored.size) == ("WEBP", (64, 32))
        assert row["output_image"]["path"] == "picture.webp"
        assert row["output_image_resolution"] == [64, 32]
        assert row["input_image_resolution"] == [16, 16]  # never enlarged
        assert row["output_sha256"] == hashlib.sha256(row["output_image"]["bytes"]).hexdigest()
        assert row["id"] == record.id

    def test_the_same_input_gives_the_same_files(self, tmp_path: Path, records: list[Record]) -> None:
        encoding = ImageEncoding(max_side=8, format="webp", quality=80)
        pack(records, tmp_path / "one" / "set", encoding=encoding)
        pack(records, tmp_path / "two" / "set", encoding=encoding)
        assert _tree(tmp_path / "one") == _tree(tmp_path / "two")

    def test_jpeg_has_no_transparency_and_turned_photographs_stand_upright(self) -> None:
        clear = Pillow.new("RGBA", (4, 2), (255, 0, 0, 0))
        buffer = io.BytesIO()
        exif = Pillow.Exif()
        exif[0x0112] = 6  # turned by a quarter
        clear.save(buffer, "PNG", exif=exif)
        record = make_record(0).model_copy(update={"output_image": _file(buffer.getvalue())})
        light = lighten(record, ImageEncoding(None, "jpeg", 95))
        assert light.output_image_resolution == [2, 4]
        assert Pillow.open(io.BytesIO(light.output_image.bytes)).getpixel((0, 0)) == (255, 255, 255)

    def test_sixteen_bits_are_scaled_and_palettes_are_smoothed(self) -> None:
        gray = Pillow.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
        assert _lightened(gray, ImageEncoding(4, "png", None)).getpixel((0, 0)) == 128
        checkered = Pillow.fromarray((np.indices((8, 8)).sum(axis=0) % 2).astype(bool)).convert("P")
        assert abs(_lightened(checkered, ImageEncoding(4, "png", None)).getpixel((1, 1))[0] - 128) < 10

    def test_the_colour_profile_is_kept(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for image_format in ("png", "jpeg", "webp"):
            light = _lightened(Pillow.new("RGB", (8, 8)), ImageEncoding(4, image_format, None), icc_profile=profile)
            assert light.info["icc_profile"] == profile

    def test_what_a_light_variant_cannot_hold_is_kept_out(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        frames = [Pillow.new("L", (8, 8), value) for value in (0, 255)]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        wide = io.BytesIO()
        Pillow.new("L", (17_000, 1)).save(wide, "PNG")
        records = [_with_output(make_record(0), buffer, [8, 8]), _with_output(make_record(2), wide, [17_000, 1])]
        summary = pack([make_record(4), *records], tmp_path / "set", encoding=ImageEncoding(None, "webp", 90))
        assert summary.rejections == {
            "output_image is animated, and a light variant would keep its first frame only": 1,
            "output_image cannot be written as webp": 1,
        }

    def test_what_was_done_before_is_not_forgotten(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "one", encoding=ImageEncoding(8, "webp", 80))
        packer.pack(PackedSet(tmp_path / "one"), tmp_path / "two", encoding=ImageEncoding(None, "png", None))
        facts = PackedSet(tmp_path / "two").facts()
        assert facts.encoding == ImageEncoding(None, "png", None)
        assert "at most 8 pixels a side, stored as webp of quality 80" in facts.notes[0]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [((None, "gif", None), "--format gif is not known"), ((64, None, 90), "name one of them"),
         ((64, "png", 90), "name one of them")],
    )  # fmt: skip
    def test_options_that_do_not_fit_are_refused(self, options: tuple, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            check_encoding(*options)
        assert check_encoding(None, None, None) is None

    def test_a_packed_set_can_be_made_light(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set", splits={"test": 0.4})
        packer.pack(PackedSet(tmp_path / "set"), tmp_path / "light", encoding=ImageEncoding(8, "webp", 90))
        full, light = (load_dataset(str(tmp_path / name), "text_to_image") for name in ("set", "light"))
        assert {name: rows["id"][:] for name, rows in full.items()} == {
            name: rows["id"][:] for name, rows in light.items()
        }
        assert light["train"][0]["output_image"].size == (8, 8)


class TestPackedSet:
    def test_it_gives_the_records_that_were_packed(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set", row_group_bytes=5_000)
        packed = PackedSet(tmp_path / "set")
        assert [packed.load(plan) for plan in packed.plan()] == in_order(records)

    def test_packing_it_again_gives_the_same_shards(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "one" / "set")
        packer.pack(PackedSet(tmp_path / "one" / "set"), tmp_path / "two" / "set")
        shards = [{k: v for k, v in _tree(tmp_path / n).items() if "train-" in k} for n in ("one", "two")]
        assert shards[0] == shards[1]

    def test_what_was_kept_out_stays_listed(self, tmp_path: Path, records: list[Record]) -> None:
        records[3] = records[3].model_copy(update={"input_prompt": " "})
        pack(records, tmp_path / "one")
        summary = packer.pack(PackedSet(tmp_path / "one"), tmp_path / "two", encoding=ImageEncoding(8, "webp", 80))
        assert summary.rejections == {"input_prompt is empty": 1}
        [row] = pq.read_table(tmp_path / "two" / "rejections.parquet").to_pylist()
        assert (row["id"], row["location"]) == (records[3].id, "record 3")

    def test_it_is_not_packed_over_itself(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "set")
        before = _tree(tmp_path)
        with pytest.raises(UserError, match="holds what is packed"):
            packer.pack(PackedSet(tmp_path / "set"), tmp_path / "set", encoding=ImageEncoding(8, "webp", 80))
        assert _tree(tmp_path) == before

    def test_a_missing_file_is_no_smaller_set(self, tmp_path: Path) -> None:
        pack([make_record(2 * index) for index in range(6)], tmp_path / "set", **SHARDS_OF_TWO)
        (tmp_path / "set" / "text_to_image" / "train-00001-of-00003.parquet").unlink()
        with pytest.raises(UserError, match="lacks files of the split train"):
            PackedSet(tmp_path / "set")

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet file at all"])
    def test_a_damaged_file_is_one_sentence(self, tmp_path: Path, records: list[Record], content: bytes) -> None:
        pack(records, tmp_path / "set")
        (tmp_path / "set" / "text_and_image_to_image" / "train-00000-of-00001.parquet").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            PackedSet(tmp_path / "set")

    def test_a_damaged_row_is_kept_out(self, tmp_path: Path, records: list[Record]) -> None:
        pack(records, tmp_path / "one")
        path = tmp_path / "one" / "text_to_image" / "train-00000-of-00001.parquet"
        table = pq.read_table(path)
        rows = table.to_pylist()
        rows[0]["image_params"], rows[1]["output_image"]["bytes"], rows[2]["usage"] = "[1", None, "[1]"
        pq.write_table(table.from_pylist(rows, schema=table.schema), path)
        summary = packer.pack(PackedSet(tmp_path / "one"), tmp_path / "two")
        assert summary.configs["text_to_image"].num_rows == 3
        assert summary.rejections == {"a column has no valid value": 3}

    def test_a_folder_without_card_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is no data set"):
            PackedSet(tmp_path)


SHARDS_OF_TWO = {"shard_bytes": 8_000, "row_group_bytes": 2_900}


def in_order(records: Iterable[Record]) -> list[Record]:
    """Text-to-image rows first."""
    return sorted(records, key=lambda record: record.task == "text_and_image_to_image")


@contextmanager
def _stopped_pack(folder: Path, row: int) -> Iterator[None]:
    """A process that packs 12 records and stands still at one of them; killed at the end of the block."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from picture_records import ListSource, make_record
        from sharegpt4o_image.builders.packer import pack

        class Source(ListSource):
            def load(self, plan):
                if plan.locator == (int(sys.argv[2]),):
                    print("packing", flush=True)
                    time.sleep(60)
                return super().load(plan)

        source = Source(make_record(index) for index in range(12))
        pack(source, Path(sys.argv[1]), shard_bytes=8_000, row_group_bytes=2_900)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(folder), str(row)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"packing\n"
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def test_rows_that_changed_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    for prompt in ("a", "b"):  # same name, same counts, same sizes
        pack([make_record(0).model_copy(update={"input_prompt": prompt})], tmp_path / "set")
        rows = load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["input_prompt"][:] == [prompt]


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


class FailingSource(ListSource):
    """The last row cannot be read, for a reason that is not its own fault."""

    def load(self, plan: RowPlan) -> Record:
        if plan.locator == (len(self._records) - 1,):
            raise RuntimeError("the disk is gone")
        return super().load(plan)


def _with_output(record: Record, data: io.BytesIO, size: list[int]) -> Record:
    output = _file(data.getvalue())
    return record.model_copy(update={"output_image": output, "output_image_resolution": size, "output_sha256": None})


def _lightened(picture: Pillow.Image, encoding: ImageEncoding, **options: Any) -> Pillow.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    light = lighten(_with_output(make_record(0), buffer, [*picture.size]), encoding)
    return Pillow.open(io.BytesIO(light.output_image.bytes))


def _file(data: bytes) -> ImageFile:
    return ImageFile(bytes=data, path="picture.png")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import re, sys
        from pathlib import Path
        from picture_records import ListSource, make_record
        from sharegpt4o_image.builders.packer import pack
        from sharegpt4o_image.builders.row_source import RowPlan
        from sharegpt4o_image.schema import TASKS, content_id

        class Source(ListSource):
            def plan(self):
                for index in range(int(sys.argv[2])):
                    yield RowPlan(content_id(index=index), TASKS[index % 2], "", 3_000, "", (index,))

            def load(self, plan):
                return make_record(plan.locator[0])

        summary = pack(Source([]), Path(sys.argv[1]))
        assert sum(config.num_rows for config in summary.configs.values()) == int(sys.argv[2])
        print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    peaks = []
    for count in (2_000, 20_000):
        command = [sys.executable, "-c", script, str(tmp_path / str(count)), str(count)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks.append(int(result.stdout))
    assert peaks[1] < 1_000
    assert peaks[1] < peaks[0] + 150  # what the list of rows takes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_pictures(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import io, re, sys
        from pathlib import Path
        from PIL import Image
        from picture_records import ListSource, make_record
        from sharegpt4o_image.builders.packer import pack
        from sharegpt4o_image.schema import ImageFile

        buffer = io.BytesIO()
        Image.new("RGB", (8000, 7900)).save(buffer, "PNG")
        output = ImageFile(bytes=buffer.getvalue(), path="large.png")
        change = {"output_image": output, "output_image_resolution": [8000, 7900], "output_sha256": None}
        pack(ListSource(make_record(2 * index).model_copy(update=change) for index in range(12)), Path(sys.argv[1]))
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(result.stdout) < 1_000_000  # kB; a picture takes 190 MB when it is decoded
