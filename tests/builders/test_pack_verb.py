# SPDX-License-Identifier: Apache-2.0
"""The verb `pack` on a true run: result on stdout; on bad input one sentence and exit code 2."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sharegpt4o_image.cli import main
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    synthesize(run_dir, SynthesisConfig(), limit=3)
    return run_dir


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def _pack(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sharegpt4o-image", "pack", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def test_a_run_becomes_a_data_set(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pack(run_dir, "--json", monkeypatch=monkeypatch)
    summary = json.loads(capsys.readouterr().out)
    assert summary["out_dir"] == "sharegpt4o-image"
    assert {name: config["num_rows"] for name, config in summary["configs"].items()} == {
        "text_to_image": 3,
        "text_and_image_to_image": 3,
    }
    stored = pq.read_table("sharegpt4o-image/text_to_image/train-00000-of-00001.parquet").to_pylist()
    given = [record for record in iter_records(run_dir) if record.task == "text_to_image"]
    assert [row["output_image"] for row in stored] == [record.output_image.model_dump() for record in given]


def test_a_damaged_picture_is_kept_out_and_told(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = next(record for record in iter_records(run_dir) if record.task == "text_and_image_to_image")
    [blob] = (run_dir / "blobs").rglob(str(edit.output_sha256))
    blob.write_bytes(b"damaged")
    _pack(run_dir, "-o", "set", monkeypatch=monkeypatch)
    assert "1 row kept out, see set/rejections.parquet" in capsys.readouterr().out
    [row] = pq.read_table("set/rejections.parquet").to_pylist()
    assert (row["id"], row["reason"]) == (edit.id, "output_image does not have the recorded sha256")


def test_a_picture_that_is_gone_is_told_without_its_path(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = next(record for record in iter_records(run_dir) if record.task == "text_and_image_to_image")
    [blob] = (run_dir / "blobs").rglob(str(edit.output_sha256))
    blob.unlink()
    _pack(run_dir, "-o", "set", monkeypatch=monkeypatch)
    [row] = pq.read_table("set/rejections.parquet").to_pylist()
    assert (row["id"], row["reason"]) == (edit.id, "a picture is gone from the run")
    assert str(run_dir) not in str(row)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent",), "absent is not a run directory"),
        (("run", "-o", "run"), "holds something else"),
        (("run", "-o", "."), "cannot be replaced as a whole"),
    ],
)
def test_bad_input_is_one_sentence(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    before = _files(run_dir.parent)
    with pytest.raises(SystemExit) as end:
        _pack(*arguments, monkeypatch=monkeypatch)
    assert end.value.code == 2
    captured = capfd.readouterr()
    [line] = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert sentence in line
    assert captured.out == ""
    assert _files(run_dir.parent) == before


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, but for what SQLite keeps beside a journal that is read."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith("journal.sqlite-"))
