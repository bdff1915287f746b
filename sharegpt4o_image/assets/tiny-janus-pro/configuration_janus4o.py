# SPDX-License-Identifier: Apache-2.0
"""Configuration of Janus-4o: transformers' Janus plus the token ids and guidance defaults that image editing needs."""

from huggingface_hub.dataclasses import strict
from transformers import JanusConfig


@strict
class Janus4oConfig(JanusConfig):
    r"""
    The token ids default to those of Janus-Pro-7B. Look them up in the tokenizer when converting another checkpoint:
    the pad id differs between releases (100015 in the 7B, 100002 in the 1B).

    Args:
        boi_token_id (`int`, *optional*, defaults to 100016):
            Id of `<begin_of_image>`; the first image code is predicted from it.
        eoi_token_id (`int`, *optional*, defaults to 100593):
            Id of `<end_of_image>`, which closes each source block.
        pad_token_id (`int`, *optional*, defaults to 100015):
            Id of the pad token: left padding, and what masked conditions are replaced by.
        guidance_scale (`float`, *optional*, defaults to 5.0):
            Default `s` of `generate_image` (paper: s = 5).
        edit_freedom (`float`, *optional*, defaults to 5.0):
            Default `s'` of `generate_image` with a source image (paper: s' = 5).
    """

    model_type = "janus4o"

    boi_token_id: int = 100016
    eoi_token_id: int = 100593
    pad_token_id: int | None = 100015
    guidance_scale: float = 5.0
    edit_freedom: float = 5.0

    @property
    def num_image_tokens(self) -> int:
        """P: codes per image, 576 for the released models (24 x 24)."""
        return self.vision_config.num_image_tokens


__all__ = ["Janus4oConfig"]
