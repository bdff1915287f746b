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
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from sharegpt4o_image.builders.original_format import (
    OUR_KEY,
    UNUSED,
    ToOriginal,
    is_tied,
    model_sizes,
    original_config,
    to_ours,
)
from sharegpt4o_image.builders.staging import require_empty, staged_folder
from sharegpt4o_image.builders.weight_files import ShardWriter, find_shards, iter_tensors, read_json, read_meta
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o.configuration_janus4o import ORIGINAL_MODEL_TYPE, TRANSFORMERS_MODEL_TYPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor

OUR_MODEL_TYPE = "janus4o"
MODEL_TYPES = (ORIGINAL_MODEL_TYPE, TRANSFORMERS_MODEL_TYPE, OUR_MODEL_TYPE)

# Defaults of the original's `VLChatProcessor` (processing_vlm.py), which names the tokens in its own configuration.
_TAG_DEFAULTS = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "pad_tag": "<｜▁pad▁｜>",
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
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"There is no folder {name}, and the Hub gives no such checkpoint ({reason})") from error


def convert(source_dir: Path, target_dir: Path) -> Conversion:
    """Write the checkpoint in `source_dir` in the other format, with its processor, into `target_dir`.

    Original and transformers' Janus checkpoints become ours; ours become original ones.

    Raises:
        UserError: if the source is incomplete, damaged or of another model, or the target is not an empty place.
    """
    if not source_dir.is_dir():
        raise UserError(f"{source_dir} is not a folder; give the folder of a downloaded checkpoint.")
    config = read_json(source_dir / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{source_dir / 'config.json'} describes a {model_type!r} model; expected one of {', '.join(MODEL_TYPES)}."
        )
    _check_target(source_dir, target_dir)
    shards = find_shards(source_dir)
    tensors = read_meta(shards)
    write = _write_original if model_type == OUR_MODEL_TYPE else _write_ours
    try:
        with staged_folder(target_dir) as staging:
            return write(source_dir, staging, shards, tensors, config)
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{source_dir / 'config.json'} describes a model that cannot be: {reason}") from error


def _check_target(source_dir: Path, target_dir: Path) -> None:
    require_empty(target_dir)
    if source_dir.resolve() in (target_dir.resolve(), *target_dir.resolve().parents):
        raise UserError(f"{target_dir} lies in the source folder {source_dir}; give a folder elsewhere.")


# ------------------------------------------------------------------ to ours


def _write_ours(
    source_dir: Path, target_dir: Path, shards: list[Path], tensors: Mapping[str, Tensor], given: dict[str, Any]
) -> Conversion:
    is_original = given["model_type"] == ORIGINAL_MODEL_TYPE
    processor = (_original_processor if is_original else _transformers_processor)(source_dir, given)
    config = (config_from_original if is_original else config_from_transformers)(tensors, given, processor)
    model = model_on_meta(config)
    is_unused = _is_unused(given)
    check_fit(tensors, expected_original(model) if is_original else expected_ours(model, tensors), is_unused)
    writer = ShardWriter(target_dir)
    num_tensors = _stream(
        shards,
        lambda name, tensor: {} if is_unused(name) else to_ours(name, tensor) if is_original else {name: tensor},
        writer,
    )
    _save_model_code(model, target_dir, _main_dtype(tensors))
    processor.save_pretrained(target_dir)
    return Conversion(OUR_MODEL_TYPE, num_tensors, [name for name in tensors if is_unused(name)])


def _is_unused(given: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which tensors of a source are left out: what nothing uses, and the copy of a tied embedding matrix."""
    if given["model_type"] != ORIGINAL_MODEL_TYPE:
        return lambda name: False
    has_copy = is_tied(given)
    return lambda name: bool(UNUSED.fullmatch(name)) or (has_copy and name == "language_model.lm_head.weight")


def config_from_original(
    tensors: Mapping[str, Tensor], original: Mapping[str, Any], processor: "Janus4oProcessor"
) -> "Janus4oConfig":
    """Sizes from the tensors' shapes, token ids from the tokenizer, the rest from the original configuration."""
    try:
        sizes = model_sizes({name: tensor.shape for name, tensor in tensors.items()}, original)
    except KeyError as error:
        raise UserError(f"The configuration has no {error.args[0]!r}; download the checkpoint again.") from error
    ours = {key: value for key, value in original.get(OUR_KEY, {}).items() if key != "geometry"}
    return _with_token_ids(sizes, processor.tokenizer, is_tied(original), ours)


def config_from_transformers(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], processor: "Janus4oProcessor"
) -> "Janus4oConfig":
    """transformers' configuration with the token ids that it leaves to the tokenizer."""
    parts = {key: dict(given.get(key) or {}) for key in ("text_config", "vision_config", "vq_config")}
    return _with_token_ids(parts, processor.tokenizer, "lm_head.weight" not in tensors, {})


def _with_token_ids(
    parts: dict[str, dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    has_tied_embeddings: bool,
    defaults: dict[str, Any],
) -> "Janus4oConfig":
    from sharegpt4o_image.janus4o import Janus4oConfig
    from sharegpt4o_image.janus4o.configuration_janus4o import token_ids

    ids = token_ids(tokenizer)
    vocab_size = parts["text_config"].get("vocab_size")
    if vocab_size is not None and max(ids.values()) >= vocab_size:
        raise UserError(
            f"The tokenizer gives a special token the id {max(ids.values())}, and the embedding matrix has "
            f"{vocab_size} rows; the tokenizer belongs to another checkpoint."
        )
    parts["text_config"] |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": ids["pad_token_id"],
    }
    return Janus4oConfig(**parts, **ids, **defaults, tie_word_embeddings=has_tied_embeddings)


