# SPDX-License-Identifier: Apache-2.0
"""The index of a tar file: right on every format, and never more than headers and a clear answer on hostile ones."""

import gzip
import io
import random
import re
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from sharegpt4o_image.builders import tar_members
from sharegpt4o_image.builders.byte_ranges import LocalFile
from sharegpt4o_image.builders.tar_members import MAX_HEADER_BYTES, TarIndex, load_index, scan_tar, shown
from sharegpt4o_image.errors import UserError

BLOCK = tarfile.BLOCKSIZE


class Bytes:
    """A file in memory that counts what is read of it."""

    name = "part_0.tar"
    stamp = "1"

    def __init__(self, data: bytes, size: int | None = None):
        self._data = data
        self.size = len(data) if size is None else size
        self.num_reads = 0
        self.num_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        data = self._data[offset : offset + length]
        self.num_reads += 1
        self.num_bytes += len(data)
        return data


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header block of a member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size_field(size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def size_field(size: int) -> bytes:
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    return (b"\x80" if size > 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")  # base 256


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % BLOCK)


def member(name: str, data: bytes) -> bytes:
    return header(name, len(data)) + padded(data)


def archive(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


END = b"\0" * (2 * BLOCK)
NEGATIVE = "has a member with a negative size|is damaged|cannot be read on"  # newer versions of `tarfile` find some


def contents(data: bytes, index: TarIndex) -> dict[str, bytes]:
    return {one.name: data[one.offset : one.offset + one.size] for one in index.members}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_all_formats(form: int) -> None:
    name = "image/" + "long" * 12 + "/" + "name" * 12 + ".png"  # 102 letters: an extension in GNU, a prefix in ustar
    members = {"image/0.png": b"abc", name: b"x" * 1500, "image/1.png": b""}
    if form != tarfile.USTAR_FORMAT:
        members |= {"image/" + "z" * 240 + ".png": b"long", "image/狐.png": b"fox"}
    data = archive(members, form)
    index = scan_tar(Bytes(data))
    assert contents(data, index) == members
    assert (index.refused, index.problem) == ({}, None)


def test_only_headers_are_read() -> None:
    """One read for a member, whatever its size."""
    data = archive({f"image/{number}.png": b"x" * 50_000 for number in range(40)}, tarfile.PAX_FORMAT)
    file = Bytes(data)
    scan_tar(file)
    assert file.num_reads <= 40 + 3
    assert file.num_bytes <= 43 * 4 * BLOCK < len(data) / 20


def test_dots_and_folders() -> None:
    data = header("./image/", kind=tarfile.DIRTYPE) + member("./image/0.png", b"a") + END
    index = scan_tar(Bytes(data))
    assert contents(data, index) == {"image/0.png": b"a"}
    assert index.refused == {}


def test_duplicates_stay_in_order() -> None:
    data = member("image/0.png", b"a") + member("image/1.png", b"b") + member("image/0.png", b"c") + END
    assert [data[one.offset :][:1] for one in scan_tar(Bytes(data)).members] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (header("image/1.png", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is refused: a symbolic link"),
        (header("image/1.png", kind=tarfile.LNKTYPE, link="image/0.png"), "is refused: a hard link"),
        (header("image/1.png", kind=tarfile.CHRTYPE), "is refused: a device"),
        (header("image/1.png", kind=tarfile.BLKTYPE), "is refused: a device"),
        (header("image/1.png", kind=tarfile.FIFOTYPE), "is refused: a pipe"),
        (header("image/1.png", kind=tarfile.GNUTYPE_SPARSE), "is refused: a sparse file"),
        (header("image/1.png", 3, kind=b"Y") + padded(b"abc"), "is refused: of an unknown type"),
        (member("/image/1.png", b"abc"), "has an absolute name"),
        (member("image/../../1.png", b"abc"), "has a name that leaves its folder"),
        (member("..", b"abc"), "has a name that leaves its folder"),
        (member("image\\1.png", b"abc"), "has a name that is no path"),
        (member("image/\x1b[31m.png", b"abc"), "has a name with characters that cannot be printed"),
        (member("image/\udcff.png", b"abc"), "has a name with characters that cannot be printed"),
    ],
)
def test_refused_members(block: bytes, reason: str) -> None:
    """They are listed with the reason, and the members around them are used."""
    data = member("image/0.png", b"a") + block + member("image/2.png", b"b") + END
    index = scan_tar(Bytes(data))
    assert contents(data, index) == {"image/0.png": b"a", "image/2.png": b"b"}
    assert [*index.refused.values()] == [reason]
    assert index.problem is None


def pax(records: bytes) -> bytes:
    return header("pax", len(records), tarfile.XHDTYPE) + padded(records)


def record(text: bytes) -> bytes:
    length = len(text) + 2
    while len(b"%d %s\n" % (length, text)) != length:
        length += 1
    return b"%d %s\n" % (length, text)


def test_pax_sparse_member_is_refused() -> None:
    sparse = record(b"GNU.sparse.major=1") + record(b"GNU.sparse.minor=0") + record(b"GNU.sparse.name=image/1.png")
    data = pax(sparse + record(b"GNU.sparse.realsize=9")) + member("x", b"0\n" + b"\0" * 510) + END
    assert scan_tar(Bytes(data)).refused == {"image/1.png": "is refused: a sparse file"}


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (header("pax", 2**40, tarfile.XHDTYPE), "has a header of more than 16,384 bytes"),
        (header("pax", 2**40, tarfile.XGLTYPE), "has a header of more than 16,384 bytes"),
        (header("long", 2**33, tarfile.GNUTYPE_LONGNAME), "has a header of more than 16,384 bytes"),
        (header("long", 2**33, tarfile.GNUTYPE_LONGLINK), "has a header of more than 16,384 bytes"),
        (header("pax", -512, tarfile.XHDTYPE), "has a header of more than 16,384 bytes"),
        (pax(record(b"comment=")) * 2000, "has a header of more than 16,384 bytes"),
        (header("image/1.png", -1), NEGATIVE),
        (header("image/1.png", -1024), NEGATIVE),
        (header("image/1.png", -(2**70)), NEGATIVE),
        (pax(record(b"size=-4096")) + header("image/1.png"), NEGATIVE),
        (pax(record(b"size=-4096")) + header("x", kind=tarfile.GNUTYPE_SPARSE), NEGATIVE),
        (header("image/1.png", 2**70), "cannot be read on from byte"),
        (pax(b"7" * 6000 + b" path=x\n") + header("x"), "cannot be read on from byte"),
        (pax(b"0 path=x\n") + header("x"), "is damaged at byte 1,024"),
        (b"<html>" + b"x" * (BLOCK - 6), "is damaged at byte 1,024"),
        (header("image/1.png")[:-1] + b"!", "is damaged at byte 1,024"),
    ],
)
def test_hostile_headers(block: bytes, problem: str) -> None:
    """The members before stay usable; nothing large is read, nothing is followed for ever."""
    data = member("image/0.png", b"a") + block + member("image/2.png", b"b") + END
    file = Bytes(data)
    index = scan_tar(file)
    assert index.problem is not None
    assert re.match(problem, index.problem)
    assert [one.name for one in index.members] == ["image/0.png"]
    assert file.num_bytes < 10 * MAX_HEADER_BYTES


