# SPDX-License-Identifier: Apache-2.0
"""GenEval's prompts: a seed, or an `evaluation_metadata.jsonl` -> what each picture must and must not show.

`metadata_text(generate_metadata())` is the official file of 553 prompts, byte for byte.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from sharegpt4o_image.errors import UserError

# Facts of this module: djghosh13/geneval@af4902f, prompts/create_prompts.py and prompts/object_names.txt.
# COCO's 80 things in COCO's order, three of them renamed (computer mouse, tv remote, computer keyboard).
# A detector's labels are mapped by index, never by name.
CLASS_NAMES: tuple[str, ...] = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SEED = 43
NUM_PROMPTS_PER_TAG = 100  # before equal ones are dropped; single_object has one for each class
IMAGES_PER_PROMPT = 4

_NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Clause:
    """`count` objects of a class, perhaps of a colour, perhaps placed against an earlier clause: `("above", 0)`."""

    class_name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The clause as the official file writes it."""
        data: dict[str, Any] = {"class": self.class_name, "count": self.count}
        if self.color is not None:
            data["color"] = self.color
        if self.position is not None:
            data["position"] = list(self.position)
        return data


@dataclass(frozen=True)
class Prompt:
    """A picture is right when all clauses of `include` hold and none of `exclude` does."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    prompt: str

    def to_json(self) -> dict[str, Any]:
        """The prompt as the official file writes it, keys in its order."""
        data: dict[str, Any] = {"tag": self.tag, "include": [clause.to_json() for clause in self.include]}
        if self.exclude:
            data["exclude"] = [clause.to_json() for clause in self.exclude]
        return data | {"prompt": self.prompt}


# ------------------------------------------------------------------ generating


def generate_metadata(seed: int = SEED, num_prompts: int = NUM_PROMPTS_PER_TAG) -> list[Prompt]:
    """The official prompts: `num_prompts` draws for each tag but the first, equal ones dropped."""
    rng = np.random.default_rng(seed)
    prompts = [_single_object(index) for index in rng.choice(len(CLASS_NAMES), size=len(CLASS_NAMES), replace=False)]
    for draw in (_two_object, _counting, _colors, _position, _color_attr):
        prompts += [draw(rng) for _ in range(num_prompts)]
    return list(dict.fromkeys(prompts))


def metadata_text(prompts: Iterable[Prompt]) -> str:
    """The text of `evaluation_metadata.jsonl`."""
    return "".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts)


def _single_object(index: int) -> Prompt:
    name = CLASS_NAMES[index]
    return Prompt("single_object", (Clause(name, 1),), (), f"a photo of {_with_article(name)}")


def _two_object(rng: np.random.Generator) -> Prompt:
    a, b = _two_of(CLASS_NAMES, rng)
    text = f"a photo of {_with_article(a)} and {_with_article(b)}"
    return Prompt("two_object", (Clause(a, 1), Clause(b, 1)), (), text)


def _counting(rng: np.random.Generator) -> Prompt:
    name = _one_of(CLASS_NAMES, rng)
    count = int(rng.integers(min(_NUMBER_WORDS), max(_NUMBER_WORDS), endpoint=True))
    text = f"a photo of {_NUMBER_WORDS[count]} {_plural(name)}"
    return Prompt("counting", (Clause(name, count),), (Clause(name, count + 1),), text)


def _colors(rng: np.random.Generator) -> Prompt:
    name = _one_of(CLASS_NAMES[1:], rng)  # no "red person"
    color = _one_of(COLORS, rng)
    return Prompt("colors", (Clause(name, 1, color),), (), f"a photo of {_with_article(color)} {name}")


def _position(rng: np.random.Generator) -> Prompt:
    placed, reference = _two_of(CLASS_NAMES, rng)
    relation = _one_of(RELATIONS, rng)
    include = (Clause(reference, 1), Clause(placed, 1, position=(relation, 0)))
    return Prompt("position", include, (), f"a photo of {_with_article(placed)} {relation} {_with_article(reference)}")


def _color_attr(rng: np.random.Generator) -> Prompt:
    a, b = _two_of(CLASS_NAMES[1:], rng)
    color_a, color_b = _two_of(COLORS, rng)
    text = f"a photo of {_with_article(color_a)} {a} and {_with_article(color_b)} {b}"
    return Prompt("color_attr", (Clause(a, 1, color_a), Clause(b, 1, color_b)), (), text)


def _one_of(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[rng.choice(len(names))]


def _two_of(names: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    first, second = rng.choice(len(names), size=2, replace=False)
    return names[first], names[second]


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _plural(name: str) -> str:
    """As upstream forms it: "four knifes", "two sheeps"."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


