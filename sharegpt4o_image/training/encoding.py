# SPDX-License-Identifier: Apache-2.0
"""Pictures -> VQ codes, once, in fp32 and without gradient, so that training need not encode them each epoch."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor


def encode_images(
    model: Janus4oForImageGeneration, processor: Janus4oProcessor, images: Iterable[Image.Image], batch_size: int = 64
) -> Iterator[np.ndarray]:
    """The codes of each picture in turn: uint16 `(P,)`."""
    for chunk in _batched(images, batch_size):
        pixels_BCHW = processor.source_pixels(list(chunk)).to(model.device)
        with torch.inference_mode():
            codes_BP = model.encode_image(pixels_BCHW)
        yield from codes_BP.cpu().numpy().astype(np.uint16)


def _batched(items: Iterable[Image.Image], size: int) -> Iterator[tuple[Image.Image, ...]]:
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk
