# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of Janus-4o with TRL: the loss on image codes, through the generation head only."""

import logging
from dataclasses import replace
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, Trainer

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.packing_janus4o import PACKED_ATTENTION
from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sample_order import SampleOrder, mix_tasks
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.training_metrics import CodeMetrics
from sharegpt4o_image.training.training_rows import TrainingRows, check_columns, number_of_sources, without_decoding

logger = logging.getLogger(__name__)


def freeze_unused(model: Janus4oForImageGeneration, args: Janus4oSFTConfig, has_edits: bool) -> None:
    """Freeze what is not trained: it then stays out of the optimizer (upstream defect T9).

    The image tokenizer stays as released. Nothing on the image path uses the vocabulary head, which is frozen where
    it is not tied to the embeddings. Without edits nothing goes through the vision tower and its aligner (T15).
    """
    model.model.vqmodel.requires_grad_(False)
    if not model.config.tie_word_embeddings:
        model.lm_head.requires_grad_(False)
    if args.freeze_vision_tower or not has_edits:
        model.model.vision_model.requires_grad_(False)
    if args.freeze_aligners or not has_edits:
        model.model.aligner.requires_grad_(False)
    if args.freeze_aligners:
        model.model.generation_aligner.requires_grad_(False)


class Janus4oSFTTrainer(trl.SFTTrainer):
    """[`~trl.SFTTrainer`] for image codes; use it as any TRL trainer.

    What it does differently: the loss goes through the generation head (`SFTTrainer` would train the vocabulary head
    on image codes); batches are packed, mixed and shuffled as [`Janus4oSFTConfig`] says; a row whose picture cannot
    be read is named, counted and left out.

    Args:
        model (`str` or `Janus4oForImageGeneration`):
            A checkpoint folder or Hub id, or a model.
        args (`Janus4oSFTConfig`, *optional*):
            Without it, the defaults, in `<model name>-SFT`.
        data_collator (`DataCollatorForImageGeneration`, *optional*):
            Made from `args` by default.
        train_dataset (`datasets.Dataset`):
            Rows of both tasks, see [`TrainingRows`].
        eval_dataset (`datasets.Dataset` or a dictionary of them, *optional*):
            Held-out rows.
        processing_class (`Janus4oProcessor`, *optional*):
            The checkpoint's own by default.
        kwargs:
            As [`~trl.SFTTrainer`]: `callbacks`, `optimizers`, `peft_config` and so on.
    """

    _tag_names = ["trl", "sft", "janus-4o", "image-generation"]  # noqa: RUF012 (TRL declares it so)

    def __init__(
        self,
        model: str | nn.Module,
        args: Janus4oSFTConfig | None = None,
        processing_class: Janus4oProcessor | None = None,
        *,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        args = args or Janus4oSFTConfig(f"{name.split('/')[-1]}-SFT")
        if not isinstance(args, Janus4oSFTConfig):
            raise TypeError(f"args is a {type(args).__name__}; give a Janus4oSFTConfig.")
        train_dataset = _checked_rows(train_dataset, "train_dataset")
        if isinstance(model, str):
            model = Janus4oForImageGeneration.from_pretrained(model, **(args.model_init_kwargs or {}))
            args.model_init_kwargs = None
        processing_class = processing_class or Janus4oProcessor.from_pretrained(name)
        processing_class.geometry = args.geometry
        self._num_sources = number_of_sources(train_dataset)
        freeze_unused(model, args, has_edits=any(self._num_sources))
        if args.row_layout == "packed" and model.config.text_config._attn_implementation == "sdpa":
            model.set_attn_implementation({"text_config": PACKED_ATTENTION})
        self._code_metrics = {"train": CodeMetrics(), "eval": CodeMetrics()}
        self.skipped_rows: dict[str, str] = {}
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or make_collator(args, processing_class),
            train_dataset=train_dataset,
            eval_dataset=_checked_eval_rows(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )

    # ------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process, in an order that depends on the seed and the epoch alone."""
        args = self.args
        self._order = SampleOrder(
            mix_tasks(self._num_sources, args.edit_share, self._data_seed),
            self._data_seed,
            batch_size=self._train_batch_size,
            process_index=args.process_index,
            num_processes=args.world_size,
            max_tokens=args.max_tokens_per_batch,
            lengths=self._sample_lengths() if args.max_tokens_per_batch else None,
            pads=args.row_layout == "padded",
        )
        return DataLoader(
            TrainingRows(self.train_dataset),
            batch_sampler=self._order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _sample_lengths(self) -> list[int]:
        """Tokens of each training row with its target codes, the last one left out."""
        processor = self.processing_class
        prompts = self.train_dataset["input_prompt"]
        return [
            len(processor.image_generation_ids(prompt, count)) + processor.num_image_tokens - 1
            for prompt, count in zip(prompts, self._num_sources, strict=True)
        ]

    def _run_epoch(self, model: nn.Module, epoch: int, **kwargs: Any) -> None:
        """The parent tells only samplers that accelerate wrapped which epoch begins, and not after a resumed run."""
        self._order.epoch = epoch
        super()._run_epoch(model=model, epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Held-out rows with all their conditions, padded: two evaluations measure the same."""
        chosen = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        rows = TrainingRows(self.eval_dataset if chosen is None else chosen)
        dropping = self.data_collator
        if isinstance(dropping, DataCollatorForImageGeneration):
            self.data_collator = replace(dropping, dropout=Dropout(), row_layout="padded")
        try:
            return super().get_eval_dataloader(rows)
        finally:
            self.data_collator = dropping

    # ------------------------------------------------------------------ loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy of the target codes; pictures that come without codes are encoded by the model."""
        mode = "train" if self.model.training else "eval"
        self._note_skipped(inputs.pop("skipped", []))
        self._sample_ids = inputs.pop("sample_ids", [])
        is_edit = inputs.pop("is_edit")
        loss, outputs = Trainer.compute_loss(
            self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._code_metrics[mode].add(outputs, is_edit)
        return (loss, outputs) if return_outputs else loss

    def _note_skipped(self, skipped: list[str]) -> None:
        """Name rows that cannot be used, and stop when there are too many."""
        for line in skipped:
            name, reason = line.split(": ", 1)
            if name not in self.skipped_rows:
                logger.warning("Skipped the row %s: %s", name, reason)
            self.skipped_rows[name] = reason
        if len(self.skipped_rows) > self.args.max_skipped_rows:
            raise UserError(
                f"{len(self.skipped_rows)} rows cannot be used, more than max_skipped_rows "
                f"({self.args.max_skipped_rows}) allows; the last is {line}. `sharegpt4o-image verify` finds all."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, with loss and token accuracy by task and position."""
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        report = self._code_metrics[mode].report(self.accelerator)
        logs |= {prefix + name: value for name, value in report.items()}
        super().log(logs, start_time)

    # ------------------------------------------------------------------ optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay for matrices only (upstream defect T8), unless the recipe decays norms and embeddings."""
        if self.args.decay_norms_and_embeddings:
            return [name for name, _ in model.named_parameters()]
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in embeddings]


def make_collator(args: Janus4oSFTConfig, processor: ProcessorMixin) -> DataCollatorForImageGeneration:
    """The collator that a configuration describes."""
    dropout = Dropout(
        prompt=args.prompt_dropout,
        prompt_granularity=args.prompt_dropout_granularity,
        source_code=args.source_code_dropout,
        source_code_granularity=args.source_code_dropout_granularity,
        instruction=args.instruction_dropout,
        null=args.null_dropout,
    )
    return DataCollatorForImageGeneration(processor, dropout, args.seed, args.row_layout)


def _checked_rows(rows: Any, name: str) -> Dataset:
    if not isinstance(rows, Dataset):
        raise UserError(
            f"{name} is a {type(rows).__name__}; give a datasets.Dataset: rows are drawn by number, so that a run can "
            "be resumed exactly."
        )
    check_columns(rows)
    return without_decoding(rows)


def _checked_eval_rows(rows: Any) -> Any:
    if isinstance(rows, dict):
        return {name: _checked_rows(part, f"eval_dataset[{name!r}]") for name, part in rows.items()}
    return None if rows is None else _checked_rows(rows, "eval_dataset")
