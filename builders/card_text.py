# SPDX-License-Identifier: Apache-2.0
"""Values -> Markdown for cards. Text of users and models stays text: it cannot end a table, a code span or a tag."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_LISTED = 40  # values in a table; the rest is added up
MAX_LENGTH = 200  # characters of a value

_PLAIN = re.compile(r"[\w .,:;/()+=@%'\"{}\[\]#*!?~^-]*")  # what means itself in a code span and a table cell
_MARKUP = re.compile(
    r"[\\`*\[\]<>&|#~$!{}@]|\b_|_\b|(?<=:)//|(?<=www)\.|^[^\w(\"']"
)  # the rest would link, or begin a list


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table of numbers and lines of Markdown; text from outside goes through `code` or `prose` before."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def count_table(label: str, counter: Mapping[str, int], num_rows: int | None = None, noun: str = "Rows") -> str:
    """Values and how often they occur, the most frequent first; the rest of `num_rows` rows counts as null."""
    ranked = sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))
    rows: list[tuple[str, int]] = [(code(value), count) for value, count in ranked[:MAX_LISTED]]
    if len(ranked) > MAX_LISTED:
        rows.append((f"{len(ranked) - MAX_LISTED:,} more values", sum(count for _, count in ranked[MAX_LISTED:])))
    num_null = (num_rows or 0) - sum(counter.values())
    if num_null > 0:
        rows.append(("null", num_null))
    return table((label, noun), rows)


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

    >>> dollars(12.5), dollars(0.0042)
    ('12.50', '0.0042')
    """
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"


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
