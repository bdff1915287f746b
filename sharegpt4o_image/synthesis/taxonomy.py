# SPDX-License-Identifier: Apache-2.0
"""Taxonomy (YAML) -> topics: what the samples are to be about.

The dimensions, the editing tasks and the number of objects per topic follow the paper (appendix B); the types of
documents its section 2.1. `taxonomy_paper.yaml` shows the shape of the file, and how a file extends another one.
"""

import itertools
import math
import os
import random
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from yaml.nodes import MappingNode, ScalarNode

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import Pipeline, Topic, content_id
from sharegpt4o_image.synthesis.yaml_files import check_node, fault_at, fault_in, merge_nodes, read_node

EMBEDDED = ("offline", "paper")  # names that stand for the package's own `taxonomy_<name>.yaml`

_CHOICE = f"{', '.join(EMBEDDED)} or the path of a YAML file"
_MAX_REDRAWS = 20  # attempts at a topic that was not drawn before
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, spread evenly however many there are

Leaf = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Leaves = Annotated[list[Leaf], Field(min_length=1)]
Dimension = Literal["background", "style", "lighting", "camera", "composition"]
Scope = Literal["local", "global", "any"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectCount(_Part):
    """How many objects a topic names: `w(x) = exp(-decay * (x - 1))` for x in 1..max (paper appendix B.2).

    Args:
        decay (`float`, *optional*, defaults to 0.5): the paper's lambda, which is not published; our choice.
        max (`int`, *optional*, defaults to 100): the most objects.
        repeat_share (`float`, *optional*, defaults to 0): part of the topics of several objects that name one object
            several times; the objects of all others are distinct.
    """

    decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    max: int = Field(default=100, ge=1, le=100)
    repeat_share: float = Field(default=0.0, ge=0, le=1)

    @property
    def weights(self) -> list[float]:
        """Weights of 1..max objects, not normalised."""
        return [math.exp(-self.decay * (count - 1)) for count in range(1, self.max + 1)]


class Person(_Part):
    """People (paper appendix E): a word of each group, in order, makes one object of `share` of the topics."""

    share: float = Field(ge=0, le=1)
    groups: dict[str, Leaves] = Field(min_length=1)


class LeafGroup(_Part):
    """A sub-dimension and its words."""

    leaves: Leaves
    for_objects: tuple[int, int] = (1, 100)

    @field_validator("for_objects")
    @classmethod
    def _is_range(cls, bounds: tuple[int, int]) -> tuple[int, int]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"the lowest number of objects comes first, found {list(bounds)}")
        return bounds

    def fits(self, num_objects: int) -> bool:
        """Whether the group applies to topics of that many objects."""
        lowest, highest = self.for_objects
        return lowest <= num_objects <= highest


class DimensionWords(_Part):
    """One dimension: how often topics name it, and its groups."""

    share: float = Field(default=1.0, ge=0, le=1)
    groups: dict[str, LeafGroup] = Field(min_length=1)


class EditTask(_Part):
    """One task of the editing taxonomy (paper appendix B.1.2).

    Args:
        weight (`float`, *optional*, defaults to 1): how likely the task is, against the others.
        scope (`str`, *optional*, defaults to `"any"`):
            How much of the picture should change: `local`, a part of it; `global`, all of it; `any`.
        prepare (`str`, *optional*): what the image teacher is asked first, to turn the source into a control picture.
    """

    category: Leaf
    task: Leaf
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    scope: Scope = "any"
    prepare: Leaf | None = None


class Documents(_Part):
    """Types of documents (paper section 2.1) with their kinds, and what documents are about."""

    types: dict[str, Leaves] = Field(min_length=1)
    subjects: Leaves


