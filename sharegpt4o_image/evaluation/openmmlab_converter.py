# SPDX-License-Identifier: Apache-2.0
"""GenEval's own detector, a checkpoint of mmdet 2 (`.pth`) -> the same network in transformers.

Both compute the same; they differ in names, in attention layers that keep query, key and value in one matrix or in
three, and in the order in which Swin's patch merging stacks the four neighbours of a patch.
"""

import hashlib
import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from sharegpt4o_image.errors import UserError

# The file that GenEval downloads, from mmdet's model zoo (configs/mask2former/metafile.yml).
OFFICIAL_DIGEST = "743b7d99"  # the beginning of its sha256
OFFICIAL_FILE = f"mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-{OFFICIAL_DIGEST}.pth"

Weights = Mapping[str, torch.Tensor]

_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth")  # mmdet's tools/model_converters/publish_model.py: of the sha256

_NUM_STAGES = 4
_NUM_LEVELS, _NUM_POINTS = 3, 4  # of the deformable attention; transformers knows no others

_SWIN = "model.pixel_level_module.encoder.swin"
_BLOCK = rf"{_SWIN}.encoder.layers.\1.blocks.\2"
_MERGING = r"backbone\.stages\.(\d+)\.downsample"
_PIXEL_DECODER = "model.pixel_level_module.decoder"
_PIXEL_LAYER = rf"{_PIXEL_DECODER}.encoder.layers.\1"
_DECODER = "model.transformer_module.decoder"
_LAYER = rf"{_DECODER}.layers.\1"
_QKV = "{qkv}"  # a third of the tensor goes to each of q, k and v

