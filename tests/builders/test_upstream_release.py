# SPDX-License-Identifier: Apache-2.0
"""The importer of the upstream release, on releases in its true layout."""

import errno
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from upstream_double import check_import, import_all, write_release

from sharegpt4o_image.builders import upstream_release
from sharegpt4o_image.builders.picture_look import look_at
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.row_source import RowFault, RowPlan
from sharegpt4o_image.builders.upstream_release import MAX_NOTES, UpstreamRelease, is_upstream_release
from sharegpt4o_image.errors import UserError


def test_must_show(tmp_path: Path) -> None:
    """Over 2,000 rows in six tar parts, broken in each way: good rows byte-identical, bad rows with their reasons."""
    expected = write_release(tmp_path / "release", num_rows=2000, num_parts=3, breaks=True)
    assert len(expected.good) + len(expected.bad) > 2080
    assert len(set(expected.bad.values())) >= 40
    release = UpstreamRelease.open(tmp_path / "release", cache_dir=tmp_path / "cache")
    check_import(release, expected)
    notes = release.facts().notes
    assert (
        "The member /image/absolute.png has an absolute name in text_to_image_part_0.tar; no row asks for it." in notes
    )
    assert any("text_to_image_part_2.tar cannot be read on" in note for note in notes)
    assert "2 rows have the column quality, which is not imported." not in notes
    assert "4 rows have the column quality, which is not imported." in notes


def test_same_source_same_plan(tmp_path: Path) -> None:
    write_release(tmp_path / "release", breaks=True)
    plans = [[*UpstreamRelease.open(tmp_path / "release", tmp_path / "cache").plan()] for _ in range(2)]
    assert plans[0] == plans[1]
    assert len({plan.id for plan in plans[0]}) == len(plans[0])


def test_load_without_plan(tmp_path: Path) -> None:
    """Another process may load what this one planned."""
    write_release(tmp_path / "release", num_rows=4)
    plan = next(UpstreamRelease.open(tmp_path / "release", tmp_path / "cache").plan())
    record = UpstreamRelease.open(tmp_path / "release", tmp_path / "cache").load(plan)
    assert record.id == plan.id


def test_what_upstream_does_not_say_is_null(tmp_path: Path) -> None:
    write_release(tmp_path / "release", num_rows=4)
    release = UpstreamRelease.open(tmp_path / "release", tmp_path / "cache")
    plans = [*release.plan()]
    for plan in plans:
        record = release.load(plan)
        assert record.origin == "upstream_release"
        assert record.output_sha256 == hashlib.sha256(record.output_image.bytes).hexdigest()
        assert re.fullmatch("[0-9a-f]{16}", record.output_phash or "")
        known = {
            "id", "task", "input_prompt", "input_image", "output_image", "output_image_resolution",
            "input_image_resolution", "output_sha256", "output_phash", "origin",
        }  # fmt: skip
        assert {name: value for name, value in record if name not in known and value is not None} == {}
        assert plan.num_bytes == len(record.output_image.bytes) + sum(len(one.bytes) for one in record.input_image)
    edit = plans[-1]
    assert edit.location == "text_and_image_to_image.json, row 1"
    assert edit.pictures == ("image/v2v_2.png", "image/v2v_3.png")
    assert release.load(edit).input_image[0].path == "v2v_2.png"


def test_digest_follows_row_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write_release(folder, num_rows=4, num_parts=1)
    before = plan_all(folder, tmp_path)
    rows = json.loads((folder / "text_to_image.json").read_bytes())
    rows[0]["input_prompt"] += "!"
    (folder / "text_to_image.json").write_text(json.dumps(rows))
    part = folder / "text_and_image_to_image_part_0.tar"
    part.write_bytes(part.read_bytes())  # a new file
    after = plan_all(folder, tmp_path)
    changed = [old.digest != new.digest for old, new in zip(before, after, strict=True)]
    assert changed[0]
    assert changed[2:] == [True, True]
    assert [old.id == new.id for old, new in zip(before, after, strict=True)] == [False, True, True, True]


def plan_all(folder: Path, tmp_path: Path) -> list[RowPlan]:
    return [*UpstreamRelease.open(folder, tmp_path / "cache").plan()]


def test_unpacked_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    expected = write_release(folder, num_rows=10)
    for part in folder.glob("*.tar"):
        with tarfile.open(part) as archive:
            archive.extractall(folder, filter="data")
        part.unlink()
    check_import(UpstreamRelease.open(folder, tmp_path / "cache"), expected)


