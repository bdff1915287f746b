# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's edits, kept in one of three geometries, which the folder of pictures and the scores record.

A checkpoint sees a source that is not square as a square with grey bars above and below, or left and right, and draws
another such square. ImgEdit does not say what to make of the bars, and its judge sees them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
from sharegpt4o_image.evaluation.drawing import Keep, PictureRequest
from sharegpt4o_image.evaluation.imgedit_pictures import Geometry
from sharegpt4o_image.evaluation.model_generator import ModelGenerator

# Our choice: what `generate_image` returns, too. Nothing is enlarged, as nothing is in the official scripts.
DEFAULT_GEOMETRY: Geometry = "unpad"

# What `Janus4oProcessor.restore_size` calls them: the square as it is drawn (of 384 pixels for Janus-4o); the square
# without its bars; and that in the size of the source.
_OUTPUT_SIZES: dict[Geometry, str] = {"raw384": "model", "unpad": "aspect_ratio", "unpad_resize_to_source": "source"}

_BATCH_SIZE = 16  # pictures kept at a time (our choice)


class EditGenerator:
    """Edits with a checkpoint.

    Args:
        drawer ([`ModelGenerator`]): the checkpoint.
        recipe ([`SamplingRecipe`]): the one that `drawer` was made with.
        geometry (`str`): what is kept of an edited square.
    """

    def __init__(self, drawer: ModelGenerator, recipe: SamplingRecipe, geometry: Geometry) -> None:
        self._drawer = drawer
        self._recipe = recipe
        self._geometry: Geometry = geometry

    @property
    def identity(self) -> dict[str, Any]:
        """That of the checkpoint, and the geometry."""
        return {**self._drawer.identity, "geometry": self._geometry}

    def draw(self, requests: Sequence[PictureRequest], keep: Keep) -> Mapping[str, str]:
        """Draw all edits; a source that the checkpoint cannot take (broken, animated, too thin) is a reason."""
        reasons: dict[str, str] = {}
        for start in range(0, len(requests), _BATCH_SIZE):
            reasons |= self._draw_batch(requests[start : start + _BATCH_SIZE], keep)
        return reasons

    def _draw_batch(self, batch: Sequence[PictureRequest], keep: Keep) -> dict[str, str]:
        try:
            pictures = self._edit(batch)
        except ValueError as error:
            if len(batch) == 1:
                return {batch[0].path: str(error)}
            one_by_one = [self._draw_batch([request], keep) for request in batch]
            return {path: reason for reasons in one_by_one for path, reason in reasons.items()}
        for request, picture in zip(batch, pictures, strict=True):
            keep(request, picture)
        return {}

    def _edit(self, batch: Sequence[PictureRequest]) -> list[Image.Image]:
        pictures = self._drawer.model.generate_image(
            [request.prompt for request in batch],
            image=[list(request.sources) for request in batch],
            guidance_scale=self._recipe.guidance_scale,
            edit_freedom=self._recipe.edit_freedom,
            guidance_until=self._recipe.guidance_until,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            processor=self._drawer.processor,
            output_size=_OUTPUT_SIZES[self._geometry],
        )
        assert isinstance(pictures, list)  # as `output_type` is "pil"
        return pictures
