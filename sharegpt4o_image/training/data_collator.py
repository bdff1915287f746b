# SPDX-License-Identifier: Apache-2.0
"""Rows of the published data set (with or without precomputed codes) -> a training batch, conditions dropped."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oProcessor
from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE
from sharegpt4o_image.training.conditions import Drawn, Dropout, draw

if TYPE_CHECKING:
    from sharegpt4o_image.training.sft_config import Janus4oSFTConfig


@dataclass
class DataCollatorForImageGeneration:
    """Collates text-to-image and edit rows, mixed in any way.

    Reads: `input_prompt`, `input_image` (list of pictures, empty for text to image) and either `target_codes` (P ints,
    with `source_codes`, a list of P ints for each source) or `output_image`; `id`, `epoch` and `repetition` decide
    what is dropped. A row that `is_blank`, or with a picture that cannot be used, becomes a sample that no loss
    counts; `skipped` says why.

    Gives, for S samples: packed, `input_ids` (1, L), the prompts back to back, and `prompt_lengths` (S,); padded,
    `input_ids` and `attention_mask` (S, L), padded on the left. For edits `source_pixel_values` (N, 3, H, W),
    `dropped_source_codes` bool (N, P), and with precomputed codes `source_codes` (N, P). `target_codes` (S, P) or
    `target_pixel_values` (S, 3, H, W). `labels` (S, P), the target codes where they are known. For the trainer alone:
    `is_edit` bool (S,), `sample_ids` and `skipped`, a list of (id, reason).

    What a mask does to a sample (`docs/training.md`):

        prompt dropout        BOS pad pad pad ... pad boi            (text to image)
        source code dropout   the source's code block stays pads     (edit: the l_o row)
        instruction dropout   all text but BOS and boi becomes pads  (edit)
        null dropout          BOS pad pad pad ... pad boi            (edit: the l_u row, at edit length)

    Args:
        processor: lays out prompts and prepares pictures.
        dropout: rates of the masks; none by default.
        seed: of the masks, beside a row's `id` and `epoch`.
        row_layout: `"packed"` or `"padded"`.
    """

    processor: Janus4oProcessor
    dropout: Dropout = field(default_factory=Dropout)
    seed: int = 0
    row_layout: str = "packed"

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `rows` into one batch."""
        rows = [self._prepared(row) for row in rows]
        prompts = [
            self.processor.image_generation_ids(row["input_prompt"], len(row["source_pixel_values"])) for row in rows
        ]
        drawn = [self._draw(row, len(ids) - 2) for row, ids in zip(rows, prompts, strict=True)]
        batch = self._lay_out([self._drop(ids, one) for ids, one in zip(prompts, drawn, strict=True)])
        batch |= self._sources(rows, drawn)
        batch |= self._targets(rows)
        batch["is_edit"] = torch.tensor([len(row["source_pixel_values"]) > 0 for row in rows])
        batch["sample_ids"] = [_id_of(row) for row in rows]
        batch["skipped"] = [(_id_of(row), row["skipped"]) for row in rows if row.get("skipped")]
        return batch

    # ------------------------------------------------------------------ prompts

    def _draw(self, row: dict[str, Any], num_text_tokens: int) -> Drawn:
        sample_id = f"{_id_of(row)}#{row['repetition']}" if row.get("repetition") else _id_of(row)
        num_sources, num_codes = len(row["source_pixel_values"]), self.processor.num_image_tokens
        epoch = int(row.get("epoch", 0))
        return draw(self.dropout, self.seed, epoch, sample_id, num_sources, num_codes, num_text_tokens)

    def _drop(self, ids: list[int], drawn: Drawn) -> np.ndarray:
        """The ids of one prompt with pads where conditions are dropped; BOS and boi always stay."""
        kept = np.array(ids)
        inner = kept[1:-1]  # a view
        pad = self.processor.tokenizer.pad_token_id
        if drawn.is_null:
            inner[:] = pad
        elif drawn.drops_text:
            inner[~self._is_source_block(inner)] = pad
        elif drawn.dropped_text is not None:
            inner[drawn.dropped_text] = pad
        return kept

    def _is_source_block(self, ids: np.ndarray) -> np.ndarray:
        """Where the blocks of the sources stand: from a boi to the eoi that closes it."""
        tokenizer = self.processor.tokenizer
        boi, eoi = tokenizer.convert_tokens_to_ids([self.processor.image_start_token, self.processor.image_end_token])
        opened, closed = np.cumsum(ids == boi), np.cumsum(ids == eoi)
        return (opened > closed) | (ids == eoi)

    def _lay_out(self, prompts: list[np.ndarray]) -> dict[str, Any]:
        if self.row_layout == "padded":
            padded = self.processor.pad_left([ids.tolist() for ids in prompts])
            return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        return {
            "input_ids": torch.from_numpy(np.concatenate(prompts))[None],
            "prompt_lengths": torch.tensor([len(ids) for ids in prompts]),
        }

    # ------------------------------------------------------------------ pictures and codes

    def _prepared(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the pixel values of its pictures; a blank where one of them cannot be used."""
        if not row.get("is_blank"):
            try:
                return row | self._pixels(row)
            except ValueError as error:
                row = row | {"is_blank": True, "skipped": str(error)}
        return row | {"input_prompt": "", "source_pixel_values": []}

    def _pixels(self, row: dict[str, Any]) -> dict[str, Any]:
        sources = list(row.get("input_image") or [])
        pixels: dict[str, Any] = {"source_pixel_values": self.processor.source_pixels(sources) if sources else []}
        if row.get("target_codes") is None:
            pixels["target_pixel_values"] = self.processor.source_pixels([row["output_image"]])
        return pixels

    def _sources(self, rows: list[dict[str, Any]], drawn: list[Drawn]) -> dict[str, Tensor]:
        """Pixels and codes of the sources whose prompts still have room for them."""
        kept = [
            (row, one.dropped_source_codes)
            for row, one in zip(rows, drawn, strict=True)
            if len(row["source_pixel_values"]) and not one.is_null
        ]
        if not kept:
            return {}
        found = {
            "source_pixel_values": torch.cat([row["source_pixel_values"] for row, _ in kept]),
            "dropped_source_codes": torch.from_numpy(np.concatenate([dropped for _, dropped in kept])),
        }
        if all(row.get("source_codes") is not None for row, _ in kept):
            found["source_codes"] = _codes([codes for row, _ in kept for codes in row["source_codes"]])
        return found

    def _targets(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        num_codes, side = self.processor.num_image_tokens, self.processor.image_processor.size["height"]
        is_blank = [bool(row.get("is_blank")) for row in rows]
        has_codes = {"target_pixel_values" not in row for row, blank in zip(rows, is_blank, strict=True) if not blank}
        if len(has_codes) == 2:
            raise ValueError("Rows with and without target_codes cannot be in one batch; encode all of them or none.")
        if has_codes == {False}:
            labels = torch.zeros((len(rows), num_codes), dtype=torch.long)
            labels[torch.tensor(is_blank)] = IGNORED_CODE
            no_pixels = torch.zeros(1, 3, side, side)
            pixels = [row.get("target_pixel_values", no_pixels) for row in rows]
            return {"labels": labels, "target_pixel_values": torch.cat(pixels)}
        codes = [
            [IGNORED_CODE] * num_codes if blank else row["target_codes"]
            for row, blank in zip(rows, is_blank, strict=True)
        ]
        target_codes = _codes(codes)
        return {"labels": target_codes, "target_codes": target_codes}


def _id_of(row: dict[str, Any]) -> str:
    return str(row.get("id", row["input_prompt"]))


def _codes(rows: list[Any]) -> Tensor:
    """Codes of several pictures (N, P) as int64; the file's uint16 has no use in PyTorch."""
    return torch.from_numpy(np.stack([np.asarray(codes, dtype=np.int64) for codes in rows]))


# ------------------------------------------------------------------ as a configuration says


def make_collator(args: "Janus4oSFTConfig", processor: Janus4oProcessor) -> DataCollatorForImageGeneration:
    """The collator that a configuration describes."""
    processor = copy.copy(processor)
    processor.geometry = str(args.geometry)
    return DataCollatorForImageGeneration(processor, _dropout(args), args.seed, args.row_layout)


def check_collator(collator: Any, args: "Janus4oSFTConfig") -> None:
    """Refuse one that does something else than what the run's record and card will say."""
    if not isinstance(collator, DataCollatorForImageGeneration):
        return
    described = {"dropout": _dropout(args), "seed": args.seed, "row_layout": args.row_layout}
    differing = [name for name, value in described.items() if getattr(collator, name) != value]
    differing += ["geometry"] if collator.processor.geometry != args.geometry else []
    if differing:
        raise UserError(
            f"The data_collator's {' and '.join(differing)} are not those of args; say them in args and leave "
            "data_collator out, or take `make_collator(args, processor)`."
        )


def _dropout(args: "Janus4oSFTConfig") -> Dropout:
    filled: Any = args  # by the preset
    return Dropout(
        prompt=filled.prompt_dropout,
        prompt_granularity=filled.prompt_dropout_granularity,
        source_code=filled.source_code_dropout,
        source_code_granularity=filled.source_code_dropout_granularity,
        instruction=filled.instruction_dropout,
        null=filled.null_dropout,
    )
