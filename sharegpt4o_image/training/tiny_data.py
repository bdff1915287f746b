# SPDX-License-Identifier: Apache-2.0
"""Training data of the tiny checkpoints: scenes drawn afresh by the offline teacher's renderer, with their codes.

Held-out combinations and unseen pairs (`offline_teacher/sampling.py`) never appear, neither as prompt, as source nor
as the result of an edit.
"""

import io
import random
from collections.abc import Iterator

from datasets import Dataset, Features, Image, List, Value
from torch import Tensor

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.offline_teacher.editing import EditRequest, apply_edit, describe_edit, random_edit
from sharegpt4o_image.offline_teacher.language import describe
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import (
    edit_combination,
    is_held_out,
    shows_unseen_pair,
    training_request,
)
from sharegpt4o_image.offline_teacher.scene import Scene
from sharegpt4o_image.training.encoding import encode_images
from sharegpt4o_image.training.tiny_model import IMAGE_SIZE

# Users' pictures are larger than the model's and arrive resized, with softer edges. Twice the size shows the same.
SOURCE_SIZE = 2 * IMAGE_SIZE

# Share of each edit in training (our choice): the benchmark's three first, the hardest of them most often.
EDIT_WEIGHTS = {
    "recolor": 0.36,
    "remove": 0.2,
    "background": 0.14,
    "replace": 0.09,
    "add": 0.08,
    "move": 0.05,
    "restyle": 0.03,
    "relight": 0.03,
    "zoom_out": 0.02,
}


def pixel_batches(processor: Janus4oProcessor, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of fresh pictures for the image tokenizer, drawn at its size and resized to it.

    Yields:
        pixel values (B, 3, H, W) in [-1, 1], and the same pictures drawn twice as large and sized by the processor.
    """
    rng = random.Random(seed)
    while True:
        scenes = [
            draw_edit(rng)[3] if rng.random() < 0.5 else compose(training_request(rng), rng) for _ in range(batch_size)
        ]
        drawn = processor.source_pixels([render(scene, IMAGE_SIZE) for scene in scenes])
        yield drawn, processor.source_pixels([render(scene, SOURCE_SIZE) for scene in scenes])


def training_texts(seed: int, num_texts: int) -> Iterator[str]:
    """Prompts and instructions for the tokenizer."""
    rng = random.Random(seed)
    for _ in range(num_texts):
        yield describe(training_request(rng), rng)
        yield draw_edit(rng)[2]


def draw_edit(rng: random.Random) -> tuple[Scene, EditRequest, str, Scene]:
    """A source scene, an edit of it, the instruction and the edited scene, all allowed in training."""
    while True:
        request = training_request(rng)
        if request.objects[0].count > 1:
            continue  # "the red circle" must name one object
        source = compose(request, rng)
        edit = random_edit(source, rng.choices(list(EDIT_WEIGHTS), list(EDIT_WEIGHTS.values()))[0], rng)
        if edit is None or is_held_out(edit_combination(source, edit)):
            continue
        target = apply_edit(source, edit, rng)
        if not shows_unseen_pair(target):
            return source, edit, describe_edit(edit, rng), target


def text_to_image_rows(
    model: Janus4oForImageGeneration, processor: Janus4oProcessor, num_rows: int, seed: int
) -> Dataset:
    """Rows of `input_prompt` and `target_codes`."""
    rng = random.Random(seed)
    requests = [training_request(rng) for _ in range(num_rows)]
    prompts = [describe(request, rng) for request in requests]
    codes = encode_images(model, processor, (render(compose(request, rng), IMAGE_SIZE) for request in requests))
    return Dataset.from_dict({"input_prompt": prompts, "target_codes": list(codes)}, features=_features(is_edit=False))


def edit_rows(model: Janus4oForImageGeneration, processor: Janus4oProcessor, num_rows: int, seed: int) -> Dataset:
    """Rows of `input_prompt`, `input_image`, `source_codes` and `target_codes`."""
    rng = random.Random(seed)
    drawn = [draw_edit(rng) for _ in range(num_rows)]
    sources = [render(source, SOURCE_SIZE) for source, *_ in drawn]
    source_codes = encode_images(model, processor, sources)
    target_codes = encode_images(model, processor, (render(target, IMAGE_SIZE) for *_, target in drawn))
    columns = {
        "input_prompt": [text for _, _, text, _ in drawn],
        "input_image": [[{"bytes": _png(picture), "path": None}] for picture in sources],
        "source_codes": [[codes] for codes in source_codes],
        "target_codes": list(target_codes),
    }
    return Dataset.from_dict(columns, features=_features(is_edit=True))


def _features(is_edit: bool) -> Features:
    codes = List(Value("uint16"))
    features = {"input_prompt": Value("string"), "target_codes": codes}
    if is_edit:
        features |= {"input_image": List(Image()), "source_codes": List(codes)}
    return Features(features)


def _png(picture: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")  # type: ignore[attr-defined]
    return buffer.getvalue()
