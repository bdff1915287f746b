# SPDX-License-Identifier: Apache-2.0
"""Reading a JSON array element by element: the same as `json.loads`, whatever the spelling and however long."""

import io
import json
import random
import re
import tracemalloc
from typing import Any

import pytest

from sharegpt4o_image.builders import json_rows
from sharegpt4o_image.builders.json_rows import MAX_ELEMENT_BYTES, Element, iter_elements
from sharegpt4o_image.errors import UserError


def read(raw: bytes) -> list[Element]:
    return list(iter_elements(io.BytesIO(raw), "rows.json"))


_TEXT = ['"', "\\", "\\u", "[", "]", "{", "}", ",", ":", " ", "\n", "é", "狐", "🦊", "\x7f", "a", "//"]


def _value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(8 if depth < 4 else 6)
    if kind == 6:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {_text(draw): _value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return [None, True, draw.randrange(-(10**6), 10**6), draw.random(), "", _text(draw)][kind]


def _text(draw: random.Random) -> str:
    return "".join(draw.choice(_TEXT) for _ in range(draw.randrange(12)))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, json_rows._CHUNK_BYTES])
def test_same_as_json(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Any values, any spelling, chunks that end anywhere; each element can be found again by its place."""
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", chunk_bytes)
    draw = random.Random(chunk_bytes)
    for trial in range(60):
        rows = [_value(draw) for _ in range(draw.randrange(6))]
        raw = json.dumps(rows, ensure_ascii=trial % 2 == 0, indent=[None, 0, 3][trial % 3]).encode()
        raw = draw.choice([b"", b"\xef\xbb\xbf", b" \r\n\t"]) + raw + draw.choice([b"", b"\n", b" \r\n"])
        elements = read(raw)
        assert [element.value for element in elements] == rows
        places = [raw[element.offset : element.offset + element.length] for element in elements]
        assert [json.loads(place) for place in places] == rows
        assert places == [element.raw for element in elements]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (b'{"a": NaN}', "holds NaN, which is no JSON"),
        (b"[-Infinity]", "holds -Infinity, which is no JSON"),
        (b'"\xff"', "is not UTF-8"),
        (b'"\xed\xa0\xbd"', "is not UTF-8"),  # half a surrogate pair in bytes
        (rb'{"a": ["\ud83d"]}', "holds half a surrogate pair, which is no text"),
        (rb'{"\uDC00": 1}', "holds half a surrogate pair, which is no text"),
        (b"9" * 5000, "holds a number of too many digits"),
        (b"[" * 20_000 + b"]" * 20_000, "is nested too deeply"),
        (b'"' + b"x" * MAX_ELEMENT_BYTES + b'"', "is larger than 1,048,576 bytes"),
        (b'"' + rb"\"" * MAX_ELEMENT_BYTES + b'"', "is larger than 1,048,576 bytes"),
    ],
)
def test_fault_of_one_row(row: bytes, fault: str) -> None:
    """The rows around it are read, and it has its place."""
    before, broken, after = read(b'["before", ' + row + rb' , "\ud83e\udd8a"]')
    assert (before.value, after.value) == ("before", "🦊")
    assert (broken.fault, broken.value, broken.offset, broken.length) == (fault, None, 11, broken.length)
    assert broken.length - len(row) in (0, 1)  # white space behind a row that was not kept counts


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "rows.json is broken at byte 0: the file ends too early"),
        (b"  \n", "rows.json is broken at byte 3: the file ends too early"),
        (b'{"rows": []}', "rows.json is a JSON object, expected an array of rows"),
        (b"version https://git-lfs", "rows.json does not begin as a JSON array"),
        ('["a"]'.encode("utf-16"), "rows.json does not begin as a JSON array"),
        (b"[", "byte 1: the file ends too early"),
        (b'[{"a": 1}', "byte 9: the file ends too early"),
        (b'[{"a": 1},', "byte 10: the file ends too early"),
        (b'[{"a": 1}, {"a": "tex', "byte 21: the file ends too early"),
        (b'[{"a": 1}, "\\', "byte 12: the file ends too early"),
        (b'[{"a": 1},]', "byte 10: a row is missing"),
        (b"[,1]", "byte 1: a row is missing"),
        (b"[1,,2]", "byte 3: a row is missing"),
        (b'[1, {"a": 1]', "byte 11: an unexpected ] in row 1"),
        (b"[1, [2}]", "byte 6: an unexpected } in row 1"),
        (b"[1, 2}", "byte 5: an unexpected }"),
        (b'["\xc3\xa9", tru]', "byte 7: Expecting value in row 1"),
        (b'["\xc3\xa9\xc3\xa9" x, 1]', "Extra data in row 0"),
        (b'[{"a": 1} {"a": 2}]', "byte 10: Extra data in row 0"),
        (b'[{"a": "line\nbreak"}]', "Invalid control character at in row 0"),
        (b"[1] [2]", "byte 4: something follows the array"),
        (b"[1]]", "byte 3: something follows the array"),
    ],
)
def test_broken_file(raw: bytes, message: str) -> None:
    """Where an array is broken, nobody knows which rows are lost: no row of it is imported."""
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(raw)
    assert "; " in str(error.value)  # the remedy


def test_rows_before_the_break_come_first() -> None:
    elements = iter_elements(io.BytesIO(b"[1, 2, }"), "rows.json")
    assert [next(elements).value, next(elements).value] == [1, 2]
    with pytest.raises(UserError):
        next(elements)


def test_every_cut_is_noticed() -> None:
    """A file that ends too early is never taken for a shorter one."""
    raw = json.dumps([{"a": [1, "]"]}, "x\\", {"b": {"c": None}}]).encode()
    for length in range(len(raw)):
        with pytest.raises(UserError):
            read(raw[:length])


class _Repeated(io.RawIOBase):
    """A file of many megabytes that is never in memory as a whole."""

    def __init__(self, before: bytes, unit: bytes, count: int, after: bytes):
        self._parts = iter([before, *[unit] * count, after])

    def read(self, size: int = -1) -> bytes:
        return next(self._parts, b"")


@pytest.mark.parametrize("unit", [b"x" * 2**16, rb"\\" * 2**15, b'", "' * 2**14])
def test_memory_is_bounded(unit: bytes) -> None:
    """One row of 100 MB costs no more than a few of the largest that are kept."""
    file = _Repeated(b'[1, ["', unit, 100_000_000 // len(unit), b'"], 2]')
    tracemalloc.start()
    try:
        elements = list(iter_elements(file, "rows.json"))  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [element.value for element in elements] == [1, None, 2]
    assert elements[1].fault == "is larger than 1,048,576 bytes"
    assert peak < 4 * MAX_ELEMENT_BYTES
