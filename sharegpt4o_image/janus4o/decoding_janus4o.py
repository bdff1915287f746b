# SPDX-License-Identifier: Apache-2.0
"""The decode step of image generation: one code in, the next hidden state out, over caches that are allocated once.

The weights are the language model's own. What is gained over calling its layers: query, key and value (and the two
halves of the feed-forward) are one matrix product each, keys and values are written in place, pictures of one prompt
share its keys and values, and about 20 kernels run a layer instead of 41 (`docs/performance.md`).
"""

from collections.abc import Callable
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
        self.keys: list[Any] = [layer.keys for layer in cache.layers]  # tensors (G, K, S, E)
        self.values: list[Any] = [layer.values for layer in cache.layers]
        self.num_prefixes, self.length = attention_mask_GS.shape
        is_padded = not bool(attention_mask_GS.all())
        self.mask_G11S: Tensor | None = attention_mask_GS.bool()[:, None, None] if is_padded else None
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
        is_fixed: whether every step runs the same kernels on the same memory, as a CUDA graph wants it
            (`step_in_place`): attention reads the whole cache under a mask instead of what is filled.
    """

    def __init__(
        self, language_model: Any, prefix: PromptPrefix, num_pictures: int, num_codes: int, is_shared: bool,
        is_fixed: bool = False,
    ):  # fmt: skip
        config = language_model.config
        self._layers = [FusedLayer(layer) for layer in language_model.layers]
        self._final_norm = NormWeight(language_model.norm)
        self._num_heads, self._num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = language_model.layers[0].self_attn.head_dim
        self._scale = self._head_dim**-0.5
        self._is_grouped = self._num_heads != self._num_key_heads
        self._prefix, self._num_pictures = prefix, num_pictures
        self._is_shared, self._is_fixed = is_shared, is_fixed
        self._start = 0 if is_shared else prefix.length
        self._caches = self._allocate(num_codes)
        self._mask_R11L: Tensor | None = self._own_mask(num_codes)
        if not is_shared:
            self._copy_prefix()
        self._cos_TR1E, self._sin_TR1E = self._rotations(language_model.rotary_emb, num_codes)
        self._position = torch.zeros(1, dtype=torch.long, device=self._caches[0].device)
        self._place = self._position + self._start

    def _allocate(self, num_codes: int) -> list[Tensor]:
        """Keys and values of each layer, (2, R, K, L, E): rows and heads lie so that products need no copy."""
        prefix, example = self._prefix, self._prefix.keys[0]
        shape = (
            2, prefix.num_prefixes * self._num_pictures, self._num_key_heads, self._start + num_codes, self._head_dim
        )  # fmt: skip
        make = torch.zeros if self._is_fixed else torch.empty  # what the mask hides must not be NaN
        return [make(shape, dtype=example.dtype, device=example.device) for _ in self._layers]

    def _own_mask(self, num_codes: int) -> Tensor | None:
        """What a row may attend to in its own cache; `None` where that is all that is filled."""
        prefix = self._prefix
        if not self._is_fixed and (self._is_shared or prefix.mask_G11S is None):
            return None
        num_rows = prefix.num_prefixes * self._num_pictures
        device = self._caches[0].device
        filled = torch.full((num_rows, 1, 1, num_codes), not self._is_fixed, device=device)
        if self._is_shared:
            return filled
        mask = torch.ones(num_rows, 1, 1, prefix.length, dtype=torch.bool, device=device)
        if prefix.mask_G11S is not None:
            mask = prefix.mask_G11S.repeat_interleave(self._num_pictures, 0)
        return torch.cat([mask, filled], dim=-1)

    def _copy_prefix(self) -> None:
        """Give every row its own copy of its prefix; the prefix itself is let go of layer by layer."""
        prefix, length = self._prefix, self._prefix.length
        for number, cache in enumerate(self._caches):
            cache[0, :, :, :length] = prefix.keys[number].repeat_interleave(self._num_pictures, 0)
            cache[1, :, :, :length] = prefix.values[number].repeat_interleave(self._num_pictures, 0)
            prefix.keys[number] = prefix.values[number] = torch.empty(0)

    def _rotations(self, rotary_embedding: Any, num_codes: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of every code position: rotate_half(x) sin = flip(halves of x) [-sin, sin]."""
        device, half = self._caches[0].device, self._head_dim // 2
        first_R = self._prefix.num_tokens_G.repeat_interleave(self._num_pictures)
        positions_RT = first_R[:, None] + torch.arange(num_codes, device=device)
        cos, sin = rotary_embedding(self._caches[0], positions_RT)  # (R, T, E)
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return cos.transpose(0, 1)[:, :, None].contiguous(), signed.transpose(0, 1)[:, :, None].contiguous()

    def step(self, hidden_RD: Tensor, position: int) -> Tensor:
        """Embeddings of code `position` (from 0) of every row -> hidden states that predict the next code."""
        return self._run(hidden_RD, self._cos_TR1E[position], self._sin_TR1E[position], self._start + position)

    def keep(self, num_prefixes: int) -> None:
        """Go on with the rows of the first prefixes alone."""
        prefix, num_rows = self._prefix, num_prefixes * self._num_pictures
        self._caches = [cache[:, :num_rows] for cache in self._caches]
        if self._mask_R11L is not None:
            self._mask_R11L = self._mask_R11L[:num_rows]
        self._cos_TR1E, self._sin_TR1E = self._cos_TR1E[:, :num_rows], self._sin_TR1E[:, :num_rows]
        prefix.num_prefixes = num_prefixes
        prefix.keys = [keys[:num_prefixes] for keys in prefix.keys]
        prefix.values = [values[:num_prefixes] for values in prefix.values]
        if prefix.mask_G11S is not None:
            prefix.mask_G11S = prefix.mask_G11S[:num_prefixes]

    def step_in_place(self, hidden_RD: Tensor) -> Tensor:
        """As `step`, of the position after the last call's: no number comes from the host."""
        assert self._mask_R11L is not None
        self._mask_R11L.index_fill_(3, self._place, True)
        cos, sin = (table.index_select(0, self._position)[0] for table in (self._cos_TR1E, self._sin_TR1E))
        hidden_RD = self._run(hidden_RD, cos, sin, None)
        self._position.add_(1)
        self._place.add_(1)
        return hidden_RD

    def restart(self) -> None:
        """Let `step_in_place` begin again at code 0."""
        assert self._mask_R11L is not None
        self._mask_R11L[..., self._start :] = False
        self._position.zero_()
        self._place.fill_(self._start)

    def _run(self, hidden_RD: Tensor, cos: Tensor, sin: Tensor, place: int | None) -> Tensor:
        for number, layer in enumerate(self._layers):
            qkv = layer.query_key_value(layer.input_norm(hidden_RD))
            attended = self._attend(number, qkv, cos, sin, place)
            hidden_RD = layer.output(hidden_RD, attended)
            gate, up = layer.gate_up(layer.feed_forward_norm(hidden_RD)).chunk(2, dim=-1)
            hidden_RD = layer.down(hidden_RD, layer.activation(gate).mul_(up))
        return self._final_norm(hidden_RD)

    def _attend(self, number: int, qkv: Tensor, cos: Tensor, sin: Tensor, place: int | None) -> Tensor:
        """Rotate, write keys and values, attend: (R, (H + 2 K) E) -> (R, H E)."""
        num_rows, heads, key_heads, width = len(qkv), self._num_heads, self._num_key_heads, self._head_dim
        qkv = qkv.view(num_rows, heads + 2 * key_heads, width)
        turned = qkv[:, : heads + key_heads]
        flipped = turned.unflatten(-1, (2, width // 2)).flip(-2).flatten(-2)
        turned.mul_(cos).addcmul_(flipped, sin)
        query, written = qkv[:, :heads, None], qkv[:, heads:].view(num_rows, 2, key_heads, width)  # (R, H, 1, E)
        keys, values, mask = self._write(self._caches[number], written, place)
        attend_rows = self._attend_shared if self._is_shared else self._attend_own
        return attend_rows(number, query, keys, values, mask).reshape(num_rows, heads * width)

    def _write(self, cache: Tensor, written: Tensor, place: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store a code's keys and values; what is there then, and what of it counts."""
        mask = self._mask_R11L
        if place is None:
            cache.index_copy_(3, self._place, written.transpose(0, 1)[:, :, :, None])
            return cache[0], cache[1], mask
        cache[:, :, :, place] = written.transpose(0, 1)
        keys, values = cache[:, :, :, : place + 1].unbind(0)
        return keys, values, None if mask is None else mask[..., : place + 1]

    def _attend_own(self, number: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=self._is_grouped)

    def _attend_shared(self, number: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to the shared prefix and to the row's own codes, merged by their log-sum-exps: (R, H, 1, E)."""
        prefix, num_rows = self._prefix, len(query)
        own, own_weight = attend(query, keys, values, mask, self._scale)
        # the N rows of a prefix are N queries of one attention
        grouped = query.view(prefix.num_prefixes, self._num_pictures, self._num_heads, self._head_dim).transpose(1, 2)
        shared, shared_weight = attend(
            grouped, prefix.keys[number], prefix.values[number], prefix.mask_G11S, self._scale
        )
        shared = shared.transpose(1, 2).reshape(num_rows, self._num_heads, 1, self._head_dim)
        shared_weight = shared_weight.transpose(1, 2).reshape(num_rows, self._num_heads, 1, 1)
        return torch.lerp(shared, own, (own_weight - shared_weight).sigmoid_().to(own.dtype))


class GraphedStep:
    """A step captured as one CUDA graph: a replay launches all of its kernels at once, without Python.

    `run` reads and writes the same memory at every call; `restart` undoes what calling it counted.
    """

    def __init__(self, run: Callable[[], Tensor], restart: Callable[[], None]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up: libraries allocate and choose kernels outside of the capture
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run()
        restart()

    def __call__(self) -> Tensor:
        """Run the step; the same tensor every time."""
        self._graph.replay()
        return self._output


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


__all__ = ["CodeDecoder", "GraphedStep", "PromptPrefix"]
