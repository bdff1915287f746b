# SPDX-License-Identifier: Apache-2.0
"""Original Janus checkpoints (`MultiModalityCausalLM`) -> the Hub folder of `Janus4oForImageGeneration`.

Sizes are read off the weights; only what they cannot tell (attention heads) comes from the configuration.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sharegpt4o_image.errors import UserError

ORIGINAL_MODEL_TYPE = "multi_modality"

# Tensors that the original checkpoints carry and no forward pass uses.
DROPPED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$")

# The heads of the towers that real configurations name instead of describing.
_VISION_HEADS = {"siglip_large_patch16_384": 16}

_RENAMES = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^gen_aligner\.", "model.generation_aligner."),
    (r"^aligner\.", "model.aligner."),
    (r"aligner\.layers\.0\.", "aligner.fc1."),
    (r"aligner\.layers\.2\.", "aligner.hidden_layers.0."),
    (r"^vision_model\.vision_tower\.", "model.vision_model."),
    (r"model\.vision_model\.pos_embed$", "model.vision_model.embeddings.position_embedding.weight"),
    (r"model\.vision_model\.patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
    (r"model\.vision_model\.norm\.", "model.vision_model.post_layernorm."),
    (r"model\.vision_model\.blocks\.(\d+)\.norm([12])\.", r"model.vision_model.encoder.layers.\1.layer_norm\2."),
    (
        r"model\.vision_model\.blocks\.(\d+)\.attn\.proj\.",
        r"model.vision_model.encoder.layers.\1.self_attn.projection_layer.",
    ),
    (r"model\.vision_model\.blocks\.(\d+)\.attn\.", r"model.vision_model.encoder.layers.\1.self_attn."),
    (r"model\.vision_model\.blocks\.(\d+)\.", r"model.vision_model.encoder.layers.\1."),
    (r"^gen_vision_model\.", "model.vqmodel."),
    (r"vqmodel\.(encoder|decoder)\.mid\.0\.", r"vqmodel.\1.mid.block_1."),
    (r"vqmodel\.(encoder|decoder)\.mid\.1\.", r"vqmodel.\1.mid.attn_1."),
    (r"vqmodel\.(encoder|decoder)\.mid\.2\.", r"vqmodel.\1.mid.block_2."),
    (r"vqmodel\.encoder\.conv_blocks\.", "vqmodel.encoder.down."),
    (r"vqmodel\.decoder\.conv_blocks\.", "vqmodel.decoder.up."),
    (r"(vqmodel\.(?:encoder\.down|decoder\.up)\.\d+)\.res\.", r"\1.block."),
)  # fmt: skip


def rename(name: str) -> str:
    """The name of an original tensor in `Janus4oForImageGeneration`."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def convert_tensor(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One original tensor -> our tensors: none when it is unused, three for a fused query/key/value projection."""
    if DROPPED.search(name):
        return {}
    new_name = rename(name)
    if ".attn.qkv." in name:
        parts = tensor.chunk(3)
        return {new_name.replace("qkv", part): value.clone() for part, value in zip(_QKV, parts, strict=True)}
    if name.endswith("pos_embed"):
        return {new_name: tensor.squeeze(0)}
    return {new_name: tensor}


_QKV = ("q_proj", "k_proj", "v_proj")


