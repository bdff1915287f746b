# SPDX-License-Identifier: Apache-2.0
"""`register`: the bare name loads from anywhere, only where it was asked for, and breaks loudly when it must."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from loopback_hub import LoopbackHub, environment
from picture_records import ListSource, make_record

import sharegpt4o_image
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.registration import NAME, register, unregister
from sharegpt4o_image.errors import UserError

CONFIGS = ["text_to_image", "text_and_image_to_image"]


def make_set(folder: Path, num_rows: int = 6) -> Path:
    pack(ListSource(make_record(index) for index in range(num_rows)), folder)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory that holds no data set; nothing stays registered."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield
    unregister()


def test_the_bare_name_loads_from_anywhere(tmp_path: Path) -> None:
    register(make_set(tmp_path / "data"))
    assert datasets.get_dataset_config_names(NAME) == CONFIGS
    assert datasets.get_dataset_default_config_name(NAME) == CONFIGS[0]
    assert datasets.get_dataset_split_names(NAME, CONFIGS[1]) == ["train"]
    assert datasets.load_dataset_builder(NAME).info.features["output_image"] == datasets.Image()
    for config in CONFIGS:
        rows = datasets.load_dataset(NAME, config, split="train")
        stream = datasets.load_dataset(NAME, config, split="train", streaming=True)
        assert len(rows) == 3
        assert [row["id"] for row in stream] == rows["id"][:]
    edits = datasets.load_dataset(
        NAME, CONFIGS[1], split="train", streaming=True, columns=["id"], filters=[("id", "==", make_record(3).id)]
    )
    assert list(edits) == [{"id": make_record(3).id}]


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    register(make_set(tmp_path / "data"))
    other = make_set(tmp_path / "other", num_rows=1)
    assert datasets.get_dataset_config_names(str(other)) == CONFIGS[:1]
    assert len(datasets.load_dataset(str(other), split="train")) == 1
    with pytest.raises((ConnectionError, FileNotFoundError)):
        datasets.load_dataset(f"{NAME}-2")


def test_registering_again_replaces_and_unregistering_undoes(tmp_path: Path) -> None:
    before = (datasets.load.dataset_module_factory, datasets.inspect.dataset_module_factory)
    register(make_set(tmp_path / "data"))
    register(str(make_set(tmp_path / "other", num_rows=1)))
    assert datasets.get_dataset_config_names(NAME) == CONFIGS[:1]
    unregister()
    assert (datasets.load.dataset_module_factory, datasets.inspect.dataset_module_factory) == before
    with pytest.raises((ConnectionError, FileNotFoundError)):
        datasets.load_dataset(NAME, cache_dir=str(tmp_path / "cache"))
    unregister()  # a second time is no fault


def test_a_relative_folder_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path / "elsewhere" / "data")
    register("data")
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    assert datasets.get_dataset_config_names(NAME) == CONFIGS


def test_it_goes_before_a_folder_of_that_name(tmp_path: Path) -> None:
    make_set(Path(NAME))
    register(make_set(tmp_path / "data", num_rows=1))
    assert datasets.get_dataset_config_names(NAME) == CONFIGS[:1]


@pytest.mark.parametrize("source", ["absent", "./absent", "/absent/folder", "a/b/c", Path("some/absent"), "../x", ""])
def test_what_is_neither_folder_nor_repository_is_refused(source: str | Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder|has no README\.md"):
        register(source)
    assert datasets.load.dataset_module_factory.__module__ == "datasets.load"


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no README\.md, so it is no finished data set"):
        register(tmp_path)


class TestDatasetsChanges:
    """`datasets` promises nothing about the two functions: what was checked when this was written, and the alarm."""

    def test_the_functions_are_where_they_were(self) -> None:
        for module in (datasets.load, datasets.inspect):
            assert module.dataset_module_factory is datasets.load.dataset_module_factory

    @pytest.mark.parametrize("module", [datasets.load, datasets.inspect])
    def test_a_function_that_is_gone(self, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(module, "dataset_module_factory")
        self._assert_refused(tmp_path)

    @pytest.mark.parametrize(
        ("module", "caller"),
        [
            (datasets.load, "load_dataset_builder"),
            (datasets.inspect, "get_dataset_config_names"),
            (datasets.inspect, "get_dataset_default_config_name"),
        ],
    )
    def test_a_function_that_is_no_longer_called(
        self, module: Any, caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, caller, lambda path: None)
        self._assert_refused(tmp_path)

    def test_a_function_that_takes_something_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.inspect, "dataset_module_factory", lambda request: None)
        self._assert_refused(tmp_path)

    def _assert_refused(self, tmp_path: Path) -> None:
        load_factory = getattr(datasets.load, "dataset_module_factory", None)
        with pytest.raises(UserError, match=r"no longer finds data sets by datasets\.\w+\.dataset_module_factory"):
            register(make_set(tmp_path / "data", num_rows=1))
        assert getattr(datasets.load, "dataset_module_factory", None) is load_factory  # nothing is half wrapped


def run(script: str, cwd: Path, **variables: str) -> str:
    """What a process of its own prints."""
    home = {"HF_HOME": str(cwd / "cache"), "PYTHONPATH": str(Path(sharegpt4o_image.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd,
        env=os.environ | home | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_worker_processes_load_it(tmp_path: Path) -> None:
    pack(ListSource(make_record(index) for index in range(0, 12, 2)), tmp_path / "data", shard_bytes=8_000)
    assert len(list((tmp_path / "data" / CONFIGS[0]).iterdir())) > 1
    script = f"""
        import sharegpt4o_image
        from datasets import load_dataset

        if __name__ == "__main__":
            sharegpt4o_image.register({str(tmp_path / "data")!r})
            rows = load_dataset("{NAME}", "text_to_image", split="train", num_proc=2)
            rows = rows.map(lambda row: {{"side": row["output_image"].size[0]}}, num_proc=2)
            print(*rows["id"][:], *rows["side"][:])
    """
    ids = [make_record(index).id for index in range(0, 12, 2)]
    assert run(script, tmp_path).split() == [*ids, *["16"] * 6]


def test_a_repository_on_the_hub(tmp_path: Path) -> None:
    make_set(tmp_path / "data")
    script = f"""
        import datasets, sharegpt4o_image
        sharegpt4o_image.register("owner/{NAME}")
        print(*datasets.get_dataset_config_names("{NAME}"))
        print(*datasets.load_dataset("{NAME}", "text_to_image", split="train")["id"][:])
        print(next(iter(datasets.load_dataset("{NAME}", split="train", streaming=True)))["id"])
    """
    with LoopbackHub() as hub:
        hub.serve_folder(f"owner/{NAME}", tmp_path / "data")
        lines = run(script, tmp_path, **environment(hub.endpoint, str(tmp_path / "home"))).splitlines()
    ids = [make_record(index).id for index in (0, 2, 4)]
    assert lines == [" ".join(CONFIGS), " ".join(ids), ids[0]]


def test_nothing_happens_on_import(tmp_path: Path) -> None:
    script = """
        import sys
        import sharegpt4o_image
        from sharegpt4o_image import register
        assert "datasets" not in sys.modules
        import datasets
        before = datasets.load.dataset_module_factory
        import sharegpt4o_image.builders.registration
        assert datasets.load.dataset_module_factory is before is datasets.inspect.dataset_module_factory
    """
    run(script, tmp_path)
