# SPDX-License-Identifier: Apache-2.0
"""A local checkpoint as the generator of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sharegpt4o_image.checkpoints import load_checkpoint, resolve_checkpoint
from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
from sharegpt4o_image.evaluation.drawing import Keep, PictureRequest
from sharegpt4o_image.evaluation.pretrained import commit_of, short_name, weights_digest
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

_BATCH_SIZE = 16  # pictures kept at a time: what is lost when the process is killed (our choice)


class ModelGenerator:
    """Draws with a checkpoint; each picture has a `torch.Generator` of its own, so batches change nothing."""

    def __init__(
        self,
        model: Janus4oForImageGeneration,
        processor: Janus4oProcessor,
        name: str,
        recipe: SamplingRecipe,
        revision: str | None = None,
    ) -> None:
        """Draw with `model`, which stays on its device; `revision` tells its weights from others of its `name`."""
        self.model = model
        self.processor = processor
        self._name = name
        self._revision = revision
        self._recipe = recipe

    @classmethod
    def from_pretrained(cls, name: str, recipe: SamplingRecipe) -> "ModelGenerator":
        """The generator of a folder, a Hub id or a shipped name."""
        model, processor = load_checkpoint(name)
        source = resolve_checkpoint(name)
        return cls(model, processor, name, recipe, commit_of(source) or weights_digest(Path(source)))

    @property
    def identity(self) -> dict[str, Any]:
        """Model, revision and recipe; what the recipe leaves open is the checkpoint's own."""
        config: Any = self.model.config
        chosen = {
            name: getattr(config, name) if getattr(self._recipe, name) is None else getattr(self._recipe, name)
            for name in ("guidance_scale", "edit_freedom")
        }
        return {
            "model": short_name(self._name),
            "revision": self._revision,
            **chosen,
            "guidance_until": self._recipe.guidance_until,
            "size": config.vision_config.image_size,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def draw(self, requests: Sequence[PictureRequest], keep: Keep) -> Mapping[str, str]:
        """Draw all requests, drawings apart from edits; none is refused."""
        for group in ([one for one in requests if not one.sources], [one for one in requests if one.sources]):
            for start in range(0, len(group), _BATCH_SIZE):
                batch = group[start : start + _BATCH_SIZE]
                for request, picture in zip(batch, self._draw(batch), strict=True):
                    keep(request, picture)
        return {}

    def _draw(self, batch: Sequence[PictureRequest]) -> list[Image.Image]:
        images: Any = self.model.generate_image(
            [request.prompt for request in batch],
            image=[list(request.sources) for request in batch] if batch[0].sources else None,
            guidance_scale=self._recipe.guidance_scale,
            edit_freedom=self._recipe.edit_freedom,
            guidance_until=self._recipe.guidance_until,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            processor=self.processor,
        )
        return list(images)
