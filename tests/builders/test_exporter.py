# SPDX-License-Identifier: Apache-2.0
"""`export_dataset`: every layout holds the stored bytes, loads where it is meant to, and says what it left out."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, List, Value, load_dataset
from loopback_hub import LoopbackHub, environment
from picture_records import ListSource, make_record, png
from PIL import Image as Pillow
from pyarrow import concat_tables

from sharegpt4o_image.builders.export_layouts import WebDataset
from sharegpt4o_image.builders.export_rows import RowRefused, read_row
from sharegpt4o_image.builders.exporter import LAYOUTS, export_dataset
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.upstream_release import UpstreamRelease
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record, RejectedRecord, published_features

RECORDS = [make_record(index) for index in range(10)]
EDITS = RECORDS[1::2]
PLAIN = RECORDS[0::2]


def _pack(folder: Path, records: list[Record], negatives: list[RejectedRecord] | None = None, **splits: float) -> Path:
    pack(ListSource(records, negatives or []), folder, splits=splits, includes_negatives=bool(negatives))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _pack(tmp_path_factory.mktemp("sets") / "set", RECORDS)


def _with(record: Record, **update: object) -> Record:
    return record.model_copy(update=update)


def _with_picture(record: Record, data: bytes) -> Record:
    image = ImageFile(bytes=data, path="1.png")
    return _with(record, output_image=image, output_sha256=hashlib.sha256(data).hexdigest())


def _encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.open(io.BytesIO(png(77))).save(buffer, image_format)
    return buffer.getvalue()


def _pictures(record: Record) -> list[bytes]:
    return [record.output_image.bytes, *(image.bytes for image in record.input_image)]


def _members(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all members of all tar files."""
    members = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    return members


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------- all layouts


@pytest.mark.parametrize("to", LAYOUTS)
def test_every_layout_holds_the_stored_bytes(dataset: Path, tmp_path: Path, to: str) -> None:
    seen = []
    summary = export_dataset(dataset, tmp_path / "out", to, on_progress=lambda done, total: seen.append((done, total)))
    files = _tree(tmp_path / "out") | _members(tmp_path / "out")
    written = Counter(data for name, data in files.items() if name.endswith(".png"))
    assert written == Counter(picture for record in RECORDS for picture in _pictures(record))
    assert (summary.rows, summary.num_pictures) == ({"text_to_image": 5, "text_and_image_to_image": 5}, 15)
    assert summary.num_bytes == sum(len(picture) * count for picture, count in written.items())
    assert not summary.skipped
    assert "skipped.jsonl" not in files
    assert seen == [(done, 10) for done in range(1, 11)]
    assert json.loads(summary.to_json())["rows"] == summary.rows


