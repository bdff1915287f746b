# SPDX-License-Identifier: Apache-2.0
"""A small release in upstream's true layout, with pictures that are true, small and each different.

Asked for, some rows are broken, each way that is known once or twice, and what is expected of every row is returned.
"""

import io
import json
import random
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.row_source import RowFault, RowSource
from sharegpt4o_image.schema import TASKS, Record, Task

_POOL_SIZE = 40
_SIDES = (9, 12, 16, 20)  # pixels; most pairs are not square
_FORMATS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)  # of the tar parts, in turn
_STEM = {"text_to_image": "image/", "text_and_image_to_image": "image/v2v_"}


@dataclass(frozen=True)
class GoodRow:
    """A row that must come out: `pictures` and `sizes` (width, height) end with the output's."""

    prompt: str
    pictures: list[bytes]
    sizes: list[list[int]]


@dataclass
class Expected:
    """What importing a release has to give, by location: `text_to_image.json, row 17`."""

    good: dict[str, GoodRow] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)  # pattern of the reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int = 30_000) -> bytes:
    """A few bytes that claim `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def write_release(
    folder: Path, num_rows: int = 40, num_parts: int = 2, seed: int = 0, breaks: bool = False
) -> Expected:
    """Write a release and say what is expected of it.

    Args:
        folder (`Path`): where; made if it is not there.
        num_rows (`int`): rows of both tasks together, the broken ones not counted.
        num_parts (`int`): tar parts of each task.
        seed (`int`): the same seed writes the same bytes.
        breaks (`bool`): add broken rows and members.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected = Expected()
    draw = random.Random(seed)
    pool = [_picture(draw) for _ in range(_POOL_SIZE)]
    for task in TASKS:
        release = _TaskWriter(task, num_parts, draw, pool)
        rows: list[Callable[[_TaskWriter], None]] = [_TaskWriter.good_row] * (num_rows // 2)
        if breaks:
            rows += [*_BROKEN_ROWS, *_BROKEN_PICTURES, *_OTHER_ROWS]
            draw.shuffle(rows)
        for write in rows:
            write(release)
        if breaks:
            release.break_tars()
        release.save(folder, expected)
    return expected


def import_all(release: RowSource) -> tuple[dict[str, Record], dict[str, str]]:
    """Rows, and the reasons of those that do not come out, by location."""
    good: dict[str, Record] = {}
    bad: dict[str, str] = {}
    prompts: dict[str, str | None] = {}
    for plan in release.plan():
        assert plan.location not in good.keys() | bad.keys()
        if plan.fault is not None:
            bad[plan.location] = plan.fault
            continue
        try:
            good[plan.location] = release.load(plan)
        except RowFault as fault:
            bad[plan.location] = fault.reason
            prompts[plan.location] = fault.input_prompt
    assert all(prompts.values())
    return good, bad


def check_import(release: RowSource, expected: Expected) -> None:
    """Every row is there, as it must be, or its reason is."""
    good, bad = import_all(release)
    assert bad.keys() == expected.bad.keys()
    for location, pattern in expected.bad.items():
        assert re.match(pattern, bad[location]), (location, bad[location], pattern)
    assert good.keys() == expected.good.keys()
    for location, row in expected.good.items():
        record = good[location]
        assert [*(image.bytes for image in record.input_image), record.output_image.bytes] == row.pictures
        assert record.input_prompt == row.prompt
        assert record.output_image_resolution == row.sizes[-1]
        assert record.input_image_resolution == (row.sizes[0] if len(row.sizes) > 1 else None)
        assert record.task == location.split(".")[0]
        assert find_fault(record) is None


def _picture(draw: random.Random) -> tuple[bytes, list[int]]:
    size = [draw.choice(_SIDES), draw.choice(_SIDES)]
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size[0], size[1]), draw.randbytes(3 * size[0] * size[1])).save(buffer, "PNG")
    return buffer.getvalue(), size