def test_an_unpacked_picture_is_read_only_within_the_folder(tmp_path: Path) -> None:
    """Links out of the release are refused, links within it and to it are not."""
    names = ["plain", "inside", "linked/within", "outside", "folder/0", "circle", "directory", "plain.png/0"]
    rows = [{"input_prompt": name, "output_image": f"image/{name}.png"} for name in names]
    for folder in ("release/image/directory.png", "elsewhere", "release/other"):
        (tmp_path / folder).mkdir(parents=True)
    release = tmp_path / "release"
    write_rows(release, *rows)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for name in ("release/image/plain.png", "elsewhere/0.png", "release/other/within.png"):
        (tmp_path / name).write_bytes(buffer.getvalue())
    (release / "image/inside.png").symlink_to("plain.png")
    (release / "image/linked").symlink_to("../other")
    (release / "image/outside.png").symlink_to(tmp_path / "elsewhere/0.png")
    (release / "image/folder").symlink_to(tmp_path / "elsewhere")
    (release / "image/circle.png").symlink_to("circle.png")
    (tmp_path / "link").symlink_to("release")
    for folder in (release, tmp_path / "link"):
        good, bad = import_all(UpstreamRelease.open(folder, tmp_path / "cache"))
        assert [record.input_prompt for record in good.values()] == names[:3]
        assert [*bad.values()] == [
            "output_image is refused: a link out of the folder",
            "output_image is refused: a link out of the folder",
            "output_image cannot be read: a circle of links",
            "output_image is refused: no file",
            "output_image is in no tar part",
        ]


@pytest.mark.parametrize("is_planned", [False, True])
def test_an_unpacked_picture_that_cannot_be_read_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_planned: bool
) -> None:
    """Permissions do not bind every user who runs tests, so opening fails as it would."""
    expected = write_release(tmp_path, num_rows=4)
    for part in tmp_path.glob("*.tar"):
        with tarfile.open(part) as archive:
            archive.extractall(tmp_path, filter="data")
        part.unlink()
    name = "stat" if is_planned else "open"
    original = getattr(Path, name)

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self.name == "1.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, *args, **options)

    monkeypatch.setattr(Path, name, refuse)
    good, bad = import_all(UpstreamRelease.open(tmp_path, tmp_path / "cache"))
    assert bad == {"text_to_image.json, row 1": "output_image cannot be read: Permission denied"}
    assert len(good) == len(expected.good) - 1


def test_reasons_are_the_same_for_many_rows_up_to_what_differs(tmp_path: Path) -> None:
    """The card counts rows by what stands before the colon or the bracket."""
    write_release(tmp_path, num_rows=400, breaks=True)
    _, bad = import_all(UpstreamRelease.open(tmp_path, tmp_path / "cache"))
    heads = {re.split(r": | \(", reason)[0] for reason in bad.values()}
    assert not {head for head in heads if re.search(r"\d+x\d+|\.tar|[0-9,]+ of", head)}
    assert {
        "output_image is refused", "output_image is cut off", "output_image is unreadable",
        "output_image does not have the recorded size", "output_image is in no tar part",
    } <= heads  # fmt: skip


