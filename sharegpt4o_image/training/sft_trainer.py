# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of Janus-4o with TRL: the loss on image codes, through the generation head only."""

from dataclasses import replace
from typing import Any

import torch
import trl
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration, drop_codes
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

# Nothing on the image path uses the vocabulary head, and the image tokenizer stays as released (upstream defect T9).
FROZEN_MODULES = ("lm_head", "model.vqmodel")


def freeze_unused(model: Janus4oForImageGeneration) -> None:
    """Freeze the image tokenizer and, where it is not tied to the embeddings, the vocabulary head."""
    model.model.vqmodel.requires_grad_(False)
    if not model.config.tie_word_embeddings:
        model.lm_head.requires_grad_(False)


class Janus4oSFTTrainer(trl.SFTTrainer):
    """[`~trl.SFTTrainer`] for image codes. Use it as any TRL trainer; the collator is made from the config.

    `SFTTrainer` would train the vocabulary head on image codes (its fused head), so `compute_loss` goes to the model.
    """

    def __init__(self, model: Any, args: Janus4oSFTConfig, processing_class: Any, **kwargs: Any) -> None:
        if isinstance(model, str):
            model = Janus4oForImageGeneration.from_pretrained(model)
        freeze_unused(model)
        kwargs.setdefault("data_collator", _collator(args, processing_class))
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy of the target codes; pictures that come without codes are encoded here."""
        inputs.pop("labels", None)  # only for the trainer's token count
        self._encode_missing(inputs)
        return Trainer.compute_loss(
            self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )

    def _encode_missing(self, inputs: dict[str, Any]) -> None:
        unwrapped = self.accelerator.unwrap_model(self.model)
        if "target_codes" not in inputs:
            inputs["target_codes"] = unwrapped.encode_image(inputs.pop("target_pixel_values"))
        if "source_pixel_values" in inputs:
            codes = inputs.get("source_codes")
            if codes is None:
                codes = unwrapped.encode_image(inputs["source_pixel_values"])
            inputs["source_codes"] = drop_codes(codes, inputs.pop("drop_source_codes"))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Held-out rows with all their conditions, so that two evaluations measure the same."""
        dropping = self.data_collator
        if isinstance(dropping, DataCollatorForImageGeneration):
            self.data_collator = replace(dropping, prompt_dropout=0.0, source_code_dropout=0.0, null_dropout=0.0)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = dropping

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay for matrices only: not for norms, biases and embeddings (upstream defect T8)."""
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in embeddings]


def _collator(args: Janus4oSFTConfig, processor: Any) -> DataCollatorForImageGeneration:
    return DataCollatorForImageGeneration(
        processor=processor,
        prompt_dropout=args.prompt_dropout,
        source_code_dropout=args.source_code_dropout,
        null_dropout=args.null_dropout,
        generator=torch.Generator().manual_seed(args.seed),
    )
