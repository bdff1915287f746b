# SPDX-License-Identifier: Apache-2.0
"""A tar file -> where its members lie, so that one is read by its offset; nothing is unpacked.

Only headers are read, and what they claim is not believed: sizes are held against the file, names against leaving
their folder, links are never followed.
"""

import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, cast

from sharegpt4o_image.builders.byte_ranges import ByteRanges
from sharegpt4o_image.errors import UserError

MAX_HEADER_BYTES = 2**14  # of one member: a block, or three with long names; more is an attack (our choice)
MAX_MEMBERS = 1_000_000  # the release has 139,000 in all its parts (our choice)
_MAX_NAME_BYTES = 255  # between two slashes: what file systems take
_WINDOW_BYTES = 4 * tarfile.BLOCKSIZE  # read at once: a header with its extensions, as one request to the Hub
_MAX_PADDING = 2**20  # bytes that may follow the end mark; tar fills up to blocks of 10 KiB or more (our choice)
_INDEX_VERSION = 2

log = logging.getLogger(__name__)

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass
class TarIndex:
    """What a tar file holds.

    Args:
        members (`list`): in their order; a name may occur more than once.
        refused (`dict`): name -> why it is not read, as a phrase that ends with where: `is refused: a symbolic link`,
            `is cut off: 332 of 664 bytes are`, and then `in part_0.tar`.
        problem (`str`, *optional*): why there may be more than is listed, as a phrase: `ends too early`.
    """

    members: list[Member] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def scan_tar(file: ByteRanges, on_member: Callable[[], None] = lambda: None) -> TarIndex:
    """List the members of an uncompressed tar file.

    Args:
        file (`ByteRanges`): the tar file.
        on_member (`Callable`, *optional*): called for each member that is found; may raise to stop the scan.
    """
    index = TarIndex()
    try:
        for number, info in enumerate(_iter_members(_HeaderReader(file))):
            on_member()
            if number == MAX_MEMBERS:
                raise _Broken(f"holds more than {MAX_MEMBERS:,} members")
            _add(index, info, file.size)
    except _NoTar as error:
        _refuse_compressed(file)
        raise UserError(f"{file.name} is not a tar file; download it again") from error
    except _Broken as error:
        index.problem = str(error)
    return index


def plain_name(name: str) -> str:
    """A name without `.` parts: `./image/1.png` -> `image/1.png`."""
    return str(PurePosixPath(name))


def find_name_fault(name: str) -> str | None:
    """Why a name is not that of a file within the folder, as a phrase."""
    if not name.isprintable():
        return "has a name with characters that cannot be printed"
    if "\\" in name or "://" in name:
        return "has a name that is no path"
    if name.startswith("/"):
        return "has an absolute name"
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in name.split("/")):
        return "has a name that is too long"
    if ".." in name.split("/"):
        return "has a name that leaves its folder"
    return None if name.strip("/. ") else "has no name"


def shown(name: str) -> str:
    """A name for messages: short, and without what could be taken for markup or break a line."""
    plain = name.encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() and letter not in "<>`|" else "?" for letter in plain)[:100]


# ------------------------------------------------------------------ scanning


class _NoTar(Exception):
    """The first header is none."""


class _Broken(Exception):
    """The members end before the file does, as a phrase."""


class _HeaderReader:
    """What `tarfile` reads through: a window over the file, and a limit for what one member's headers may take.

    Positions are numbers only, so that a header may claim any size without a seek that fails.
    """

    def __init__(self, file: ByteRanges):
        self._file = file
        self._at = 0
        self._start = 0
        self._window = b""
        self.num_bytes = file.size
        self.allowance = MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, length: int) -> bytes:
        if not 0 <= length <= self.allowance:
            raise _Broken(f"has a header of more than {MAX_HEADER_BYTES:,} bytes before byte {self._at:,}")
        self.allowance -= length
        if not self._start <= self._at <= self._at + length <= self._start + len(self._window):
            self._start = self._at
            self._window = self._file.read(self._at, max(length, _WINDOW_BYTES)) if self._at < self._file.size else b""
        begin = self._at - self._start
        data = self._window[begin : begin + length]
        self._at += len(data)
        return data


