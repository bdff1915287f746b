# SPDX-License-Identifier: Apache-2.0
"""`verify`: a packed set is sound; each thing that is broken in turn is found by the check that is meant for it."""

import io
import json
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from packed_sets import (
    EDITS,
    PICTURES,
    Row,
    failing,
    found,
    pack,
    pack_plain,
    record,
    replace_output,
    rewrite,
    shard,
)
from picture_records import ListSource, make_record
from PIL import Image
from rich.console import Console

from sharegpt4o_image.builders import packer
from sharegpt4o_image.builders.row_source import ImageEncoding, SourceFacts
from sharegpt4o_image.builders.verification import verify_dataset
from sharegpt4o_image.builders.verification_report import MAX_EXAMPLES, VerificationReport
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, LabelledRecord, RejectedRecord
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack_plain(tmp_path / "set")


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims to have side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class TestSound:
    def test_a_packed_set_is_sound(self, tmp_path: Path) -> None:
        pack([record(index) for index in range(12)], tmp_path / "set", splits={"test": 0.3})
        report = verify_dataset(tmp_path / "set")
        assert report.is_sound, report.to_json()
        assert (report.num_rows, report.num_rows_read, report.num_rows_decoded) == (12, 12, 12)
        assert found(report, "pictures").num_checked == 18  # six edits have a source, too
        assert found(report, "croissant").num_checked >= 4  # two configurations, two splits
        assert {check.verdict for check in report.checks} <= {"ok", "skipped"}
        assert [check.name for check in report.checks if check.verdict == "skipped"] == ["rejections"]

    def test_negatives_and_rejections_belong_to_it(self, tmp_path: Path) -> None:
        refused = RejectedRecord(**dict(record(20)), reject_reason="blank")
        records = [record(0), record(1), record(1), record(3, output_image_resolution=[1, 1])]
        pack(records, tmp_path / "set", negatives=[refused], includes_negatives=True)
        report = verify_dataset(tmp_path / "set")
        assert report.is_sound, report.to_json()
        assert report.num_rows == 3
        assert found(report, "rejections").num_checked == 2  # the repeated id is that of a row, rightly

    def test_so_are_sets_of_negatives_or_labelled_rows(self, tmp_path: Path) -> None:
        refused = RejectedRecord(**dict(record(0)), reject_reason="blank")
        labelled = LabelledRecord(**dict(record(0)), label_model="m", label_style="plein air")
        for name, row in (("refused", refused), ("labelled", labelled)):
            pack([row], tmp_path / name, row=type(row))
            report = verify_dataset(tmp_path / name)
            assert report.is_sound, report.to_json()

    def test_so_is_a_light_variant(self, tmp_path: Path) -> None:
        pack([record(index) for index in range(4)], tmp_path / "set", encoding=ImageEncoding(8, "webp", 80))
        report = verify_dataset(tmp_path / "set")
        assert report.is_sound, report.to_json()
        assert "perceptual hashes are not compared" in str(found(report, "checksums").note)

    def test_what_the_card_says_of_a_light_variant_is_not_asked(self, folder: Path) -> None:
        with (folder / "README.md").open("a") as file:
            file.write("\n**This is a light variant of another set**\n")
        rewrite(shard(folder), lambda rows: rows[4].update(output_phash="0" * 16))
        assert failing(verify_dataset(folder)) == {"checksums"}

    def test_a_repeated_picture_is_only_a_warning(self, folder: Path) -> None:
        def repeat(rows: list[Row]) -> None:
            for name in ("output_image", "output_sha256", "output_phash"):
                rows[1][name] = rows[0][name]

        rewrite(shard(folder), repeat)
        report = verify_dataset(folder)
        assert report.is_sound, report.to_json()
        name = f"{PICTURES}/{shard(folder).name}"
        assert found(report, "duplicates").verdict == "warning"
        assert found(report, "duplicates").warnings == [f"{name}, row 1: output_image is also that of {name}, row 0"]

    def test_a_negative_may_repeat_a_row(self, tmp_path: Path) -> None:
        copy = {name: getattr(record(0), name) for name in ("output_image", "output_sha256", "output_phash")}
        refused = RejectedRecord(**{**dict(record(20)), **copy}, reject_reason="duplicate")
        pack([record(0)], tmp_path / "set", negatives=[refused], includes_negatives=True)
        report = verify_dataset(tmp_path / "set")
        assert report.is_sound
        assert found(report, "duplicates").verdict == "ok"


