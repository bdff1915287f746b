# SPDX-License-Identifier: Apache-2.0
"""Several samples in one row without padding: attention stays inside each sample.

The attention implementation is registered as `"janus4o_packed"`. It is told the samples' borders by `cu_seq_lens_q`,
as FlashAttention is, and never builds a mask over the whole row. Without borders it is transformers' `"sdpa"`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# S samples, P image tokens, T tokens of all samples with their codes, H heads, K width of a head, D width

PACKED_ATTENTION = "janus4o_packed"


class PackedRow:
    """Where the samples of a packed row lie; a sample is its prompt and the first P - 1 codes of its target.

    Args:
        prompt_lengths: tokens of each sample's prompt, boi included.
        num_codes: P.
    """

    def __init__(self, prompt_lengths: Sequence[int], num_codes: int):
        self._prompt_lengths = list(prompt_lengths)
        self._num_codes = num_codes
        self._lengths = [length + num_codes - 1 for length in prompt_lengths]

    def interleave(self, prompts_1LD: Tensor, codes_SPD: Tensor) -> Tensor:
        """Prompt embeddings back to back (1, L, D) and code embeddings (S, P - 1, D) -> the row (1, T, D)."""
        prompts = prompts_1LD[0].split(self._prompt_lengths)
        parts = [part for prompt, codes in zip(prompts, codes_SPD, strict=True) for part in (prompt, codes)]
        return torch.cat(parts)[None]

    def predicting(self, hidden_1TD: Tensor) -> Tensor:
        """Of the hidden states, those that predict the codes of each target: (S, P, D)."""
        samples = hidden_1TD[0].split(self._lengths)
        return torch.stack([sample[-self._num_codes :] for sample in samples])

    def position_ids(self, device: torch.device) -> Tensor:
        """Positions (1, T) that begin again with each sample."""
        return torch.cat([torch.arange(length, device=device) for length in self._lengths])[None]

    def attention_kwargs(self, device: torch.device) -> dict[str, Any]:
        """What FlashAttention and [`packed_attention`] are told."""
        borders = F.pad(torch.tensor(self._lengths, device=device).cumsum(0), (1, 0)).int()
        longest = max(self._lengths)
        return {
            "cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest,
            "sample_lengths": self._lengths, "has_varlen": has_varlen(device),
        }  # fmt: skip


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether PyTorch has variable-length FlashAttention (2.10 and later) that runs on this GPU (Ampere and later)."""
    if device.type != "cuda":
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sample_lengths: Sequence[int] | None = None,
    has_varlen: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sample of a packed row: (1, H, T, K) -> (1, T, H, K).

    In half precision by PyTorch's variable-length FlashAttention where [`has_varlen`] finds it; elsewhere sample by
    sample.
    """
    if sample_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    dtype = query.dtype  # in autocast the rotary embedding gives fp32 queries and keys beside half-precision values
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    if has_varlen and dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        query_THK, key_THK, value_THK = (one[0].transpose(0, 1).to(dtype).contiguous() for one in (query, key, value))
        attended_THK = varlen_attn(
            query_THK, key_THK, value_THK, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=(-1, 0), enable_gqa=groups > 1,
        )  # fmt: skip
        assert isinstance(attended_THK, Tensor)
        return attended_THK[None], None
    samples = zip(*(one.split(list(sample_lengths), dim=2) for one in (query, key, value)), strict=True)
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        for q, k, v in samples
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def packed_mask(batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for a packed row, whose borders [`packed_attention`] knows; else that of `"sdpa"`.

    Where positions begin again, as a packed row's do, transformers does not let a plain causal mask be left out.
    """
    is_packed = kwargs.get("attention_mask") is None and not kwargs.get("allow_is_causal_skip", True)
    if is_packed and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, packed_mask)
