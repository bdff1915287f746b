# SPDX-License-Identifier: Apache-2.0
"""The decode step of image generation: one code in, the next hidden state out, over caches that are allocated once.

The weights are the language model's own. What is gained over calling its layers: query, key and value (and the two
halves of the feed-forward) are one matrix product each, keys and values are written in place, pictures of one prompt
share its keys and values, and about 20 kernels run a layer instead of 41 (`docs/performance.md`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

# R rows (branches times prompts times pictures), G prefixes (branches times prompts), N pictures of a prefix,
# D width, H query heads, K key heads, E width of a head, S prefix tokens, T code positions, I feed-forward width


class PromptPrefix:
    """Keys and values of the prompts, one for each of G prefixes, read by the N rows of each."""

    def __init__(self, cache: DynamicCache, attention_mask_GS: Tensor):
        self.keys = [layer.keys for layer in cache.layers]  # each (G, K, S, E)
        self.values = [layer.values for layer in cache.layers]
        self.num_prefixes, self.length = attention_mask_GS.shape
        is_padded = not bool(attention_mask_GS.all())
        self.mask_G11S = attention_mask_GS.bool()[:, None, None] if is_padded else None
        self.num_tokens_G = attention_mask_GS.sum(-1)  # where the first code of each row stands


class FusedLayer:
    """One decoder layer's weights, the products that share an input joined.

    Joined weights are stored once: the layer's own parameters become views of them, so nothing is kept twice and
    training goes on in place. A projection that is not a plain matrix (LoRA, quantised) is called as it is.
    """

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_projections = (mlp.gate_proj, mlp.up_proj)
        self.qkv_weight = join_weights(self.attention_projections)
        self.gate_up_weight = join_weights(self.gate_projections)
        self.output, self.down = ResidualProjection(attention.o_proj), ResidualProjection(mlp.down_proj)
        self.input_norm = NormWeight(layer.input_layernorm)
        self.feed_forward_norm = NormWeight(layer.post_attention_layernorm)
        self.activation = mlp.act_fn

    def query_key_value(self, hidden_RD: Tensor) -> Tensor:
        """(R, D) -> (R, (H + 2 K) E)."""
        return _project(hidden_RD, self.qkv_weight, self.attention_projections)

    def gate_up(self, hidden_RD: Tensor) -> Tensor:
        """(R, D) -> (R, 2 I)."""
        return _project(hidden_RD, self.gate_up_weight, self.gate_projections)


def _project(hidden_RD: Tensor, weight: Tensor | None, modules: tuple[Any, ...]) -> Tensor:
    if weight is not None:
        return F.linear(hidden_RD, weight)
    return torch.cat([module(hidden_RD) for module in modules], dim=-1)


def join_weights(modules: tuple[Any, ...]) -> Tensor | None:
    """One matrix of which the modules' weights are slices; `None` where they are not plain matrices.

    Weights that were joined before are recognised by their storage and left alone.
    """
    if not all(_is_plain(module) for module in modules):
        return None
    weights = [module.weight for module in modules]
    rows = [weight.shape[0] for weight in weights]
    first = weights[0].untyped_storage()
    shape = (sum(rows), weights[0].shape[1])
    offset, is_joined = 0, first.nbytes() == sum(weight.nbytes for weight in weights)
    for weight in weights:
        is_joined &= weight.untyped_storage().data_ptr() == first.data_ptr() and weight.storage_offset() == offset
        offset += weight.numel()
    if is_joined:
        return torch.as_strided(weights[0].detach(), shape, (shape[1], 1), 0)
    with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode could not be trained
        joined = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, joined.split(rows), strict=True):
            weight.data = part
    return joined


def _is_plain(module: Any) -> bool:
    """Whether calling the module is a product with its weight and nothing else."""
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return False
    return module.bias is None and type(module.weight) is nn.Parameter


class ResidualProjection:
    """A residual plus a projection, in one kernel where the projection is a plain matrix."""

    def __init__(self, module: Any):
        self._module = module
        has_autocast = torch.is_autocast_enabled(next(module.parameters()).device.type)
        self._transposed = module.weight.t() if _is_plain(module) and not has_autocast else None

    def __call__(self, residual_RD: Tensor, hidden: Tensor) -> Tensor:
        """(R, D) and (R, X) -> (R, D)."""
        if self._transposed is not None:
            return torch.addmm(residual_RD, hidden, self._transposed)
        return residual_RD + self._module(hidden)


class NormWeight:
    """RMS normalisation; on a CPU in four kernels, where torch's own takes eight."""

    def __init__(self, module: Any):
        self._weight_D, self._eps = module.weight, module.variance_epsilon
        width = self._weight_D.shape[0]
        self._is_fused = self._weight_D.is_cuda or self._weight_D.dtype != torch.float32
        if not self._is_fused:
            # x / sqrt(|x|^2 / D + eps) = x sqrt(D) / hypot(|x|, sqrt(D eps))
            self._scaled_weight_D = self._weight_D.detach() * width**0.5
            self._floor = torch.tensor((width * self._eps) ** 0.5)

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        if self._is_fused:
            return F.rms_norm(hidden_RD, self._weight_D.shape, self._weight_D, self._eps)
        length_R1 = torch.hypot(torch.linalg.vector_norm(hidden_RD, dim=-1, keepdim=True), self._floor)
        return (hidden_RD / length_R1).mul_(self._scaled_weight_D)