def _refuse_compressed(file: ByteRanges) -> None:
    beginning = file.read(0, max(map(len, _COMPRESSED)))
    for magic, kind in _COMPRESSED.items():
        if beginning.startswith(magic):
            raise UserError(
                f"{file.name} is compressed with {kind}, but members are read by offset; decompress it first"
            )


def _iter_members(reader: _HeaderReader) -> Iterator[tarfile.TarInfo]:
    archive = _open(reader)
    while True:
        reader.allowance = MAX_HEADER_BYTES
        try:
            info = archive.next()
        except _FAULTS as error:
            raise _Broken(f"cannot be read on from byte {archive.offset:,} ({_phrase(error)})") from error
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember them all
        if info is None:
            break
        if info.size < 0 or archive.offset < info.offset_data:
            raise _Broken(f"has a member with a negative size at byte {info.offset:,}")
        yield info
    _check_end(reader, archive.offset)


# What tarfile raises on damaged headers: its own errors, and those of int(), split(), decode() and recursion.
_FAULTS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)


def _open(reader: _HeaderReader) -> tarfile.TarFile:
    try:
        return tarfile.TarFile(fileobj=cast(IO[bytes], reader), encoding="utf-8", errors="surrogateescape")
    except _FAULTS as error:
        raise _NoTar(str(error)) from error


def _phrase(error: Exception) -> str:
    return shown(str(error) or type(error).__name__)


def _check_end(reader: _HeaderReader, offset: int) -> None:
    """`tarfile` stops without a word at anything that is no header; only a block of zeros is the end."""
    reader.allowance = MAX_HEADER_BYTES
    reader.seek(offset)
    block = reader.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _Broken("has no end mark, so that it may be cut off")
    if block.strip(b"\0"):
        raise _Broken(f"is damaged at byte {offset:,}")
    num_more = reader.num_bytes - offset
    if num_more > _MAX_PADDING:
        raise _Broken(f"goes on for {num_more:,} bytes after its end mark, which are not read")


def _add(index: TarIndex, info: tarfile.TarInfo, file_size: int) -> None:
    if info.isdir():
        return
    fault = _find_fault(info, file_size)
    if fault is None:
        index.members.append(Member(plain_name(info.name), info.offset_data, info.size))
    else:
        index.refused[plain_name(info.name)] = fault


def _find_fault(info: tarfile.TarInfo, file_size: int) -> str | None:
    if info.sparse is not None:
        return "is refused: a sparse file"
    if info.type in _KINDS:
        return f"is refused: {_KINDS[info.type]}"
    if not info.isreg():
        return "is refused: of an unknown type"
    if info.offset_data + info.size > file_size:
        return f"is cut off: {max(0, file_size - info.offset_data):,} of {info.size:,} bytes are"
    return find_name_fault(info.name)


# ------------------------------------------------------------------ remembering


def load_index(file: ByteRanges, cache_dir: Path, on_member: Callable[[], None] = lambda: None) -> TarIndex:
    """The index of a tar file: remembered, or else scanned and, where that can be written, remembered.

    Writes: `cache_dir/<hash of name, size and stamp>.json`, which appears whole or not at all.
    """
    key = sha256(f"{_INDEX_VERSION}\0{file.name}\0{file.size}\0{file.stamp}".encode()).hexdigest()
    path = cache_dir / f"{key}.json"
    index = _read_index(path, file.size)
    if index is None:
        index = scan_tar(file, on_member)
        _write_index(path, index)
    return index


def _read_index(path: Path, file_size: int) -> TarIndex | None:
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        members = [Member(str(name), int(offset), int(size)) for name, offset, size in content["members"]]
        index = TarIndex(members, dict(content["refused"]), content["problem"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_sound = all(0 <= member.offset <= member.offset + member.size <= file_size for member in members)
    return index if is_sound else None


def _write_index(path: Path, index: TarIndex) -> None:
    members = [[member.name, member.offset, member.size] for member in index.members]
    content = json.dumps({"members": members, "refused": index.refused, "problem": index.problem})
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(content, encoding="ascii")
        unfinished.replace(path)
    except OSError as error:
        _warn_of_cache(path.parent, str(error.strerror))


@cache
def _warn_of_cache(folder: Path, reason: str) -> None:
    """Once for all tar parts: the index only spares the next scan."""
    log.warning(
        "%s cannot be written (%s), so the tar parts will be scanned again next time; set HF_HOME to another folder",
        folder,
        reason,
    )
