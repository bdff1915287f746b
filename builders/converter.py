# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders -> checkpoint folders: original Janus or transformers' Janus -> ours, and ours -> original.

Reads: `config.json`, the tokenizer's files, `preprocessor_config.json`, and the weights in one or several
`.safetensors` or `.bin` shards.
Writes: a folder that `AutoModel` loads, or one that the original code loads.

Names and shapes are checked before any weight is read; then one shard is open at a time. Weights keep their dtype.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharegpt4o_image.builders.original_format import (
    ORIGINAL_MODEL_TYPE,
    UNUSED,
    ToOriginal,
    is_tied,
    model_sizes,
    original_config,
    to_ours,
)
from sharegpt4o_image.builders.staging import staged_folder
from sharegpt4o_image.builders.weight_files import ShardWriter, find_shards, iter_tensors, read_json, read_meta
from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor

TRANSFORMERS_MODEL_TYPE = "janus"  # deepseek-community/Janus-Pro-*
OUR_MODEL_TYPE = "janus4o"
_FORMATS = {
    ORIGINAL_MODEL_TYPE: "an original Janus checkpoint",
    TRANSFORMERS_MODEL_TYPE: "a Janus checkpoint of transformers",
    OUR_MODEL_TYPE: "a Janus-4o checkpoint",
}

# The original's names of the tokens that its tokenizer files do not name (processing_vlm.py `VLChatProcessor`).
_IMAGE_TOKENS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
# Defaults of the original's `VLMImageProcessor` (image_processing_vlm.py).
_PIXEL_DEFAULTS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "min_size": 14}

_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]

