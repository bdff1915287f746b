# SPDX-License-Identifier: Apache-2.0
"""Original Janus (`MultiModalityCausalLM`) <-> `Janus4oForImageGeneration`: names, tensors, configurations.

Sizes are read off the weights' shapes, so everything here also works on the meta device; only what shapes cannot tell
(attention heads, rotary base, ...) comes from the configuration. Facts: `deepseek-ai/Janus`,
`janus/models/{modeling_vlm,siglip_vit,vq_model,projector}.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from sharegpt4o_image.errors import UserError

# Tensors that the original checkpoints carry and no forward pass uses.
UNUSED = re.compile(r"vision_model\.vision_tower\.attn_pool\..+|gen_vision_model\.quantize\.codebook_used")

# What the names of released configurations stand for (siglip_vit.py `SigLIP_MODEL_CONFIG`, vq_model.py `VQ_16`).
SIGLIP_LARGE = "siglip_large_patch16_384"
VQ_16 = "VQ-16"
_VISION_HEADS = {SIGLIP_LARGE: 16}
_SIGLIP_LARGE_SIZES = {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "image_size": 384}
_VQ_16_SIZES = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "z_channels": 256,
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
}

OUR_KEY = "janus4o"  # in an original configuration: the defaults of `generate_image`, and the geometry

# Layers of an adapter; released checkpoints have 2. Linear layers and activations take turns in the original.
_MAX_ADAPTER_DEPTH = 4


def _adapter_names(original: str, ours: str) -> list[tuple[str, str]]:
    deeper = [
        (f"{original}.layers.{2 * k}.<rest>", f"{ours}.hidden_layers.{k - 1}.<rest>")
        for k in range(1, _MAX_ADAPTER_DEPTH)
    ]
    return [(f"{original}.layers.0.<rest>", f"{ours}.fc1.<rest>"), *deeper]


_TOWER, _VISION = "vision_model.vision_tower", "model.vision_model"
_BLOCK, _LAYER = f"{_TOWER}.blocks.<n>", f"{_VISION}.encoder.layers.<n>"

# original name <-> our name; the first pair that fits decides, in both directions.
_NAME_PAIRS = [
    ("language_model.model.<rest>", "model.language_model.<rest>"),
    ("language_model.lm_head.weight", "lm_head.weight"),
    ("gen_embed.<rest>", "model.generation_embeddings.<rest>"),
    ("gen_head.output_mlp_projector.<rest>", "model.generation_head.proj_out.<rest>"),
    ("gen_head.vision_head.<rest>", "model.generation_head.vision_head.<rest>"),
    *_adapter_names("gen_aligner", "model.generation_aligner"),
    *_adapter_names("aligner", "model.aligner"),
    (f"{_TOWER}.pos_embed", f"{_VISION}.embeddings.position_embedding.weight"),
    (f"{_TOWER}.patch_embed.proj.<rest>", f"{_VISION}.embeddings.patch_embedding.<rest>"),
    (f"{_TOWER}.norm.<rest>", f"{_VISION}.post_layernorm.<rest>"),
    (f"{_BLOCK}.norm<m>.<rest>", f"{_LAYER}.layer_norm<m>.<rest>"),
    (f"{_BLOCK}.attn.proj.<rest>", f"{_LAYER}.self_attn.projection_layer.<rest>"),
    (f"{_BLOCK}.attn.<rest>", f"{_LAYER}.self_attn.<rest>"),
    (f"{_BLOCK}.mlp.<rest>", f"{_LAYER}.mlp.<rest>"),
    ("gen_vision_model.<side>.mid.0.<rest>", "model.vqmodel.<side>.mid.block_1.<rest>"),
    ("gen_vision_model.<side>.mid.1.<rest>", "model.vqmodel.<side>.mid.attn_1.<rest>"),
    ("gen_vision_model.<side>.mid.2.<rest>", "model.vqmodel.<side>.mid.block_2.<rest>"),
    ("gen_vision_model.encoder.conv_blocks.<n>.res.<rest>", "model.vqmodel.encoder.down.<n>.block.<rest>"),
    ("gen_vision_model.decoder.conv_blocks.<n>.res.<rest>", "model.vqmodel.decoder.up.<n>.block.<rest>"),
    ("gen_vision_model.encoder.conv_blocks.<n>.<rest>", "model.vqmodel.encoder.down.<n>.<rest>"),
    ("gen_vision_model.decoder.conv_blocks.<n>.<rest>", "model.vqmodel.decoder.up.<n>.<rest>"),
    ("gen_vision_model.<rest>", "model.vqmodel.<rest>"),
]

_PARTS = {"n": r"\d+", "m": "[12]", "side": "encoder|decoder", "rest": ".+"}


def _pattern(template: str) -> re.Pattern[str]:
    groups = {f"<{key}>": f"(?P<{key}>{part})" for key, part in _PARTS.items()}
    escaped = re.escape(template)
    for mark, group in groups.items():
        escaped = escaped.replace(re.escape(mark), group)
    return re.compile(escaped)


def _replacement(template: str) -> str:
    return re.sub("<(n|m|side|rest)>", r"\\g<\1>", template)


_TO_OURS = [(_pattern(original), _replacement(ours)) for original, ours in _NAME_PAIRS]
_TO_ORIGINAL = [(_pattern(ours), _replacement(original)) for original, ours in _NAME_PAIRS]


def _translate(name: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    """The translated name; one that no pair explains stays as it is, and is then found to be unknown."""
    for pattern, replacement in table:
        if match := pattern.fullmatch(name):
            return match.expand(replacement)
    return name


# ------------------------------------------------------------------ tensors

_QKV = ("q_proj", "k_proj", "v_proj")


def to_ours(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One original tensor -> ours: none when nothing uses it, three for a fused query/key/value projection."""
    if UNUSED.fullmatch(name):
        return {}
    new_name = _translate(name, _TO_OURS)
    if name.startswith(f"{_TOWER}.blocks.") and ".attn.qkv." in name:
        return {
            new_name.replace(".qkv.", f".{part}."): value.clone()
            for part, value in zip(_QKV, tensor.chunk(3), strict=True)
        }
    if name == f"{_TOWER}.pos_embed":
        return {new_name: tensor.squeeze(0)}
    return {new_name: tensor}


