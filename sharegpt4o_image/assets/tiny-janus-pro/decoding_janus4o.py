# SPDX-License-Identifier: Apache-2.0
"""The decode step of image generation: one code in, the next hidden state out, over caches that are allocated once.

The weights are the language model's own. What is gained over calling its layers: query, key and value (and the two
halves of the feed-forward) are one matrix product each, keys and values are written in place, pictures of one prompt
share its keys and values, and about 20 kernels run a layer instead of 41 (`docs/performance.md`).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from .batching_janus4o import CacheSize

# R rows (branches times prompts times pictures), G prefixes (branches times prompts), N pictures of a prefix,
# D width, X width of a result, H query heads, K key heads, E width of a head, S prefix tokens, T code positions,
# L places of a cache

FEW_ROWS = (1, 2, 3, 4)  # of which `reads_columns` (measured)
MIN_COLUMN_WIDTH, MIN_COLUMN_WEIGHT = 128, 2**14  # below, the result's copy costs what it saves (measured)
MIN_ONE_ROW_WEIGHT = 600_000  # numbers of a matrix from which on one row is faster as two columns (measured)
MIN_PRODUCT_KEYS = 2**19  # numbers in the keys of a prompt from which on products are faster (measured)
MASK_ALIGNMENT = 16  # places
HIDDEN = float("-inf")  # added to the score of a place that must not be seen


# stores keys and values (2, R, K, E) of a code in a cache -> keys and values to attend to, and a mask
Write = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]

# codes (B,), guidance branches, and the language model's step (R, D) -> (R, D): to logits (R, V)
DecodeStep = Callable[[Tensor, int, Callable[[Tensor], Tensor]], Tensor]


class PromptPrefix:
    """Keys and values of the prompts, one for each of G prefixes, read by the N rows of each."""

    def __init__(self, cache: DynamicCache, attention_mask_GS: Tensor):
        self.keys: list[Any] = [layer.keys for layer in cache.layers]  # tensors (G, K, S, E)
        self.values: list[Any] = [layer.values for layer in cache.layers]
        is_pad_GS = attention_mask_GS == 0
        self.mask_G11S = aligned_mask(len(is_pad_GS), is_pad_GS.shape[1], self.keys[0])
        self.mask_G11S.masked_fill_(is_pad_GS[:, None, None], HIDDEN)
        self.is_padded = bool(is_pad_GS.any())
        self.num_tokens_G = attention_mask_GS.sum(-1)  # where the first code of each row stands

    def take_layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, let go of here so that memory is not held twice."""
        taken = self.keys[number], self.values[number]
        self.keys[number] = self.values[number] = None
        return taken


def aligned_mask(num_rows: int, length: int, like: Tensor) -> Tensor:
    """Zeros (rows, 1, 1, length) to add to scores; rows begin at multiples of 16 bytes, as a GPU's kernels want."""
    room = -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT
    return torch.zeros(num_rows, 1, 1, room, dtype=like.dtype, device=like.device)[..., :length]


