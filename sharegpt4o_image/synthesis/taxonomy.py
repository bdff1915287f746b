# SPDX-License-Identifier: Apache-2.0
"""Taxonomy (YAML) -> topics: what the samples are to be about.

The dimensions, the editing tasks and the number of objects per topic follow the paper (appendix B); see
`taxonomy_offline.yaml` for the shape of the file.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sharegpt4o_image.schema import Topic, content_id
from sharegpt4o_image.synthesis.yaml_files import read_yaml

EMBEDDED = ("offline",)  # names that stand for the package's own `taxonomy_<name>.yaml`

_MAX_REDRAWS = 20  # attempts at a topic that was not drawn before

Leaf = Annotated[str, Field(min_length=1)]
Leaves = Annotated[list[Leaf], Field(min_length=1)]
Dimension = Literal["background", "style", "lighting", "camera", "composition"]

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectCount(_Part):
    """How many objects a topic names: `w(x) = exp(-decay * (x - 1))` for x in 1..max (paper appendix B.2)."""

    decay: float = Field(default=0.5, ge=0)
    max: int = Field(default=100, ge=1, le=100)

    @property
    def weights(self) -> list[float]:
        """Weights of 1..max objects, not normalised."""
        return [math.exp(-self.decay * (count - 1)) for count in range(1, self.max + 1)]


class LeafGroup(_Part):
    """A sub-dimension and its words."""

    leaves: Leaves
    for_objects: tuple[int, int] = (1, 100)

    def fits(self, num_objects: int) -> bool:
        """Whether the group applies to topics of that many objects."""
        lowest, highest = self.for_objects
        return lowest <= num_objects <= highest


class DimensionWords(_Part):
    """One dimension: how often topics name it, and its groups."""

    share: float = Field(default=1.0, ge=0, le=1)
    groups: dict[str, LeafGroup] = Field(min_length=1)


class EditTask(_Part):
    """One task of the editing taxonomy (paper appendix B.1.2)."""

    category: str
    task: str
    weight: float = Field(default=1.0, gt=0)


class Taxonomy(_Part):
    """Everything a topic or an edit can be drawn from."""

    name: str
    object_count: ObjectCount = ObjectCount()
    objects: dict[str, Leaves] = Field(min_length=1)
    dimensions: dict[Dimension, DimensionWords] = Field(default_factory=dict)
    edits: list[EditTask] = Field(default_factory=list)

    @model_validator(mode="after")
    def _tasks_differ(self) -> "Taxonomy":
        twice = [name for name, count in Counter(edit.task for edit in self.edits).items() if count > 1]
        if twice:
            raise ValueError(f"the edit task {twice[0]!r} is listed twice")
        return self

    def draw_topics(self, count: int, seed: int) -> Iterator[Topic]:
        """The first `count` topics of the sequence that belongs to `seed`, whatever `count` is.

        A topic whose words were drawn before is drawn again a few times; where the taxonomy is too small for that,
        it repeats, under an id of its own.
        """
        times_drawn: Counter[str] = Counter()
        for index in range(count):
            dice = random.Random(f"topic {seed} {index}")
            for _ in range(_MAX_REDRAWS):
                words = self._draw_words(dice)
                topic_id = content_id(stage="topic", pipeline="prompt_first", **words)
                if not times_drawn[topic_id]:
                    break
            repeat = times_drawn[topic_id]
            times_drawn[topic_id] += 1
            if repeat:
                topic_id = content_id(stage="topic", words=topic_id, repeat=repeat)
            yield Topic(id=topic_id, pipeline="prompt_first", **words)

    def _draw_words(self, dice: random.Random) -> dict[str, Any]:
        counts = self.object_count
        num_objects = dice.choices(range(1, counts.max + 1), counts.weights)[0]
        leaves = [leaf for group in self.objects.values() for leaf in group]
        words: dict[str, Any] = {"objects": _draw_objects(leaves, num_objects, dice)}
        for dimension in DIMENSIONS:
            values = self.dimensions.get(dimension)
            groups = [group for group in values.groups.values() if group.fits(num_objects)] if values else []
            if values and groups and dice.random() < values.share:
                group = dice.choices(groups, [len(group.leaves) for group in groups])[0]
                words[dimension] = dice.choice(group.leaves)
        return words

    def draw_edit_tasks(self, source_id: str, seed: int) -> list[EditTask]:
        """Every edit task once, in the order in which they are to be tried on a source; likelier ones come first."""
        dice = random.Random(f"edit {seed} {source_id}")
        # Sorting by u^(1/weight) is weighted sampling without replacement (Efraimidis and Spirakis 2006).
        return sorted(self.edits, key=lambda edit: -(dice.random() ** (1 / edit.weight)))


_EQUAL_SHARE = 0.3  # topics of several objects that name the same object several times


def _draw_objects(leaves: list[str], num_objects: int, dice: random.Random) -> list[str]:
    """Distinct objects, or one object several times."""
    if num_objects > 1 and dice.random() < _EQUAL_SHARE:
        return [dice.choice(leaves)] * num_objects
    return dice.sample(leaves, min(num_objects, len(leaves)))


def load_taxonomy(name: str) -> Taxonomy:
    """The taxonomy of that name that comes with the package, or else the YAML file at that path."""
    package = Path(str(files("sharegpt4o_image.synthesis")))
    return read_yaml(package / f"taxonomy_{name}.yaml" if name in EMBEDDED else Path(name), Taxonomy)