# Names of mmdet 2 and mmcv 1 -> names of transformers; the end, `weight` or `bias`, stays.
_RENAMES = (
    (r"backbone\.patch_embed\.projection", f"{_SWIN}.embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", f"{_SWIN}.embeddings.norm"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1", f"{_BLOCK}.layernorm_before"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv", f"{_BLOCK}.attention.{_QKV}_proj"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj", f"{_BLOCK}.attention.o_proj"),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
        f"{_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2", f"{_BLOCK}.layernorm_after"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0", f"{_BLOCK}.mlp.fc1"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1", f"{_BLOCK}.mlp.fc2"),
    (_MERGING, rf"{_SWIN}.encoder.layers.\1.downsample"),
    *(
        (rf"backbone\.norm{stage}", f"model.pixel_level_module.encoder.hidden_states_norms.stage{stage + 1}")
        for stage in range(_NUM_STAGES)
    ),
    # Levels count from low to high resolution in both.
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv", rf"{_PIXEL_DECODER}.input_projections.\1.0"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn", rf"{_PIXEL_DECODER}.input_projections.\1.1"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", f"{_PIXEL_DECODER}.level_embed"),
    (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.attentions\.0", f"{_PIXEL_LAYER}.self_attn"),
    (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.0", f"{_PIXEL_LAYER}.self_attn_layer_norm"),
    (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0", f"{_PIXEL_LAYER}.fc1"),
    (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.1", f"{_PIXEL_LAYER}.fc2"),
    (r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.1", f"{_PIXEL_LAYER}.final_layer_norm"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", f"{_PIXEL_DECODER}.adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", f"{_PIXEL_DECODER}.adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", f"{_PIXEL_DECODER}.layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", f"{_PIXEL_DECODER}.layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", f"{_PIXEL_DECODER}.mask_projection"),
    # A layer looks at the picture, then at the other queries: mmdet numbers attentions and norms in that order.
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.0\.attn", f"{_LAYER}.cross_attn"),
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.0", f"{_LAYER}.cross_attn_layer_norm"),
    *(
        (
            rf"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.1\.attn\.in_proj_{end}",
            f"{_LAYER}.self_attn.{_QKV}_proj.{end}",
        )
        for end in ("weight", "bias")
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.1\.attn\.out_proj",
        f"{_LAYER}.self_attn.out_proj",
    ),
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.1", f"{_LAYER}.self_attn_layer_norm"),
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0", f"{_LAYER}.fc1"),
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.1", f"{_LAYER}.fc2"),
    (r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.2", f"{_LAYER}.final_layer_norm"),
    (r"panoptic_head\.transformer_decoder\.post_norm", f"{_DECODER}.layernorm"),
    (r"panoptic_head\.query_embed", "model.transformer_module.queries_embedder"),  # added to queries, like a position
    (r"panoptic_head\.query_feat", "model.transformer_module.queries_features"),  # what the first layer starts from
    (r"panoptic_head\.level_embed", "model.transformer_module.level_embed"),
    (r"panoptic_head\.cls_embed", "class_predictor"),
    *(
        (rf"panoptic_head\.mask_embed\.{2 * layer}", f"{_DECODER}.mask_predictor.mask_embedder.{layer}.0")
        for layer in range(3)  # mmdet counts the activations between them, too
    ),
)

# Of the window size alone; transformers computes the same numbers.
_CONSTANT = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")

# Of the classifier that Swin is without its backbone wrapper; not on the way to any feature map.
_UNUSED = f"{_SWIN}.layernorm."


def load_openmmlab(path: Path) -> Mask2FormerForUniversalSegmentation:
    """The Mask2Former with a Swin backbone that mmdet 2 saved to `path`, in float32 and ready to look.

    The sizes are those of the weights; what no weight shows is as in mmdet's configs/mask2former. Where the name ends
    in eight digits of a sha256, as in mmdet's model zoo, the content must have it.
    """
    weights = _read(path)
    try:
        config = _describe(weights)
    except KeyError as missing:
        raise _not_ours(path, f"it has no {missing.args[0]}") from None
    model = Mask2FormerForUniversalSegmentation(config)
    converted = convert(weights, path)
    wanted = {name: value for name, value in model.named_parameters() if not name.startswith(_UNUSED)}
    for name in sorted(wanted.keys() ^ converted.keys()):
        raise _not_ours(path, f"it has {'nothing for' if name in wanted else 'too much:'} {name}")
    for name, value in converted.items():
        if value.shape != wanted[name].shape:
            sizes = f"{tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
            raise _not_ours(path, f"{name} is {sizes}")
    model.load_state_dict(converted, strict=False)
    model.config._name_or_path = path.name
    return model.eval()


# ------------------------------------------------------------------ file -> weights


def _read(path: Path) -> Weights:
    """The weights of a checkpoint, read as plain data: no code of the file is run."""
    try:
        _check_digest(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the detector {path} cannot be read ({error.strerror or error}); check its path") from error
    except (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError) as error:
        _, _, refused = str(error).partition("WeightsUnpickler error: ")
        reason = " ".join((refused or str(error)).split())
        raise UserError(
            f"{path} cannot be read as plain weights ({reason[:200]}); download it again, or, if you trust it, keep "
            "its weights alone: torch.save({'state_dict': torch.load(OLD, weights_only=False)['state_dict']}, NEW)"
        ) from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise _not_ours(path, "it has no state_dict")
    return weights


def sha256_of(path: Path) -> str:
    """Which weights a file holds, whatever its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path) -> None:
    named = _DIGEST_IN_NAME.search(path.name)
    if named is None:
        return
    digest = sha256_of(path)
    if not digest.startswith(named[1]):
        raise UserError(
            f"{path} is damaged: its sha256 begins with {digest[:8]}, and its name says {named[1]}; download it again"
        )


def _not_ours(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is no Mask2Former with a Swin backbone of mmdet 2 ({reason}); GenEval's is {OFFICIAL_FILE}"
    )


# ------------------------------------------------------------------ weights -> architecture


def _describe(weights: Weights) -> Mask2FormerConfig:
    """The architecture that weights of these shapes belong to; raises `KeyError` with what is missing."""
    head, pixel_decoder = "panoptic_head", "panoptic_head.pixel_decoder"
    first_layer = f"{pixel_decoder}.encoder.layers.0"
    num_offsets = len(weights[f"{first_layer}.attentions.0.sampling_offsets.weight"])
    num_queries, hidden_dim = weights[f"{head}.query_feat.weight"].shape
    return Mask2FormerConfig(
        backbone_config=_describe_swin(weights),
        num_labels=len(weights[f"{head}.cls_embed.weight"]) - 1,  # type: ignore[call-arg]
        num_queries=num_queries,
        hidden_dim=hidden_dim,
        feature_size=len(weights[f"{pixel_decoder}.input_convs.0.conv.weight"]),
        mask_feature_size=len(weights[f"{pixel_decoder}.mask_feature.weight"]),
        num_attention_heads=num_offsets // (_NUM_LEVELS * _NUM_POINTS * 2),  # x and y of each
        encoder_layers=_count(weights, rf"{pixel_decoder}\.encoder\.layers\.(\d+)\.norms\.0\.weight"),
        encoder_feedforward_dim=len(weights[f"{first_layer}.ffns.0.layers.0.0.weight"]),
        # One less than transformers counts, for which the queries before the first layer are one, too.
        decoder_layers=1 + _count(weights, rf"{head}\.transformer_decoder\.layers\.(\d+)\.norms\.0\.weight"),
        dim_feedforward=len(weights[f"{head}.transformer_decoder.layers.0.ffns.0.layers.0.0.weight"]),
    )


def _describe_swin(weights: Weights) -> SwinConfig:
    patches = weights["backbone.patch_embed.projection.weight"]  # (dims, channels, height, width)
    stages = [f"backbone.stages.{stage}" for stage in range(_NUM_STAGES)]
    tables = [weights[f"{stage}.blocks.0.attn.w_msa.relative_position_bias_table"] for stage in stages]
    return SwinConfig(
        embed_dim=len(patches),
        patch_size=patches.shape[-1],
        depths=[_count(weights, rf"{stage}\.blocks\.(\d+)\.norm1\.weight") for stage in stages],
        num_heads=[table.shape[1] for table in tables],
        window_size=(isqrt(len(tables[0])) + 1) // 2,  # a table has a row for each of (2 * window - 1)^2 offsets
        mlp_ratio=len(weights[f"{stages[0]}.blocks.0.ffn.layers.0.0.weight"]) / len(patches),
        out_features=[f"stage{stage + 1}" for stage in range(_NUM_STAGES)],  # type: ignore[call-arg]
    )


def _count(weights: Weights, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in weights)


# ------------------------------------------------------------------ names and orders


def convert(weights: Weights, path: Path) -> dict[str, torch.Tensor]:
    """The weights under transformers' names; `path` is what a fault is told of."""
    return {
        new: value
        for name, tensor in weights.items()
        if not _CONSTANT.fullmatch(name)
        for new, value in _place(name, tensor, path)
    }


def _place(name: str, tensor: torch.Tensor, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Where a tensor goes: to one place, or in thirds to three."""
    target = next((found for pattern, new in _RENAMES if (found := _rename(pattern, new, name))), None)
    if target is None:
        raise _not_ours(path, f"it has {name}")
    if re.match(_MERGING, name):
        tensor = slices_of(tensor)
    if _QKV in target:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield target.replace(_QKV, letter), part
    else:
        yield target, tensor


def _rename(pattern: str, new: str, name: str) -> str | None:
    """`name` with its beginning, which `pattern` describes, replaced; `None` where it begins otherwise."""
    match = re.match(rf"{pattern}\b", name)
    return match.expand(new) + name[match.end() :] if match else None


def slices_of(tensor: torch.Tensor) -> torch.Tensor:
    """The inputs of a patch merging, the last dimension, in transformers' order.

    mmdet unfolds: all four neighbours of the first channel, row by row, then those of the second one. Swin's authors,
    and transformers, stack: all channels of the upper left neighbour, of the lower left, the upper right, the lower
    right one.
    """
    unfolded = tensor.unflatten(-1, (-1, 2, 2))  # (..., channels, row, column)
    return unfolded.movedim(-3, -1).transpose(-3, -2).flatten(-3)  # (..., column * row * channels)