Convert = Callable[[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: the format written, the tensors in it, and those of the source that nothing uses."""

    target_format: str
    num_tensors: int
    dropped: list[str] = field(default_factory=list)


def local_checkpoint(name: str) -> Path:
    """The folder `name`, or the checkpoint of that Hub id, downloaded into the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    path = Path(name)
    if path.exists():
        return path
    try:
        return Path(snapshot_download(name, allow_patterns=_CHECKPOINT_FILES))
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"There is no folder {name}, and no checkpoint of that name could be downloaded; check the path."
        ) from error


def convert(source_dir: Path, target_dir: Path) -> Conversion:
    """Write the checkpoint in `source_dir` in the other format, with its processor, into `target_dir`.

    Original and transformers' Janus checkpoints become ours; ours become original ones.

    Raises:
        UserError: if the source is incomplete, damaged or of another model, or the target is not an empty place.
    """
    config = read_json(source_dir / "config.json")
    model_type = config.get("model_type")
    if model_type not in _FORMATS:
        raise UserError(
            f"{source_dir / 'config.json'} describes a {model_type!r} model; expected one of {', '.join(_FORMATS)}."
        )
    _check_target(source_dir, target_dir)
    shards = find_shards(source_dir)
    tensors = read_meta(shards)
    with staged_folder(target_dir) as staging:
        if model_type == OUR_MODEL_TYPE:
            return _write_original(source_dir, staging, shards, tensors)
        return _write_ours(source_dir, staging, shards, tensors, config)


def _check_target(source_dir: Path, target_dir: Path) -> None:
    if target_dir.exists() and (not target_dir.is_dir() or any(target_dir.iterdir())):
        raise UserError(f"{target_dir} exists already; give a new folder, or delete it first.")
    if source_dir.resolve() in (target_dir.resolve(), *target_dir.resolve().parents):
        raise UserError(f"{target_dir} lies in the source folder {source_dir}; give a folder elsewhere.")


# ------------------------------------------------------------------ to ours


def _write_ours(
    source_dir: Path, target_dir: Path, shards: list[Path], tensors: Mapping[str, Tensor], given: dict[str, Any]
) -> Conversion:
    is_original = given["model_type"] == ORIGINAL_MODEL_TYPE
    processor = _original_processor(source_dir, tensors) if is_original else _transformers_processor(source_dir)
    config = (
        config_from_original(tensors, given, processor.tokenizer)
        if is_original
        else config_from_transformers(given, processor.tokenizer, "lm_head.weight" not in tensors)
    )
    dtype = _main_dtype(tensors)
    model = check_fit(config, tensors, _to_ours_conversion(given))
    dropped = [name for name in tensors if UNUSED.search(name)] if is_original else []
    writer = ShardWriter(target_dir)
    num_tensors = _stream(shards, _to_ours_conversion(given), writer)
    _save_model_code(model, target_dir, dtype)
    processor.save_pretrained(target_dir)
    return Conversion(OUR_MODEL_TYPE, num_tensors, dropped)


def _to_ours_conversion(given: Mapping[str, Any]) -> Convert:
    if given["model_type"] == TRANSFORMERS_MODEL_TYPE:
        return lambda name, tensor: {name: tensor}
    if not is_tied(given):
        return to_ours
    return lambda name, tensor: {} if name == "language_model.lm_head.weight" else to_ours(name, tensor)


def config_from_original(
    tensors: Mapping[str, Tensor], original: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> "Janus4oConfig":
    """Sizes from the tensors' shapes, token ids from the tokenizer, the rest from the original configuration."""
    return _with_token_ids(model_sizes(tensors, original), tokenizer, is_tied(original))


def config_from_transformers(
    given: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", has_tied_embeddings: bool
) -> "Janus4oConfig":
    """transformers' configuration with the token ids that it leaves to the tokenizer."""
    parts = {key: dict(given[key]) for key in ("text_config", "vision_config", "vq_config")}
    return _with_token_ids(parts, tokenizer, has_tied_embeddings)


def _with_token_ids(
    parts: dict[str, dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", has_tied_embeddings: bool
) -> "Janus4oConfig":
    from sharegpt4o_image.janus4o import Janus4oConfig
    from sharegpt4o_image.janus4o.configuration_janus4o import token_ids

    ids = token_ids(tokenizer)
    parts["text_config"] |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": ids["pad_token_id"],
    }
    return Janus4oConfig(**parts, **ids, tie_word_embeddings=has_tied_embeddings)


def check_fit(
    config: "Janus4oConfig", tensors: Mapping[str, Tensor], to_target: Convert
) -> "Janus4oForImageGeneration":
    """The model on the meta device, when the converted tensors are all of its tensors in their right shapes.

    Raises:
        UserError: naming what is missing, unexplained or of another shape.
    """
    from sharegpt4o_image.janus4o import Janus4oForImageGeneration

    with torch.device("meta"):
        model = Janus4oForImageGeneration(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    source_of = {new: name for name, tensor in tensors.items() for new in to_target(name, tensor)}
    found = {new: value.shape for name, tensor in tensors.items() for new, value in to_target(name, tensor).items()}
    unexplained = [source_of[name] for name in found if name not in expected]
    if unexplained:
        raise UserError(
            f"The checkpoint holds {len(unexplained)} tensors that the model does not explain, such as "
            f"{unexplained[0]}; it belongs to another model."
        )
    missing = [name for name in expected if name not in found]
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}; download it again."
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise UserError(
                f"The tensor {source_of[name]} has the shape {list(shape)}, expected {list(expected[name])}; "
                "the checkpoint is damaged or mixes two models."
            )
    return model


def _main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of the embedding matrix, which stands for the language model's."""
    return next(tensor.dtype for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))


def _stream(shards: list[Path], convert_tensor: Convert, writer: ShardWriter) -> int:
    """Convert shard after shard; returns the number of tensors written."""
    num_tensors = 0
    for shard in shards:
        converted: dict[str, Tensor] = {}
        for name, tensor in iter_tensors(shard):
            converted |= convert_tensor(name, tensor)
        writer.write(converted)
        num_tensors += len(converted)
    writer.finish()
    return num_tensors


def _save_model_code(model: "Janus4oForImageGeneration", target_dir: Path, dtype: torch.dtype) -> None:
    """Everything of `model.save_pretrained` but the weights."""
    from transformers.dynamic_module_utils import custom_object_save

    from sharegpt4o_image.janus4o.modeling_janus4o import AUTO_MAP

    model.config.auto_map = dict(AUTO_MAP)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(target_dir)
    custom_object_save(model, target_dir)
    model.generation_config.save_pretrained(target_dir)


def _original_processor(source_dir: Path, tensors: Mapping[str, Tensor]) -> "Janus4oProcessor":
    from transformers import AutoTokenizer, LlamaConfig
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    from sharegpt4o_image.janus4o import Janus4oProcessor

    given = read_json(source_dir / "preprocessor_config.json")
    options = {key: given.get(key) or default for key, default in _PIXEL_DEFAULTS.items()}
    options |= {key: given[key] for key in ("do_normalize", "rescale_factor") if given.get(key) is not None}
    side = given["image_size"]
    try:
        # the configuration is given so that transformers does not wonder about `multi_modality`
        tokenizer = AutoTokenizer.from_pretrained(source_dir, config=LlamaConfig(), extra_special_tokens=_IMAGE_TOKENS)
    except (OSError, ValueError) as error:
        raise UserError(f"{source_dir} holds no tokenizer that can be read; download the checkpoint again.") from error
    image_processor = JanusImageProcessorPil(size={"height": side, "width": side}, **options)
    num_image_tokens = tensors["vision_model.vision_tower.pos_embed"].shape[1]
    return Janus4oProcessor(image_processor, tokenizer, num_image_tokens=num_image_tokens)


def _transformers_processor(source_dir: Path) -> "Janus4oProcessor":
    from sharegpt4o_image.janus4o import Janus4oProcessor

    try:
        processor: Janus4oProcessor = Janus4oProcessor.from_pretrained(source_dir)
    except (OSError, ValueError) as error:
        raise UserError(f"{source_dir} holds no processor that can be read; download the checkpoint again.") from error
    return processor


# ------------------------------------------------------------------ to the original format


def _write_original(
    source_dir: Path, target_dir: Path, shards: list[Path], tensors: Mapping[str, Tensor]
) -> Conversion:
    from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oProcessor

    config: Janus4oConfig = Janus4oConfig.from_pretrained(source_dir)
    check_fit(config, tensors, lambda name, tensor: {name: tensor})
    to_original = ToOriginal(config.tie_word_embeddings)
    num_tensors = _stream(shards, to_original.convert, ShardWriter(target_dir))
    described = config.to_dict() | {"dtype": str(_main_dtype(tensors)).removeprefix("torch.")}
    _write_json(target_dir / "config.json", original_config(described))
    processor: Janus4oProcessor = Janus4oProcessor.from_pretrained(source_dir)
    processor.tokenizer.save_pretrained(target_dir)
    _write_json(target_dir / "preprocessor_config.json", _original_pixel_config(processor))
    _write_json(target_dir / "processor_config.json", _original_chat_config(processor))
    return Conversion(ORIGINAL_MODEL_TYPE, num_tensors)


def _original_pixel_config(processor: "Janus4oProcessor") -> dict[str, Any]:
    pixels = processor.image_processor
    return {
        "background_color": list(pixels.background_color),
        "do_normalize": pixels.do_normalize,
        "image_mean": list(pixels.image_mean),
        "image_processor_type": "VLMImageProcessor",
        "image_size": pixels.size["height"],
        "image_std": list(pixels.image_std),
        "min_size": pixels.min_size,
        "processor_class": "VLChatProcessor",
        "rescale_factor": pixels.rescale_factor,
    }


def _original_chat_config(processor: "Janus4oProcessor") -> dict[str, Any]:
    return {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": processor.image_token,
        "image_start_tag": processor.image_start_token,
        "image_end_tag": processor.image_end_token,
        "pad_tag": processor.tokenizer.pad_token,
        "mask_prompt": True,
        "num_image_tokens": processor.num_image_tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