def _cut(row: Row) -> None:
    replace_output(row, row["output_image"]["bytes"][:-40])


def _cut_source(row: Row) -> None:
    row["input_image"][0]["bytes"] = row["input_image"][0]["bytes"][:-40]


ROW_FAULTS: list[tuple[str, str, str, Callable[[Row], object]]] = [
    ("checksums", PICTURES, "does not have the recorded sha256", lambda row: row.update(output_sha256="0" * 64)),
    ("checksums", PICTURES, "output_phash is 0000000000000000", lambda row: row.update(output_phash="0" * 16)),
    ("pictures", PICTURES, "output_image does not have the recorded size: it is 16x16, not 16x8",
     lambda row: row.update(output_image_resolution=[16, 8])),
    ("pictures", EDITS, "input_image does not have the recorded size: it is 16x16, not 8x16",
     lambda row: row.update(input_image_resolution=[8, 16])),
    ("pictures", PICTURES, "output_image is unreadable: ", _cut),
    ("pictures", EDITS, "input_image is unreadable: ", _cut_source),
    ("pictures", PICTURES, "output_image is unreadable: not a picture", lambda row: replace_output(row, b"<html>")),
    ("pictures", PICTURES, "70000x70000 are more than|bomb", lambda row: replace_output(row, bomb(70_000))),
    ("pictures", PICTURES, "9000x9000 are more than", lambda row: replace_output(row, bomb(9_000))),
    ("pictures", PICTURES, "is not embedded", lambda row: replace_output(row, None)),
    ("ids", PICTURES, "'7' is not 20 hexadecimal digits", lambda row: row.update(id="7")),
    ("ids", PICTURES, "is also that of text_and_image_to_image", lambda row: row.update(id=record(1).id)),
    ("rows", PICTURES, "task: Input should be", lambda row: row.update(task="edit")),
    ("rows", PICTURES, "the task is text_and_image_to_image, which",
     lambda row: row.update(task=EDITS, input_image=[row["output_image"]])),
    ("rows", PICTURES, "input_prompt is empty", lambda row: row.update(input_prompt=" ")),
    ("rows", PICTURES, "origin: Input should be", lambda row: row.update(origin=None)),
    ("rows", PICTURES, "pipeline: Input should be", lambda row: row.update(pipeline="mine")),
    ("rows", PICTURES, "usage is no JSON", lambda row: row.update(usage="{")),
    ("rows", PICTURES, "image_params: Input should be a valid dict", lambda row: row.update(image_params="[]")),
    ("categories", PICTURES, "style 'cubist' is not in the taxonomy", lambda row: row.update(style="cubist")),
    ("categories", EDITS, "edit_category 'Object' is not", lambda row: row.update(edit_category="Object")),
    ("categories", EDITS, "'from pose' does not belong to 'image", lambda row: row.update(edit_task="from pose")),
    ("sources", EDITS, "input_image is missing", lambda row: row.update(input_image=[], input_image_resolution=None)),
    ("sources", PICTURES, "input_image is given", lambda row: row.update(input_image=[row["output_image"]])),
    ("sources", EDITS, "names 2 sources, input_image holds 1", lambda row: row.update(source_id="a; b")),
    ("sources", EDITS, "is not the output_image of text_to_image", lambda row: row.update(source_id=record(0).id)),
    ("sources", PICTURES, "0af is neither a row nor a photograph",
     lambda row: row.update(source_id="0af", source_origin="synthesized")),
]  # fmt: skip


