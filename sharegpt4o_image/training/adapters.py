# SPDX-License-Identifier: Apache-2.0
"""LoRA: which layers get adapters, which adapters are refused, and adapter folder + base -> Hub folder."""

import json
import logging
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from safetensors import SafetensorError
from torch import nn

from sharegpt4o_image.builders.staging import require_empty, staged_folder
from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"  # peft's name
PROCESSOR_CONFIG = "processor_config.json"  # transformers' name

# Linear layers by their place in the model. Names alone, such as q_proj, would also hit the vision tower.
TARGETS = {
    "attention": r"language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
    "mlp": r"language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj",
    "generation_head": r"generation_head\.(proj_out|vision_head)",
}
# What adapters may reach only when it is trained without adapters, too; its names in sentences.
PARTS = {
    "model.vision_model": "vision tower",
    "model.aligner": "aligner of the vision tower",
    "model.generation_aligner": "aligner of the codes",
    "model.vqmodel": "image tokenizer",
    "lm_head": "vocabulary head",
}
_REMEDY = "take `lora_config()`, or a `target_modules` pattern that begins with `model.language_model`"


def lora_config(
    targets: Sequence[str] = tuple(TARGETS), r: int = 32, alpha: int = 64, dropout: float = 0.0, **options: Any
) -> "LoraConfig":
    """LoRA on the language model and the generation head, and on nothing else.

    Args:
        targets: groups of layers, of `"attention"`, `"mlp"` and `"generation_head"`.
        r: rank (our choice).
        alpha: scale of an adapter, times r (our choice: twice the rank).
        dropout: on the input of each adapter.
        options: more fields of `peft.LoraConfig`, such as `use_dora`.
    """
    check_targets(targets)
    pattern = "|".join(TARGETS[name] for name in targets)
    config: LoraConfig = _peft().LoraConfig(
        target_modules=rf"model\.({pattern})", r=r, lora_alpha=alpha, lora_dropout=dropout, **options
    )
    return config


def check_targets(targets: Sequence[str]) -> None:
    """Refuse unknown groups of layers, and none at all."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets:
        raise UserError(f"LoRA targets are {', '.join(unknown) or 'empty'}; choose from {', '.join(TARGETS)}.")


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise UserError('peft is not installed; type: pip install "sharegpt4o-image[train]"') from error
    return peft


# ------------------------------------------------------------------ what may be trained


def without_adapters(model: Any) -> Any:
    """The model itself, whether adapters were put on it or not."""
    return model.get_base_model() if is_peft_model(model) else model


def frozen_parts(model: Janus4oForImageGeneration) -> set[str]:
    """The parts that have nothing to train."""
    return {name for name in PARTS if not any(p.requires_grad for p in model.get_submodule(name).parameters())}


def check_method(peft_config: Any) -> None:
    """Refuse adapters that are tokens before the prompt: image codes would lose their places."""
    if peft_config is not None and (peft_config.is_prompt_learning or peft_config.is_adaption_prompt):
        raise UserError(
            f"{peft_config.peft_type.value} learns tokens before the prompt, which would move the image codes; "
            "take `lora_config()`."
        )


def check_adapters(model: nn.Module, frozen: Collection[str]) -> None:
    """Refuse adapters on parts that the configuration freezes, and name those on the vision tower.

    Args:
        model: with adapters or without.
        frozen: [`frozen_parts`] before the adapters were put on.
    """
    if not is_peft_model(model):
        return
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(
            "No adapter can be trained; load it with `PeftModel.from_pretrained(model, folder, is_trainable=True)`."
        )
    for part, words in PARTS.items():
        reached = [name for name in trained if f".{part}." in name]
        if reached and part in {*frozen, "model.vqmodel", "lm_head"}:
            raise UserError(f"Adapters on the {words} would not be trained, such as {reached[0]}; {_REMEDY}.")
        if reached and part == "model.vision_model":
            logger.warning(
                "%d of %d adapter tensors are on the vision tower, which only edits use; if you do not mean that, %s.",
                len(reached), len(trained), _REMEDY,
            )  # fmt: skip


# ------------------------------------------------------------------ merging


@dataclass(frozen=True)
class Merge:
    """What [`merge_adapter`] did: the base that was taken, and the layers that changed."""

    base: str
    num_layers: int


def merge_adapter(adapter_dir: Path, output_dir: Path, base: str | None = None, dtype: str = "auto") -> Merge:
    """Write a Hub folder of the base with the adapter's changes in its weights.

    The processor is the one saved beside the adapter, with the geometry it was trained with; else the base's.

    Args:
        adapter_dir: folder with `adapter_config.json`, such as a training checkpoint.
        output_dir: folder to write; must not hold anything yet.
        base: checkpoint to put the adapter on; by default the one that the adapter names.
        dtype: of the merged weights; by default the base's. The sum itself is made in fp32 and rounded once.
    """
    require_empty(output_dir)
    base = base or _base_of(adapter_dir)
    try:
        model, processor = load_checkpoint(base)
    except UserError as error:
        raise UserError(
            f"The adapter's base {base} cannot be loaded; name its checkpoint with --base ({error})"
        ) from error
    if (adapter_dir / PROCESSOR_CONFIG).is_file():
        processor = Janus4oProcessor.from_pretrained(adapter_dir)
    dtypes = _merged_dtypes(model, dtype)
    adapted = _load_adapter(model.float(), adapter_dir, base)
    num_layers = sum(hasattr(module, "get_base_layer") for module in adapted.modules())
    with staged_folder(output_dir) as staging:
        merged: Any = adapted.merge_and_unload(safe_merge=True)
        for name, weight in merged.named_parameters():
            weight.data = weight.data.to(dtypes[name])
        merged.save_pretrained(staging)
        processor.save_pretrained(staging)
    return Merge(base, num_layers)


def _merged_dtypes(model: Janus4oForImageGeneration, dtype: str) -> dict[str, torch.dtype]:
    """The type of each merged weight; what the model keeps in fp32 stays in fp32."""
    own = {name: weight.dtype for name, weight in model.named_parameters()}
    if dtype == "auto":
        return own
    kept = model._keep_in_fp32_modules_strict or []
    return {name: kind if any(part in name for part in kept) else getattr(torch, dtype) for name, kind in own.items()}


def _base_of(adapter_dir: Path) -> str:
    path = adapter_dir / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read; give a folder that peft saved an adapter in.") from error
    if not base:
        raise UserError(f"{path} does not name the adapter's base; name its checkpoint with --base.")
    return str(base)


def _load_adapter(model: Janus4oForImageGeneration, adapter_dir: Path, base: str) -> "PeftModel":
    peft = _peft()
    try:
        check_method(peft.PeftConfig.from_pretrained(str(adapter_dir)))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # peft goes on without them
            adapted: PeftModel = peft.PeftModel.from_pretrained(model, str(adapter_dir))
        _check_all_are_used(peft, adapted, adapter_dir)
        return adapted
    except (OSError, ValueError, RuntimeError, TypeError, UserWarning, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The adapter in {adapter_dir} cannot be put on {base}: {reason[:300]}") from error


def _check_all_are_used(peft: Any, adapted: Any, adapter_dir: Path) -> None:
    """Refuse tensors of the file that peft has no place for, which it passes over."""
    known = peft.get_peft_model_state_dict(adapted, save_embedding_layers=True)
    unused = sorted(peft.load_peft_weights(str(adapter_dir), device="cpu").keys() - known.keys())
    if unused:
        raise ValueError(f"{len(unused)} of its tensors have no place in the model, such as {unused[0]}")
