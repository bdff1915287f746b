# SPDX-License-Identifier: Apache-2.0
"""One large JSON array -> its elements one by one, each with its place in the file, in bounded memory.

    [{"input_prompt": "a fox"}, NaN]  ->  (1, 25, {"input_prompt": "a fox"}), (28, 3, fault "holds NaN, ...")

A row that is wrong in itself becomes a fault and the next one follows. Where the array itself is broken nobody knows
which rows are lost, so that is a [`UserError`].
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from sharegpt4o_image.errors import UserError

MAX_ELEMENT_BYTES = 2**20  # upstream's rows take about 600 bytes (our choice)
_CHUNK_BYTES = 2**18
_MAX_DEPTH = 500  # of brackets that are told apart; Python's reader gives up at about 1,000 (our choice)

_SPACE = re.compile(rb"[ \t\r\n]*+")
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# White space, numbers, words and whole strings; it stops at a bracket, or at a string that goes on behind the buffer.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NO_BRACKETS = re.compile(rb'(?:[^"\[\]{}]++|%b)*+' % _STRING, re.DOTALL)
_NO_MARKS = re.compile(rb'(?:[^"\[\]{},]++|%b)*+' % _STRING, re.DOTALL)  # a comma that is in no bracket ends a row
_OPENING = {ord("]"): ord("["), ord("}"): ord("{")}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of the array.

    Args:
        offset (`int`): where it begins in the file, in bytes.
        length (`int`): how many bytes it takes.
        value: what it says.
        fault (`str`, *optional*): why `value` is not there, as a phrase: `holds NaN, which is no JSON`.
        raw (`bytes`): how it is written; empty where it is too long to be kept.
    """

    offset: int
    length: int
    value: Any = None
    fault: str | None = None
    raw: bytes = b""


def iter_elements(file: BinaryIO, name: str) -> Iterator[Element]:
    """The elements of the array that a file holds.

    Args:
        file (`BinaryIO`): opened at its beginning.
        name (`str`): what to call it in messages.
    """
    reader = _ArrayReader(file, name)
    reader.open_array()
    while (place := reader.next_element()) is not None:
        offset, length, raw = place
        if raw is None:
            yield Element(offset, length, fault=f"is larger than {MAX_ELEMENT_BYTES:,} bytes")
            continue
        try:
            yield Element(offset, length, parse_element(raw), raw=raw)
        except json.JSONDecodeError as error:
            before = error.doc[: error.pos].encode("utf-8", "surrogateescape")
            reader.fail(f"{error.msg} in row {reader.num_elements - 1}", offset + len(before))
        except ElementFault as fault:
            yield Element(offset, length, fault=str(fault), raw=raw)
    reader.close_array()


class ElementFault(Exception):
    """An element of which the extent is known, but not the content."""


def parse_element(raw: bytes) -> Any:
    """The value of one element; raises [`ElementFault`], or `JSONDecodeError` where its extent is in doubt, too."""
    text = raw.decode("utf-8", "surrogateescape")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ElementFault("is nested too deeply") from None
    except ValueError:  # of int(): too many digits
        raise ElementFault("holds a number of too many digits") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ElementFault("is not UTF-8") from None
    if rb"\u" in raw:
        _refuse_half_characters(value)
    return value


