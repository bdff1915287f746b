# SPDX-License-Identifier: Apache-2.0
"""The whole import: a release in upstream's layout, some of it broken, becomes a packed set and its rejections."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from upstream_double import write_release

from sharegpt4o_image.builders.exporter import export_dataset
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.upstream_release import UpstreamRelease
from sharegpt4o_image.builders.verification import verify_dataset
from sharegpt4o_image.cli import main
from sharegpt4o_image.schema import TASKS, Record

KNOWN = {
    "id", "task", "input_prompt", "input_image", "output_image", "output_image_resolution", "input_image_resolution",
    "output_sha256", "output_phash", "origin",
}  # fmt: skip


def stored(folder: Path) -> list[dict]:
    return [
        row for task in TASKS for path in sorted((folder / task).iterdir()) for row in pq.read_table(path).to_pylist()
    ]


def pictures(row: dict) -> list[bytes]:
    return [image["bytes"] for image in [*row["input_image"], row["output_image"]]]


def test_every_good_row_is_there_byte_for_byte_and_every_bad_row_is_listed(tmp_path: Path) -> None:
    expected = write_release(tmp_path / "release", num_rows=2_000, num_parts=5, breaks=True)
    assert len(expected.good) + len(expected.bad) >= 2_000
    assert len(expected.bad) >= 20
    release = UpstreamRelease.open(tmp_path / "release", cache_dir=tmp_path / "cache")
    locations = {plan.id: plan.location for plan in release.plan()}
    pack(release, tmp_path / "set")

    rows = {locations[row["id"]]: row for row in stored(tmp_path / "set")}
    assert rows.keys() == expected.good.keys()
    for location, good in expected.good.items():
        row = rows[location]
        assert pictures(row) == good.pictures
        assert row["input_prompt"] == good.prompt
        assert row["output_image_resolution"] == good.sizes[-1]
        assert row["output_sha256"] == hashlib.sha256(good.pictures[-1]).hexdigest()
        assert row["origin"] == "upstream_release"
        assert {name for name in Record.model_fields if row[name] is not None} <= KNOWN

    rejections = {
        row["location"]: row["reason"] for row in pq.read_table(tmp_path / "set" / "rejections.parquet").to_pylist()
    }
    assert rejections.keys() == expected.bad.keys()
    for location, pattern in expected.bad.items():
        assert re.search(pattern, rejections[location]), location


def test_what_was_imported_is_sound(tmp_path: Path) -> None:
    write_release(tmp_path / "release", num_rows=40, breaks=True)
    pack(UpstreamRelease.open(tmp_path / "release", cache_dir=tmp_path / "cache"), tmp_path / "set")
    report = verify_dataset(tmp_path / "set")
    assert report.is_sound, report.to_json()


def test_an_export_in_upstreams_layout_can_be_imported_again(tmp_path: Path) -> None:
    write_release(tmp_path / "release", num_rows=40)
    pack(UpstreamRelease.open(tmp_path / "release", cache_dir=tmp_path / "cache"), tmp_path / "set")
    export_dataset(str(tmp_path / "set"), tmp_path / "export", "janus-json")
    pack(UpstreamRelease.open(tmp_path / "export", cache_dir=tmp_path / "cache"), tmp_path / "again")
    first, second = stored(tmp_path / "set"), stored(tmp_path / "again")
    assert [(row["input_prompt"], pictures(row)) for row in first] == [
        (row["input_prompt"], pictures(row)) for row in second
    ]


def test_the_verb_tells_a_release_from_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_release(tmp_path / "release", num_rows=30, breaks=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    arguments = ["pack", str(tmp_path / "release"), "-o", str(tmp_path / "set"), "--split", "test=0.3", "--json"]
    monkeypatch.setattr(sys, "argv", ["sharegpt4o-image", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    summary = json.loads(capsys.readouterr().out)
    assert sum(config["num_rows"] for config in summary["configs"].values()) == len(expected.good)
    assert sum(summary["rejections"].values()) == len(expected.bad)
    assert set(summary["configs"]["text_to_image"]["splits"]) == {"train", "test"}