class Taxonomy(_Part):
    """Everything a topic or an edit can be drawn from."""

    name: str
    object_count: ObjectCount = ObjectCount()
    objects: dict[str, Leaves] = Field(min_length=1)
    person: Person | None = None
    dimensions: dict[Dimension, DimensionWords] = Field(default_factory=dict)
    edits: list[EditTask] = Field(default_factory=list)
    documents: Documents | None = None

    @model_validator(mode="after")
    def _words_differ(self) -> "Taxonomy":
        for lists in self._word_lists():
            seen: set[str] = set()
            for place, words in lists.items():
                for index, word in enumerate(words):
                    if word.casefold() in seen:
                        raise fault_in((*place, index), f"{word!r} is listed twice; keep one of them")
                    seen.add(word.casefold())
        return self

    def _word_lists(self) -> Iterator[dict[tuple[str, ...], Sequence[str]]]:
        """The lists of words under their places in the file, together where no two may share a word."""
        yield {("objects", name): leaves for name, leaves in self.objects.items()}
        for name, words in self.dimensions.items():
            yield {
                ("dimensions", name, "groups", group, "leaves"): part.leaves for group, part in words.groups.items()
            }
        for group, leaves in self.person.groups.items() if self.person else ():
            yield {("person", "groups", group): leaves}
        for document_type, kinds in self.documents.types.items() if self.documents else ():
            yield {("documents", "types", document_type): kinds}
        yield {("documents", "subjects"): self.documents.subjects if self.documents else []}

    @model_validator(mode="after")
    def _tasks_differ(self) -> "Taxonomy":
        tasks = [edit.task for edit in self.edits]
        for index, task in enumerate(tasks):
            if task in tasks[:index]:
                raise fault_in(("edits", index), f"the edit task {task!r} is listed twice; keep one of them")
        return self

    @model_validator(mode="after")
    def _has_enough_objects(self) -> "Taxonomy":
        num_objects = len(self.object_leaves)
        if self.object_count.max > num_objects:
            raise fault_in(
                ("object_count", "max"),
                f"a topic may name up to {self.object_count.max} objects, but {num_objects} is all that are listed; "
                f"set object_count.max to {num_objects} or less",
            )
        return self

    @property
    def object_leaves(self) -> list[str]:
        """The objects of all groups."""
        return [leaf for leaves in self.objects.values() for leaf in leaves]

    @property
    def column_words(self) -> dict[str, tuple[str, ...]]:
        """Column of a row -> the words that it is drawn from, for columns that hold one word of a list."""
        words: dict[str, tuple[str, ...]] = {
            str(name): tuple(leaf for group in dimension.groups.values() for leaf in group.leaves)
            for name, dimension in self.dimensions.items()
        }
        words["document_type"] = tuple(self.documents.types) if self.documents else ()
        words["edit_category"] = tuple(dict.fromkeys(self.edit_categories.values()))
        words["edit_task"] = tuple(self.edit_categories)
        return words

    @property
    def edit_categories(self) -> dict[str, str]:
        """Edit task -> its category."""
        return {edit.task: edit.category for edit in self.edits}

    def draw_topics(self, count: int, seed: int) -> Iterator[Topic]:
        """The first `count` topics of the sequence that belongs to `seed`, whatever `count` is.

        The sequence is stratified: the words of a list all come once before one of them comes again, and the numbers
        of objects follow their weights to within a few topics. A topic whose words were drawn before is drawn again a
        few times; where the taxonomy is too small for that, it repeats, under an id of its own.
        """
        scenes = _SceneDraw(self, seed)
        object_counts = itertools.islice(_draw_counts(self.object_count, seed), count)
        return _distinct_topics("prompt_first", (partial(scenes.draw, num_objects) for num_objects in object_counts))

    def draw_documents(self, count: int, seed: int) -> Iterator[Topic]:
        """The first `count` document topics of the sequence that belongs to `seed`, stratified like the others."""
        if not count:
            return iter(())
        documents = self.documents
        if documents is None:
            raise UserError(f"the taxonomy {self.name!r} has no documents; add `documents` to it, or ask for none")
        bags = _Bags(f"documents {seed}")
        types = (bags.draw("types", [*documents.types]) for _ in range(count))
        return _distinct_topics("document", (partial(_draw_document, bags, documents, each) for each in types))

    def draw_edit_tasks(self, source_id: str, seed: int) -> list[EditTask]:
        """Every edit task once, in the order in which they are to be tried on a source; likelier ones come first."""
        dice = random.Random(f"edit {seed} {source_id}")
        # Sorting by u^(1/weight) is weighted sampling without replacement (Efraimidis and Spirakis 2006).
        return sorted(self.edits, key=lambda edit: -(dice.random() ** (1 / edit.weight)))


# --------------------------------------------------------------------------- drawing


