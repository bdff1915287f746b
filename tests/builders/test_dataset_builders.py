# SPDX-License-Identifier: Apache-2.0
"""The builder classes: a source becomes `datasets` rows, with the bytes that it holds."""

from pathlib import Path

import pytest
from datasets import Image
from picture_records import ListSource, make_record

from sharegpt4o_image.builders.dataset_builders import ShareGPT4oImage
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, ImageFile, published_features
from sharegpt4o_image.synthesis.run import synthesize


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    synthesize(path, limit=4)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_a_run_becomes_rows_with_the_bytes_of_the_teacher(run_dir: Path, tmp_path: Path, task: str) -> None:
    builder = ShareGPT4oImage(run_dir, config_name=task, cache_dir=str(tmp_path))
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert rows.features == published_features()
    source = RunSource(run_dir)
    given = [source.load(plan) for plan in source.plan() if plan.task == task]
    stored = rows.cast_column("output_image", Image(decode=False))
    assert stored["id"][:] == [record.id for record in given]
    assert [row["output_image"]["bytes"] for row in stored] == [record.output_image.bytes for record in given]
    assert stored[0]["image_params"] == given[0].image_params


def test_it_writes_parquet_with_several_processes(run_dir: Path, tmp_path: Path) -> None:
    builder = ShareGPT4oImage(run_dir, config_name=TASKS[0], cache_dir=str(tmp_path))
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet", num_proc=2)
    assert [path.suffix for path in (tmp_path / "out").glob("*.parquet")] == [".parquet"]


def test_a_row_that_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(ListSource([make_record(0), make_record(2)]), tmp_path / "set")
    import pyarrow.parquet as pq

    [path] = (tmp_path / "set" / "text_to_image").iterdir()
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["output_image"] = ImageFile(bytes=b"<html>", path="x.png").model_dump()
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    builder = ShareGPT4oImage(tmp_path / "set", config_name=TASKS[0], cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert builder.as_dataset(split="train")["id"][:] == [make_record(0).id]
    assert "output_image does not have the recorded sha256" in caplog.text


def test_new_rows_are_not_hidden_by_the_cache(tmp_path: Path) -> None:
    for count in (1, 2):
        pack(ListSource(make_record(2 * index) for index in range(count)), tmp_path / "set")
        builder = ShareGPT4oImage(tmp_path / "set", cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        assert builder.as_dataset(split="train").num_rows == count


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory, nor an upstream release, nor a packed set"):
        ShareGPT4oImage(tmp_path)