def test_every_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` has looked at what it returns, so nothing has to look again."""
    write_release(tmp_path, num_rows=4)
    looks: list[bytes] = []
    monkeypatch.setattr(upstream_release, "look_at", lambda data: (looks.append(data), look_at(data))[1])
    release = UpstreamRelease.open(tmp_path, tmp_path / "cache")
    good, _ = import_all(release)
    assert release.has_looked
    assert looks == [image.bytes for record in good.values() for image in (*record.input_image, record.output_image)]


def test_upright_size(tmp_path: Path) -> None:
    """A turned picture is measured as it is shown, and stored as it is."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (16, 9)).save(buffer, "PNG", exif=exif)
    (tmp_path / "image").mkdir()
    (tmp_path / "image/0.png").write_bytes(buffer.getvalue())
    write_rows(tmp_path, {"input_prompt": "a", "output_image": "image/0.png", "output_image_resolution": [9, 16]})
    good, _ = import_all(UpstreamRelease.open(tmp_path, tmp_path / "cache"))
    [record] = good.values()
    assert record.output_image_resolution == [9, 16]
    assert find_fault(record) is None


def write_rows(folder: Path, *rows: object) -> None:
    (folder / "text_to_image.json").write_text(json.dumps(rows))


def test_own_parts_come_first(tmp_path: Path) -> None:
    """Should both tasks use a name, each row gets the picture of its own task; other tasks' parts are asked next."""
    for task, shade in (("text_to_image", 1), ("text_and_image_to_image", 2)):
        with tarfile.open(tmp_path / f"{task}_part_0.tar", "w") as archive:
            for name in ("image/0.png", f"image/{task}.png"):
                buffer = io.BytesIO()
                Image.new("L", (8, 8), shade).save(buffer, "PNG")
                info = tarfile.TarInfo(name)
                info.size = len(buffer.getvalue())
                archive.addfile(info, io.BytesIO(buffer.getvalue()))
    row = {"input_prompt": "a", "output_image": "image/0.png"}
    write_rows(tmp_path, row)
    edit = row | {"input_image": ["image/text_to_image.png"]}
    (tmp_path / "text_and_image_to_image.json").write_text(json.dumps([edit]))
    good, bad = import_all(UpstreamRelease.open(tmp_path, tmp_path / "cache"))
    assert bad == {}
    shades = [
        [Image.open(io.BytesIO(image.bytes)).getpixel((0, 0)) for image in (*record.input_image, record.output_image)]
        for record in good.values()
    ]
    assert shades == [[1], [1, 2]]


def test_notes_on_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write_release(folder, num_parts=3)
    (folder / "text_to_image_part_1.tar").unlink()
    (folder / "text_and_image_to_image.json").unlink()
    release = UpstreamRelease.open(folder, tmp_path / "cache")
    _, bad = import_all(release)
    assert set(bad.values()) == {"output_image is in no tar part"}
    assert release.facts().notes == (
        "40 pictures in the tar parts are named by no row.",
        "text_to_image_part_1.tar is missing, but there are later parts.",
        "text_and_image_to_image.json is missing, but there are tar parts for it.",
    )


def test_notes_are_bounded(tmp_path: Path) -> None:
    write_rows(tmp_path)
    with tarfile.open(tmp_path / "text_to_image_part_0.tar", "w") as archive:
        for number in range(3 * MAX_NOTES):
            link = tarfile.TarInfo(f"image/<b>{number}|\n.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    release = UpstreamRelease.open(tmp_path, tmp_path / "cache")
    assert [*release.plan()] == []
    notes = release.facts().notes
    assert len(notes) == MAX_NOTES + 1
    assert (
        notes[0]
        == "The member image/?b?0??.png is refused: a symbolic link in text_to_image_part_0.tar; no row asks for it."
    )
    assert notes[-1] == f"{2 * MAX_NOTES} more remarks like these are left out."


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has neither text_to_image.json nor text_and_image_to_image.json; give the folder"),
        ({"text_to_image.json": b"[]"}, "has no tar part and no folder image; download text_to_image_part_0.tar"),
        (
            {"text_to_image.json": b"[]", "text_to_image_part_0.tar.gz": b""},
            "text_to_image_part_0.tar.gz is compressed, but members are read by offset; decompress it first",
        ),
        (
            {"text_to_image.json": b"[]", "text_to_image_part_0.tar": b"version https://git-lfs.github.com/spec/v1\n"},
            "only says where the file is; run `git lfs pull`",
        ),
        (
            {"text_to_image.json": b"[]", "text_to_image_part_0.tar": b"<html>" * 200},
            "text_to_image_part_0.tar is not a tar file; download it again",
        ),
        (
            {"text_to_image.json": b"{}", "text_to_image_part_0.tar": b"\0" * 1024},
            "text_to_image.json is a JSON object, expected an array",
        ),
        (
            {"text_to_image.json": b"[{}, {", "text_to_image_part_0.tar": b"\0" * 1024},
            "text_to_image.json is broken at byte 6: the file ends too early; download it again",
        ),
    ],
)
def test_bad_folders(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert is_upstream_release(folder) == ("text_to_image.json" in files)
    with pytest.raises(UserError, match=re.escape(message)):
        list(UpstreamRelease.open(folder, tmp_path / "cache").plan())


def test_one_bad_part_ends_the_scan_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write_release(folder, num_rows=2000, num_parts=1)
    (folder / "text_to_image_part_1.tar").write_bytes(b"<html>" * 200)
    found = []
    release = UpstreamRelease.open(folder, tmp_path / "cache", on_member=lambda: found.append(1))
    with pytest.raises(UserError, match=r"text_to_image_part_1.tar is not a tar file"):
        list(release.plan())
    assert len(found) < 3000


def test_row_changes_between_plan_and_load(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    write_release(folder, num_rows=2)
    release = UpstreamRelease.open(folder, tmp_path / "cache")
    plan = next(release.plan())
    (folder / "text_to_image.json").write_bytes(b"[]")
    with pytest.raises(RowFault, match="the row has changed while the release was read"):
        release.load(plan)
