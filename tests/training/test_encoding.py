# SPDX-License-Identifier: Apache-2.0
"""Codes are those of the pictures, made once, and none are used that do not belong to the rows."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.release_folder import read_release
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.builders.verification import verify_dataset
from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.training import encode_run
from sharegpt4o_image.training.code_store import COLUMNS, CodeStore, find_data_files, read_metadata
from sharegpt4o_image.training.encode_run import encode_dataset
from sharegpt4o_image.training.encoding import encode_images, load_training_rows, tokenizer_fingerprint
from sharegpt4o_image.training.training_rows import TrainingRows

MODEL = "tiny-janus-pro"
SHARD_BYTES = 16_000  # two or three rows
NUM_RECORDS = 24  # half of them edits, each of the picture of a text-to-image row


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(MODEL, "float32")[0]


@pytest.fixture
def processor():
    processor = load_checkpoint(MODEL, "float32")[1]
    processor.geometry = "center_crop"
    return processor


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    synthesize(folder, SynthesisConfig(), limit=NUM_RECORDS // 2)
    return folder


@pytest.fixture(scope="module")
def packed_once(finished_run, tmp_path_factory):
    """Both tasks in the splits train and validation, several files for each."""
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack(RunSource(finished_run), folder, splits={"validation": 0.3}, shard_bytes=SHARD_BYTES)
    return folder


@pytest.fixture
def packed(packed_once, tmp_path):
    return shutil.copytree(packed_once, tmp_path / "set")


@pytest.fixture(scope="module")
def encoded_once(packed_once, tmp_path_factory):
    folder = shutil.copytree(packed_once, tmp_path_factory.mktemp("encoded") / "set")
    encode_dataset(folder, MODEL)
    return folder


@pytest.fixture
def encoded(encoded_once, tmp_path):
    return shutil.copytree(encoded_once, tmp_path / "encoded")


def store_of(folder, model, processor):
    return CodeStore(folder, tokenizer_fingerprint(model, processor))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("codes/*/*/*")}


def edit_file(path, change):
    """Write a data file again with changed rows."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return changed


def rows_of(folder, model, processor, split="train", configs=TASKS):
    return load_training_rows(folder, configs, split, model, processor)


# ------------------------------------------------------------------ what is stored


def test_each_data_file_has_its_codes_beside_it(encoded, model, processor):
    store, files = store_of(encoded, model, processor), find_data_files(encoded)
    assert {file.split for file in files} == {"train", "validation"}
    assert {file.config for file in files} == set(TASKS)
    assert len(files) > 5
    assert {store.path_of(file) for file in files} == {p for p in (encoded / "codes").rglob("*") if p.is_file()}
    for file in files:
        rows, codes = pq.read_table(file.path).to_pylist(), pq.read_table(store.path_of(file))
        assert codes.schema.equals(pa.schema(list(COLUMNS.items())))
        for row, found in zip(rows, codes.to_pylist(), strict=True):
            pictures = [row["output_image"], *row["input_image"]]
            opened = [Image.open(io.BytesIO(picture["bytes"])) for picture in pictures]
            expected = [one.tolist() for one in encode_images(model, processor, opened)]
            assert found == {
                "id": row["id"],
                "target_sha256": row["output_sha256"],
                "target_codes": expected[0],
                "source_sha256": [hashlib.sha256(picture["bytes"]).hexdigest() for picture in row["input_image"]],
                "source_codes": expected[1:],
                "fault": None,
            }


def test_a_codes_file_says_what_it_was_made_from(encoded, model, processor):
    store, file = store_of(encoded, model, processor), find_data_files(encoded)[0]
    assert read_metadata(store.path_of(file)) == {
        "version": 1,
        **tokenizer_fingerprint(model, processor)._asdict(),
        "data_file": f"text_to_image/{file.path.name}",
        "data_file_bytes": file.path.stat().st_size,
    }
    assert store.folder.name == store.fingerprint.digest


