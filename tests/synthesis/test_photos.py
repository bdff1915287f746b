# SPDX-License-Identifier: Apache-2.0
"""Sets of photographs in every layout, whole and broken."""

import csv
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from loopback_hub import LoopbackHub, Repository, environment
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis import photos as photos_module
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import PhotoSet
from sharegpt4o_image.synthesis.photos import MAX_BYTES, InvalidPhoto, Photo, iter_photos, open_source

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photographs"
NAMES = [json.loads(line)["file_name"] for line in (PHOTOGRAPHS / "manifest.jsonl").read_text().splitlines()]
BYTES = {name: (PHOTOGRAPHS / name).read_bytes() for name in NAMES}


def read(path: Path, **options: Any) -> list[Photo]:
    return list(iter_photos(PhotoSet(path=str(path), **options)))


def faults(photos: list[Photo]) -> dict[str, str | None]:
    for photo in photos:
        assert (photo.data is None) == (photo.fault is not None)
    return {photo.name: photo.fault for photo in photos}


def png(color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "PNG")
    return buffer.getvalue()


# --------------------------------------------------------------------------- a folder


def test_folder_is_read_below_in_order_without_what_tells_about_photographs(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for name in ("b/deep/2.png", "b/10.png", "a.PNG", "z", ".hidden.png", ".cache/1.png"):
        (tmp_path / name).write_bytes(png())
    for name in ("LICENSE.txt", "b/readme.MD", "manifest.jsonl", "rows.json", "rows.csv"):
        (tmp_path / name).write_text("words")
    found = read(tmp_path, license="cc0-1.0", origin="here")
    assert [photo.name for photo in found] == ["a.PNG", "b/10.png", "b/deep/2.png", "z"]
    assert {(photo.data, photo.license, photo.origin) for photo in found} == {(png(), "cc0-1.0", "here")}
    assert {photo.origin for photo in read(tmp_path / "b")} == {"b"}


def test_what_a_folder_has_instead_of_pictures_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "elsewhere").symlink_to(PHOTOGRAPHS)
    (tmp_path / "link.jpg").symlink_to(PHOTOGRAPHS / NAMES[0])
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES)  # takes no room on the disk
    found = faults(read(tmp_path))
    loop = found.pop("loop.png")
    assert loop is not None
    assert loop.startswith("cannot be read (")
    assert found == {
        "elsewhere": "a folder, or a link to one",
        "empty.png": "empty",
        "gone.png": "broken link",
        "huge.png": "not less than 50 MB",
        "link.jpg": None,
        "pipe.png": "not a picture",
    }


# --------------------------------------------------------------------------- a manifest


def test_the_manifest_beside_the_photographs(tmp_path: Path) -> None:
    found = read(PHOTOGRAPHS / "manifest.jsonl", license="unknown", origin="unknown")
    rows = [json.loads(line) for line in (PHOTOGRAPHS / "manifest.jsonl").read_text().splitlines()]
    assert [photo.data for photo in found] == [BYTES[row["file_name"]] for row in rows]
    assert [(photo.name, photo.license, photo.origin) for photo in found] == [
        (row["file_name"], row["license"], row["origin"]) for row in rows
    ]
    assert {photo.license for photo in found} == {"cc0-1.0", "public domain", "cc-by-2.0"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8-sig")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_rows_of_a_manifest(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "images").mkdir()
    for name in "1234":
        (tmp_path / "images" / f"{name}.png").write_bytes(png())
    rows = [
        {"image": "images/1.png", "url": "https://example.com/1", "license": "cc-by-4.0", "caption": "a wall"},
        {"file_name": "images/2.png", "origin": "an attic", "url": "https://example.com/2"},
        {"path": "images/3.png", "license": ""},
        {"image": "images/4.png", "path": "images/1.png", "caption": " "},
        {"image": "images/absent.png"},
    ]
    write_rows(tmp_path / f"rows{suffix}", rows)
    found = read(tmp_path / f"rows{suffix}", license="cc0-1.0")
    assert [photo.name for photo in found] == [f"images/{name}.png" for name in ("1", "2", "3", "4", "absent")]
    assert [photo.origin for photo in found[:3]] == ["https://example.com/1", "an attic", f"rows{suffix}"]
    assert [photo.license for photo in found] == ["cc-by-4.0", *["cc0-1.0"] * 4]
    assert [photo.caption for photo in found] == ["a wall", *[None] * 4]
    assert [photo.fault for photo in found] == [*[None] * 4, "no such file"]


def test_layout_of_allava(tmp_path: Path) -> None:
    (tmp_path / "allava_laion" / "images").mkdir(parents=True)
    (tmp_path / "allava_laion" / "images" / "1.jpeg").write_bytes(BYTES[NAMES[0]])
    row = {
        "id": "allava_laion_inst_0",
        "image": "allava_laion/images/1.jpeg",
        "conversations": [{"from": "human", "value": "What is in it?"}],
        "url": "https://example.com/1.jpeg",
    }
    write_rows(tmp_path / "ALLaVA-Instruct-LAION-4V.json", [row])
    [photo] = read(tmp_path / "ALLaVA-Instruct-LAION-4V.json")
    assert photo.data == BYTES[NAMES[0]]
    assert photo.origin == "https://example.com/1.jpeg"


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../secret.png", "images/../../secret.png", str(PHOTOGRAPHS / NAMES[0])]
)
def test_a_row_leads_to_nothing_outside_of_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "set" / "images").mkdir(parents=True)
    write_rows(tmp_path / "set" / "rows.jsonl", [{"image": path}])
    assert faults(read(tmp_path / "set" / "rows.jsonl")) == {path: "the path leads out of the folder of the manifest"}