# ------------------------------------------------------------------ what must be there


def model_on_meta(config: "Janus4oConfig") -> "Janus4oForImageGeneration":
    """The model without storage."""
    from sharegpt4o_image.janus4o import Janus4oForImageGeneration

    with torch.device("meta"):
        return Janus4oForImageGeneration(config)


def expected_ours(model: "Janus4oForImageGeneration", tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors; the text head only where it is stored."""
    expected: dict[str, Tensor] = dict(model.state_dict())
    if "lm_head.weight" not in tensors:
        del expected["lm_head.weight"]
    return expected


def expected_original(model: "Janus4oForImageGeneration") -> dict[str, Tensor]:
    back = ToOriginal(has_tied_embeddings=False)
    return {new: value for name, t in model.state_dict().items() for new, value in back.convert(name, t).items()}


def check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], is_unused: Callable[[str], bool]) -> None:
    """Check that a checkpoint holds what its model expects, each tensor in its shape.

    Raises:
        UserError: naming what is missing, unexplained or of another shape.
    """
    unexplained = [name for name in tensors if name not in expected and not is_unused(name)]
    if unexplained:
        raise UserError(
            f"The checkpoint holds {len(unexplained)} tensors that the model does not explain, such as "
            f"{unexplained[0]}; it belongs to another model."
        )
    missing = [name for name in expected if name not in tensors and not is_unused(name)]
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}; download it again."
        )
    for name, tensor in tensors.items():
        if not is_unused(name) and tensor.shape != expected[name].shape:
            raise UserError(
                f"The tensor {name} has the shape {list(tensor.shape)}, expected {list(expected[name].shape)}; "
                "the checkpoint is damaged or mixes two models."
            )


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

    config = model.config
    config.auto_map = dict(AUTO_MAP)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(target_dir)
    custom_object_save(model, target_dir)
    generation_config = model.generation_config
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(generation_config, key, getattr(config.get_text_config(), key))
    generation_config.generation_kwargs = {"boi_token_id": config.boi_token_id}  # for the inherited image mode
    generation_config.save_pretrained(target_dir)


def _original_processor(source_dir: Path, given: Mapping[str, Any]) -> "Janus4oProcessor":
    from transformers import AutoTokenizer, LlamaConfig
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    from sharegpt4o_image.janus4o import Janus4oProcessor

    pixels = read_json(source_dir / "preprocessor_config.json")
    options = {key: pixels.get(key) or default for key, default in _PIXEL_DEFAULTS.items()}
    options |= {key: pixels[key] for key in ("do_normalize", "rescale_factor") if pixels.get(key) is not None}
    chat_path = source_dir / "processor_config.json"
    chat = read_json(chat_path) if chat_path.is_file() else {}
    tags = {key: chat.get(key) or default for key, default in _TAG_DEFAULTS.items()}
    try:
        # the configuration is given so that transformers does not wonder about `multi_modality`
        tokenizer = AutoTokenizer.from_pretrained(
            source_dir,
            config=LlamaConfig(),
            pad_token=tags["pad_tag"],
            extra_special_tokens={
                "image_token": tags["image_tag"],
                "boi_token": tags["image_start_tag"],
                "eoi_token": tags["image_end_tag"],
            },
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{source_dir} holds no tokenizer that can be read; download the checkpoint again.") from error
    side = pixels.get("image_size", 384)  # the default of `VLMImageProcessorConfig`'s released files
    image_processor = JanusImageProcessorPil(size={"height": side, "width": side}, **options)
    return Janus4oProcessor(
        image_processor,
        tokenizer,
        num_image_tokens=chat.get("num_image_tokens", 576),
        geometry=given.get(OUR_KEY, {}).get("geometry", "pad"),
    )


def _transformers_processor(source_dir: Path, given: Mapping[str, Any]) -> "Janus4oProcessor":
    from sharegpt4o_image.janus4o import Janus4oProcessor

    try:
        processor: Janus4oProcessor = Janus4oProcessor.from_pretrained(source_dir)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source_dir} ({given['model_type']}) holds no processor that can be read; download the checkpoint again."
        ) from error
    return processor


# ------------------------------------------------------------------ to the original format


def _write_original(
    source_dir: Path, target_dir: Path, shards: list[Path], tensors: Mapping[str, Tensor], given: dict[str, Any]
) -> Conversion:
    from sharegpt4o_image.janus4o import Janus4oConfig

    processor = _transformers_processor(source_dir, given)
    config: Janus4oConfig = Janus4oConfig.from_pretrained(source_dir)
    check_fit(tensors, expected_ours(model_on_meta(config), tensors), lambda name: False)
    has_tied_embeddings = "lm_head.weight" not in tensors
    num_tensors = _stream(shards, ToOriginal(has_tied_embeddings).convert, ShardWriter(target_dir))
    described = config.to_dict() | {
        "dtype": str(_main_dtype(tensors)).removeprefix("torch."),
        "tie_word_embeddings": has_tied_embeddings,
    }
    _write_json(target_dir / "config.json", original_config(described, processor.geometry))
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