# ------------------------------------------------------------------ reading


def read_metadata(path: Path) -> list[Prompt]:
    """The prompts of an official file; tags, classes and colours must be GenEval's."""
    prompts = []
    for where, data in read_json_lines(path):
        prompt = parse_prompt(data, where)
        _check_names(prompt, where)
        prompts.append(prompt)
    return prompts


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, object)` for each line that is not blank; the place names file and line in errors."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a file of JSON lines.") from None
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with one JSON object for each line.")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _json_object(line, f"{path}, line {number}")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error}); was the file cut off or edited by hand?") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: a {type(data).__name__} stands there; give a JSON object.")
    return data


def parse_prompt(data: Any, where: str) -> Prompt:
    """One prompt's metadata. Tags, classes and colours may be any, and clauses may lack: the rules take all of it.

    Args:
        data: what stands in the file.
        where: names the place in errors.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: metadata is a {type(data).__name__}; give an object with tag, include and prompt.")
    if not isinstance(data.get("tag"), str):
        raise UserError(f"{where}: `tag` of the metadata is {data.get('tag')!r}; give a string.")
    include, exclude = _clauses(data, "include", where), _clauses(data, "exclude", where)
    return Prompt(data["tag"], include, exclude, str(data.get("prompt", "")))


def _clauses(data: Mapping[str, Any], key: str, where: str) -> tuple[Clause, ...]:
    clauses = data.get(key, [])
    if not isinstance(clauses, list):
        raise UserError(f"{where}: `{key}` is {clauses!r}; give a list of clauses.")
    return tuple(_clause(clause, index, f"{where}, {key} {index}") for index, clause in enumerate(clauses))


def _clause(data: Any, index: int, where: str) -> Clause:
    if not isinstance(data, Mapping) or not isinstance(data.get("class"), str):
        raise UserError(f"{where}: {data!r} has no class; give an object with `class` and `count`.")
    count, color = data.get("count"), data.get("color")
    if not _is_whole(count) or count < 0:
        raise UserError(f"{where}: the count is {count!r}; give a whole number from 0 on.")
    if not isinstance(color, str | None):
        raise UserError(f"{where}: the color is {color!r}; give a string.")
    position = _position_of(data["position"], index, where) if "position" in data else None
    return Clause(data["class"], count, color, position)


def _position_of(position: Any, index: int, where: str) -> tuple[str, int]:
    if not isinstance(position, list) or len(position) != 2:
        raise UserError(f"{where}: the position is {position!r}; give [relation, number of an earlier clause].")
    relation, target = position
    if relation not in RELATIONS:
        raise UserError(f"{where}: unknown relation {relation!r}; give one of {', '.join(RELATIONS)}.")
    if not _is_whole(target) or not 0 <= target < index:
        raise UserError(f"{where}: the position points to clause {target!r}; give the number of an earlier clause.")
    return relation, target


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_names(prompt: Prompt, where: str) -> None:
    if prompt.tag not in TAGS:
        raise UserError(f"{where}: unknown tag {prompt.tag!r}; give one of {', '.join(TAGS)}.")
    if not prompt.prompt or not prompt.include:
        raise UserError(f"{where}: the metadata lacks `prompt` or `include`; give the official file.")
    for clause in (*prompt.include, *prompt.exclude):
        if clause.count < 1:
            raise UserError(f"{where}: the count of {clause.class_name} is {clause.count}; give 1 or more.")
        if clause.class_name not in CLASS_NAMES:
            raise UserError(f"{where}: unknown class {clause.class_name!r}; give one of GenEval's object_names.txt.")
        if clause.color is not None and clause.color not in COLORS:
            raise UserError(f"{where}: unknown color {clause.color!r}; give one of {', '.join(COLORS)}.")
