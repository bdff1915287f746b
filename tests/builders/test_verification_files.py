# SPDX-License-Identifier: Apache-2.0
"""`verify`: what is wrong with the card, the files, and what lies beside the rows."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_sets import EDITS, PICTURES, edit_card, failing, found, pack, pack_plain, record, restate, shard

from sharegpt4o_image.builders import packer
from sharegpt4o_image.builders.verification import verify_dataset
from sharegpt4o_image.builders.verification_report import VerificationReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack_plain(tmp_path / "set")


class TestFiles:
    def test_a_truncated_file(self, folder: Path) -> None:
        path = shard(folder)
        path.write_bytes(path.read_bytes()[:-100])
        report = verify_dataset(folder)
        assert failing(report) == {"schema"}, report.to_json()
        assert f"{PICTURES}/{path.name} cannot be read" in found(report, "schema").failures[0]
        assert report.num_rows_read == 6
        assert f"not compared: {PICTURES}/train" in str(found(report, "counts").note)

    def test_a_damaged_page(self, folder: Path) -> None:
        path = shard(folder)
        with pq.ParquetFile(path) as file:
            page = file.metadata.row_group(0).column(0).dictionary_page_offset
        data = bytearray(path.read_bytes())
        data[page : page + 8] = b"\xff" * 8
        path.write_bytes(data)
        report = verify_dataset(folder)
        assert "schema" in failing(report)
        assert f"{PICTURES}/{path.name} cannot be read after row 0" in found(report, "schema").failures[0]
        assert (report.num_rows, report.num_rows_read) == (12, 6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda table: pa.table({"a": [1]}), "lacks the columns id, task"),
            (lambda table: table.append_column("extra", pa.nulls(table.num_rows)), "has the columns extra"),
            (lambda table: table.select(table.column_names[::-1]), "has its columns in another order"),
            (lambda table: table.replace_schema_metadata({}), "does not tell `datasets`"),
            (lambda table: table.replace_schema_metadata({"huggingface": "{"}), "does not tell `datasets`"),
            (
                lambda table: table.set_column(
                    table.column_names.index("cost_usd"), "cost_usd", pa.nulls(6, "string")
                ),
                "has cost_usd as string, published is double",
            ),
        ],
    )
    def test_a_foreign_file(self, folder: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
        path = shard(folder)
        table = change(pq.read_table(path))
        restate(path, lambda: pq.write_table(table, path))
        report = verify_dataset(folder)
        assert failing(report) == {"schema"}, report.to_json()
        assert message in found(report, "schema").failures[0]

    @pytest.mark.parametrize(
        "name", ["train-00001-of-00002.parquet", "train-copy.parquet", "test-00000-of-00001.parquet"]
    )
    def test_a_file_that_is_left_over(self, folder: Path, name: str) -> None:
        path = shard(folder)
        (path.parent / name).write_bytes(path.read_bytes())
        assert "files" in failing(verify_dataset(folder))

    def test_a_file_that_is_missing(self, tmp_path: Path) -> None:
        pack([record(index) for index in range(0, 12, 2)], tmp_path / "set", shard_bytes=6_000)
        *_, last = sorted((tmp_path / "set" / PICTURES).iterdir())
        last.unlink()
        report = verify_dataset(tmp_path / "set")
        assert {"files", "counts"} <= failing(report)
        assert found(report, "files").failures == [f"{PICTURES}/{last.name} is missing"]

    def test_a_configuration_that_is_missing(self, folder: Path) -> None:
        shard(folder).unlink()
        report = verify_dataset(folder)
        assert failing(report) == {"files", "counts"}
        assert f"the card names {PICTURES}/train-*.parquet" in found(report, "files").failures[0]

    def test_files_of_others_are_a_warning(self, folder: Path) -> None:
        (folder / "notes.txt").touch()
        (folder / "docs").mkdir()
        (folder / ".gitattributes").touch()
        (folder / "codes").mkdir()
        (folder / "LICENSE").touch()
        report = verify_dataset(folder)
        assert report.is_sound
        assert found(report, "files").warnings == [
            f"{name} is no part of a data set that `pack` writes" for name in ("docs", "notes.txt")
        ]


class TestCard:
    def test_it_is_missing(self, folder: Path) -> None:
        (folder / "README.md").unlink()
        report = verify_dataset(folder)
        assert failing(report) == {"card"}
        assert report.num_rows_decoded == 12

    @pytest.mark.parametrize(
        "text",
        ["", "# no YAML", "---\na: [\n---\n", "---\n- 1\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs: [1]\n---\n",
         "---\nconfigs:\n- config_name: a\n---\n",
         "---\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: [b]}\n---\n",
         "---\ndataset_info:\n- {config_name: a, download_size: x, splits: []}\n---\n",
         "---\ndataset_info:\n- {config_name: a, splits: [{name: 1, num_examples: 1, num_bytes: 1}]}\n---\n",
         "---\n" + "[" * 3000 + "\n---\n", "---\ndataset_info: x\n---\n"],
    )  # fmt: skip
    def test_it_is_broken(self, folder: Path, text: str) -> None:
        (folder / "README.md").write_text(text)
        assert failing(verify_dataset(folder)) == {"card"}

    def test_it_states_other_columns(self, folder: Path) -> None:
        edit_card(folder, "  - name: license\n    dtype: string\n", "  - name: licence\n    dtype: string\n")
        assert failing(verify_dataset(folder)) == {"card"}

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("num_examples: 6", "num_examples: 7", "has 6 rows, dataset_info says 7"),
            ("dataset_size: ", "dataset_size: 1", "bytes, dataset_info says "),
            ("download_size: ", "download_size: 1", "bytes, dataset_info says "),
            (f"| `{PICTURES}` | `train` | 6 |", f"| `{PICTURES}` | `train` | 7 |", "has 6 rows, the table says 7"),
        ],
    )
    def test_it_states_other_counts(self, folder: Path, old: str, new: str, message: str) -> None:
        edit_card(folder, old, new)
        report = verify_dataset(folder)
        assert failing(report) == {"counts"}, report.to_json()
        assert message in found(report, "counts").failures[0]


class TestBesideTheRows:
    def test_a_row_that_was_kept_out_is_there(self, folder: Path) -> None:
        self._reject(folder, id=record(2).id, reason="blank")
        report = verify_dataset(folder)
        assert failing(report) == {"rejections"}
        assert f"{record(2).id} was kept out, but is {PICTURES}/" in found(report, "rejections").failures[0]

    def test_a_rejection_without_reason(self, folder: Path) -> None:
        self._reject(folder, id="a")
        assert failing(verify_dataset(folder)) == {"rejections"}

    def test_foreign_rejections(self, folder: Path) -> None:
        pq.write_table(pa.table({"a": [1]}), folder / "rejections.parquet")
        assert failing(verify_dataset(folder)) == {"rejections"}
        (folder / "rejections.parquet").write_bytes(b"PAR1")
        assert failing(verify_dataset(folder)) == {"rejections"}

    def _reject(self, folder: Path, **row: str) -> None:
        schema = packer.REJECTION_FEATURES.arrow_schema
        row = {name: row.get(name) for name in schema.names}
        pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / "rejections.parquet")

    @pytest.mark.parametrize(("name", "check"), [("croissant.json", "croissant"), ("card/source.json", "files")])
    def test_what_pack_writes_is_missing(self, tmp_path: Path, name: str, check: str) -> None:
        pack([record(0)], tmp_path / "set")
        assert {one.verdict for one in verify_dataset(tmp_path / "set").checks} <= {"ok", "skipped"}
        (tmp_path / "set" / name).unlink()
        report = verify_dataset(tmp_path / "set")
        assert report.is_sound
        assert found(report, check).verdict == "warning"
        assert found(report, check).warnings == [f"{name} is missing, which `pack` writes"]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"encoding": 3}'])
    def test_a_broken_source(self, folder: Path, text: str) -> None:
        (folder / "card" / "source.json").write_text(text)
        report = verify_dataset(folder)
        assert report.is_sound
        assert found(report, "files").warnings[0].startswith("card/source.json cannot be used: ")

    @pytest.fixture
    def described(self, folder: Path) -> Path:
        names = [f"{config}/{shard(folder, config).name}" for config in (PICTURES, EDITS)]
        self._describe(folder, [self._entry(folder, name) for name in names])
        return folder

    def _entry(self, folder: Path, name: str) -> dict[str, str]:
        data = (folder / name).read_bytes()
        return {"contentUrl": name, "contentSize": f"{len(data)} B", "sha256": hashlib.sha256(data).hexdigest()}

    def _describe(self, folder: Path, entries: list[Any]) -> None:
        (folder / "croissant.json").write_text(json.dumps({"distribution": entries}))

    def _change(self, folder: Path, **update: str) -> VerificationReport:
        [first, *others] = json.loads((folder / "croissant.json").read_text())["distribution"]
        self._describe(folder, [{**first, **update}, *others])
        return verify_dataset(folder)

    def test_a_croissant_file_that_fits(self, described: Path) -> None:
        report = verify_dataset(described)
        assert report.is_sound
        assert found(report, "croissant").num_checked == 2

    @pytest.mark.parametrize(
        "update",
        [{"sha256": "0" * 64}, {"contentSize": "7 B"}, {"contentUrl": "../README.md"},
         {"contentUrl": "absent.parquet"}, {"contentUrl": "https://a.example/b"}],
    )  # fmt: skip
    def test_a_croissant_file_that_does_not(self, described: Path, update: dict[str, str]) -> None:
        assert failing(self._change(described, **update)) == {"croissant"}

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"distribution": [1]}', "[" * 100_000])
    def test_no_croissant_file(self, folder: Path, text: str) -> None:
        (folder / "croissant.json").write_text(text)
        assert failing(verify_dataset(folder)) == {"croissant"}