def test_odd_rows_have_faults_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    rows = ['{"image": "1.png"}', "{broken", "[1]", '{"image": 7}', '{"image": "a\\u0000b"}', "[" * 10_000]
    rows += [json.dumps({"image": "x" * 5000}), '{"image": "1.png"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = read(tmp_path / "rows.jsonl")
    assert len(found) == len(rows)
    assert [photo.fault is None for photo in found] == [True, *[False] * 6, True]
    assert [photo.fault for photo in found[1:4]] == ["the row names no picture"] * 3
    assert found[3].name == "rows.jsonl, row 4"
    assert found[6].fault == "cannot be read (File name too long)"


def test_another_key_may_name_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    write_rows(tmp_path / "rows.jsonl", [{"picture": "1.png", "image": "a photo of a wall"}])
    assert faults(read(tmp_path / "rows.jsonl", image_column="picture")) == {"1.png": None}


def test_a_long_json_list_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": "1.png", "caption": f'{number} ]}}{{[", \\'} for number in range(500)]
    rows[250]["caption"] = "x" * 1000
    (tmp_path / "1.png").write_bytes(png())
    for indent in (None, 2):
        (tmp_path / "rows.json").write_text(" \n" + json.dumps(rows, indent=indent) + "\n", encoding="utf-8")
        monkeypatch.setattr(photos_module, "_CHUNK", 64)
        assert [photo.caption for photo in read(tmp_path / "rows.json")] == [row["caption"] for row in rows]


def test_memory_is_that_of_a_photograph(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png() + bytes(1_000_000))
    write_rows(tmp_path / "rows.json", [{"image": "1.png", "caption": "x" * 400} for _ in range(10_000)])
    photos = iter_photos(PhotoSet(path=str(tmp_path / "rows.json")))
    tracemalloc.start()
    for _ in range(200):
        next(photos)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000  # the list has 4.4 MB of text, the photographs would have 200


# --------------------------------------------------------------------------- a data set

COLUMNS = Features({"image": ImageColumn(), "license": Value("string"), "url": Value("string")})


def dataset() -> Dataset:
    return Dataset.from_dict(
        {
            "image": [*({"bytes": BYTES[name], "path": name} for name in NAMES), None],
            "license": ["cc0-1.0", None, "public domain", "cc-by-2.0", None],
            "url": ["https://example.com/1", None, None, None, None],
        },
        features=COLUMNS,
    )


def write_parquet(path: Path) -> None:
    path.mkdir()
    dataset().to_parquet(path / "train-00000-of-00001.parquet")


WRITERS: dict[str, Callable[[Path], None]] = {
    "parquet": write_parquet,
    "saved": lambda path: dataset().save_to_disk(path),
    "saved splits": lambda path: DatasetDict({"train": dataset()}).save_to_disk(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_data_sets_keep_every_byte(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "set")
    for layout in ("auto", "dataset"):
        found = read(tmp_path / "set", layout=layout, license="unknown")
        assert [photo.data for photo in found] == [*(BYTES[name] for name in NAMES), None]
        assert [photo.license for photo in found] == ["cc0-1.0", "unknown", "public domain", "cc-by-2.0", "unknown"]
        assert [photo.origin for photo in found] == ["https://example.com/1", *["set"] * 4]
        assert (found[4].name, found[4].fault) == ("train row 5", "the row holds no picture")


def test_data_set_of_a_folder_of_pictures(tmp_path: Path) -> None:
    """`datasets` gives paths for those, which count as long as they lead into the set."""
    (tmp_path / "set").mkdir()
    for name in NAMES:
        (tmp_path / "set" / name).write_bytes(BYTES[name])
    found = read(tmp_path / "set", layout="dataset")
    assert [photo.data for photo in found] == [BYTES[name] for name in NAMES]


READ_HUB = """
import hashlib, sys
from sharegpt4o_image.synthesis.config import PhotoSet
from sharegpt4o_image.synthesis.photos import iter_photos
for name in sys.argv[1:]:
    for photo in iter_photos(PhotoSet(path=name, layout="dataset")):
        print(photo.origin, photo.sha256)
"""


def test_pictures_and_archives_on_the_hub(tmp_path: Path) -> None:
    """`datasets` would decode those while it streams them; in a process of its own, for the Hub's address."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in NAMES:
            file.writestr(name, BYTES[name])
    with LoopbackHub() as hub:
        for name, files in {"tester/loose": BYTES, "tester/zipped": {"train.zip": archive.getvalue()}}.items():
            hub.repositories[f"datasets/{name}"] = Repository()
            hub.repositories[f"datasets/{name}"].commit(files)
        done = subprocess.run(
            [sys.executable, "-c", READ_HUB, "tester/loose", "tester/zipped"],
            env={**os.environ, **environment(hub.endpoint, str(tmp_path))},
            capture_output=True,
            text=True,
            timeout=120,
        )
    digests = [hashlib.sha256(BYTES[name]).hexdigest() for name in sorted(NAMES)]
    expected = [f"{name} {digest}" for name in ("tester/loose", "tester/zipped") for digest in digests]
    assert done.stdout.splitlines() == expected, done.stderr


def test_paths_in_a_data_set_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    paths = [str(PHOTOGRAPHS / NAMES[0]), "/etc/hostname", "hf://datasets/other/set@main/1.png"]
    Dataset.from_dict({"image": paths}).to_parquet(tmp_path / "set" / "train.parquet")
    assert [photo.fault for photo in read(tmp_path / "set")] == [
        "the row holds no picture, only a path that leads out of the data set"
    ] * 3


# --------------------------------------------------------------------------- what is no set


@pytest.mark.parametrize(
    ("path", "options", "fault"),
    [
        ("nowhere", {}, "there is no .*nowhere; name a folder or a manifest, or say layout: dataset"),
        ("owner/name", {}, "say layout: dataset if it is the Hub id"),
        ("empty", {}, "there is no picture in"),
        ("text only", {}, "there is no picture in"),
        ("empty.jsonl", {}, "there is no picture in"),
        ("empty.json", {}, "there is no picture in"),
        ("empty.csv", {}, "there is no picture in"),
        ("table.xlsx", {}, r"is no manifest; give a \.jsonl, \.json, \.csv file, or a folder"),
        ("empty.jsonl", {"layout": "folder"}, "is no folder"),
        ("empty", {"layout": "manifest"}, "is no manifest"),
        ("odd.jsonl", {}, "the first row has no key image, file_name, path; set photos.image_column"),
        ("odd.jsonl", {"image_column": "photo"}, "the first row has no key photo"),
        ("object.json", {}, "cannot read the manifest .*expected a list"),
        ("cut.json", {}, "cannot read the manifest"),
        ("latin.csv", {}, "cannot read the manifest"),
        ("empty", {"layout": "dataset"}, "cannot read the data set"),
        ("parquet", {"split": "test"}, r"cannot read the data set .*Bad split: test.*check photos\.path, split"),
        ("parquet", {"image_column": "photo"}, "has no column 'photo' but image, license, url"),
        ("parquet", {"image_column": "url"}, None),
        ("saved", {"split": "test"}, "has the splits train"),
    ],
)
def test_what_is_no_set_of_photographs_is_refused(
    tmp_path: Path, path: str, options: dict[str, str], fault: str | None
) -> None:
    for name in ("empty", "text only"):
        (tmp_path / name).mkdir()
    (tmp_path / "text only" / "LICENSE.txt").write_text("words")
    contents = {"empty.jsonl": b"\n", "empty.json": b" [ ]", "empty.csv": b"image,license\n", "table.xlsx": b"x"}
    contents |= {"odd.jsonl": b'{"picture": "1.png"}', "object.json": b'{"image": "1.png"}', "cut.json": b'[{"image"'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "latin.csv").write_bytes("image\ncafé.png\n".encode("latin-1"))
    if path == "parquet":
        write_parquet(tmp_path / "parquet")
    if path == "saved":
        DatasetDict({"train": dataset()}).save_to_disk(tmp_path / "saved")
    if fault is None:  # a column of text: every row has its fault
        assert all(photo.fault for photo in read(tmp_path / path, **options))
        return
    with pytest.raises(UserError, match=fault):
        read(tmp_path / path, **options)


# --------------------------------------------------------------------------- opening


def photo_of(data: bytes, **facts: str) -> Photo:
    return Photo("a/1.png", data, "an attic", **facts)


def encoded(image_format: str, size: tuple[int, int] = (30, 20), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.open(PHOTOGRAPHS / NAMES[0]).convert("RGB").resize(size).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_source_keeps_the_bytes_and_tells_what_is_known(tmp_path: Path, image_format: str) -> None:
    data = encoded(image_format)
    blobs = BlobStore(tmp_path)
    photo = photo_of(data, license="cc0-1.0", caption="a cat")
    source = open_source(photo, blobs)
    assert source.sha256 == photo.sha256 == hashlib.sha256(data).hexdigest()
    assert blobs.read(source.sha256) == data
    assert (source.format, source.width, source.height) == (image_format.lower(), 30, 20)
    assert (source.text, source.origin, source.license) == ("a cat", "an attic", "cc0-1.0")
    assert open_source(Photo("other name", data, "elsewhere"), blobs).id == source.id
    assert open_source(photo_of(encoded(image_format, (20, 30))), blobs).id != source.id


def test_second_pictures_of_phones_and_turned_cameras(tmp_path: Path) -> None:
    double = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (15, 10))])
    assert Image.open(io.BytesIO(double)).format == "MPO"
    assert open_source(photo_of(double), BlobStore(tmp_path)).format == "jpeg"
    exif = Image.Exif()
    exif[0x0112] = 6
    source = open_source(photo_of(encoded("JPEG", exif=exif)), BlobStore(tmp_path))
    assert (source.width, source.height) == (20, 30)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture, or not a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture, or not a PNG, JPEG or WebP"),
        (encoded("GIF"), "not a picture, or not a PNG, JPEG or WebP"),
        (BYTES[NAMES[0]][:-2000], "a broken picture"),
        (encoded("WEBP")[:-40], "a broken picture"),
        (encoded("PNG")[:-40], "a broken picture"),
        (claims(8001, 8000), "8001x8000 are more than 64,000,000 pixels"),
        (claims(100_000, 100_000), "a broken picture .*pixels"),
        (bytes(MAX_BYTES), "not less than 50 MB"),
    ],
)
def test_what_no_teacher_can_be_shown_is_invalid(tmp_path: Path, data: bytes, fault: str) -> None:
    with pytest.raises(InvalidPhoto, match=rf"^{fault}.*: a/1\.png"):
        open_source(photo_of(data), BlobStore(tmp_path / "blobs"))
    assert not (tmp_path / "blobs").exists()


def test_the_fault_of_a_photo_is_that_of_its_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidPhoto, match=r"^broken link: a\.png$"):
        open_source(Photo("a.png", None, "here", fault="broken link"), BlobStore(tmp_path))
    assert Photo("a.png", None, "here", fault="broken link").sha256 is None