class _Bags:
    """Lists of words that are drawn from like bags: every word once, in random order, before one comes again."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._dice: dict[str, random.Random] = {}
        self._left: dict[str, list[str]] = {}

    def draw(self, name: str, words: Sequence[str], avoid: Collection[str] = ()) -> str:
        """The next word of the bag `name`, which holds `words`; words to `avoid` stay in the bag."""
        left = self._left.setdefault(name, [])
        if all(word in avoid for word in left):
            fresh = list(words)
            self._dice.setdefault(name, random.Random(f"{self._seed} {name}")).shuffle(fresh)
            left[:0] = fresh  # words are taken from the end: the old ones first
        place = next(place for place in reversed(range(len(left))) if left[place] not in avoid)
        return left.pop(place)


class _SceneDraw:
    """The state of one endless sequence of pictures."""

    def __init__(self, taxonomy: Taxonomy, seed: int) -> None:
        self._taxonomy = taxonomy
        self._leaves = taxonomy.object_leaves
        self._bags = _Bags(f"scenes {seed}")
        self._dice = random.Random(f"scenes {seed}")

    def draw(self, num_objects: int) -> dict[str, Any]:
        """The words of a picture with that many objects."""
        words: dict[str, Any] = {"objects": self._draw_objects(num_objects)}
        for dimension, values in self._taxonomy.dimensions.items():
            fitting = [name for name, group in values.groups.items() if group.fits(num_objects)]
            if fitting and self._dice.random() < values.share:
                name = self._bags.draw(f"{dimension}: {fitting}", fitting)
                words[dimension] = self._bags.draw(f"{dimension}: {name}", values.groups[name].leaves)
        return words

    def _draw_objects(self, num_objects: int) -> list[str]:
        """Distinct objects or one object several times, and maybe a person among them."""
        person = self._taxonomy.person
        people = [self._draw_person(person)] if person and self._dice.random() < person.share else []
        num_things = num_objects - len(people)
        if num_things > 1 and self._dice.random() < self._taxonomy.object_count.repeat_share:
            return [self._bags.draw("objects", self._leaves)] * num_things + people
        things: list[str] = []
        for _ in range(num_things):
            things.append(self._bags.draw("objects", self._leaves, avoid=things))
        return things + people

    def _draw_person(self, person: Person) -> str:
        return " ".join(self._bags.draw(f"person: {name}", leaves) for name, leaves in person.groups.items())


def _draw_document(bags: _Bags, documents: Documents, document_type: str) -> dict[str, Any]:
    """The words of a document of that type."""
    kind = bags.draw(f"kinds: {document_type}", documents.types[document_type])
    subject = bags.draw("subjects", documents.subjects)
    return {"document_type": document_type, "subject": f"{kind} about {subject}"}


def _draw_counts(object_count: ObjectCount, seed: int) -> Iterator[int]:
    """Endless numbers of objects whose histogram follows the weights, of every stretch of the sequence."""
    cumulative = list(itertools.accumulate(object_count.weights))
    point = random.Random(f"object counts {seed}").random()
    while True:
        yield 1 + bisect(cumulative, point * cumulative[-1])
        point = (point + _GOLDEN_RATIO) % 1.0


def _distinct_topics(pipeline: Pipeline, draws: Iterable[Callable[[], dict[str, Any]]]) -> Iterator[Topic]:
    """A topic of each draw, drawn again while its words are not new."""
    times_drawn: Counter[str] = Counter()
    for draw in draws:
        for _ in range(_MAX_REDRAWS):
            words = draw()
            topic_id = content_id(stage="topic", pipeline=pipeline, **words)
            if not times_drawn[topic_id]:
                break
        repeat = times_drawn[topic_id]
        times_drawn[topic_id] += 1
        if repeat:
            topic_id = content_id(stage="topic", words=topic_id, repeat=repeat)
        yield Topic(id=topic_id, pipeline=pipeline, **words)


# --------------------------------------------------------------------------- files


def load_taxonomy(name: str) -> Taxonomy:
    """The taxonomy of that name that comes with the package, or else the YAML file at that path.

    A file may say `extends: NAME`, a taxonomy of the package or a path relative to its own folder, and hold only what
    is different; see [`~yaml_files.merge_nodes`]. It has a `name` of its own.
    """
    path = _path_of(name, Path())
    if not os.path.isfile(path):
        raise UserError(f"there is no taxonomy {name!r}; give {_CHOICE}")
    return check_node(_read_extended(path, ()), Taxonomy)


def _path_of(name: str, folder: Path) -> Path:
    package = Path(str(files("sharegpt4o_image.synthesis")))
    return package / f"taxonomy_{name}.yaml" if name in EMBEDDED else folder / name


def _read_extended(path: Path, extending: tuple[Path, ...]) -> MappingNode:
    """The file laid over the one that it extends."""
    node = read_node(path)
    parts = {key.value: (key, value) for key, value in node.value}
    if "extends" not in parts:
        return node
    key, value = parts.pop("extends")
    base_name = value.value if isinstance(value, ScalarNode) else ""
    base_path = _path_of(base_name, path.parent)
    if not os.path.isfile(base_path):
        raise fault_at(key, f"there is no taxonomy {base_name!r} to extend; give {_CHOICE}")
    if base_path.resolve() in (*extending, path.resolve()):
        raise fault_at(key, "the taxonomy extends itself; name another one")
    base = _read_extended(base_path, (*extending, path.resolve()))
    nameless = [(key, value) for key, value in base.value if key.value != "name"]
    merged = merge_nodes(
        MappingNode(base.tag, nameless, base.start_mark),
        MappingNode(node.tag, list(parts.values()), node.start_mark),
    )
    assert isinstance(merged, MappingNode)
    return merged
