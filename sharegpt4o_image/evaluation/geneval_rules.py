# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules: a prompt, what a detector found, and the colours of it -> right or wrong, and why.

Arithmetic is in float32, as upstream's: a score of 0.3 is not above the threshold of 0.3.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_prompts import COLORS, RELATIONS, Clause, Prompt
from sharegpt4o_image.evaluation.scene_benchmark import Verdict

# djghosh13/geneval@af4902f, evaluation/evaluate_images.py: its defaults. Its `max_overlap` is 1, which drops nothing.
SCORE_THRESHOLD = 0.3
COUNTING_SCORE_THRESHOLD = 0.9
MAX_OBJECTS_PER_CLASS = 16
POSITION_TOLERANCE = 0.1  # share of both sizes by which an offset is shortened
_SMALLEST_OFFSET = 1e-3  # pixels; below it on both axes there is no relation
_DIRECTION_LIMIT = 0.5  # of the shortened offset, as a share of the whole one

# (class name, numbers of detections as the detector gave them) -> the colour of each. Asked only for boxes looked at.
Classify = Callable[[str, Sequence[int]], Sequence[str]]


@dataclass(frozen=True)
class Detection:
    """A box `(x1, y1, x2, y2)` in pixels, y pointing down, and its score."""

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class KeptDetection:
    """A detection that passed the filter; `index` is its place among those of its class as the detector gave them."""

    index: int
    box: NDArray[np.float32]  # (4,)
    score: float

    def to_json(self) -> list[float]:
        """`[x1, y1, x2, y2, score]`, as in the official `details`."""
        return [*self.box.tolist(), self.score]


Kept = dict[str, list[KeptDetection]]


def keep_detections(detections: Mapping[str, Sequence[Detection]], tag: str, image: str) -> Kept:
    """What the rules look at: per class, best first; classes of which nothing is left are absent.

    Args:
        detections: class name -> detections in any order.
        tag: the prompt's tag; `counting` has its own threshold.
        image: names the picture in errors.
    """
    threshold = np.float32(COUNTING_SCORE_THRESHOLD if tag == "counting" else SCORE_THRESHOLD)
    kept = {}
    for name, found in detections.items():
        rows = _rows(found, f"{image}: a detection of {name!r}")
        best_first = np.argsort(rows[:, 4], kind="stable")[::-1]
        chosen = best_first[rows[best_first, 4] > threshold][:MAX_OBJECTS_PER_CLASS]
        if len(chosen):
            kept[name] = [KeptDetection(int(i), rows[i, :4], float(rows[i, 4])) for i in chosen]
    return kept


def _rows(found: Sequence[Detection], where: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large for float32: infinite, named below
        rows = np.array([(*one.box, one.score) for one in found], dtype=np.float32).reshape(-1, 5)
    if not np.isfinite(rows).all():
        number = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise UserError(
            f"{where} has a box or score that is no finite number: {found[number]}; run the detector again."
        )
    return rows


def decide(prompt: Prompt, kept: Kept, classify: Classify) -> Verdict:
    """All clauses of `include` must hold, none of `exclude`; the reason has a line for each that decides against."""
    faults = []
    groups: list[list[KeptDetection] | None] = []  # what each clause found; None where it does not hold
    for clause in prompt.include:
        found = kept.get(clause.class_name, [])[: clause.count]
        fault = _count_fault(clause, found) or _color_fault(clause, found, classify)
        fault = fault or _position_fault(clause, found, groups)
        groups.append(None if fault else found)
        faults += [fault] if fault else []
    for clause in prompt.exclude:
        num_found = len(kept.get(clause.class_name, []))
        if num_found >= clause.count:
            faults.append(f"expected {clause.class_name}<{clause.count}, found {num_found}")
    return Verdict(not faults, "\n".join(faults))


def _count_fault(clause: Clause, found: list[KeptDetection]) -> str:
    if len(found) == clause.count:
        return ""
    return f"expected {clause.class_name}>={clause.count}, found {len(found)}"


def _color_fault(clause: Clause, found: list[KeptDetection], classify: Classify) -> str:
    if clause.color is None:
        return ""
    seen = list(classify(clause.class_name, [one.index for one in found]))
    num_right = seen.count(clause.color)
    if num_right >= clause.count:
        return ""
    names = [*COLORS, *sorted(set(seen) - set(COLORS))]
    listed = ", ".join(f"{seen.count(color)} {color}" for color in names if color in seen)
    wanted = f"{clause.color} {clause.class_name}>={clause.count}"
    return f"expected {wanted}, found {num_right} {clause.color}; and {listed}"


def _position_fault(
    clause: Clause, found: list[KeptDetection], groups: Sequence[Iterable[KeptDetection] | None]
) -> str:
    if clause.position is None:
        return ""
    relation, target = clause.position
    others = groups[target]
    if others is None:
        return f"no target for {clause.class_name} to be {relation}"
    for relations in (relations_of(one.box, other.box) for one in found for other in others):
        if relation not in relations:
            return f"expected {clause.class_name} {relation} target, found {' and '.join(relations)} target"
    return ""


def relations_of(box: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[str, ...]:
    """Where `box` is, seen from `other`: none, one or two of `RELATIONS`, in their order.

    The offset of the centres is shortened on each axis by a tenth of both sizes, then divided by the length that it
    had before: two boxes that nearly cover each other have no relation.
    """
    offset = (box[:2] + box[2:]) / 2 - (other[:2] + other[2:]) / 2
    sizes = np.abs(box[2:] - box[:2]) + np.abs(other[2:] - other[:2])
    shortened = np.maximum(np.abs(offset) - POSITION_TOLERANCE * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < _SMALLEST_OFFSET):
        return ()
    dx, dy = shortened / np.linalg.norm(offset)
    holds = (dx < -_DIRECTION_LIMIT, dx > _DIRECTION_LIMIT, dy < -_DIRECTION_LIMIT, dy > _DIRECTION_LIMIT)
    return tuple(relation for relation, is_held in zip(RELATIONS, holds, strict=True) if is_held)
