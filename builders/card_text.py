# SPDX-License-Identifier: Apache-2.0
"""Values -> Markdown for cards. Text of users and models stays text: it cannot end a table, a code span or a tag."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_LISTED = 40  # values in a table; the rest is added up
MAX_LENGTH = 200  # characters of a value

_PLAIN = re.compile(r"[\w .,:;/()+=@%'\"{}\[\]#*!?~^-]*")  # what means itself in a code span and a table cell
_MARKUP = re.compile(
    r"[\\`*\[\]<>&|#~$!{}@]|\b_|_\b|(?<=:)//|(?<=www)\.|^[^\w(\"']|^\d+(?=[.)])"
)  # the rest would link, or begin a list


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table of numbers and lines of Markdown; text from outside goes through `code` or `prose` before."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def count_table(label: str, counter: Mapping[str, int], num_rows: int | None = None, noun: str = "Rows") -> str:
    """Values and how often they occur, the most frequent first; the rest of `num_rows` rows counts as null."""
    rows = limited([(code(value), count) for value, count in ranked(counter)])
    num_null = (num_rows or 0) - sum(counter.values())
    return table((label, noun), [*rows, *([("null", num_null)] if num_null > 0 else [])])


def ranked(counter: Mapping[str, int]) -> list[tuple[str, int]]:
    """Values with how often they occur, the most frequent first."""
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def limited(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of a table that end with a number; those beyond `MAX_LISTED` are added up in one."""
    more = rows[MAX_LISTED:]
    if not more:
        return [*rows]
    blanks = [""] * (len(more[0]) - 2)
    return [*rows[:MAX_LISTED], (f"{len(more):,} more", *blanks, sum(row[-1] for row in more))]


def bullets(*sentences: str | bool | int | None) -> str:
    """Sentences as a list; what is false is left out."""
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "row"), counted(1_000, "row")
    ('1 row', '1,000 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def code(text: str) -> str:
    """Text as a code span.

    >>> code("gpt-image-2"), code("a|b")
    ('`gpt-image-2`', '<code>a&#124;b</code>')
    """
    line = _one_line(text)
    return f"`{line}`" if line.strip() and _PLAIN.fullmatch(line) else f"<code>{_escape(line)}</code>"


def prose(text: str) -> str:
    """Text as part of a sentence.

    >>> prose("*a* <b>")
    '&#42;a&#42; &#60;b&#62;'
    """
    return _escape(_one_line(text))


def literal(text: str) -> str:
    """Text as a string of Python."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def megabytes(num_bytes: int) -> str:
    """Bytes as megabytes.

    >>> megabytes(1_234_567)
    '1.23 MB'
    """
    return f"{num_bytes / 1e6:,.2f} MB"


def dollars(amount: float) -> str:
    """US dollars, with the digits that matter.

    >>> dollars(12.5), dollars(0.3), dollars(0.0042)
    ('12.50', '0.30', '0.0042')
    """
    num_decimals = 2 if amount <= 0 else max(2, 1 - math.floor(math.log10(amount)))
    return f"{amount:,.{num_decimals}f}"


def join_words(words: Sequence[str]) -> str:
    """Words as an enumeration.

    >>> join_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _one_line(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(line.split()) or "(empty)"
    return line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 1] + "…"


def _escape(line: str) -> str:
    """Every character that Markdown or HTML could take for markup, as a reference."""
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(letter)};" for letter in found[0]), line)
