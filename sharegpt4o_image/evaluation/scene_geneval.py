# SPDX-License-Identifier: Apache-2.0
"""GenEval in the offline teacher's world: held-out prompts as GenEval writes them, and a judge that reads pixels.

    scene_prompts -> run_geneval: pictures -> SceneJudge (the scene detector, then GenEval's own rules) -> scores

Classes are the shapes, colours those of the objects. The wording is the one the tiny models were trained on: it always
names colour and background, and a relation between two objects. As in GenEval, each tag asks for one thing only:
`single_object` for the shape, whatever its colour; nothing asks for the background, and only `counting` minds more.

A detection's score is the overlap of its silhouette with the nearest shape. `counting` wants more than 0.9 of it, as
GenEval does, which is much for a picture of 32 x 32 pixels: of the teacher's own, scaled down to that, 25 of 40 count
as right, of 64 x 64 and more nearly all.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from sharegpt4o_image import __version__
from sharegpt4o_image.evaluation.benchmark_run import current_share
from sharegpt4o_image.evaluation.drawing import claim_folder, write_whole
from sharegpt4o_image.evaluation.geneval_prompts import IMAGES_PER_PROMPT, Clause, Prompt, metadata_text
from sharegpt4o_image.evaluation.geneval_rules import Detection, decide, keep_detections
from sharegpt4o_image.evaluation.geneval_run import Benchmark, GenEvalResult, run_geneval
from sharegpt4o_image.evaluation.geneval_scores import ResultRow
from sharegpt4o_image.evaluation.scene_benchmark import is_untrained
from sharegpt4o_image.evaluation.scene_folder import PictureSource
from sharegpt4o_image.offline_teacher.language import describe
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.scene import (
    BACKGROUND_COLORS,
    NUMBERS,
    OBJECT_COLORS,
    RELATIONS,
    SHAPES,
    ObjectRequest,
    SceneRequest,
)

SCENE_GENEVAL = "scene-geneval"


def scene_geneval(num_per_tag: int, images_per_prompt: int = IMAGES_PER_PROMPT) -> Benchmark:
    """What `run_geneval` runs: at most `num_per_tag` prompts of each tag, and their judge."""
    return Benchmark(SCENE_GENEVAL, {}, scene_prompts(num_per_tag), SceneJudge(), images_per_prompt)


def run_scene_geneval(
    num_per_tag: int, images_per_prompt: int, source: PictureSource, output: Path, command: str | None = None
) -> GenEvalResult | None:
    """Draw what is missing, judge and score; None in all processes but the main one.

    Writes `OUTPUT/scene-geneval/`: what `run_geneval` writes, and the prompts in GenEval's own file.
    """
    benchmark, run_dir = scene_geneval(num_per_tag, images_per_prompt), output / SCENE_GENEVAL
    generator = None
    if source.images is None:
        generator = source.make_generator(run_dir)
        claim_folder(run_dir, {"benchmark": SCENE_GENEVAL, "limit": num_per_tag})  # prompts depend on it
    write_whole(run_dir / "evaluation_metadata.jsonl", metadata_text(benchmark.prompts).encode())
    return run_geneval(benchmark, run_dir, generator, source.images, source.seed, current_share(), command)


# ------------------------------------------------------------------ prompts


def scene_prompts(num_per_tag: int, seed: int = 0) -> list[Prompt]:
    """At most `num_per_tag` prompts of each of GenEval's six tags; no combination occurs twice in a tag.

    Training keeps away from 33 combinations of one object and 112 of several equal ones: there are no more prompts of
    `single_object`, `colors` and `counting`.
    """
    rng = random.Random(f"geneval {seed}")
    singles, several, pairs = (list(filter(is_untrained, requests)) for requests in (_singles(), _several(), _pairs()))
    asked = {
        "single_object": (singles, _shapes_clauses),
        "two_object": (pairs, _shapes_clauses),
        "counting": (several, _shapes_clauses),
        "colors": (singles, _colors_clauses),
        "position": (pairs, _position_clauses),
        "color_attr": (pairs, _colors_clauses),
    }
    prompts = []
    for tag, (requests, clauses_of) in asked.items():
        for request in rng.sample(requests, min(num_per_tag, len(requests))):
            exclude = _one_more(request) if tag == "counting" else ()
            prompts.append(Prompt(tag, clauses_of(request), exclude, describe(request, rng)))
    return prompts


def _objects(count: int = 1) -> Iterator[ObjectRequest]:
    return (ObjectRequest(shape, color, count=count) for shape, color in product(SHAPES, OBJECT_COLORS))


def _singles() -> Iterator[SceneRequest]:
    return (SceneRequest((item,), None, background) for item, background in product(_objects(), BACKGROUND_COLORS))


def _several() -> Iterator[SceneRequest]:
    counts = [count for count in NUMBERS.values() if count > 1]
    items = (item for count in counts for item in _objects(count))
    return (SceneRequest((item,), None, background) for item, background in product(items, BACKGROUND_COLORS))


def _pairs() -> Iterator[SceneRequest]:
    """Two objects of different shape and colour: GenEval's two classes and two colours always differ."""
    for first, second in permutations(_objects(), 2):
        if first.shape != second.shape and first.color != second.color:
            for relation, background in product(RELATIONS, BACKGROUND_COLORS):
                yield SceneRequest((first, second), relation, background)


def _shapes_clauses(request: SceneRequest) -> tuple[Clause, ...]:
    return tuple(Clause(item.shape, item.count) for item in request.objects)


def _one_more(request: SceneRequest) -> tuple[Clause, ...]:
    return tuple(Clause(item.shape, item.count + 1) for item in request.objects)


def _colors_clauses(request: SceneRequest) -> tuple[Clause, ...]:
    return tuple(Clause(item.shape, item.count, item.color) for item in request.objects)


def _position_clauses(request: SceneRequest) -> tuple[Clause, ...]:
    placed, reference = request.objects
    relation = (request.relation or "").removeprefix("to the ")  # GenEval's name of it: left of
    return Clause(reference.shape, 1), Clause(placed.shape, 1, position=(relation, 0))


# ------------------------------------------------------------------ judge


class SceneJudge:
    """GenEval's rules on what the scene detector sees: boxes, shapes and colours, from pixels alone."""

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every score."""
        return {"detector": "scene detector", "colors": "scene detector", "version": __version__}

    def judge(self, picture: Image.Image, prompt: Prompt, filename: str) -> ResultRow:
        """The picture's row of `results.jsonl`."""
        found = detect_shapes(ImageOps.exif_transpose(picture))
        detections = {name: [detection for detection, _ in of_class] for name, of_class in found.items()}
        kept = keep_detections(detections, prompt.tag, filename)

        def classify(name: str, indices: Sequence[int]) -> list[str]:
            return [found[name][index][1] for index in indices]

        verdict = decide(prompt, kept, classify)
        return ResultRow.of(filename, prompt, verdict, kept)


def detect_shapes(picture: Image.Image) -> dict[str, list[tuple[Detection, str]]]:
    """Shape -> its detections, boxes in pixels, each with the colour seen."""
    found: dict[str, list[tuple[Detection, str]]] = {}
    for seen in perceive(picture).objects:
        left, top, right, bottom = seen.box
        box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
        found.setdefault(seen.shape, []).append((Detection(box, seen.score), seen.color))
    return found