def read_original(source_dir: Path) -> dict[str, Tensor]:
    """All tensors of an original checkpoint's safetensors shards."""
    tensors: dict[str, Tensor] = {}
    for shard in _shards(source_dir):
        with safe_open(shard, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return tensors


def _shards(source_dir: Path) -> list[Path]:
    """The files that hold the weights: those the index names, or the only one."""
    index = source_dir / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [source_dir / name for name in sorted(set(weight_map.values()))]
    single = source_dir / "model.safetensors"
    if single.is_file():
        return [single]
    raise UserError(f"{source_dir} holds no model.safetensors; give the folder of a downloaded checkpoint.")


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many layers there are: one more than the largest number that `pattern` captures."""
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, tensors) if match)


def _vision_config(tensors: dict[str, Tensor], original: dict[str, Any]) -> dict[str, Any]:
    patches = tensors["vision_model.vision_tower.patch_embed.proj.weight"]
    name = original["vision_config"]["params"]["model_name"]
    heads = original.get("tiny_override", {}).get("vision", {}).get("heads") or _VISION_HEADS.get(name)
    if heads is None:
        raise UserError(f"The vision tower {name!r} is not known; known are {', '.join(_VISION_HEADS)}.")
    num_tokens = tensors["vision_model.vision_tower.pos_embed"].shape[1]
    hidden = patches.shape[0]
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": _count(tensors, r"vision_model\.vision_tower\.blocks\.(\d+)\."),
        "patch_size": patches.shape[-1],
        "image_size": int(num_tokens**0.5) * patches.shape[-1],
        "num_image_tokens": num_tokens,
        "mlp_ratio": tensors["vision_model.vision_tower.blocks.0.mlp.fc1.weight"].shape[0] / hidden,
        "projection_dim": tensors["aligner.layers.0.weight"].shape[0],
        "depth": 2,
    }


def _vq_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    prefix = "gen_vision_model.encoder.conv_blocks"
    num_levels = _count(tensors, prefix.replace(".", r"\.") + r"\.(\d+)\.")
    widths = [tensors[f"{prefix}.{level}.res.0.conv1.weight"].shape[0] for level in range(num_levels)]
    base = tensors["gen_vision_model.encoder.conv_in.weight"].shape[0]
    codebook = tensors["gen_vision_model.quantize.embedding.weight"]
    return {
        "base_channels": base,
        "channel_multiplier": [width // base for width in widths],
        "num_res_blocks": _count(tensors, prefix.replace(".", r"\.") + r"\.0\.res\.(\d+)\."),
        "latent_channels": tensors["gen_vision_model.quant_conv.weight"].shape[1],
        "num_embeddings": codebook.shape[0],
        "embed_dim": codebook.shape[1],
        "projection_dim": tensors["gen_aligner.layers.0.weight"].shape[0],
        "image_token_embed_dim": tensors["gen_head.output_mlp_projector.weight"].shape[1],
    }


def _text_config(tensors: dict[str, Tensor], original: dict[str, Any]) -> dict[str, Any]:
    embedding = tensors["language_model.model.embed_tokens.weight"]
    layer = "language_model.model.layers.0"
    given = original["language_config"]
    heads = given["num_attention_heads"] if "num_attention_heads" in given else embedding.shape[1] // 128
    head_dim = embedding.shape[1] // heads
    return {
        **{key: given[key] for key in ("rms_norm_eps", "rope_theta", "max_position_embeddings") if key in given},
        "model_type": "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": tensors[f"{layer}.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": _count(tensors, r"language_model\.model\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "num_key_value_heads": tensors[f"{layer}.self_attn.k_proj.weight"].shape[0] // head_dim,
    }


def convert(source_dir: Path, target_dir: Path) -> list[str]:
    """Write the original checkpoint in `source_dir`, with its processor, as ours into `target_dir`.

    Returns:
        the names of the tensors that were dropped because nothing uses them.
    """
    from transformers import AutoTokenizer
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor

    original = _read_config(source_dir)
    tensors = read_original(source_dir)
    tokenizer = AutoTokenizer.from_pretrained(
        source_dir,
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    names = ("boi", "eoi", "image", "pad", "bos", "eos")
    tokens = [getattr(tokenizer, f"{name}_token") for name in names]
    ids: dict[str, int] = {
        f"{name}_token_id": index for name, index in zip(names, tokenizer.convert_tokens_to_ids(tokens), strict=True)
    }
    text_config = _text_config(tensors, original)
    text_config |= {key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Janus4oConfig(
        text_config=text_config,
        vision_config=_vision_config(tensors, original),
        vq_config=_vq_config(tensors),
        image_token_id=ids["image_token_id"],
        boi_token_id=ids["boi_token_id"],
        eoi_token_id=ids["eoi_token_id"],
        pad_token_id=ids["pad_token_id"],
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Janus4oForImageGeneration(config)
    converted = {key: value for name, tensor in tensors.items() for key, value in convert_tensor(name, tensor).items()}
    missing, unexpected = model.load_state_dict(converted, strict=False, assign=True)
    if missing or unexpected:
        raise UserError(f"The checkpoint does not fit: missing {missing[:3]}, unexplained {unexpected[:3]}.")
    model.save_pretrained(target_dir)
    pixels = json.loads((source_dir / "preprocessor_config.json").read_text(encoding="utf-8"))
    side = model.model.vision_model.config.image_size
    image_processor = JanusImageProcessorPil(
        size={"height": side, "width": side}, image_mean=pixels["image_mean"], image_std=pixels["image_std"],
        min_size=pixels["min_size"],
    )  # fmt: skip
    Janus4oProcessor(image_processor, tokenizer, num_image_tokens=config.num_image_tokens).save_pretrained(target_dir)
    return [name for name in tensors if DROPPED.search(name)]


def _read_config(source_dir: Path) -> dict[str, Any]:
    path = source_dir / "config.json"
    if not path.is_file():
        raise UserError(f"{source_dir} has no config.json; give the folder of a downloaded checkpoint.")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != ORIGINAL_MODEL_TYPE:
        raise UserError(f"{path} describes a {config.get('model_type')!r} model; expected {ORIGINAL_MODEL_TYPE!r}.")
    return config