def test_slow_expression_is_bounded() -> None:
    """A header of digits makes `tarfile` search in quadratic time: it is kept short."""
    data = pax(b"1" * (MAX_HEADER_BYTES - 3 * BLOCK)) + member("image/0.png", b"a") + END
    assert [one.name for one in scan_tar(Bytes(data)).members] == ["image/0.png"]


def test_every_cut_is_noticed() -> None:
    """Wherever a file ends too early: the members that are whole stay, and it is said that there may be more."""
    members = {"image/0.png": b"a" * 700, "image/1.png": b"b" * 512, "image/2.png": b"c" * 3}
    data = b"".join(member(name, content) for name, content in members.items())
    for length in range(BLOCK, len(data) + BLOCK, 7):
        cut = (data + END)[:length]
        index = scan_tar(Bytes(cut))
        assert index.problem is not None, length
        assert contents(cut, index).items() <= members.items()
        whole = [name for name, content in members.items() if data.index(content) + len(content) <= length]
        assert [one.name for one in index.members] == whole
        for name, reason in index.refused.items():
            assert reason.startswith("is cut off: "), name
    assert scan_tar(Bytes(data + END)).problem is None


def test_zeros_and_garbage_behind_the_end() -> None:
    good = member("image/0.png", b"a") + END
    assert scan_tar(Bytes(good + b"\0" * 9000)).problem is None  # padding
    endless = Bytes(good, size=2**40)
    index = scan_tar(endless)
    assert index.problem == f"goes on for {2**40 - 2 * BLOCK:,} bytes after its end mark, which are not read"
    assert endless.num_bytes < 10_000
    assert scan_tar(Bytes(END * 40)).members == []


