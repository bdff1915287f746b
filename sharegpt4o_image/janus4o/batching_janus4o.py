# SPDX-License-Identifier: Apache-2.0
"""Many pictures -> batches that fit: which prompts are drawn together, and whether their caches have room."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig

GIB = 2**30


@dataclass(frozen=True)
class Batch:
    """Prompts (by number) that are drawn together, and which of the pictures of each."""

    prompts: list[int]
    pictures: range

    def numbers(self, num_images_per_prompt: int) -> list[int]:
        """The places of this batch's pictures in the whole result, in the order they are drawn."""
        return [prompt * num_images_per_prompt + picture for prompt in self.prompts for picture in self.pictures]


def plan_batches(lengths: list[int], num_images_per_prompt: int, max_batch_size: int | None) -> list[Batch]:
    """Batches of at most `max_batch_size` pictures.

    Prompts of similar length come together, so that little is padded; the pictures of one prompt stay together, since
    they share its keys and values. `lengths` are only compared.
    """
    num_prompts = len(lengths)
    if max_batch_size is not None and max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size}; it must be 1 or more.")
    if max_batch_size is None or num_prompts * num_images_per_prompt <= max_batch_size:
        return [Batch(list(range(num_prompts)), range(num_images_per_prompt))]
    order = sorted(range(num_prompts), key=lengths.__getitem__)
    if num_images_per_prompt >= max_batch_size:
        return [
            Batch([prompt], range(num_images_per_prompt)[start : start + max_batch_size])
            for prompt in order
            for start in range(0, num_images_per_prompt, max_batch_size)
        ]
    at_once = max_batch_size // num_images_per_prompt
    return [
        Batch(order[start : start + at_once], range(num_images_per_prompt)) for start in range(0, num_prompts, at_once)
    ]


@dataclass(frozen=True)
class CacheSize:
    """The keys and values of a batch: `num_prefixes` prompts (of all branches) with `num_pictures` of each."""

    num_prefixes: int
    prefix_length: int
    num_pictures: int
    num_codes: int
    is_shared: bool  # whether the pictures of a prompt read its keys and values in place

    @property
    def num_rows(self) -> int:
        """Pictures of all branches."""
        return self.num_prefixes * self.num_pictures

    @property
    def num_tokens(self) -> int:
        """Whose keys and values are kept."""
        num_copies = 1 if self.is_shared else self.num_pictures
        return self.num_prefixes * (num_copies * self.prefix_length + self.num_pictures * self.num_codes)

    def num_bytes(self, config: LlamaConfig, itemsize: int) -> int:
        """Of a language model whose numbers have `itemsize` bytes."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        key_heads = config.num_key_value_heads or config.num_attention_heads
        per_token = 2 * config.num_hidden_layers * key_heads * head_dim * itemsize
        return per_token * self.num_tokens

    def captured(self) -> "CacheSize":
        """The same for steps that are captured: rows that share nothing may be of any prompt."""
        if self.is_shared:
            return self
        return replace(self, num_prefixes=self.num_prefixes * self.num_pictures, num_pictures=1)


def check_memory(bytes_of: Callable[[int], int], batch_size: int, device: torch.device) -> None:
    """Refuse a batch whose keys and values do not fit, before anything is allocated.

    Args:
        bytes_of: number of pictures -> bytes of their keys and values.
        batch_size: pictures.
        device: where they are to be drawn.

    Raises:
        ValueError: with the largest batch that fits.
    """
    free = free_bytes(device)
    if free is None or bytes_of(batch_size) <= free:
        return
    fitting = next((number for number in range(batch_size - 1, 0, -1) if bytes_of(number) <= free), 0)
    remedy = f"pass max_batch_size={fitting}." if fitting else "not even one picture fits on this device."
    raise ValueError(
        f"Drawing {batch_size} pictures at once takes {bytes_of(batch_size) / GIB:.1f} GiB of keys and values, and "
        f"{free / GIB:.1f} GiB are free; {remedy}"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on the device; `None` where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


__all__ = ["Batch", "plan_batches"]
