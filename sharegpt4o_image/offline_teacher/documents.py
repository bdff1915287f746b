# SPDX-License-Identifier: Apache-2.0
"""Documents: a subject -> title and lines, those -> a visual prompt, and the prompt -> the page that it asks for.

Types are the paper's (section 2.1); the words, layouts and colours are our own choice.
"""

import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INKS = {"black": (28, 28, 32), "dark blue": (24, 44, 96), "dark green": (20, 72, 52), "dark red": (112, 24, 32)}
ACCENTS = {
    "teal": (32, 140, 140),
    "coral": (232, 104, 84),
    "amber": (226, 158, 40),
    "violet": (118, 86, 178),
    "sky blue": (84, 150, 214),
}
PAPERS = {
    "white": (255, 255, 255),
    "cream": (252, 246, 228),
    "light gray": (238, 240, 242),
    "pale blue": (230, 240, 250),
}

# What a page of each type looks like, in the words of the prompt.
LAYOUTS = {
    "slide": "a large title at the top left and bullet points below",
    "paper": "a centered title and short sections in a single column",
    "document": "a title at the top left and numbered paragraphs",
    "infographic": "a title at the top and horizontal bars with labels",
    "chart": "a title at the top and horizontal bars with labels",
    "poster": "a large centered title on a colored panel and centered lines",
}

_TYPE = re.compile(rf"\b(?P<type>{'|'.join(LAYOUTS)})\b")
_QUOTED = re.compile(r'["“]([^"“”]+)["”]')
_MAX_LINES = 4
_MAX_LINE_LENGTH = 48

_NEWS = (
    "Open every Saturday from nine to noon",
    "Run by a team of twelve volunteers",
    "Three small steps for everyone",
    "New members are welcome all year",
    "A calm plan for a busy season",
    "Questions, answers and a short tour",
    "Bring a friend and share the result",
    "Simple tools, clear goals, fair rules",
)
_SECTIONS = (
    "Why the question matters",
    "How the data were collected",
    "What twelve sites have in common",
    "First results after six weeks",
    "A simple model and its limits",
    "What others have found",
    "What to try next",
)
_MEASURES = ("Spring", "Summer", "Autumn", "Winter", "North", "South", "Members", "Visitors", "Repairs", "Workshops")


@dataclass(frozen=True)
class Page:
    """A page as it is drawn: what it says, and its colours."""

    type: str
    title: str
    lines: tuple[str, ...]
    ink: str
    accent: str
    paper: str


def _type_of(name: str, dice: random.Random) -> str:
    """The type that a text names; `Infographic/Chart` is one of both."""
    return dice.choice(_TYPE.findall(name.lower()) or ["document"])


def write_content(task: Mapping[str, Any], dice: random.Random) -> dict[str, str]:
    """Title and lines of a document of the task's `document_type` about its `subject` (`"<kind> about <topic>"`)."""
    kind, _, topic = str(task.get("subject") or task["document_type"]).partition(" about ")
    page_type = _type_of(str(task["document_type"]), dice)
    lines = [_headline(re.sub(rf"\b{page_type}\b", "", kind))] if topic else []
    if page_type in ("infographic", "chart"):
        lines += [f"{label}: {dice.randint(12, 96)} %" for label in dice.sample(_MEASURES, _MAX_LINES - 1)]
    else:
        lines += dice.sample(_SECTIONS if page_type == "paper" else _NEWS, _MAX_LINES - 1)
    return {"title": _headline(topic or kind) or "Untitled", "content": "\n".join(line for line in lines if line)}


def _headline(words: str) -> str:
    """Words without a leading article, short, with a capital letter."""
    words = re.sub(r"^(a|an|the) |\bfictional ", "", " ".join(words.split()), flags=re.IGNORECASE)
    return _shorten(words[:1].upper() + words[1:])


def _shorten(line: str) -> str:
    """As many whole words as fit on a line of a page."""
    return textwrap.shorten(line, _MAX_LINE_LENGTH, placeholder="")


def write_layout(task: Mapping[str, Any], dice: random.Random) -> str:
    """The visual prompt for a document whose text is settled."""
    kind = _type_of(str(task["document_type"]), dice)
    title, *lines = [
        _shorten(line.replace('"', "'"))
        for line in [str(task.get("title") or "Untitled"), *str(task.get("content") or "").splitlines()]
        if line.strip()
    ]
    quoted = [f'"{line}"' for line in lines[:_MAX_LINES] if line]
    named = f" with the lines {', '.join(quoted)}" if quoted else ""
    return (
        f'A clean {kind} titled "{title}"{named}, {LAYOUTS[kind]}, {dice.choice(list(INKS))} text and '
        f"{dice.choice(list(ACCENTS))} accents on a {dice.choice(list(PAPERS))} background"
    )


def find_page(prompt: str, dice: random.Random) -> Page | None:
    """The page that a prompt asks for, if it names a type and quotes a title; `dice` choose the colours left open."""
    quoted = [line for line in map(_shorten, _QUOTED.findall(prompt)) if line]
    text = _QUOTED.sub("", prompt).lower()
    kind = _TYPE.search(text)
    if kind is None or not quoted:
        return None

    def find_color(form: str, colors: Mapping[str, Any]) -> str:
        match = re.search(form.format("|".join(colors)), text)
        return match[1] if match else dice.choice(list(colors))

    return Page(
        type=kind["type"],
        title=quoted[0],
        lines=tuple(quoted[1 : 1 + _MAX_LINES]),
        ink=find_color(r"\b({}) (?:text|type|ink)", INKS),
        accent=find_color(r"\b({}) accent", ACCENTS),
        paper=find_color(r"\b({}) (?:background|paper)", PAPERS),
    )
