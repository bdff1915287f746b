# SPDX-License-Identifier: Apache-2.0
"""Rows of the published data set (with or without precomputed codes) -> a training batch, conditions dropped."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharegpt4o_image.janus4o import Janus4oProcessor
from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE


@dataclass
class DataCollatorForImageGeneration:
    """Collates text-to-image and edit rows, mixed in any way, into left-padded batches.

    Reads: `input_prompt`, `input_image` (list of pictures, empty for text to image) and either `target_codes` (P ints,
    with `source_codes`, a list of P ints for each source) or `output_image`.

    Gives: `input_ids`, `attention_mask` (B, L); for edits `source_pixel_values` (N, 3, H, W), and with precomputed
    codes `source_codes` (N, P); `target_codes` (B, P) or `target_pixel_values` (B, 3, H, W); `drop_source_codes` (N,)
    bool; `labels` (B, P), which only count the trained tokens.

    What a mask does to a sample (`paper.md` section 3.3):

        prompt_dropout        BOS pad pad pad ... pad boi            (text to image)
        source_code_dropout   the source's code block stays pads     (edit: the l_o row)
        null_dropout          BOS pad pad pad ... pad boi            (edit: the l_u row, at edit length)
    """

    processor: Janus4oProcessor
    prompt_dropout: float
    source_code_dropout: float
    null_dropout: float
    generator: torch.Generator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate `rows` into one batch."""
        sources = [list(row.get("input_image") or []) for row in rows]
        batch = self.processor.prepare_image_generation([row["input_prompt"] for row in rows], sources)
        is_null = torch.tensor([self._draws(self._null_rate(row_sources)) for row_sources in sources])  # (B,)
        null_ids = self.processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
        collated: dict[str, Tensor] = {
            "input_ids": torch.where(is_null[:, None], null_ids, batch["input_ids"]),
            "attention_mask": batch["attention_mask"],
        }
        self._add_sources(collated, batch, rows, sources, is_null)
        self._add_targets(collated, rows)
        return collated

    def _null_rate(self, sources: list[Any]) -> float:
        return self.null_dropout if sources else self.prompt_dropout

    def _draws(self, rate: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < rate)

    def _add_sources(
        self,
        collated: dict[str, Tensor],
        batch: Any,
        rows: list[dict[str, Any]],
        sources: list[list[Any]],
        is_null: Tensor,
    ) -> None:
        """Pixels and codes of the sources whose rows still have room for them."""
        owner = torch.tensor([i for i, row_sources in enumerate(sources) for _ in row_sources], dtype=torch.long)
        kept = ~is_null[owner]  # (all sources,)
        if not kept.any():
            return
        collated["source_pixel_values"] = batch["source_pixel_values"][kept]
        collated["drop_source_codes"] = torch.tensor(
            [self._draws(self.source_code_dropout) for _ in range(int(kept.sum()))]
        )
        if rows[int(owner[0])].get("source_codes") is not None:
            codes = torch.tensor([codes for row in rows for codes in row.get("source_codes") or []], dtype=torch.long)
            collated["source_codes"] = codes[kept]

    def _add_targets(self, collated: dict[str, Tensor], rows: list[dict[str, Any]]) -> None:
        if rows[0].get("target_codes") is not None:
            collated["target_codes"] = torch.tensor([row["target_codes"] for row in rows], dtype=torch.long)
        else:
            collated["target_pixel_values"] = self.processor.source_pixels([row["output_image"] for row in rows])
        # The trainer counts `labels != -100` to scale the loss under accumulation: every target code is trained.
        collated["labels"] = torch.zeros((len(rows), self.processor.num_image_tokens), dtype=torch.long)


def drop_codes(source_codes: Tensor, drop_N: Tensor) -> Tensor:
    """Source codes (N, P) with the dropped blocks marked to be left as pads."""
    return source_codes.masked_fill(drop_N[:, None], IGNORED_CODE)
