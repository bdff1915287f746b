# SPDX-License-Identifier: Apache-2.0
"""Janus-4o for transformers. Importing this package registers its classes with the Auto classes.

The modules beside this file are copied verbatim to the Hub by `save_pretrained`; this file is not.
"""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from sharegpt4o_image.janus4o.configuration_janus4o import (
    ORIGINAL_FORMAT_MESSAGE,
    ORIGINAL_MODEL_TYPE,
    Janus4oConfig,
)
from sharegpt4o_image.janus4o.modeling_janus4o import Janus4oForImageGeneration
from sharegpt4o_image.janus4o.processing_janus4o import Janus4oProcessor

__all__ = ["Janus4oConfig", "Janus4oForImageGeneration", "Janus4oProcessor"]


class OriginalJanusConfig(PreTrainedConfig):
    """Stands for the original format, so that the Auto classes name the command that converts it."""

    model_type = ORIGINAL_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Refuse, with the command to type."""
        raise ValueError(ORIGINAL_FORMAT_MESSAGE.format(name=kwargs.get("name_or_path") or "this"))


AutoConfig.register(ORIGINAL_MODEL_TYPE, OriginalJanusConfig)
AutoConfig.register("janus4o", Janus4oConfig)
AutoModel.register(Janus4oConfig, Janus4oForImageGeneration)
AutoModelForImageTextToText.register(Janus4oConfig, Janus4oForImageGeneration)
AutoProcessor.register(Janus4oConfig, Janus4oProcessor)

Janus4oConfig.register_for_auto_class()
Janus4oForImageGeneration.register_for_auto_class("AutoModel")
Janus4oProcessor.register_for_auto_class("AutoProcessor")