def _refuse_half_characters(value: Any) -> None:
    """`"\\ud83d"` alone is JSON, but no text: nothing that stores UTF-8 takes it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ElementFault("holds half a surrogate pair, which is no text") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ElementFault(f"holds {name}, which is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _ArrayReader:
    """Moves through the file; `_data[_at]` is the next byte, `_base` the place of `_data[0]` in the file."""

    def __init__(self, file: BinaryIO, name: str):
        self._file = file
        self._name = name
        self._data = b""
        self._base = 0
        self._at = 0
        self.num_elements = 0

    def fail(self, what: str, offset: int | None = None) -> NoReturn:
        """Give up on the file."""
        where = self._base + self._at if offset is None else offset
        raise UserError(f"{self._name} is broken at byte {where:,}: {what}; download it again")

    def open_array(self) -> None:
        """Move behind the bracket that begins the array."""
        while len(self._data) < len(_BOM) and self._fill(0):
            pass
        if self._data.startswith(_BOM):
            self._at = len(_BOM)
        first = self._skip_space()
        if first == ord("{"):
            raise UserError(f"{self._name} is a JSON object, expected an array of rows; give upstream's own file")
        if first != ord("["):
            raise UserError(f"{self._name} does not begin as a JSON array; download it again")
        self._at += 1

    def next_element(self) -> tuple[int, int, bytes | None] | None:
        """Offset, length and bytes of the next element, the bytes only if they are few; `None` at the array's end."""
        mark = self._skip_space()
        if mark == ord("]") and self.num_elements == 0:
            return None
        if self.num_elements > 0:
            if mark == ord("]"):
                return None
            self._at += 1  # the comma that the last element ended at
            mark = self._skip_space()
        if mark in b",]":
            self.fail("a row is missing")
        self.num_elements += 1
        return self._measure()

    def close_array(self) -> None:
        """See that nothing follows the array."""
        self._at += 1
        if self._find_space_end():
            self.fail("something follows the array")

    def _measure(self) -> tuple[int, int, bytes | None]:
        """Move behind the element that begins here: to the comma or bracket that ends it."""
        start = self._base + self._at
        open_brackets = bytearray()
        num_deeper = 0  # brackets within more than _MAX_DEPTH others
        while True:
            match = (_NO_BRACKETS if open_brackets else _NO_MARKS).match(self._data, self._at)
            assert match is not None  # it matches nothing at all, too
            self._at = match.end()
            mark = self._data[self._at : self._at + 1]
            if not mark:
                self._need_more(start)
            elif mark == b'"':
                self._skip_string(start)
            elif mark in b"[{":
                self._at += 1
                num_deeper += len(open_brackets) == _MAX_DEPTH
                open_brackets += mark[: _MAX_DEPTH - len(open_brackets)]
            elif not open_brackets:
                break
            elif num_deeper:
                self._at += 1
                num_deeper -= 1
            elif open_brackets.pop() == _OPENING[mark[0]]:
                self._at += 1
            else:
                self.fail(f"an unexpected {mark.decode()} in row {self.num_elements - 1}")
        if mark == b"}":
            self.fail("an unexpected }")
        return self._cut(start)

    def _cut(self, start: int) -> tuple[int, int, bytes | None]:
        length = self._base + self._at - start
        if length > MAX_ELEMENT_BYTES or start < self._base:
            return start, length, None
        raw = self._data[start - self._base : self._at].rstrip(b" \t\r\n")
        return start, len(raw), raw

    def _skip_string(self, start: int) -> None:
        """Move behind a string that does not end in the buffer."""
        self._at += 1
        while True:
            match = _REST_OF_STRING.match(self._data, self._at)
            assert match is not None  # it matches nothing at all, too
            self._at = match.end()
            if self._data[self._at : self._at + 1] == b'"':
                self._at += 1
                return
            self._need_more(start)  # the buffer may end within an escape

    def _skip_space(self) -> int:
        """The next byte that is no white space."""
        if not self._find_space_end():
            self.fail("the file ends too early")
        return self._data[self._at]

    def _find_space_end(self) -> bool:
        while True:
            match = _SPACE.match(self._data, self._at)
            assert match is not None  # it matches nothing at all, too
            self._at = match.end()
            if self._at < len(self._data):
                return True
            if not self._fill(self._at):
                return False

    def _need_more(self, start: int) -> None:
        """Read on, and keep the element that begins at `start` unless it is too long."""
        kept = start - self._base
        if self._base + self._at - start > MAX_ELEMENT_BYTES:
            kept = self._at
        if not self._fill(max(kept, 0)):
            self.fail("the file ends too early")

    def _fill(self, kept: int) -> bool:
        """Read the next chunk, and let go of what lies before `kept`; `False` at the end of the file."""
        chunk = self._file.read(_CHUNK_BYTES)
        self._data = self._data[kept:] + chunk
        self._base += kept
        self._at -= kept
        return bool(chunk)
