# SPDX-License-Identifier: Apache-2.0
"""Configuration of Janus-4o: transformers' Janus plus the token ids and guidance defaults that image editing needs."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoTokenizer, JanusConfig

ORIGINAL_MODEL_TYPE = "multi_modality"  # deepseek-ai/Janus-Pro-*, FreedomIntelligence/Janus-4o-7B
ORIGINAL_FORMAT_MESSAGE = (
    "{name} is a checkpoint in the original Janus format; convert it first: "
    "sharegpt4o-image convert {name} janus4o-folder"
)
TRANSFORMERS_MODEL_TYPE = "janus"  # deepseek-community/Janus-Pro-*

# Arguments of `from_pretrained` that say where the files are; a model keeps the first, and no token.
PROCESSOR_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


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

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the parent's; a configuration of transformers' Janus gets the token ids of the tokenizer beside it.

        Raises:
            ValueError: for an original checkpoint, with the command that converts it, and for other models.
        """
        hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type, name = config_dict.get("model_type"), pretrained_model_name_or_path
        if model_type == ORIGINAL_MODEL_TYPE:
            raise ValueError(ORIGINAL_FORMAT_MESSAGE.format(name=name))
        if model_type not in (cls.model_type, TRANSFORMERS_MODEL_TYPE):
            raise ValueError(
                f"The configuration of {name} describes a {model_type!r} model; expected {cls.model_type!r}."
            )
        if model_type == TRANSFORMERS_MODEL_TYPE:
            tokenizer = AutoTokenizer.from_pretrained(name, **hub_options)
            config_dict |= token_ids(tokenizer) | {"model_type": cls.model_type}
        return config_dict, kwargs


def token_ids(tokenizer: Any) -> dict[str, int]:
    """The token ids that `Janus4oConfig` holds, looked up by name (paper section 3.2: the numbers differ)."""
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token"))
        for name in ("boi", "eoi", "image", "pad")
    }


__all__ = ["Janus4oConfig"]