def test_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MAX_MEMBERS", 3)
    index = scan_tar(Bytes(b"".join(member(f"{number}.png", b"") for number in range(5)) + END))
    assert (len(index.members), index.problem) == (3, "holds more than 3 members")


def test_random_damage() -> None:
    """Any damage gives an index of places within the file, or the sentence that it is no tar file."""
    members = {f"image/{number}.png": bytes([number]) * 300 * number for number in range(6)}
    draw = random.Random(0)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        good = archive(members | {"image/" + "n" * 200: b"x"}, form)
        for _ in range(400):
            data = bytearray(good)
            for _ in range(draw.randrange(1, 12)):
                data[draw.randrange(0, len(data) - 9000)] = draw.choice([0, 0xFF, 0x80, draw.randrange(256)])
            file = Bytes(bytes(data))
            try:
                index = scan_tar(file)
            except UserError:
                continue
            assert all(0 < one.offset <= one.offset + one.size <= file.size for one in index.members)
            assert file.num_bytes < 200_000


def test_memory_is_flat(tmp_path: Path) -> None:
    """What is kept of a member is its name and place, not the header that `tarfile` makes of it."""
    path = tmp_path / "part_0.tar"
    with path.open("wb") as file:
        for number in range(20_000):
            file.write(header(f"image/{number}.png"))
        file.write(END)
    tracemalloc.start()
    try:
        index = scan_tar(LocalFile(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index.members) == 20_000
    assert peak < 20_000 * 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "part_0.tar is not a tar file; download it again"),
        (b"<html>Not found</html>" * 100, "part_0.tar is not a tar file; download it again"),
        (gzip.compress(archive({"a": b"b"})), "part_0.tar is compressed with gzip, .*; decompress it first"),
        (b"BZh91AY" + b"x" * 1000, "part_0.tar is compressed with bzip2, .*; decompress it first"),
        (b"\xfd7zXZ\0" + b"x" * 1000, "part_0.tar is compressed with xz, .*; decompress it first"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 1000, "part_0.tar is compressed with zstd, .*; decompress it first"),
    ],
    ids=["empty", "HTML", "gzip", "bzip2", "xz", "zstd"],  # bytes in an id differ from process to process: gzip's date
)
def test_no_tar(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scan_tar(Bytes(data))


def test_name_like_a_compressed_file() -> None:
    data = member("BZh/0.png", b"a") + END
    assert contents(data, scan_tar(Bytes(data))) == {"BZh/0.png": b"a"}


def test_index_is_remembered(tmp_path: Path) -> None:
    """The second time no header is read; another file, or a broken memory, is scanned."""
    data = member("image/0.png", b"a") + header("image/\udcff.png", kind=tarfile.SYMTYPE) + header("image/1.png", 9)
    file = Bytes(data)
    first = load_index(file, tmp_path / "cache")
    assert [len(first.members), len(first.refused), first.problem is None] == [1, 2, False]
    num_reads = file.num_reads
    assert load_index(file, tmp_path / "cache") == first
    assert file.num_reads == num_reads
    [path] = (tmp_path / "cache").iterdir()
    for broken in ("", "[]", "{}", '{"members": [["a", -1, 5]], "refused": {}, "problem": null}'):
        path.write_text(broken)
        assert load_index(file, tmp_path / "cache") == first
    other = Bytes(data)
    other.stamp = "2"
    load_index(other, tmp_path / "cache")
    assert other.num_reads > 0


def test_stopped_scan_leaves_no_index(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_index(Bytes(member("image/0.png", b"a") + END), tmp_path / "cache", stop)
    assert not (tmp_path / "cache").exists()


def test_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It only spares the next scan, so it is done without; one warning is enough for all parts."""
    cache = tmp_path / "cache"
    cache.write_text("a file")
    for name in ("image/0.png", "image/1.png"):
        index = load_index(Bytes(member(name, b"a") + END), cache)
        assert [one.name for one in index.members] == [name]
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{cache} cannot be written (File exists), so the tar parts will be scanned again next time; "
        "set HF_HOME to another folder"
    )


def test_shown_names() -> None:
    assert shown("image/0.png") == "image/0.png"
    assert shown("<script>|\n`\udcff" + "x" * 200) == "?script???" + r"?\udcff" + "x" * 83
