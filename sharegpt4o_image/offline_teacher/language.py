# SPDX-License-Identifier: Apache-2.0
"""Prompts: SceneRequest -> text and text -> SceneRequest.

The parser reads whatever text it is given: known words count, the rest is ignored. `describe` writes the few sentence
forms a prompt writer uses, and `parse_request(describe(r))` gives `r` back (a test holds it).
"""

import random
import re
from dataclasses import replace

from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    CELLS,
    LIGHTINGS,
    NUMBERS,
    OBJECT_COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
    ObjectRequest,
    SceneRequest,
)

_PLURALS = {f"{shape}es" if shape.endswith("s") else f"{shape}s": shape for shape in SHAPES}
_SHAPE_OF_WORD = {shape: shape for shape in SHAPES} | _PLURALS
_COUNT_OF_WORD = NUMBERS | {"a": 1, "an": 1, "the": 1} | {str(number): number for number in NUMBERS.values()}


def _one_of(words: object) -> str:
    """A regular expression for any of `words`, longest first."""
    return "|".join(sorted((re.escape(str(word)) for word in words), key=len, reverse=True))  # type: ignore[attr-defined]


_OBJECT = re.compile(
    rf"(?:\b(?P<count>{_one_of(_COUNT_OF_WORD)}) )?(?:(?P<size>{_one_of(CELLS)}) )?"
    rf"(?:(?P<color>{_one_of(OBJECT_COLORS)}) )?\b(?P<shape>{_one_of(_SHAPE_OF_WORD)})\b"
    rf"(?:,? (?P<place>{_one_of(PLACES)})\b)?"
)
_BACKGROUND = re.compile(rf"\b(?P<background>{_one_of(BACKGROUND_COLORS)}) (?:background|backdrop)\b")
_RELATION = re.compile(rf"\b(?P<relation>{_one_of([*RELATIONS, 'left of', 'right of'])})\b")
_STYLE = re.compile(rf"\b(?P<style>{_one_of(STYLES)}) style\b")
_LIGHTING = re.compile(rf"\b(?P<lighting>{_one_of(LIGHTINGS)})\b")

# The three forms in which a prompt writer names the background.
_BACKGROUND_FORMS = (
    "{scene} on a {background} background",
    "{scene}, {background} background",
    "{scene} against a {background} backdrop",
)


def normalize(text: str) -> str:
    """Lower case, single spaces: the form in which texts are parsed."""
    return " ".join(text.lower().split())


def find_objects(text: str) -> list[ObjectRequest]:
    """The objects that a normalised text names, in order."""
    found = []
    for match in _OBJECT.finditer(text):
        found.append(
            ObjectRequest(
                shape=_SHAPE_OF_WORD[match["shape"]],
                color=match["color"],
                size=match["size"],
                count=_COUNT_OF_WORD[match["count"] or "a"],
                place=match["place"],
            )
        )
    return found


def find_style(text: str) -> str | None:
    """The style that a normalised text asks for (`"outline style"`)."""
    match = _STYLE.search(text)
    return match["style"] if match else None


def find_lighting(text: str) -> str | None:
    """The lighting that a normalised text asks for."""
    match = _LIGHTING.search(text)
    return match["lighting"] if match else None


def find_background(text: str) -> str | None:
    """The background colour that a normalised text asks for."""
    match = _BACKGROUND.search(text)
    return match["background"] if match else None


def parse_request(text: str) -> SceneRequest:
    """What a prompt asks for; words the teacher does not know are ignored."""
    text = normalize(text)
    relation = _RELATION.search(_LIGHTING.sub("", text))
    name = relation["relation"] if relation else None
    return SceneRequest(
        objects=tuple(find_objects(text)),
        relation=f"to the {name}" if name in ("left of", "right of") else name,
        background=find_background(text),
        style=find_style(text),
        lighting=find_lighting(text),
    )


def name_object(item: ObjectRequest, article: str = "a") -> str:
    """`"a small red circle"`, `"three red circles"`, `"the circle"`."""
    plural = {shape: word for word, shape in _PLURALS.items()}
    words = [item.size, item.color, plural[item.shape] if item.count > 1 else item.shape]
    noun = " ".join(word for word in words if word)
    if item.count > 1:
        return f"{next(word for word, number in NUMBERS.items() if number == item.count)} {noun}"
    if article == "a" and noun[0] in "aeiou":
        return f"an {noun}"
    return f"{article} {noun}"


def _name_with_place(item: ObjectRequest) -> str:
    noun = name_object(item)
    return f"{noun} {item.place}" if item.place else noun


def describe(request: SceneRequest, rng: random.Random) -> str:
    """Write `request` as a prompt; `rng` chooses among equivalent sentence forms."""
    names = [_name_with_place(item) for item in request.objects]
    text = f"{names[0]} {request.relation} {names[1]}" if request.relation else " and ".join(names)
    if request.background:
        text = rng.choice(_BACKGROUND_FORMS).format(scene=text, background=request.background)
    if request.style and request.style != "flat":
        text += f", {request.style} style"
    if request.lighting and request.lighting != "daylight":
        text += f", {request.lighting}"
    return text


def without_defaults(request: SceneRequest) -> SceneRequest:
    """`request` with the words dropped that a prompt does not say (flat style, daylight)."""
    return replace(
        request,
        style=None if request.style == "flat" else request.style,
        lighting=None if request.lighting == "daylight" else request.lighting,
    )