def test_a_picture_is_encoded_once(packed):
    result = encode_dataset(packed, MODEL)
    assert (result.num_pictures_encoded, result.num_pictures_copied) == (NUM_RECORDS, NUM_RECORDS // 2)
    assert result.num_rows == NUM_RECORDS
    assert result.num_files_encoded == result.num_files == len(find_data_files(packed))


def test_the_batch_size_makes_no_difference(packed, encoded):
    encode_dataset(packed, MODEL, batch_size=3)
    assert tables(packed) == tables(encoded)


def tables(folder):
    return {path.relative_to(folder): pq.read_table(path) for path in sorted(folder.rglob("codes/*/*/*.parquet"))}


def test_two_processes_make_the_same_files(packed, encoded):
    seen = []
    result = encode_dataset(packed, MODEL, num_processes=2, on_progress=lambda *numbers: seen.append(numbers))
    assert tables(packed) == tables(encoded)
    assert result.num_files_encoded == len(find_data_files(packed))
    assert seen[-1] == (NUM_RECORDS, NUM_RECORDS)


# ------------------------------------------------------------------ going on


def test_a_second_run_does_nothing(encoded):
    before = stamps(encoded)
    result = encode_dataset(encoded, MODEL)
    assert (result.num_files_encoded, result.num_pictures_encoded, result.num_rows) == (0, 0, NUM_RECORDS)
    assert stamps(encoded) == before


def test_only_what_is_missing_or_void_is_done_again(encoded, model, processor):
    store, files = store_of(encoded, model, processor), find_data_files(encoded)
    before = stamps(encoded)
    missing, damaged, changed = files[0], files[1], files[-1]
    store.path_of(missing).unlink()
    store.path_of(damaged).write_bytes(b"PAR1 cut")
    edit_file(changed.path, lambda rows: rows[0].update(id="another"))
    result = encode_dataset(encoded, MODEL)
    after = stamps(encoded)
    assert result.num_files_encoded == 3
    redone = {store.path_of(file) for file in (missing, damaged, changed)}
    assert {path for path in before if after[path] != before[path]} == redone
    assert pq.read_table(store.path_of(changed))["id"][0].as_py() == "another"


ENCODE_AND_WAIT = """
import sys, time
from pathlib import Path
from sharegpt4o_image.training.encode_run import encode_dataset

def stop(done, total):
    if done == int(sys.argv[3]):
        print("waiting", flush=True)
        time.sleep(600)

encode_dataset(Path(sys.argv[1]), sys.argv[2], batch_size=1, on_progress=stop)
"""


def test_sigkill_costs_the_file_that_was_being_encoded(packed, encoded, model, processor):
    files = find_data_files(packed)
    num_rows = [pq.read_metadata(file.path).num_rows for file in files]
    command = [sys.executable, "-c", ENCODE_AND_WAIT, str(packed), MODEL, str(sum(num_rows[:2]) + num_rows[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.kill()
    assert process.returncode == -9
    store = store_of(packed, model, processor)
    done = [file for file in files if store.path_of(file).exists()]
    assert done == files[:2]
    before = stamps(packed)
    result = encode_dataset(packed, MODEL)
    assert result.num_files_encoded == len(files) - 2
    assert {path: stamps(packed)[path] for path in before} == before
    assert tables(packed) == tables(encoded)


@pytest.mark.slow
def test_two_runs_at_once_do_not_harm_each_other(packed, encoded):
    command = [sys.executable, "-c", ENCODE_AND_WAIT, str(packed), MODEL, "-1"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert tables(packed) == tables(encoded)
    assert not list(packed.rglob("*.tmp"))


def test_a_full_disk_leaves_whole_files_alone(packed, monkeypatch):
    fsync, written = os.fsync, []

    def fill_up(handle):
        written.append(handle)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(UserError, match=r"no space left for .*; free some and run the same command again"):
        encode_dataset(packed, MODEL)
    assert [path.suffix for path in packed.rglob("codes/*/*/*")] == [".parquet"] * 2


@pytest.mark.slow
def test_the_processes_of_a_killed_run_end_with_it(packed, encoded):
    main = "from sharegpt4o_image.cli import main; main()"
    command = [sys.executable, "-c", main, "encode", str(packed), "--num-processes", "2", "--batch-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any(packed.rglob("codes/*/*/*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    encode_dataset(packed, MODEL)
    assert tables(packed) == tables(encoded)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_finished_files_stay(packed, monkeypatch):
    monkeypatch.setattr(encode_run, "_encode_file", _kill_self)
    with pytest.raises(UserError, match=r"a process that encoded was killed.*smaller --batch-size"):
        encode_dataset(packed, MODEL, num_processes=2)


def _kill_self(file):
    os.kill(os.getpid(), 9)


# ------------------------------------------------------------------ broken pictures


def spoil_targets(rows):
    rows[0]["output_image"]["bytes"] = rows[2]["output_image"]["bytes"]
    rows[1]["output_image"] = None
    return {"other": rows[0]["id"], "missing": rows[1]["id"]}


def spoil_source(rows):
    rows[0]["input_image"][0]["bytes"] = b"no picture"
    return {"no picture": rows[0]["id"]}


@pytest.fixture
def broken(packed):
    """A data set with three broken pictures, and the ids of their rows."""
    texts, *_, edits = [file.path for file in find_data_files(packed) if file.split == "train"]
    return packed, edit_file(texts, spoil_targets) | edit_file(edits, spoil_source)


def test_rows_with_broken_pictures_have_no_codes_and_are_named(broken, model, processor):
    folder, ids = broken
    result = encode_dataset(folder, MODEL)
    reasons = {row["id"]: row["reason"] for row in result.skipped}
    assert reasons == {
        ids["other"]: "the output image is not the one that output_sha256 states",
        ids["missing"]: "the output image is not there",
        ids["no picture"]: "an input image is no picture, or a damaged one",
    }
    assert result.num_rows == NUM_RECORDS - 3
    again = encode_dataset(folder, MODEL)
    assert (again.num_files_encoded, again.skipped) == (0, result.skipped)
    store = store_of(folder, model, processor)
    for file in find_data_files(folder):
        for row in store.read(file, ["id", "target_codes", "source_codes"]).to_pylist():
            is_broken = row["id"] in ids.values()
            assert (row["target_codes"] is None, row["source_codes"] is None) == (is_broken, is_broken)


def test_a_truncated_picture_and_a_tiny_one_are_broken(packed, processor):
    path = find_data_files(packed)[0].path
    small = io.BytesIO()
    Image.new("RGB", (4, 4)).save(small, "PNG")

    def spoil(rows):
        rows[0]["output_image"]["bytes"] = rows[0]["output_image"]["bytes"][:-40]
        rows[1]["output_image"]["bytes"] = small.getvalue()
        for row in rows:
            row["output_sha256"] = None
        return rows[0]["id"], rows[1]["id"]

    ids = edit_file(path, spoil)
    skipped = {row["id"]: row["reason"] for row in encode_dataset(packed, MODEL).skipped}
    assert set(skipped) == set(ids)
    assert skipped[ids[0]].startswith("the output image cannot be read (")
    assert skipped[ids[1]] == "the output image has 4 x 4 pixels; at least 8 x 8 are needed."


def test_training_skips_them_by_name(broken, model, processor):
    folder, ids = broken
    encode_dataset(folder, MODEL)
    rows = TrainingRows(rows_of(folder, model, processor))
    samples = [rows[number] for number in range(len(rows))]
    assert {row["id"] for row in samples if row.get("is_blank")} == set(ids.values())
    assert all(row["skipped"] for row in samples if row.get("is_blank"))


# ------------------------------------------------------------------ rows for training


def test_rows_of_both_tasks_come_with_their_codes(encoded, model, processor):
    rows = rows_of(encoded, model, processor)
    assert rows.column_names == [
        "id", "task", "input_prompt", "input_image", "target_codes", "source_codes", "source_sha256",
    ]  # fmt: skip
    validation = rows_of(encoded, model, processor, "validation")
    assert len(rows) + len(validation) == NUM_RECORDS
    assert set(rows["task"]) == set(TASKS)
    packed_rows = {row["id"]: row for task in TASKS for row in load_dataset(str(encoded), task, split="train")}
    for row in rows:
        packed_row = packed_rows[row["id"]]
        assert row["target_codes"] == next(encode_images(model, processor, [packed_row["output_image"]])).tolist()
        assert row["input_prompt"] == packed_row["input_prompt"]
        assert len(row["source_codes"]) == len(row["source_sha256"]) == len(row["input_image"])
        for picture, sha256, codes in zip(row["input_image"], row["source_sha256"], row["source_codes"], strict=True):
            assert hashlib.sha256(picture["bytes"]).hexdigest() == sha256
            opened = Image.open(io.BytesIO(picture["bytes"]))
            assert codes == next(encode_images(model, processor, [opened])).tolist()
    assert not any(row.get("is_blank") for row in map(TrainingRows(rows).__getitem__, range(len(rows))))


def test_codes_stay_two_bytes_each(encoded, model, processor):
    rows = rows_of(encoded, model, processor)
    column = rows.data.column("target_codes")
    assert column.type == pa.list_(pa.uint16())
    assert column.nbytes <= len(rows) * (processor.num_image_tokens * 2 + 8) + 64


def test_one_configuration_alone(encoded, model, processor):
    assert set(rows_of(encoded, model, processor, configs=TASKS[:1])["task"]) == {"text_to_image"}


def remove_codes(folder, store, processor):
    shutil.rmtree(folder / "codes")


def ask_for_pad(folder, store, processor):
    processor.geometry = "pad"


def use_another_tokenizer(folder, store, processor):
    for path in sorted(folder.rglob("codes/*/*/*.parquet")):
        table = pq.read_table(path)
        metadata = {
            key: value.replace(store.fingerprint.weights.encode(), b"0" * 16)
            for key, value in table.schema.metadata.items()
        }
        pq.write_table(table.replace_schema_metadata(metadata), path)
    store.folder.rename(store.folder.with_name("0" * 16))


def remove_one(folder, store, processor):
    store.path_of(find_data_files(folder)[1]).unlink()


def change_ids(folder, store, processor):
    path = store.path_of(find_data_files(folder)[0])
    edit_file(path, lambda rows: rows.reverse())


def change_pictures(folder, store, processor):
    path = store.path_of(find_data_files(folder)[0])
    edit_file(path, lambda rows: rows[0].update(target_sha256="0" * 64))


def change_the_data(folder, store, processor):
    path = find_data_files(folder)[0].path
    pq.write_table(pq.read_table(path), path, compression="none")


def cut(folder, store, processor):
    path = store.path_of(find_data_files(folder)[0])
    path.write_bytes(path.read_bytes()[:-100])


UNUSABLE = {
    remove_codes: "has no codes; run `sharegpt4o-image encode .*encoded -m .*tiny-janus-pro --geometry center_crop`$",
    ask_for_pad: "has codes for the geometry center_crop, and pad is asked for; run .* or ask for the geometry of",
    use_another_tokenizer: "has codes that another image tokenizer made, or other settings of .*; run `share",
    remove_one: r"cannot be used \(there is no such file\); run `sharegpt4o-image encode",
    change_ids: r"cannot be used \(its ids are not those of text_to_image/train-00000",
    change_pictures: r"cannot be used \(text_to_image/train-00000.* has other pictures now\)",
    change_the_data: r"cannot be used \(it was made from another text_to_image/train-00000",
    cut: r"cannot be used \(it was made from another text_to_image/train-00000",
}


@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__)
def test_codes_that_do_not_fit_are_refused(encoded, model, processor, spoil):
    spoil(encoded, store_of(encoded, model, processor), processor)
    with pytest.raises(UserError, match=UNUSABLE[spoil]):
        rows_of(encoded, model, processor)


def test_a_split_that_there_is_not(encoded, model, processor):
    with pytest.raises(UserError, match="has no split test to train on, only train and validation; name one"):
        rows_of(encoded, model, processor, "test")


def test_no_folder_and_no_geometry(packed, model, processor):
    with pytest.raises(UserError, match="owner/name is no folder"):
        rows_of("owner/name", model, processor)
    with pytest.raises(UserError, match="there is no geometry 'stretch'; choose pad or center_crop"):
        encode_dataset(packed, MODEL, geometry="stretch")
    assert not (packed / "codes").exists()


def test_a_damaged_data_file_is_named(packed):
    path = find_data_files(packed)[0].path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00000.*cannot be read .*pack the data set again"):
        encode_dataset(packed, MODEL)


@pytest.mark.parametrize("name", ["id", "task", "input_prompt", "input_image", "output_image", "output_sha256"])
def test_a_missing_column_is_named_by_both_verbs(packed, model, processor, name):
    path = find_data_files(packed)[0].path
    pq.write_table(pq.read_table(path).drop_columns([name]), path)
    with pytest.raises(UserError, match=rf"parquet has no column {name}; `sharegpt4o-image pack` writes"):
        encode_dataset(packed, MODEL)
    with pytest.raises(UserError, match=rf"parquet has no column {name}; `sharegpt4o-image pack` writes"):
        rows_of(packed, model, processor)


# ------------------------------------------------------------------ beside the data set


def test_codes_do_not_disturb_the_data_set(encoded, packed_once):
    for task in TASKS:
        rows = load_dataset(str(encoded), task)
        assert {split: len(part) for split, part in rows.items()} == {
            split: len(part) for split, part in load_dataset(str(packed_once), task).items()
        }
    assert verify_dataset(encoded).is_sound
    assert read_release(encoded).left_out == ("codes",)


def test_packing_again_takes_the_codes_away(encoded, finished_run):
    pack(RunSource(finished_run), encoded)
    assert not (encoded / "codes").exists()
