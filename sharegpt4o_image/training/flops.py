# SPDX-License-Identifier: Apache-2.0
"""A model and the lengths of its samples -> the floating point operations that training on them takes, and MFU's peak.

Counted is what the published quantity needs, not what a program happens to do (that is HFU): no recomputation under
gradient checkpointing, no padding, no masked half of the attention, no encoding of pictures whose codes can be stored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sharegpt4o_image.janus4o import Janus4oForImageGeneration

# Dense half-precision FLOP/s with fp32 accumulation, of NVIDIA's data sheets (which print the sparse figure, twice as
# high, for the H100 and later) and, for the RTX 4090, its Ada white paper. The first that matches counts.
_PEAKS = (
    (r"\bA100\b|\bA800\b", 312e12),
    (r"\bH[18]00 PCIe", 756e12),
    (r"\bH100 NVL|\bH200 NVL", 835e12),
    (r"\bG?H100\b|\bG?H200\b|\bH800\b", 989e12),
    (r"\bL40S\b", 362e12),
    (r"\bRTX 4090$", 165e12),
    (r"\bB200\b", 2250e12),
)


def peak_flops_per_second(device_name: str) -> float | None:
    """What a GPU of this name can do at most in half precision; `None` for one that is not in the table."""
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, device_name)), None)


class TrainingFlops:
    """Forward and backward pass of a model, trained and frozen parts told apart.

    A matrix costs 2 operations for each of its numbers and each vector; as much again for the gradient of the matrix
    if it is trained, and for the gradient of its input if anything is trained in its part of the model or before it
    (the first trained matrix does without; that is not told apart).

    Args:
        model: a `Janus4oForImageGeneration`, or what holds one (an adapter model, DDP).
    """

    def __init__(self, model: nn.Module):
        janus = next(module for module in model.modules() if isinstance(module, Janus4oForImageGeneration))
        inner, config = janus.model, janus.config
        text: Any = config.text_config
        vision: Any = config.vision_config
        self._num_codes = num_codes = config.num_image_tokens
        tower = _Part.of(inner.vision_model, is_reached=False)
        aligner = _Part.of(inner.aligner, tower.is_reached)
        embeddings = _Part.of(inner.generation_embeddings, is_reached=False)
        code_aligner = _Part.of(inner.generation_aligner, embeddings.is_reached)
        language_model = _Part.of(inner.language_model, aligner.is_reached or code_aligner.is_reached)
        head = _Part.of(inner.generation_head, language_model.is_reached)

        heads_width = text.num_attention_heads * text.head_dim
        self._per_token = language_model.flops
        # Two products of 2 s^2 h operations, half of them masked.
        self._per_square = 2 * heads_width * text.num_hidden_layers * language_model.num_passes
        self._per_target = num_codes * head.flops + (num_codes - 1) * code_aligner.flops
        tower_attention = 4 * num_codes**2 * vision.hidden_size * vision.num_hidden_layers * tower.num_passes
        self._per_source = num_codes * (tower.flops + aligner.flops + code_aligner.flops) + tower_attention

    def of(self, lengths: Sequence[int], num_sources: int) -> int:
        """Operations of a training step.

        Args:
            lengths: tokens of each sample, its prompt and all codes of its target but the last.
            num_sources: source images of all samples.
        """
        return (
            self._per_token * sum(lengths)
            + self._per_square * sum(length**2 for length in lengths)
            + self._per_target * len(lengths)
            + self._per_source * num_sources
        )


@dataclass(frozen=True)
class _Part:
    """A part of the model: operations of one position, and whether a gradient has to reach its input.

    Args:
        flops: of its matrices, for one position, forward and backward.
        is_reached: whether something in it or before it is trained.
    """

    flops: int
    is_reached: bool

    @classmethod
    def of(cls, module: nn.Module, is_reached: bool) -> "_Part":
        """`is_reached` says whether something before the module is trained."""
        is_reached |= any(parameter.requires_grad for parameter in module.parameters())
        flops = 0
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                passes_on = is_reached and isinstance(layer, nn.Linear)  # pixels, which Conv2d reads, have no gradient
                flops += 2 * _num_weights(layer) * (1 + passes_on + layer.weight.requires_grad)
        return cls(flops, is_reached)

    @property
    def num_passes(self) -> int:
        """Of an attention, which has two gradients: forward alone, or with backward."""
        return 3 if self.is_reached else 1


def _num_weights(layer: nn.Linear | nn.Conv2d) -> int:
    """Numbers of the layer's matrix; by its sizes, since a sharded weight holds a part of them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.in_channels * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