class TestRows:
    @pytest.mark.parametrize(("name", "config", "message", "change"), ROW_FAULTS)
    def test_a_fault_is_found(
        self, folder: Path, name: str, config: str, message: str, change: Callable[[Row], object]
    ) -> None:
        rewrite(shard(folder, config), lambda rows: change(rows[4]))
        report = verify_dataset(folder)
        assert failing(report) == {name}, report.to_json()
        check = found(report, name)
        assert check.num_failures == 1
        assert check.failures[0].startswith(f"{config}/{shard(folder, config).name}, row 4: ")
        assert any(part in check.failures[0] for part in message.split("|")), check.failures[0]

    def test_the_source_may_be_a_photograph_or_a_row(self, folder: Path) -> None:
        source = record(0)

        def name_them(rows: list[Row]) -> None:
            rows[0].update(source_id="0af", source_origin="synthesized")  # a picture that this set does not have
            rows[1].update(source_id=source.id, source_origin="synthesized")
            rows[1]["input_image"][0]["bytes"] = source.output_image.bytes

        rewrite(shard(folder, EDITS), name_them)
        rewrite(shard(folder), lambda rows: rows[2].update(source_id="0af", source_origin="https://photo.example; 7"))
        report = verify_dataset(folder)
        assert report.is_sound, report.to_json()

    def test_labels_are_words_of_the_taxonomy(self, tmp_path: Path) -> None:
        row = LabelledRecord(**dict(record(0)), label_edit_task="from pose", label_lighting="moon dust")
        pack([row], tmp_path / "set", row=LabelledRecord)
        report = verify_dataset(tmp_path / "set")
        assert failing(report) == {"categories"}
        assert "label_lighting 'moon dust'" in found(report, "categories").failures[0]

    def test_another_taxonomy_may_be_given(self, folder: Path, tmp_path: Path) -> None:
        rewrite(shard(folder), lambda rows: rows[0].update(style="outline style"))
        assert failing(verify_dataset(folder)) == {"categories"}
        assert verify_dataset(folder, taxonomy="offline").is_sound

    def test_examples_are_few_and_words_are_named_once(self, folder: Path) -> None:
        def spoil(rows: list[Row]) -> None:
            for index, row in enumerate(rows):
                row.update(output_sha256=f"{index:064x}", style="cubist")

        rewrite(shard(folder), spoil)
        report = verify_dataset(folder)
        assert (found(report, "checksums").num_failures, len(found(report, "checksums").failures)) == (6, MAX_EXAMPLES)
        assert (found(report, "categories").num_failures, len(found(report, "categories").failures)) == (6, 1)


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A set with two splits that share nothing."""
    pack([record(index) for index in range(24)], tmp_path / "set", splits={"test": 0.4})
    (tmp_path / "set" / "croissant.json").unlink(missing_ok=True)
    assert verify_dataset(tmp_path / "set").is_sound
    return tmp_path / "set"


class TestSplits:
    def test_an_output_in_two_splits(self, parted: Path) -> None:
        self._leak(parted, PICTURES, lambda row, given: row.update(given, id=row["id"]))

    def test_a_source_in_two_splits(self, parted: Path) -> None:
        self._leak(parted, EDITS, lambda row, given: row.update(input_image=given["input_image"]))

    def test_an_output_that_is_a_source_elsewhere(self, parted: Path) -> None:
        self._leak(parted, EDITS, lambda row, given: row.update(input_image=[given["output_image"]]))

    def _leak(self, folder: Path, config: str, change: Callable[[Row, Row], object]) -> None:
        [given, *_] = pq.read_table(shard(folder, config, "test")).to_pylist()
        rewrite(shard(folder, config, "train"), lambda rows: change(rows[0], given))
        report = verify_dataset(folder)
        assert failing(report) == {"splits"}, report.to_json()
        assert found(report, "splits").num_failures == 1
        assert "is also in another split" in found(report, "splits").failures[0]

    def test_a_source_that_a_row_of_another_split_is(self, parted: Path) -> None:
        [given, *_] = pq.read_table(shard(parted, PICTURES, "test")).to_pylist()
        rewrite(shard(parted, EDITS), lambda rows: rows[0].update(source_id=given["id"], source_origin="synthesized"))
        for sample in (None, 1):
            report = verify_dataset(parted, sample=sample)
            assert "its source is in another split" in found(report, "splits").failures[0]


class TestSample:
    def test_faults_of_pictures_are_found_where_they_were_drawn(self, folder: Path) -> None:
        rewrite(shard(folder), lambda rows: [_cut(row) for row in rows])
        found_in = {seed: failing(verify_dataset(folder, sample=1, seed=seed)) for seed in range(12)}
        assert {frozenset(names) for names in found_in.values()} == {frozenset(), frozenset({"pictures"})}
        assert failing(verify_dataset(folder, sample=12)) == {"pictures"}
        assert found(verify_dataset(folder, sample=12), "pictures").num_failures == 6

    def test_the_same_seed_draws_the_same_rows(self, folder: Path) -> None:
        rewrite(shard(folder), lambda rows: [_cut(row) for row in rows])
        reports = [verify_dataset(folder, sample=5, seed=3).to_json() for _ in range(2)]
        assert reports[0] == reports[1]

    def test_faults_of_values_are_found_everywhere(self, folder: Path) -> None:
        def spoil(rows: list[Row]) -> None:
            rows[0].update(id=rows[1]["id"], style="cubist", task="edit")
            rows[2].update(source_id="0af")
            for name in ("output_image", "output_sha256"):
                rows[3][name] = rows[4][name]

        rewrite(shard(folder), spoil)
        report = verify_dataset(folder, sample=1, seed=0)
        assert {"ids", "categories", "rows", "sources"} <= failing(report)
        assert found(report, "duplicates").num_warnings == 1  # as the recorded sha256 says
        assert (report.num_rows_read, report.num_rows_decoded) == (12, 1)

    def test_bytes_of_other_row_groups_are_not_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for config in (PICTURES, EDITS):
            rewrite(shard(folder, config), lambda rows: None)  # row groups of two rows
        groups: list[tuple[list[int], bool]] = []
        read = pq.ParquetFile.iter_batches

        def spy(self: pq.ParquetFile, rows: int, row_groups: list[int], columns: list[str] | None) -> Any:
            groups.append((row_groups, columns is None or any(name.endswith(".bytes") for name in columns)))
            return read(self, rows, row_groups, columns)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
        verify_dataset(folder, sample=1)
        assert [has_bytes for _, has_bytes in groups].count(True) == 1
        assert len(groups) == 6

    def test_whole_files_are_not_read_for_their_sha256(self, tmp_path: Path) -> None:
        pack([record(0)], tmp_path / "set")
        path = shard(tmp_path / "set")
        entry = {"contentUrl": f"{PICTURES}/{path.name}", "contentSize": str(path.stat().st_size), "sha256": "0"}
        (tmp_path / "set" / "croissant.json").write_text(json.dumps({"distribution": [entry]}))
        report = verify_dataset(tmp_path / "set", sample=1)
        assert report.is_sound
        assert "sizes only" in str(found(report, "croissant").note)


class TestReport:
    def test_json_has_all_checks(self, folder: Path) -> None:
        rewrite(shard(folder), lambda rows: rows[0].update(style="cubist"))
        report = json.loads(verify_dataset(folder, sample=3).to_json())
        assert (report["is_sound"], report["rows"], report["rows_read"], report["rows_decoded"]) == (False, 12, 12, 3)
        [check] = [check for check in report["checks"] if check["verdict"] == "failure"]
        assert (check["name"], check["failures"], check["checked"]) == ("categories", 1, 12)
        assert check["examples"] == [
            f"{PICTURES}/{shard(folder).name}, row 0: style 'cubist' is not in the taxonomy paper"
        ]

    def test_the_table_says_what_was_looked_at(self, folder: Path) -> None:
        text = shown(verify_dataset(folder, sample=3))
        assert "nothing is wrong; 12 rows, values of 12 checked, pictures of 3 (25.0%) decoded" in text
        assert "ok" in text

    def test_text_of_rows_is_neither_markup_nor_control_codes(self, folder: Path) -> None:
        rewrite(shard(folder), lambda rows: rows[0].update(id="[red]\x1b[2J\u202e\nx" + "y" * 1000))
        text = shown(verify_dataset(folder))
        assert "[red]" in text
        assert not {"\x1b", "\u202e"} & {*text}
        assert text.count("y") < 400

    def test_progress_counts_rows(self, folder: Path) -> None:
        calls: list[tuple[int, int]] = []
        verify_dataset(folder, on_progress=lambda done, total: calls.append((done, total)))
        assert calls == [(done, 12) for done in range(1, 13)]


def shown(report: VerificationReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report.to_table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestRefusals:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no folder .*absent; give one that `pack` wrote, or download"):
            verify_dataset(tmp_path / "absent")

    def test_no_data_files(self, tmp_path: Path) -> None:
        (tmp_path / "text_to_image").mkdir()
        with pytest.raises(UserError, match="holds no data files"):
            verify_dataset(tmp_path)

    def test_no_taxonomy(self, folder: Path) -> None:
        with pytest.raises(UserError, match="there is no taxonomy 'absent'"):
            verify_dataset(folder, taxonomy="absent")


def measure_peak(folder: Path, num_rows: int) -> int:
    """MiB that a process takes which verifies a sound set."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sharegpt4o_image.builders.verification import verify_dataset

        report = verify_dataset(Path(sys.argv[1]))
        assert report.is_sound and report.num_rows_decoded == int(sys.argv[2])
        # not `ru_maxrss`, which starts with that of the process that started this one
        [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print(int(peak) // 1024)
    """)
    command = [sys.executable, "-c", script, str(folder), str(num_rows)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        pack((record(index) for index in range(count)), tmp_path / str(count))
        peaks.append(measure_peak(tmp_path / str(count), count))
    # 18,000 rows more are 6 MB at 300 bytes each; 32 MiB is a row group, which the small set does not fill
    assert peaks[1] < peaks[0] + 6 + 3 * 32
    assert peaks[1] < 400


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    """Eight threads would hold eight pictures of 72 MiB each."""
    buffer = io.BytesIO()
    Image.new("RGB", (5_000, 5_000)).save(buffer, "PNG", compress_level=1)
    update = {"output_image": ImageFile(bytes=buffer.getvalue(), path="0.png"), "output_sha256": None}
    update |= {"output_image_resolution": [5_000, 5_000], "output_phash": "0" * 16}
    pack([record(2 * index, **update) for index in range(8)], tmp_path / "large")
    pack([record(2 * index) for index in range(8)], tmp_path / "small")
    assert measure_peak(tmp_path / "large", 8) < measure_peak(tmp_path / "small", 8) + 3 * 72


def test_labels_are_held_against_the_words_of_the_run_that_gave_them(tmp_path: Path) -> None:
    class Source(ListSource):
        def facts(self) -> SourceFacts:
            return SourceFacts("run", "x", taxonomy="offline", labelling=SourceFacts("run", "y", taxonomy="paper"))

    word = load_taxonomy("paper").column_words["style"][0]
    labelled = LabelledRecord(**dict(make_record(0)), label_style=word, label_model="m")
    packer.pack(Source([labelled], row=LabelledRecord), tmp_path / "set")
    assert verify_dataset(tmp_path / "set").is_sound
    assert not verify_dataset(tmp_path / "set", taxonomy="offline").is_sound
