# SPDX-License-Identifier: Apache-2.0
"""Processor of Janus-4o: prompts and source images -> token ids and pixels, for generation and for editing."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, JanusProcessor

# B batch, L tokens, P image tokens (576), N source images, H W pixels

ImageInput = str | Path | Image.Image

USER_TAG = "<|User|>"
ASSISTANT_TAG = "<|Assistant|>"


class Janus4oProcessor(JanusProcessor):
    """[`JanusProcessor`] with the two sequence layouts of Janus-4o (upstream `train_janus.py`, README functions):

        text to image:  BOS <|User|>: prompt \\n\\n<|Assistant|>: boi
        editing:        BOS <|User|>:  [boi P*image eoi] [boi P*pad eoi] instruction \\n\\n<|Assistant|>: boi

    The first source block takes the vision tower's embeddings, the second the source's own codes. Text generation
    (`processor(text=..., images=...)`) is unchanged.
    """

    def __call__(self, text: Any = None, images: Any = None, **kwargs: Any) -> BatchFeature:
        """As [`JanusProcessor.__call__`], but `generation_mode="image"` uses the images instead of dropping them."""
        if kwargs.get("generation_mode") == "image":
            return self.prepare_image_generation([text] if isinstance(text, str) else text, images)
        return super().__call__(text=text, images=images, **kwargs)

    def prepare_image_generation(
        self, prompts: list[str], images: list[list[ImageInput]] | None = None
    ) -> BatchFeature:
        """Turn prompts, and the source images of each, into model inputs.

        Args:
            prompts: B prompts or edit instructions. Special tokens written in them become plain text.
            images: for each prompt its source images (possibly none); `None` for text to image.

        Returns:
            `input_ids` and `attention_mask` (B, L), left-padded, and, when there are sources, `source_pixel_values`
            (N, 3, H, W) in [-1, 1], all sources in order of the rows.
        """
        sources = images or [[] for _ in prompts]
        if len(sources) != len(prompts):
            raise ValueError(
                f"Got {len(sources)} lists of source images for {len(prompts)} prompts; give one list each."
            )
        rows = [self._image_generation_ids(p, len(s)) for p, s in zip(prompts, sources, strict=True)]
        batch = self.pad_left(rows)
        flat = [image for row in sources for image in row]
        if flat:
            batch["source_pixel_values"] = self.source_pixels(flat)  # (N, 3, H, W)
        return batch

    def pad_left(self, rows: list[list[int]]) -> BatchFeature:
        """Rows of token ids -> `input_ids` and `attention_mask` (B, L), padded on the left."""
        length = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), length), self.tokenizer.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, length - len(row) :] = torch.tensor(row)
            attention_mask[i, length - len(row) :] = 1
        return BatchFeature({"input_ids": input_ids, "attention_mask": attention_mask})

    def source_pixels(self, images: list[ImageInput]) -> Tensor:
        """Pictures -> pixel values (N, 3, H, W) in [-1, 1]: padded to a square and resized, as upstream does."""
        return self.image_processor(images=[_open_rgb(image) for image in images], return_tensors="pt")["pixel_values"]

    def to_pil(self, pixels_BCHW: Tensor) -> list[Image.Image]:
        """Pixel values in [-1, 1] -> 8-bit pictures, rounded down as upstream does."""
        levels = ((pixels_BCHW.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in levels]

    def unconditional_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The l_u rows (paper 2): every token but the first (BOS) and the last (boi) becomes pad.

        `attention_mask` (B, L) only tells where each row begins: the pads that replace conditions are attended to.
        """
        is_first = attention_mask.cumsum(-1) == 1
        keep = is_first & attention_mask.bool()
        keep[:, -1] = True
        return input_ids.masked_fill(~keep, self.tokenizer.pad_token_id)

    def _image_generation_ids(self, prompt: str, num_sources: int) -> list[int]:
        tokenizer = self.tokenizer
        boi, eoi, image, pad = tokenizer.convert_tokens_to_ids(
            [self.image_start_token, self.image_end_token, self.image_token, tokenizer.pad_token]
        )
        user, assistant = tokenizer.convert_tokens_to_ids([USER_TAG, ASSISTANT_TAG])
        source_block = [boi, *[image] * self.num_image_tokens, eoi, boi, *[pad] * self.num_image_tokens, eoi]
        if num_sources:
            # The content begins with the image tags, so stripping it leaves the instruction's leading spaces.
            content = [*self._plain_ids(": "), *source_block * num_sources, *self._plain_ids(f"{prompt.rstrip()}\n\n")]
        else:
            content = self._plain_ids(f": {prompt.strip()}\n\n")
        return [tokenizer.bos_token_id, user, *content, assistant, *self._plain_ids(":"), boi]

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids of `text` in which special tokens are spelled out as ordinary text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _open_rgb(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    with Image.open(image) as opened:
        return opened.convert("RGB")


__all__ = ["Janus4oProcessor"]
