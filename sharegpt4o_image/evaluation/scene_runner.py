# SPDX-License-Identifier: Apache-2.0
"""Run a loaded checkpoint through the scene benchmark: items -> pictures -> verdicts, in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from sharegpt4o_image.evaluation.scene_benchmark import (
    EditItem,
    PromptItem,
    Verdict,
    aggregate,
    judge_edit,
    judge_prompt,
    source_picture,
)
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

_BATCH_SIZE = 50  # pictures drawn at a time

Item = PromptItem | EditItem


@dataclass(frozen=True)
class ScoredPictures:
    """What one checkpoint drew for a list of items, and what it scored."""

    items: Sequence[Item]
    pictures: list[Image.Image]
    verdicts: list[Verdict]

    @property
    def table(self) -> dict[str, dict[str, float]]:
        """Scores per kind, see [`aggregate`]."""
        return aggregate([item.kind for item in self.items], self.verdicts)


def text_of(item: Item) -> str:
    """The prompt or the instruction."""
    return item.instruction if isinstance(item, EditItem) else item.prompt


def draw_and_judge(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    items: Sequence[Item],
    seed: int = 0,
    guidance_scale: float | None = None,
    edit_freedom: float | None = None,
    guidance_until: float = 1.0,
    on_progress: Callable[[int], None] | None = None,
) -> ScoredPictures:
    """Draw one picture for each item (all prompts, or all edits) and judge it.

    Each picture has its own generator, seeded by `seed` and its place in the list, so batching changes nothing.
    `on_progress` is called with the number of pictures that were just drawn.
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(items), _BATCH_SIZE):
        batch = items[start : start + _BATCH_SIZE]
        pictures += model.generate_image(
            [text_of(item) for item in batch],
            image=[[source_picture(item)] for item in batch if isinstance(item, EditItem)] or None,
            guidance_scale=guidance_scale,
            edit_freedom=edit_freedom,
            guidance_until=guidance_until,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
            processor=processor,
        )
        if on_progress is not None:
            on_progress(len(batch))
    return ScoredPictures(
        items, pictures, [judge(item, picture) for item, picture in zip(items, pictures, strict=True)]
    )


def judge(item: Item, picture: Image.Image) -> Verdict:
    """Judge a picture by its item's own rules."""
    return judge_edit(item, picture) if isinstance(item, EditItem) else judge_prompt(item, picture)