class FusedLayer:
    """One decoder layer around its attention, the products that share an input joined.

    Joined weights are stored once: the layer's own parameters become views of them, so nothing is kept twice and
    training goes on in place. A projection that is not a plain matrix (LoRA, quantised) is called as it is.
    """

    def __init__(self, layer: Any, num_turned: int, num_rows: int):
        attention, mlp = layer.self_attn, layer.mlp
        self.num_turned, self.head_dim = num_turned, attention.head_dim  # query and key heads are rotated
        self.query_key_value = JoinedProjection((attention.q_proj, attention.k_proj, attention.v_proj), num_rows)
        self.gate_up = JoinedProjection((mlp.gate_proj, mlp.up_proj), num_rows)
        self.output = ResidualProjection(attention.o_proj, num_rows)
        self.down = ResidualProjection(mlp.down_proj, num_rows)
        self.input_norm = NormWeight(layer.input_layernorm)
        self.feed_forward_norm = NormWeight(layer.post_attention_layernorm)
        self.activation = mlp.act_fn

    @property
    def is_plain(self) -> bool:
        """Whether all of its projections are plain matrices."""
        projections = (self.query_key_value, self.gate_up, self.output, self.down)
        return all(projection.weight is not None for projection in projections)

    def heads(self, hidden_RD: Tensor, cos_R1E: Tensor, sin_R1E: Tensor) -> Tensor:
        """Query, key and value heads of every row: (R, D) -> (R, H + 2 K, E)."""
        num_rows, width = len(hidden_RD), self.head_dim
        heads = self.query_key_value(self.input_norm(hidden_RD)).view(num_rows, -1, width)
        turned = heads.narrow(1, 0, self.num_turned)
        flipped = turned.view(num_rows, -1, 2, width // 2).flip(2).view(num_rows, -1, width)
        turned.mul_(cos_R1E).addcmul_(flipped, sin_R1E)
        return heads

    def output_of(self, hidden_RD: Tensor, attended: Tensor) -> Tensor:
        """What the layer gives: its input (R, D) and the attended values (R, H E) -> (R, D)."""
        hidden_RD = self.output(hidden_RD, attended)
        gate, up = self.gate_up(self.feed_forward_norm(hidden_RD)).chunk(2, dim=-1)
        return self.down(hidden_RD, self.activation(gate).mul_(up))


class JoinedProjection:
    """Projections of one input, one product where they are plain matrices."""

    def __init__(self, modules: tuple[Any, ...], num_rows: int):
        self._modules, self.weight = modules, join_weights(modules)
        self._is_column_product = self.weight is not None and reads_columns(self.weight, num_rows)

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        """(R, D) -> (R, X), what each module gives beside each other."""
        if self.weight is None:
            return torch.cat([module(hidden_RD) for module in self._modules], dim=-1)
        if self._is_column_product:
            return column_product(self.weight, hidden_RD)
        return F.linear(hidden_RD, self.weight)


def reads_columns(weight: Tensor, num_rows: int) -> bool:
    """Whether a `column_product` of so many rows is faster than a product of rows (`docs/performance.md`)."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or num_rows not in FEW_ROWS:
        return False
    least = MIN_ONE_ROW_WEIGHT if num_rows == 1 else MIN_COLUMN_WEIGHT
    return weight.shape[1] >= MIN_COLUMN_WIDTH and weight.numel() >= least


def column_product(weight_XD: Tensor, hidden_RD: Tensor, added: Tensor | None = None) -> Tensor:
    """(R, D) -> (R, X): the product with a matrix, plus `added` ((X, R) or (X, 1)), as one of the matrix and columns.

    On a CPU, a few rows times a matrix are computed one by one, and the matrix is read for each, by one thread. For
    the same reason a single row is given twice.
    """
    is_one = len(hidden_RD) == 1
    columns = (torch.cat([hidden_RD, hidden_RD]) if is_one else hidden_RD).t()
    product = torch.mm(weight_XD, columns) if added is None else torch.addmm(added, weight_XD, columns)
    return (product[:, :1] if is_one else product).t().contiguous()


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
    return _has_plain_weight(module) and module.bias is None


def _has_plain_weight(module: Any) -> bool:
    """Quantised weights are tensors of another type."""
    return type(module) is nn.Linear and not is_hooked(module) and type(module.weight) is nn.Parameter


def is_hooked(module: Any) -> bool:
    """Whether something happens around a call; accelerate's hooks bring in weights that lie elsewhere."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


class ResidualProjection:
    """A residual plus a projection, in one call where the projection is a plain matrix."""

    def __init__(self, module: Any, num_rows: int):
        self._module = module
        self.weight = module.weight if _is_plain(module) else None
        self._is_column_product = self.weight is not None and reads_columns(self.weight, num_rows)
        self._has_autocast = torch.is_autocast_enabled(next(module.parameters()).device.type)

    def __call__(self, residual_RD: Tensor, hidden: Tensor) -> Tensor:
        """(R, D) and (R, X) -> (R, D)."""
        if self.weight is None or self._has_autocast:
            return residual_RD + self._module(hidden)
        if self._is_column_product:
            return column_product(self.weight, hidden, residual_RD.t())
        return torch.addmm(residual_RD, hidden, self.weight.t())


def code_logits(head: Any, hidden_RD: Tensor) -> Tensor:
    """The generation head: (R, D) -> (R, V), in fp32."""
    last = getattr(head, "vision_head", None)
    is_plain = type(head) is JanusVQVAEHead and not is_hooked(head) and _has_plain_weight(last)
    if not is_plain or not reads_columns(last.weight, len(hidden_RD)):
        logits_RV: Tensor = head(hidden_RD)
        return logits_RV.float()
    hidden_RD = head.activation_fn(head.proj_out(hidden_RD))
    return column_product(last.weight, hidden_RD, last.bias[:, None])


class NormWeight:
    """RMS normalisation; on a CPU in four kernels, where torch's own takes eight."""

    def __init__(self, module: Any):
        self._module, self._is_hooked = module, is_hooked(module)
        self.weight, self.eps = module.weight, module.variance_epsilon
        width = self.weight.shape[0]
        self._is_fused = self.weight.is_cuda or self.weight.dtype != torch.float32
        if not self._is_fused and not self._is_hooked:
            # x / sqrt(|x|^2 / D + eps) = x sqrt(D) / hypot(|x|, sqrt(D eps))
            self._scaled_weight_D = self.weight.detach() * width**0.5
            self._floor = torch.tensor((width * self.eps) ** 0.5)

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        if self._is_hooked:
            normalised: Tensor = self._module(hidden_RD)
            return normalised
        if self._is_fused:
            return F.rms_norm(hidden_RD, self.weight.shape, self.weight, self.eps)
        length_R1 = torch.hypot(torch.linalg.vector_norm(hidden_RD, dim=-1, keepdim=True), self._floor)
        return (hidden_RD / length_R1).mul_(self._scaled_weight_D)


class Decoder:
    """The language model over image codes: a step for every code, after the prompts were read into a `PromptPrefix`.

    What the two kinds of decoder have in common: `CodeDecoder` reads what is filled, `FixedDecoder` reads the same
    memory at every step, as a CUDA graph wants it.

    Args:
        language_model: a Llama of transformers.
        size: prefixes, pictures of each, tokens and codes. Where it is shared, the rows of a prefix read its keys and
            values in place, row `g * N + n` those of prefix `g`; otherwise each row has a copy before its codes.
        layers: the layers' work around their attention.
    """

    def __init__(self, language_model: Any, size: CacheSize, layers: list[Any]):
        config = language_model.config
        self.size, self._layers = size, layers
        self._final_norm = NormWeight(language_model.norm)
        self._rotary_embedding = language_model.rotary_emb
        self._num_heads, self._num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = layers[0].head_dim
        self._is_grouped = self._num_heads != self._num_key_heads
        self._is_spread = len({layer.input_norm.weight.device for layer in layers}) > 1  # over several devices
        self._start = 0 if size.is_shared else size.prefix_length
        self._caches: list[Tensor] = []  # keys and values of each layer, (2, R, K, L, E): products need no copy
        self._prefix_caches: list[Any] = []  # of the prefixes of each layer, where shared
        self._own_mask_R11L: Tensor | None = None
        self._prefix_mask_G11S: Tensor | None = None

    def first(self, num_prefixes: int) -> Any:
        """A decoder of the first prefixes' rows alone, over the same memory."""
        num_rows = num_prefixes * self.size.num_pictures
        part = copy(self)
        part.size = replace(self.size, num_prefixes=num_prefixes)
        part._caches = [cache[:, :num_rows] for cache in self._caches]
        part._prefix_caches = [[half[:num_prefixes] for half in cache] for cache in self._prefix_caches]
        part._own_mask_R11L = None if self._own_mask_R11L is None else self._own_mask_R11L[:num_rows]
        part._prefix_mask_G11S = None if self._prefix_mask_G11S is None else self._prefix_mask_G11S[:num_prefixes]
        part._cos_TR1E, part._sin_TR1E = self._cos_TR1E[:, :num_rows], self._sin_TR1E[:, :num_rows]
        return part

    def _rotations(self, num_tokens_R: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of every code position: rotate_half(x) sin = flip(halves of x) [-sin, sin]."""
        half = self._head_dim // 2
        positions_RT = num_tokens_R[:, None] + torch.arange(self.size.num_codes, device=num_tokens_R.device)
        cos, sin = self._rotary_embedding(self._caches[0], positions_RT)  # (R, T, E)
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return cos.transpose(0, 1)[:, :, None].contiguous(), signed.transpose(0, 1)[:, :, None].contiguous()

    def _run(self, hidden_RD: Tensor, cos: Tensor, sin: Tensor, write: Write) -> Tensor:
        for number, layer in enumerate(self._layers):
            if self._is_spread:
                device = self._caches[number].device
                hidden_RD, cos, sin = hidden_RD.to(device), cos.to(device), sin.to(device)
            heads = layer.heads(hidden_RD, cos, sin)
            hidden_RD = layer.output_of(hidden_RD, self._attend(number, heads, write))
        return self._final_norm(hidden_RD)

    def _attend(self, number: int, heads: Tensor, write: Write) -> Tensor:
        """Store keys and values, attend: (R, H + 2 K, E) -> (R, H E)."""
        num_rows, num_heads, width = len(heads), self._num_heads, self._head_dim
        query = heads.narrow(1, 0, num_heads).unsqueeze(2)  # (R, H, 1, E)
        written = heads.narrow(1, num_heads, 2 * self._num_key_heads)
        written = written.view(num_rows, 2, self._num_key_heads, width).transpose(0, 1)  # (2, R, K, E)
        keys, values, mask = write(self._caches[number], written)
        if self._is_spread and mask is not None:
            mask = mask.to(query.device)
        if self.size.is_shared:
            attended = self._attend_shared(number, query, keys, values, mask)
        else:
            attended = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=self._is_grouped)
        return attended.reshape(num_rows, num_heads * width)

    def _attend_shared(self, number: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to the shared prefix and to the row's own codes, merged by their log-sum-exps: (R, H, 1, E)."""
        size, num_rows = self.size, len(query)
        own, own_weight = attend(query, keys, values, mask)
        # the N rows of a prefix are N queries of one attention
        grouped = query.view(size.num_prefixes, size.num_pictures, self._num_heads, self._head_dim).transpose(1, 2)
        prefix_keys, prefix_values = self._prefix_caches[number]
        prefix_mask = None if self._prefix_mask_G11S is None else self._prefix_mask_G11S.to(query.device)
        shared, shared_weight = attend(grouped, prefix_keys, prefix_values, prefix_mask)
        shared = shared.transpose(1, 2).reshape(num_rows, self._num_heads, 1, self._head_dim)
        shared_weight = shared_weight.transpose(1, 2).reshape(num_rows, self._num_heads, 1, 1)
        return torch.lerp(shared, own, (own_weight - shared_weight).sigmoid_().to(own.dtype))


class CodeDecoder(Decoder):
    """A decoder whose attention reads what is filled, step by step."""

    def __init__(self, language_model: Any, size: CacheSize, prefix: PromptPrefix):
        super().__init__(language_model, size, fused_layers(language_model, size.num_rows))
        self._language_model = language_model
        for number in range(len(self._layers)):
            self._add_layer(*prefix.take_layer(number))
        if prefix.is_padded and size.is_shared:
            self._prefix_mask_G11S = prefix.mask_G11S
        elif prefix.is_padded:
            self._own_mask_R11L = F.pad(prefix.mask_G11S, (0, size.num_codes)).repeat_interleave(size.num_pictures, 0)
        self._cos_TR1E, self._sin_TR1E = self._rotations(prefix.num_tokens_G.repeat_interleave(size.num_pictures))

    def first(self, num_prefixes: int) -> "CodeDecoder":
        """As the parent's; how matrices are multiplied depends on the number of rows."""
        part: CodeDecoder = super().first(num_prefixes)
        part._layers = fused_layers(self._language_model, part.size.num_rows)
        return part

    def _add_layer(self, keys: Tensor, values: Tensor) -> None:
        size = self.size
        shape = (
            2, size.num_rows, self._num_key_heads, self._start + size.num_codes, self._head_dim
        )  # fmt: skip
        cache = keys.new_empty(shape)
        if size.is_shared:
            self._prefix_caches.append((keys.contiguous(), values.contiguous()))
        else:
            cache[0, :, :, : self._start] = keys.repeat_interleave(size.num_pictures, 0)
            cache[1, :, :, : self._start] = values.repeat_interleave(size.num_pictures, 0)
        self._caches.append(cache)

    def step(self, hidden_RD: Tensor, position: int) -> Tensor:
        """Embeddings of code `position` (from 0) of every row -> hidden states that predict the next code."""
        place = self._start + position

        def write(cache: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            cache.select(3, place).copy_(written)
            keys, values = cache.narrow(3, 0, place + 1).unbind(0)
            mask = self._own_mask_R11L
            return keys, values, None if mask is None else mask[..., : place + 1]

        return self._run(hidden_RD, self._cos_TR1E[position], self._sin_TR1E[position], write)


class LaunchedSteps:
    """Decode steps whose kernels are launched one by one.

    Args:
        decoder: what was read so far.
        num_branches: guidance branches; each has the same number of rows.
        step: the model's own part of it.
    """

    def __init__(self, decoder: CodeDecoder, num_branches: int, step: DecodeStep):
        self._decoder, self._num_branches, self._step = decoder, num_branches, step

    def __call__(self, codes_B: Tensor, position: int) -> Tensor:
        """Codes (B,) at a position (from 0) -> logits (R, V) of the next ones."""
        return self._step(codes_B, self._num_branches, lambda hidden_RD: self._decoder.step(hidden_RD, position))

    def keep(self, num_branches: int) -> None:
        """Go on with the first branches alone."""
        self._decoder = self._decoder.first(self._decoder.size.num_prefixes // self._num_branches * num_branches)
        self._num_branches = num_branches


def fused_layers(language_model: Any, num_rows: int) -> list[FusedLayer]:
    """The layers of a Llama, for so many rows."""
    config = language_model.config
    num_turned = config.num_attention_heads + config.num_key_value_heads
    return [FusedLayer(layer, num_turned, num_rows) for layer in language_model.layers]


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, by which two attentions of one query can be merged.

    torch's own fused kernels, called by name (`scaled_dot_product_attention` keeps the log-sum-exp for itself), or
    products where they are faster.

    Args:
        query: (B, H, N, E).
        keys: (B, K, L, E), as `values`.
        values: (B, K, L, E).
        mask: (B, 1, 1, L), added to the scores.

    Returns:
        (B, H, N, E) and (B, H, N, 1), the latter in fp32.
    """
    batch, num_heads, num_queries, _ = query.shape
    if num_heads != keys.shape[1]:
        repeats = num_heads // keys.shape[1]
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    if is_faster_by_products(keys, num_queries):
        return attend_by_products(query, keys, values, mask)
    if mask is not None:
        mask = mask.expand(batch, num_heads, num_queries, keys.shape[2])
    if query.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        attended, weight = kernel(query, keys, values, mask, compute_log_sumexp=True)[:2]
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended, weight = kernel(query, keys, values, attn_mask=mask)
    return attended, weight[..., :num_queries, None].float()  # the CUDA kernel pads the queries


def is_faster_by_products(keys: Tensor, num_queries: int) -> bool:
    """Whether `attend_by_products` is faster than torch's kernel (`docs/performance.md`)."""
    is_large = keys.numel() >= MIN_PRODUCT_KEYS and keys.dtype == torch.float32
    return is_large and keys.device.type == "cpu" and num_queries in FEW_ROWS[1:]


def attend_by_products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `attend`, by two matrix products: so a CPU reads a long prompt faster for few queries (`column_product`)."""
    batch, num_heads, num_queries, width = query.shape
    num_keys = keys.shape[2]
    query = (query * width**-0.5).reshape(batch * num_heads, num_queries, width)
    keys = keys.reshape(batch * num_heads, num_keys, width)
    values = values.reshape(batch * num_heads, num_keys, width)
    scores = torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2).contiguous()
    if mask is not None:
        scores.view(batch, num_heads, num_queries, num_keys).add_(mask)
    largest = scores.amax(-1, keepdim=True)
    shares = scores.sub_(largest).exp_()
    total = shares.sum(-1, keepdim=True)
    attended = torch.bmm(shares, values).div_(total)
    shape = (batch, num_heads, num_queries)
    return attended.view(*shape, width), total.log_().add_(largest).view(*shape, 1)


__all__ = ["CodeDecoder", "LaunchedSteps", "PromptPrefix"]