class ToOriginal:
    """Our tensors -> original ones, as they come: the three parts of a fused projection wait for each other."""

    def __init__(self, has_tied_embeddings: bool):
        self._has_tied_embeddings = has_tied_embeddings
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def convert(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """One of our tensors -> original tensors, possibly none yet."""
        new_name = _translate(name, _TO_ORIGINAL)
        part = next((part for part in _QKV if f".attn.{part}." in new_name), None)
        if part is not None and new_name.startswith(f"{_TOWER}.blocks."):
            return self._fuse(new_name.replace(f".{part}.", ".qkv."), part, tensor)
        if new_name == f"{_TOWER}.pos_embed":
            return {new_name: tensor[None]}
        if self._has_tied_embeddings and new_name == "language_model.model.embed_tokens.weight":
            return {new_name: tensor, "language_model.lm_head.weight": tensor.clone()}
        return {new_name: tensor}

    def _fuse(self, fused_name: str, part: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = self._waiting.setdefault(fused_name, {})
        parts[part] = tensor.clone()  # the file it is mapped from may be closed before the others come
        if len(parts) < len(_QKV):
            return {}
        del self._waiting[fused_name]
        return {fused_name: torch.cat([parts[part] for part in _QKV])}


# ------------------------------------------------------------------ configurations

Shapes = Mapping[str, Sequence[int]]
Witness = tuple[str, int]  # a tensor's name and one of its dimensions

_LLM = "language_model.model"
_VQ = "gen_vision_model"


def is_tied(original: Mapping[str, Any]) -> bool:
    """Whether the text head is the embedding matrix; it is not in the released checkpoints."""
    return bool(original["language_config"].get("tie_word_embeddings", False))


def model_sizes(shapes: Shapes, original: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`text_config`, `vision_config` and `vq_config` of an original checkpoint, without token ids.

    Each size is what most of its witnesses say, so that one damaged tensor is found out instead of believed.
    """
    width = _size(shapes, (f"{_LLM}.embed_tokens.weight", 1), (f"{_LLM}.norm.weight", 0), (_q_proj(0), 1))
    return {
        "text_config": _text_config(shapes, original["language_config"], width),
        "vision_config": _vision_config(shapes, original),
        "vq_config": _vq_config(shapes, width),
    }


def _size(shapes: Shapes, *witnesses: Witness, stated: int | None = None) -> int:
    """The size that most witnesses, and the configuration if it states one, agree on; the earliest of equal ones."""
    said = [shapes[name][dim] for name, dim in witnesses if name in shapes and dim < len(shapes[name])]
    if stated is not None and any(name in shapes for name, _ in witnesses):
        said.append(stated)
    if not said:
        raise UserError(f"The checkpoint has no {witnesses[0][0]}, which tells a size; it is incomplete.")
    return Counter(said).most_common(1)[0][0]


def _q_proj(layer: int) -> str:
    return f"{_LLM}.layers.{layer}.self_attn.q_proj.weight"


def _text_config(shapes: Shapes, given: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What the configuration does not say has Llama's defaults, as in the reference code (32 heads in the 7B's)."""
    layers = [f"{_LLM}.layers.{n}" for n in range(_count(shapes, rf"{re.escape(_LLM)}\.layers\.(\d+)\."))]
    heads = given.get("num_attention_heads", LlamaConfig().num_attention_heads)
    if width % heads:
        raise UserError(f"The width {width} of the language model is not a multiple of its {heads} attention heads.")
    keys = _size(shapes, *[(f"{layer}.self_attn.{part}_proj.weight", 0) for layer in layers for part in "kv"])
    shapeless = ("rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "hidden_act")
    embedding, head = f"{_LLM}.embed_tokens.weight", "language_model.lm_head.weight"
    return {
        **{key: given[key] for key in shapeless if given.get(key) is not None},
        "model_type": "llama",
        "vocab_size": _size(shapes, (embedding, 0), (head, 0), stated=given.get("vocab_size")),
        "hidden_size": width,
        "intermediate_size": _size(
            shapes, *[(f"{layer}.mlp.{part}_proj.weight", 0) for layer in layers for part in ("gate", "up")]
        ),
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": keys // (width // heads),
    }


def _vision_config(shapes: Shapes, original: Mapping[str, Any]) -> dict[str, Any]:
    params = original["vision_config"].get("params", {})
    name, override = params.get("model_name"), original.get("tiny_override", {}).get("vision", {})
    heads = override.get("heads") or _VISION_HEADS.get(name)
    if heads is None:
        raise UserError(f"The vision tower {name!r} is not known; known are {', '.join(_VISION_HEADS)}.")
    block, patches = f"{_TOWER}.blocks.0", f"{_TOWER}.patch_embed.proj"
    norm = f"{_TOWER}.norm.weight"
    hidden = _size(shapes, (f"{_TOWER}.pos_embed", 2), (norm, 0), (f"{patches}.weight", 0), (f"{patches}.bias", 0))
    if hidden % heads:
        raise UserError(f"The width {hidden} of the vision tower is not a multiple of its {heads} attention heads.")
    stated = override.get("patch_size", _SIGLIP_LARGE_SIZES["patch_size"])
    patch_size = _size(shapes, (f"{patches}.weight", 3), (f"{patches}.weight", 2), stated=stated)
    image_size = override.get("image_size") or params.get("image_size")
    num_tokens = (image_size // patch_size) ** 2 if image_size else _size(shapes, (f"{_TOWER}.pos_embed", 1))
    feed_forward = _size(
        shapes, (f"{block}.mlp.fc1.weight", 0), (f"{block}.mlp.fc1.bias", 0), (f"{block}.mlp.fc2.weight", 1)
    )
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": _count(shapes, rf"{re.escape(_TOWER)}\.blocks\.(\d+)\."),
        "patch_size": patch_size,
        "image_size": image_size or math.isqrt(num_tokens) * patch_size,
        "num_image_tokens": num_tokens,
        "mlp_ratio": _ratio(feed_forward, hidden),
        "projection_dim": _size(
            shapes, ("aligner.layers.0.weight", 0), ("aligner.layers.0.bias", 0), ("aligner.layers.2.weight", 0)
        ),
        "depth": _adapter_depth(shapes, "aligner"),
    }


def _vq_config(shapes: Shapes, width: int) -> dict[str, Any]:
    blocks, codebook = f"{_VQ}.encoder.conv_blocks", f"{_VQ}.quantize.embedding.weight"
    conv_in, first = f"{_VQ}.encoder.conv_in", f"{blocks}.0.res.0"
    base = _size(shapes, (f"{conv_in}.weight", 0), (f"{conv_in}.bias", 0), (f"{first}.norm1.weight", 0))
    parts = ("conv1.weight", "conv1.bias", "norm2.weight")
    widths = [
        _size(shapes, *[(f"{blocks}.{level}.res.0.{part}", 0) for part in parts])
        for level in range(_count(shapes, rf"{re.escape(blocks)}\.(\d+)\."))
    ]
    head = "gen_head.output_mlp_projector"
    quant, post_quant = f"{_VQ}.quant_conv.weight", f"{_VQ}.post_quant_conv.weight"
    if base % _NUM_GROUPS:
        raise UserError(f"The image tokenizer has {base} channels; they must be a multiple of {_NUM_GROUPS}.")
    return {
        "base_channels": base,
        "channel_multiplier": [one // base for one in widths],
        "num_res_blocks": _count(shapes, rf"{re.escape(blocks)}\.0\.res\.(\d+)\."),
        "latent_channels": _size(shapes, (quant, 1), (post_quant, 0), (f"{_VQ}.encoder.conv_out.weight", 0)),
        "num_embeddings": _size(shapes, (codebook, 0), ("gen_embed.weight", 0), ("gen_head.vision_head.weight", 0)),
        "embed_dim": _size(shapes, (codebook, 1), ("gen_embed.weight", 1), (quant, 0), (post_quant, 1)),
        "num_hidden_layers": _adapter_depth(shapes, "gen_aligner"),
        "projection_dim": _size(
            shapes, ("gen_aligner.layers.0.weight", 0), ("gen_aligner.layers.0.bias", 0), (f"{head}.weight", 0)
        ),
        "image_token_embed_dim": width,
    }


_NUM_GROUPS = 32  # of every GroupNorm in the image tokenizer (vq_model.py `Normalize`)


def _ratio(feed_forward: int, hidden: int) -> float:
    """A ratio whose product with `hidden`, cut to an integer as transformers does, is `feed_forward`."""
    ratio = feed_forward / hidden
    return ratio if int(hidden * ratio) == feed_forward else math.nextafter(ratio, math.inf)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many layers there are: one more than the largest number that `pattern` captures."""
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, shapes) if match]
    if not numbers:
        example = pattern.replace("\\.", ".").replace(r"(\d+)", "0")
        raise UserError(f"The checkpoint has no {example}*, which tells the number of layers; it is incomplete.")
    return 1 + max(numbers)


def _adapter_depth(shapes: Shapes, adapter: str) -> int:
    return len([name for name in shapes if re.fullmatch(rf"{adapter}\.layers\.\d+\.weight", name)])


def original_config(config: Mapping[str, Any], geometry: str) -> dict[str, Any]:
    """Our `config.to_dict()` -> the original's configuration.

    `tiny_override` is added where no released name fits; `OUR_KEY` holds what the original code does not know.
    """
    text, vision, vq = config["text_config"], config["vision_config"], config["vq_config"]
    width, num_codes = text["hidden_size"], vq["num_embeddings"]
    original: dict[str, Any] = {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": config["dtype"],
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision["image_size"],
                "model_name": SIGLIP_LARGE,
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": _adapter_config("aligner", vision["hidden_size"], width, vision["depth"]),
        "gen_vision_config": {
            "cls": VQ_16,
            "model_type": "gen_vision",
            "params": {"image_token_size": num_codes, "n_embed": vq["embed_dim"]},
        },
        "gen_aligner_config": _adapter_config("gen_aligner", vq["embed_dim"], width, vq["num_hidden_layers"]),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": vq["projection_dim"],
                "image_token_size": num_codes,
                "n_embed": width,
            },
        },
        "language_config": _language_config(text, config["tie_word_embeddings"]),
        OUR_KEY: {key: config[key] for key in ("guidance_scale", "edit_freedom")} | {"geometry": geometry},
    }
    override = _tiny_override(vision, vq)
    if override != {"vision": _SIGLIP_LARGE_SIZES, "vq": _VQ_16_SIZES}:
        original["tiny_override"] = override
    return original


def _adapter_config(model_type: str, input_dim: int, width: int, depth: int) -> dict[str, Any]:
    params = {"depth": depth, "input_dim": input_dim, "n_embed": width, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": model_type, "params": params}


def _language_config(text: Mapping[str, Any], has_tied_embeddings: bool) -> dict[str, Any]:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    rope = dict(text["rope_parameters"])
    language = {"model_type": "llama", **{key: text[key] for key in keys}, "rope_theta": rope.pop("rope_theta")}
    if rope.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope
    if has_tied_embeddings:
        language["tie_word_embeddings"] = True
    return language


def _tiny_override(vision: Mapping[str, Any], vq: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vision": {
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "heads": vision["num_attention_heads"],
            "patch_size": vision["patch_size"],
            "image_size": vision["image_size"],
        },
        "vq": {
            "ch": vq["base_channels"],
            "ch_mult": list(vq["channel_multiplier"]),
            "z_channels": vq["latent_channels"],
            "codebook_size": vq["num_embeddings"],
            "codebook_embed_dim": vq["embed_dim"],
        },
    }