class _TaskWriter:
    """Collects rows and members of one task.

    Args:
        task (`str`): the task.
        num_parts (`int`): tar parts.
        draw (`random.Random`): decides sizes and pictures.
        pool (`list`): pictures to draw from; each gets a comment of its own, so that no two are equal.
    """

    def __init__(self, task: Task, num_parts: int, draw: random.Random, pool: list[tuple[bytes, list[int]]]):
        self.task = task
        self._draw = draw
        self._pool = pool
        self._num_pictures = 0
        self._rows: list[tuple[bytes, GoodRow | str]] = []
        self.members: list[list[tuple[tarfile.TarInfo, bytes]]] = [[] for _ in range(num_parts)]
        self.is_cut = False

    @property
    def is_edit(self) -> bool:
        return self.task == "text_and_image_to_image"

    # -------------------------------------------------------------- pictures

    def new_name(self) -> str:
        self._num_pictures += 1
        return f"{_STEM[self.task]}{self._num_pictures - 1}.png"

    def draw_picture(self) -> tuple[bytes, list[int]]:
        data, size = self._draw.choice(self._pool)
        end = len(data) - 12  # the last chunk, IEND, is empty
        comment = png_chunk(b"tEXt", b"Comment\0" + self._draw.randbytes(8).hex().encode())
        return data[:end] + comment + data[end:], size

    def put(self, data: bytes, name: str | None = None, part: int | None = None) -> str:
        """Add a member and return its name."""
        name = name or self.new_name()
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mtime = 1_750_000_000
        number = self._draw.randrange(len(self.members)) if part is None else part
        if number % len(_FORMATS) == 1:
            info.mtime = 1_750_000_000.25  # as a file's own: makes a pax header
        self.members[number].append((info, data))
        return name

    def put_special(self, kind: bytes, name: str | None = None, link: str = "image/0.png", data: bytes = b"") -> str:
        """Add a member that is no plain file."""
        name = self.put(data, name, part=0)
        info = self.members[0][-1][0]
        info.type, info.linkname = kind, link
        return name

    # -------------------------------------------------------------- rows

    def picture_row(self, output: str, sizes: list[list[int] | None], sources: list[str]) -> dict[str, Any]:
        """A row as upstream writes it; sizes end with the output's."""
        row: dict[str, Any] = {
            "input_prompt": f"a {self._draw.choice(['fox', 'Füchsin', '狐'])} no. {len(self._rows)}"
        }
        if self.is_edit:
            row |= {"input_image": sources, "input_image_resolution": sizes[0]}
        return row | {"output_image": output, "output_image_resolution": sizes[-1]}

    def new_row(self) -> tuple[dict[str, Any], GoodRow]:
        """A row with pictures of its own, and what is expected of it."""
        drawn = [self.draw_picture() for _ in range(2 if self.is_edit else 1)]
        names = [self.put(data) for data, _ in drawn]
        sizes = [size for _, size in drawn]
        row = self.picture_row(names[-1], [*sizes], names[:-1])
        return row, GoodRow(row["input_prompt"], [data for data, _ in drawn], sizes)

    def good_row(self) -> None:
        row, expected = self.new_row()
        self.add(row, expected)

    def add(self, row: dict[str, Any] | bytes, expected: GoodRow | str) -> None:
        """Add a row with what is expected of it: its content, or a pattern of the reason to keep it out."""
        raw = row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=len(self._rows) % 2 == 0).encode()
        self._rows.append((raw, expected))

    def add_output(self, data: bytes, reason: str) -> None:
        """Add a row of which the last picture is `data`."""
        self.add_name(self.put(data), reason)

    def add_name(self, name: str, reason: str) -> None:
        """Add a row of which the output is called `name`."""
        row, _ = self.new_row()
        self.add(row | {"output_image": name}, reason)

    # -------------------------------------------------------------- files

    def break_tars(self) -> None:
        """Members that no row asks for, and a last part that is cut off within its last member."""
        self.put(self.draw_picture()[0], "/image/absolute.png", part=0)
        self.put(self.draw_picture()[0], "image/../../outside.png", part=0)
        last = len(self.members) - 1
        row, _ = self.new_row()
        data = self.draw_picture()[0]
        reason = r"output_image is cut off: [\d,]+ of [\d,]+ bytes are in \w+_part_\d.tar"
        self.add(row | {"output_image": self.put(data, part=last)}, reason)
        self.is_cut = True

    def save(self, folder: Path, expected: Expected) -> None:
        raw = b"[\n  " + b",\n  ".join(raw for raw, _ in self._rows) + b"\n]\n"
        (folder / f"{self.task}.json").write_bytes(raw)
        for index, (_, outcome) in enumerate(self._rows):
            location = f"{self.task}.json, row {index}"
            if isinstance(outcome, str):
                expected.bad[location] = outcome
            else:
                expected.good[location] = outcome
        for number, members in enumerate(self.members):
            path = folder / f"{self.task}_part_{number}.tar"
            with tarfile.open(path, "w", format=_FORMATS[number % len(_FORMATS)]) as archive:
                for info, data in members:
                    archive.addfile(info, io.BytesIO(data))
                length = archive.offset
            if self.is_cut and number == len(self.members) - 1:
                size = len(members[-1][1])
                padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                with path.open("r+b") as file:
                    file.truncate(length - padded + size // 2)


# ------------------------------------------------------------------ what can be broken


def _changed(reason: str, **columns: Any) -> Any:
    """A row with other values in some columns; `None` takes a column away."""

    def write(release: _TaskWriter) -> None:
        row, _ = release.new_row()
        changed = {name: value for name, value in (row | columns).items() if value is not None}
        release.add(changed, reason)

    return write


def _raw(reason: str, old: bytes, new: bytes) -> Any:
    """A row that is written in another way."""

    def write(release: _TaskWriter) -> None:
        row, _ = release.new_row()
        raw = json.dumps(row | {"input_prompt": "PROMPT"}).encode()
        release.add(raw.replace(old, new), reason)

    return write


def _whole(reason: str, raw: bytes) -> Any:
    return lambda release: release.add(raw, reason)


def _sources(release: _TaskWriter) -> None:
    """Input pictures where there must be none, and none where there must be some."""
    row, _ = release.new_row()
    if release.is_edit:
        release.add(row | {"input_image": []}, "input_image is missing")
        row, _ = release.new_row()
        release.add(row | {"input_image": [7]}, "input_image is no list of names")
        row, _ = release.new_row()
        release.add(row | {"input_image": ["image/nowhere.png"]}, "input_image is in no tar part")
        row, _ = release.new_row()
        release.add(row | {"input_image": ["../secret.png"]}, "input_image has a name that leaves its folder")
        row, _ = release.new_row()
        release.add(
            row | {"input_image_resolution": [7, 7]},
            r"input_image does not have the recorded size: it is \d+x\d+, not 7x7",
        )
    else:
        release.add(row | {"input_image": ["image/0.png"]}, "input_image is given, but the task is text_to_image")
        row, _ = release.new_row()
        release.add(row | {"input_image_resolution": [8, 8]}, "input_image_resolution is given")


def _repeated(release: _TaskWriter) -> None:
    """One name twice, with other bytes of the same length, and with more."""
    for more in (b"", b"more"):
        row, expected = release.new_row()
        data = expected.pictures[-1]
        release.put(data[:-1] + bytes([data[-1] ^ 1]) + more, row["output_image"])
        release.add(row, "output_image lies in several places with different content")


_NAME = "output_image has a"
_RESOLUTION = "output_image_resolution is no pair of numbers of pixels"

_BROKEN_ROWS = [
    _whole("the row is no object", b'"a fox"'),
    _whole("the row is no object", b"null"),
    _whole("the row is larger than", b'{"input_prompt": "' + b"x" * (2**20) + b'"}'),
    _whole("the row is nested too deeply", b'{"input_prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    _whole("the row holds a number of too many digits", b'{"input_prompt": ' + b"1" * 5000 + b"}"),
    _raw("the row holds NaN", b'"PROMPT"', b"NaN"),
    _raw("the row holds -Infinity", b'"PROMPT"', b"-Infinity"),
    _raw("the row is not UTF-8", b"PROMPT", b"\xff\xfe"),
    _raw("the row holds half a surrogate pair", b"PROMPT", b"\\ud83d"),
    _changed("input_prompt is missing", input_prompt=None),
    _changed("input_prompt is no text", input_prompt=["a fox"]),
    _changed("input_prompt is empty", input_prompt=" \n"),
    _changed("output_image is missing", output_image=None),
    _changed("output_image is no text", output_image=["image/0.png"]),
    _changed("output_image is empty", output_image=""),
    _changed(f"{_NAME}n absolute name", output_image="/etc/passwd"),
    _changed(f"{_NAME} name that leaves its folder", output_image="image/../../secret.png"),
    _changed(f"{_NAME} name that is no path", output_image="image\\0.png"),
    _changed(f"{_NAME} name that is no path", output_image="https://example.org/0.png"),
    _changed(f"{_NAME} name that is too long", output_image="image/" + "x" * 300 + ".png"),
    _changed(f"{_NAME} name with characters that cannot be printed", output_image="image/\0.png"),
    _changed(_RESOLUTION, output_image_resolution="1024x1024"),
    _changed(_RESOLUTION, output_image_resolution=[16, 16, 3]),
    _changed(_RESOLUTION, output_image_resolution=[True, True]),
    _changed(_RESOLUTION, output_image_resolution=[16.0, 16.0]),
    _changed(_RESOLUTION, output_image_resolution=[-16, 16]),
    _sources,
]

_OTHER_SIZE = (
    r"output_image does not have the recorded size: it is \d+x\d+, not 7x7; row and picture do not belong together"
)

_BROKEN_PICTURES = [
    lambda release: release.add_name("image/nowhere.png", "output_image is in no tar part"),
    lambda release: release.add_name(
        release.put_special(tarfile.SYMTYPE), "output_image is refused: a symbolic link in"
    ),
    lambda release: release.add_name(release.put_special(tarfile.LNKTYPE), "output_image is refused: a hard link in"),
    lambda release: release.add_name(release.put_special(tarfile.CHRTYPE), "output_image is refused: a device in"),
    lambda release: release.add_name(release.put_special(tarfile.FIFOTYPE), "output_image is refused: a pipe in"),
    lambda release: release.add_name(
        release.put_special(tarfile.GNUTYPE_SPARSE), "output_image is refused: a sparse file in"
    ),
    lambda release: release.add_name(
        release.put_special(b"Z", data=release.draw_picture()[0]), "output_image is refused: of an unknown type in"
    ),
    lambda release: release.add_output(b"", "output_image is empty"),
    lambda release: release.add_output(b"<html>Forbidden</html>", "output_image is unreadable: not a picture"),
    lambda release: release.add_output(release.draw_picture()[0][:80], "output_image is unreadable: "),
    lambda release: release.add_output(png_bomb(), "output_image is unreadable: .*(exceeds|more than)"),
    lambda release: release.add_output(png_bomb(9_000), "output_image is unreadable: .*(exceeds|more than)"),
    _changed(_OTHER_SIZE, output_image_resolution=[7, 7]),
    _repeated,
]


def _same_twice(release: _TaskWriter) -> None:
    """The same bytes under the same name in two parts are no fault."""
    row, expected = release.new_row()
    for part in range(len(release.members)):
        release.put(expected.pictures[-1], row["output_image"], part)
    release.add(row, expected)


def _other_order(release: _TaskWriter) -> None:
    """Which of width and height comes first is not known."""
    row, expected = release.new_row()
    turned = {name: pair[::-1] for name, pair in row.items() if name.endswith("_resolution")}
    release.add(row | turned, expected)


def _no_resolution(release: _TaskWriter) -> None:
    row, expected = release.new_row()
    release.add({name: value for name, value in row.items() if not name.endswith("_resolution")}, expected)


def _other_spelling(release: _TaskWriter) -> None:
    """A dot in front of the names, a name instead of a list, a column more, and the same row again."""
    row, expected = release.new_row()
    other = row | {"output_image": f"./{row['output_image']}", "quality": "hd"}
    if release.is_edit:
        other["input_image"] = row["input_image"][0]
    release.add(other, expected)
    release.add(other, expected)


_OTHER_ROWS = [_same_twice, _other_order, _no_resolution, _other_spelling]