class CodeDecoder:
    """The language model over image codes: a step for every code, after the prompts were read into a `PromptPrefix`.

    Args:
        language_model: a Llama of transformers.
        prefix: the prompts.
        num_pictures: N, the rows of each prefix; row `g * N + n` reads prefix `g`.
        num_codes: T, the most codes that will be fed.
        is_shared: whether the rows of a prefix read its keys and values in place; otherwise each row has a copy.
    """

    def __init__(self, language_model: Any, prefix: PromptPrefix, num_pictures: int, num_codes: int, is_shared: bool):
        config = language_model.config
        self._layers = [FusedLayer(layer) for layer in language_model.layers]
        self._final_norm = NormWeight(language_model.norm)
        self._num_heads, self._num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = language_model.layers[0].self_attn.head_dim
        self._scale = self._head_dim**-0.5
        self._is_grouped = self._num_heads != self._num_key_heads
        self._prefix, self._num_pictures, self._is_shared = prefix, num_pictures, is_shared
        example = prefix.keys[0]
        num_rows = prefix.num_prefixes * num_pictures
        own_length = num_codes if is_shared else prefix.length + num_codes
        shape = (num_rows, 2, self._num_key_heads, own_length, self._head_dim)
        self._caches = [torch.empty(shape, dtype=example.dtype, device=example.device) for _ in self._layers]
        self._mask_R11L = None if is_shared else self._own_mask(num_codes)
        self._start = 0 if is_shared else prefix.length
        if not is_shared:
            self._copy_prefix()
        positions_RT = prefix.num_tokens_G.repeat_interleave(num_pictures)[:, None] + torch.arange(
            num_codes, device=example.device
        )
        cos, sin = language_model.rotary_emb(example, positions_RT)  # (R, T, E)
        half = self._head_dim // 2
        self._cos_TR1E = cos.transpose(0, 1)[:, :, None].contiguous()
        # rotate_half(x) sin = flip(halves of x) [-sin, sin]
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        self._sin_TR1E = signed.transpose(0, 1)[:, :, None].contiguous()

    def _own_mask(self, num_codes: int) -> Tensor | None:
        if self._prefix.mask_G11S is None:
            return None
        mask = self._prefix.mask_G11S.repeat_interleave(self._num_pictures, 0)
        return F.pad(mask, (0, num_codes), value=True)

    def _copy_prefix(self) -> None:
        """Give every row its own copy of its prefix; the prefix itself is let go of layer by layer."""
        prefix, length = self._prefix, self._prefix.length
        for number, cache in enumerate(self._caches):
            cache[:, 0, :, :length] = prefix.keys[number].repeat_interleave(self._num_pictures, 0)
            cache[:, 1, :, :length] = prefix.values[number].repeat_interleave(self._num_pictures, 0)
            prefix.keys[number] = prefix.values[number] = torch.empty(0)

    def step(self, hidden_RD: Tensor, position: int) -> Tensor:
        """Embeddings of code `position` (from 0) of every row -> hidden states that predict the next code."""
        cos, sin = self._cos_TR1E[position], self._sin_TR1E[position]
        for number, layer in enumerate(self._layers):
            qkv = layer.query_key_value(layer.input_norm(hidden_RD))
            attended = self._attend(number, qkv, cos, sin, self._start + position)
            hidden_RD = layer.output(hidden_RD, attended)
            gate, up = layer.gate_up(layer.feed_forward_norm(hidden_RD)).chunk(2, dim=-1)
            hidden_RD = layer.down(hidden_RD, layer.activation(gate).mul_(up))
        return self._final_norm(hidden_RD)

    def _attend(self, number: int, qkv: Tensor, cos: Tensor, sin: Tensor, place: int) -> Tensor:
        """Rotate, write keys and values at `place`, attend: (R, (H + 2 K) E) -> (R, H E)."""
        num_rows, heads, key_heads, width = len(qkv), self._num_heads, self._num_key_heads, self._head_dim
        qkv = qkv.view(num_rows, heads + 2 * key_heads, width)
        turned = qkv[:, : heads + key_heads]
        flipped = turned.unflatten(-1, (2, width // 2)).flip(-2).flatten(-2)
        turned.mul_(cos).addcmul_(flipped, sin)
        cache = self._caches[number]
        cache[:, :, :, place] = qkv[:, heads:].view(num_rows, 2, key_heads, width)
        query = qkv[:, :heads, None]  # (R, H, 1, E)
        keys, values = cache[:, :, :, : place + 1].unbind(1)
        if not self._is_shared:
            mask = None if self._mask_R11L is None else self._mask_R11L[..., : place + 1]
            attended = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=self._is_grouped)
            return attended.view(num_rows, heads * width)
        return self._attend_shared(number, query, keys, values).view(num_rows, heads * width)

    def _attend_shared(self, number: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to the shared prefix and to the row's own codes, merged by their log-sum-exps: (R, H, 1, E)."""
        prefix, num_rows = self._prefix, len(query)
        own, own_weight = attend(query, keys, values, None, self._scale)
        # the N rows of a prefix are N queries of one attention
        grouped = query.view(prefix.num_prefixes, self._num_pictures, self._num_heads, self._head_dim).transpose(1, 2)
        shared, shared_weight = attend(
            grouped, prefix.keys[number], prefix.values[number], prefix.mask_G11S, self._scale
        )
        shared = shared.transpose(1, 2).reshape(num_rows, self._num_heads, 1, self._head_dim)
        shared_weight = shared_weight.transpose(1, 2).reshape(num_rows, self._num_heads, 1, 1)
        return torch.lerp(shared, own, (own_weight - shared_weight).sigmoid_().to(own.dtype))


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, by which two attentions of one query can be merged.

    `query` is (B, H, N, E), `keys` and `values` are (B, K, L, E), `mask` is (B, 1, 1, L) and `False` on padding.

    Returns:
        (B, H, N, E) and (B, H, N, 1), the latter in fp32.
    """
    if query.shape[1] != keys.shape[1]:
        repeats = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    scores = (query * scale) @ keys.transpose(-1, -2)  # (B, H, N, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weight = scores.float().logsumexp(-1, keepdim=True)
    probabilities = (scores - weight).exp_().to(values.dtype)
    return probabilities @ values, weight


__all__ = ["CodeDecoder", "PromptPrefix"]