@pytest.mark.parametrize("to", LAYOUTS)
def test_the_same_rows_give_the_same_files(dataset: Path, tmp_path: Path, to: str) -> None:
    export_dataset(dataset, tmp_path / "out", to)
    first = _tree(tmp_path / "out")
    export_dataset(dataset, tmp_path / "out", to)  # takes the place of the first
    assert _tree(tmp_path / "out") == first
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("image_format", "extension"), [("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_the_extension_is_that_of_the_true_format(tmp_path: Path, image_format: str, extension: str) -> None:
    data = _encoded(image_format)
    _pack(tmp_path / "set", [_with_picture(PLAIN[0], data)])
    for to in LAYOUTS:
        export_dataset(tmp_path / "set", tmp_path / to, to)
        files = _tree(tmp_path / to) | _members(tmp_path / to)
        assert [name.rpartition(".")[2] for name, content in files.items() if content == data] == [extension]


def test_limit_config_and_split_choose_rows(tmp_path: Path) -> None:
    records = [make_record(index) for index in range(40)]
    _pack(tmp_path / "set", records, validation=0.3)
    whole = export_dataset(tmp_path / "set", tmp_path / "a", "messages", split="validation")
    assert 0 < sum(whole.rows.values()) < 40
    one = export_dataset(
        tmp_path / "set", tmp_path / "b", "messages", config="text_and_image_to_image", split="validation", limit=2
    )
    assert one.rows == {"text_and_image_to_image": 2}
    train = export_dataset(tmp_path / "set", tmp_path / "c", "messages")
    ids = [json.loads(line)["id"] for name in "ac" for line in (tmp_path / name / "messages.jsonl").open()]
    assert sorted(ids) == sorted(record.id for record in records)
    assert sum(train.rows.values()) + sum(whole.rows.values()) == 40


def test_negatives_are_exported_only_by_name(tmp_path: Path) -> None:
    negative = RejectedRecord(**make_record(11).model_dump(), reject_reason="the edit changed nothing")
    _pack(tmp_path / "set", EDITS, [negative])
    assert list(export_dataset(tmp_path / "set", tmp_path / "a", "imagefolder").rows) == ["text_and_image_to_image"]
    config = "text_and_image_to_image_negatives"
    assert export_dataset(tmp_path / "set", tmp_path / "b", "imagefolder", config=config).rows == {config: 1}
    [row] = load_dataset(str(tmp_path / "b"), config, split="train")
    assert (row["id"], row["reject_reason"]) == (negative.id, "the edit changed nothing")


@pytest.mark.parametrize("to", LAYOUTS)
def test_readmes_tell_origin_and_licence(tmp_path: Path, to: str) -> None:
    _pack(tmp_path / "set*<b>", [_with(record, license="cc-by-4.0") for record in RECORDS[:3]])
    export_dataset(tmp_path / "set*<b>", tmp_path / "out", to)
    text = (tmp_path / "out/README.md").read_text()
    assert "| `synthesized` | `cc-by-4.0` | 3 |" in text
    assert "license: cc-by-4.0\n" in text.split("---")[1]
    assert f"# set&#42;&#60;b&#62; as {to}" in text
    assert "Its card says which models made the rows" in text
    assert ("```python" in text) == ("\nfrom datasets import" in text)


def test_licences_go_with_the_rows(tmp_path: Path) -> None:
    _pack(tmp_path / "set", [_with(PLAIN[0], license="cc-by-4.0"), PLAIN[1]])
    for to in ("janus-json", "messages"):
        export_dataset(tmp_path / "set", tmp_path / to, to)
    rows = json.loads((tmp_path / "janus-json/text_to_image.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "messages/messages.jsonl").open()]
    assert [row.get("license", "-") for row in rows] == ["cc-by-4.0", "-"]
    assert [line.get("license", "-") for line in lines] == ["cc-by-4.0", "-"]
    readme = (tmp_path / "messages/README.md").read_text()
    assert "license:" not in readme
    assert "| `synthesized` | none stated | 1 |" in readme


def test_an_id_that_occurs_twice_is_exported_once_and_told(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", PLAIN)
    [shard] = (folder / "text_to_image").glob("*.parquet")
    table = pq.read_table(shard)
    pq.write_table(concat_tables([table, table.slice(0, 1)]), shard)
    for to in LAYOUTS:
        summary = export_dataset(folder, tmp_path / to, to)
        assert (summary.rows, summary.skipped) == ({"text_to_image": 5}, {"id occurs twice": 1})


def test_a_set_on_the_hub_is_exported(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "local", "webdataset")
    code = f"""from pathlib import Path
from sharegpt4o_image.builders.exporter import export_dataset
print(export_dataset("owner/set", Path({str(tmp_path / "remote")!r}), "webdataset").to_json())"""
    with LoopbackHub() as hub:
        hub.serve_folder("owner/set", dataset)
        variables = os.environ | environment(hub.endpoint, str(tmp_path / "home"))
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_pictures"] == 15
    assert _tree(tmp_path / "remote") == _tree(tmp_path / "local")


# --------------------------------------------------------------------------- janus-json


def test_janus_json_is_imported_again(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "janus-json")
    source = UpstreamRelease.open(tmp_path / "out", tmp_path / "cache")
    records = [source.load(plan) for plan in source.plan()]
    source.close()
    assert [record.input_prompt for record in records] == [record.input_prompt for record in (*PLAIN, *EDITS)]
    assert [_pictures(record) for record in records] == [_pictures(record) for record in (*PLAIN, *EDITS)]


def test_janus_json_is_upstreams_layout(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "janus-json", limit=2)
    assert json.loads((tmp_path / "out/text_to_image.json").read_text()) == [
        {"input_prompt": "prompt number 0", "output_image": "image/0.png", "output_image_resolution": [16, 16]},
        {"input_prompt": "prompt number 2", "output_image": "image/1.png", "output_image_resolution": [16, 16]},
    ]
    edits = json.loads((tmp_path / "out/text_and_image_to_image.json").read_text())
    assert edits[1] == {
        "input_prompt": "prompt number 3",
        "output_image": "image/v2v_2.png",
        "output_image_resolution": [16, 16],
        "input_image": ["image/v2v_3.png"],
        "input_image_resolution": [16, 16],
    }
    named = [edits[1]["output_image"], *edits[1]["input_image"]]
    assert [(tmp_path / "out" / name).read_bytes() for name in named] == _pictures(EDITS[1])


# --------------------------------------------------------------------------- webdataset


def _plain_load(folder: Path, config: str) -> list[dict]:
    files = str(folder / f"{config}-[0-9]*.tar")
    return list(load_dataset("webdataset", data_files=files, split="train"))


def test_webdataset_loads_with_pictures(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "webdataset")
    rows = {row["__key__"]: row for row in _plain_load(tmp_path / "out", "text_and_image_to_image")}
    assert set(rows) == {record.id for record in EDITS}
    for record in EDITS:
        row = rows[record.id]
        assert row["source.png"].tobytes() == Pillow.open(io.BytesIO(record.input_image[0].bytes)).tobytes()
        assert row["output.png"].tobytes() == Pillow.open(io.BytesIO(record.output_image.bytes)).tobytes()
        assert row["json"]["input_prompt"] == record.input_prompt


def test_webdataset_values_that_come_late_do_not_break_the_load(tmp_path: Path) -> None:
    """`datasets` takes types from five samples; here all of the first ten have null where the last two have values."""
    records = [make_record(index) for index in range(0, 20, 2)]
    late = [
        _with(make_record(20), style="ink", image_params={"quality": "high"}),
        _with(make_record(22), document_type="invoice", cost_usd=None),
    ]
    _pack(tmp_path / "set", [*records, *late])
    export_dataset(tmp_path / "set", tmp_path / "out", "webdataset")
    rows = {row["__key__"]: row["json"] for row in _plain_load(tmp_path / "out", "text_to_image")}
    assert len(rows) == 12
    assert (rows[late[0].id]["style"], rows[late[0].id]["image_params"]["quality"]) == ("ink", "high")
    assert (rows[late[1].id]["document_type"], rows[late[1].id]["cost_usd"]) == ("invoice", None)


def test_webdataset_loads_by_its_readme_with_true_types(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "webdataset")
    rows = load_dataset(str(tmp_path / "out"), "text_to_image", split="train")
    stored = {record.id: record for record in PLAIN}
    for row in rows:
        record = stored[row["__key__"]]
        assert row["json"] == record.model_dump(exclude={"input_image", "output_image"})
    assert rows.features["json"]["cost_usd"] == Value("float64")


def test_webdataset_keeps_unlike_samples_apart(tmp_path: Path) -> None:
    two_sources = _with(EDITS[1], input_image=[*EDITS[1].input_image, ImageFile(bytes=png(5), path="5.png")])
    jpeg = _with_picture(EDITS[2], _encoded("JPEG"))
    _pack(tmp_path / "set", [EDITS[0], two_sources, jpeg])
    export_dataset(tmp_path / "set", tmp_path / "out", "webdataset")
    task = "text_and_image_to_image"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        f"{task}-00000.tar",
        f"{task}-output_jpg-source_png-00000.tar",
        f"{task}-output_png-source0_png-source1_png-00000.tar",
    ]
    readme = (tmp_path / "out/README.md").read_text()
    assert f"1 of `{task}`, 1 of `{task}-output_png-source0_png-source1_png`" in readme
    [row] = load_dataset(str(tmp_path / "out"), f"{task}-output_png-source0_png-source1_png", split="train")
    assert row["source1.png"].tobytes() == Pillow.open(io.BytesIO(png(5))).tobytes()
    [row] = _plain_load(tmp_path / "out", task)
    assert row["__key__"] == EDITS[0].id


def test_webdataset_refuses_numbers_that_json_lacks(tmp_path: Path) -> None:
    _pack(tmp_path / "set", [PLAIN[0], _with(PLAIN[1], cost_usd=float("nan"))])
    summary = export_dataset(tmp_path / "set", tmp_path / "out", "webdataset")
    assert summary.skipped == {"a number is NaN or infinite, which JSON cannot hold": 1}
    assert {name.split(".")[0] for name in _members(tmp_path / "out")} == {PLAIN[0].id}


def test_tar_files_are_closed_before_they_grow_too_large(tmp_path: Path) -> None:
    rows = [read_row(make_record(index).model_dump()) for index in range(0, 12, 2)]
    sample_bytes = 2 * 2048  # two members, each a header and at most three blocks of content
    writer = WebDataset(tmp_path, "text_to_image", Features({}), tar_bytes=2 * sample_bytes)
    for row in rows:
        writer.write(row)
    writer.close()
    names = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in members)
        names.append([member.name.split(".")[0] for member in members[::2]])
    assert [name for group in names for name in group] == [row.id for row in rows]
    assert [len(group) for group in names][1:] == [2, 2, 1]


# --------------------------------------------------------------------------- imagefolder


def test_imagefolder_loads_with_typed_columns(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "imagefolder")
    for config, records in (("text_to_image", PLAIN), ("text_and_image_to_image", EDITS)):
        rows = load_dataset("imagefolder", data_dir=str(tmp_path / "out" / config), split="train")
        assert dict(rows.features) == dict(published_features())
        raw = rows.cast_column("output_image", Image(decode=False)).cast_column(
            "input_image", List(Image(decode=False))
        )
        for row, record in zip(raw, records, strict=True):
            pictures = [row.pop("output_image"), *row.pop("input_image")]
            assert [Path(picture["path"]).read_bytes() for picture in pictures] == _pictures(record)
            assert row == record.model_dump(exclude={"input_image", "output_image"})


# --------------------------------------------------------------------------- messages


def test_messages_fit_trl(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_utils = pytest.importorskip("trl.data_utils", reason="the extra `train` is not installed")
    export_dataset(dataset, tmp_path / "out", "messages")
    monkeypatch.chdir(tmp_path / "out")
    rows = load_dataset("json", data_files="messages.jsonl", split="train").cast_column("images", List(Image()))
    for row, record in zip(rows, [*PLAIN, *EDITS], strict=True):
        question, answer = data_utils.prepare_multimodal_messages(row["messages"], images=row["images"])
        result, *sources = [Pillow.open(io.BytesIO(data)).tobytes() for data in _pictures(record)]
        assert [part["image"].tobytes() for part in question["content"][:-1]] == sources
        assert question["content"][-1]["text"] == record.input_prompt
        assert [part["image"].tobytes() for part in answer["content"]] == [result]


def test_a_line_of_messages(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", "messages", config="text_and_image_to_image", limit=1)
    [line] = (tmp_path / "out/messages.jsonl").read_text().splitlines()
    name = f"images/{EDITS[0].id[:2]}/{EDITS[0].id}"
    assert json.loads(line) == {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "prompt number 1"}]},
            {"role": "assistant", "content": [{"type": "image"}]},
        ],
        "images": [f"{name}.source.png", f"{name}.output.png"],
        "id": EDITS[0].id,
        "task": "text_and_image_to_image",
    }


def test_a_prompt_with_a_tag_is_refused_and_told(tmp_path: Path) -> None:
    tagged = _with(EDITS[1], input_prompt="replace <image> by a fox")
    _pack(tmp_path / "set", [EDITS[0], tagged])
    summary = export_dataset(tmp_path / "set", tmp_path / "out", "messages")
    reason = "input_prompt contains <image>, which ms-swift would take for a tag"
    assert (summary.rows, summary.skipped) == ({"text_and_image_to_image": 1}, {reason: 1})
    [line] = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"config": "text_and_image_to_image", "id": tagged.id, "reason": reason}
    assert [path.name for path in (tmp_path / "out").rglob(f"{tagged.id}*")] == []
    assert "1 row left out" in summary.to_text()
    export_dataset(tmp_path / "set", tmp_path / "out", "messages")  # knows its own skipped.jsonl


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"RIFFxxxxWAVE"])
def test_bytes_of_no_known_picture_are_refused(data: bytes) -> None:
    raw = make_record(0).model_dump() | {"output_image": {"bytes": data, "path": "x.png"}}
    with pytest.raises(RowRefused, match=r"output_image (has no bytes|is no PNG)"):
        read_row(raw)


