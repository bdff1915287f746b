# SPDX-License-Identifier: Apache-2.0
"""What the trainer is given as `model` -> a model that it can train, and the processor of its checkpoint."""

import copy
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from sharegpt4o_image.checkpoints import resolve_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.configuration_janus4o import HUB_OPTIONS

_UNUSABLE = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)


def checkpoint_name(model: str | nn.Module) -> str:
    """The name that a model was loaded by: empty for one that was made from a configuration.

    Raises:
        UserError: for a model of another architecture.
    """
    if isinstance(model, str):
        return model
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != Janus4oConfig.model_type:
        raise UserError(
            f"The model is a {type(model).__name__}; Janus4oSFTTrainer trains a Janus4oForImageGeneration: load the "
            "checkpoint by that class, or give its name."
        )
    return str(config._name_or_path)


def check_processor(processor: Any, config: Janus4oConfig) -> None:
    """Refuse a processor of another class, and one whose pictures are not the model's."""
    if type(processor).__name__ != Janus4oProcessor.__name__:  # by name: a checkpoint may bring its own copy
        raise UserError(f"processing_class is a {type(processor).__name__}; give the checkpoint's Janus4oProcessor.")
    given = (processor.num_image_tokens, processor.image_processor.size["height"])
    expected = (config.num_image_tokens, config.vision_config.image_size)  # type: ignore[union-attr]
    if given != expected:
        raise UserError(
            f"The processor makes {given[0]} image tokens of pictures of {given[1]} pixels, the model has "
            f"{expected[0]} of {expected[1]}; give the checkpoint's own processor."
        )


def with_geometry(processor: Janus4oProcessor, geometry: str) -> Janus4oProcessor:
    """A copy that prepares pictures in that way; the caller's own stays as it is."""
    processor = copy.copy(processor)
    processor.geometry = geometry
    return processor


def load_model(name: str, options: dict[str, Any]) -> Janus4oForImageGeneration:
    """The checkpoint of that name, in fp32 unless the options of `from_pretrained` say otherwise."""
    try:
        return Janus4oForImageGeneration.from_pretrained(resolve_checkpoint(name), **{"dtype": "float32"} | options)
    except _UNUSABLE as error:
        raise UserError(f"The checkpoint {name} cannot be trained: {' '.join(str(error).split())}") from error


def load_processor(name: str, options: dict[str, Any]) -> Janus4oProcessor:
    """The processor of that checkpoint; of the options of `from_pretrained` those that say where the files are."""
    if not name:
        raise UserError("The model comes from no checkpoint, so its processor is not known; give processing_class.")
    where = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        return Janus4oProcessor.from_pretrained(resolve_checkpoint(name), **where)
    except _UNUSABLE as error:
        raise UserError(f"{name} has no processor: {' '.join(str(error).split())}; give processing_class.") from error