@pytest.mark.parametrize("row_id", ["../../escape", "a.b", "", "x" * 81, None])
def test_an_id_that_names_no_file_ends_the_export(row_id: str | None) -> None:
    with pytest.raises(UserError, match="cannot name a file"):
        read_row(make_record(0).model_dump() | {"id": row_id})


def test_a_set_of_which_nothing_fits_is_an_error(tmp_path: Path) -> None:
    _pack(tmp_path / "set", [_with(PLAIN[0], input_prompt="<image>")])
    with pytest.raises(UserError, match=r"no row that messages can hold: input_prompt contains <image>"):
        export_dataset(tmp_path / "set", tmp_path / "out", "messages")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "zip"}, "--to zip is not known; choose janus-json, webdataset"),
        ({"config": "posters"}, "has no rows for posters, only for text_to_image and text_and_image_to_image"),
        ({"split": "test"}, "has no split test, only train"),
    ],
)
def test_unknown_names_are_refused(dataset: Path, tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        export_dataset(dataset, tmp_path / "out", **{"to": "messages", **options})
    assert os.listdir(tmp_path) == []


def test_what_others_wrote_is_not_replaced(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, out, "messages")
    with pytest.raises(UserError, match=r"holds something else \(images|was not written by `export --to janus-json`"):
        export_dataset(dataset, out, "janus-json")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else \(notes.txt\)"):
        export_dataset(dataset, out, "messages")
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("my own")
    with pytest.raises(UserError, match="was not written by `export --to messages`"):
        export_dataset(dataset, out, "messages")
    with pytest.raises(UserError, match="in the data set's own folder"):
        export_dataset(dataset, dataset / "export", "messages")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export_dataset(dataset, tmp_path / "file", "messages")


def test_a_damaged_set_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    _pack(tmp_path / "set", PLAIN)
    [shard] = (tmp_path / "set/text_to_image").glob("*.parquet")
    data = shard.read_bytes()
    shard.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"download (it again|or pack it again)"):
        export_dataset(tmp_path / "set", tmp_path / "out", "messages")
    shard.unlink()
    with pytest.raises(UserError, match=r"(download or pack it|holds no data files)"):
        export_dataset(tmp_path / "set", tmp_path / "out", "messages")
    assert os.listdir(tmp_path) == ["set"]
