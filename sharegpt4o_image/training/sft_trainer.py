# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of Janus-4o with TRL: the loss on image codes, through the generation head only."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sharegpt4o_image.builders.model_card import render_model_card
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oProcessor
from sharegpt4o_image.janus4o.packing_janus4o import PACKED_ATTENTION
from sharegpt4o_image.training.adapters import check_adapters, check_method, frozen_parts, without_adapters
from sharegpt4o_image.training.checkpoints_of_run import checkpoint_to_resume, mark_incomplete
from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import (
    DataCollatorForImageGeneration,
    check_collator,
    make_collator,
)
from sharegpt4o_image.training.flops import TrainingFlops
from sharegpt4o_image.training.layer_compilation import compile_layers
from sharegpt4o_image.training.model_loading import (
    check_processor,
    checkpoint_name,
    load_model,
    load_processor,
    with_geometry,
)
from sharegpt4o_image.training.optimizers import check_optimizer, check_rounding, rounding_optimizer
from sharegpt4o_image.training.row_checks import checked_rows, number_of_sources, sample_length
from sharegpt4o_image.training.sample_images import SampleImages
from sharegpt4o_image.training.sample_order import EpochTeller, SampleOrder, mix_tasks
from sharegpt4o_image.training.sample_watch import SampleWatch
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sharding import (
    check_parallelism,
    check_rows,
    image_tokenizer_weights,
    keep_sums_in_full_precision,
    reshard,
    unsharded_class,
)
from sharegpt4o_image.training.stopping import StopOnSigterm, ignore_sigterm, kill_workers_at_exit
from sharegpt4o_image.training.throughput import Throughput
from sharegpt4o_image.training.trained_card import card_facts
from sharegpt4o_image.training.training_metrics import CodeMetrics
from sharegpt4o_image.training.training_rows import TrainingRows
from sharegpt4o_image.training.weight_average import WeightAverage

# Arguments of TRL's trainer that would act in vain or wrongly here, and what to do instead.
_UNUSED = {
    "compute_loss_func": "the loss is the cross entropy of the codes; subclass and override compute_loss",
    "formatting_func": "it is for text; change the rows before they are given",
    "quantization_config": "load the model with it, and give that",
}


def freeze_unused(model: Any, args: Janus4oSFTConfig, has_edits: bool) -> None:
    """Freeze what is not trained: it then stays out of the optimizer (upstream defect T9).

    The image tokenizer stays as released. Nothing on the image path uses the vocabulary head, which is frozen where
    it is not tied to the embeddings. Without edits nothing goes through the vision tower and its aligner (T15). What
    `args` decides about is also unfrozen, where an earlier run froze it; adapters decide for themselves.
    """
    base = without_adapters(model)
    base.model.vqmodel.requires_grad_(False)
    if not base.config.tie_word_embeddings:
        base.lm_head.requires_grad_(False)
    is_frozen = {
        base.model.vision_model: args.freeze_vision_tower or not has_edits,
        base.model.aligner: args.freeze_aligners or not has_edits,
        base.model.generation_aligner: args.freeze_aligners,
    }
    for part, frozen in is_frozen.items():
        if frozen or not is_peft_model(model):
            part.requires_grad_(not frozen)


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
            Made from `args` by default; a given one must drop and lay out as `args` say, see [`make_collator`].
        train_dataset (`datasets.Dataset`):
            Rows of both tasks, see [`TrainingRows`].
        eval_dataset (`datasets.Dataset` or a dictionary of them, *optional*):
            Held-out rows.
        processing_class (`Janus4oProcessor`, *optional*):
            The checkpoint's own by default; a copy of it gets the geometry of `args`.
        kwargs:
            As [`~trl.SFTTrainer`]: `callbacks`, `optimizers`, `peft_config` and so on.
    """

    _tag_names = ["trl", "sft", "janus-4o", "image-generation"]  # noqa: RUF012 (TRL declares it so)

    def __init__(
        self,
        model: str | nn.Module,
        args: Janus4oSFTConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Janus4oProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        name = checkpoint_name(model)
        args = args or Janus4oSFTConfig(f"{Path(name).name or Janus4oConfig.model_type}-SFT")
        _check_arguments(args, kwargs)
        options = args.model_init_kwargs or {}
        if isinstance(model, str):
            model, args.model_init_kwargs = load_model(model, options), None
        base = without_adapters(model)
        processing_class = processing_class or load_processor(name, options)
        check_processor(processing_class, base.config)
        processing_class = with_geometry(processing_class, str(args.geometry))
        check_collator(data_collator, args)
        self._checked = partial(checked_rows, config=base.config, processor=processing_class)
        train_dataset = self._checked(train_dataset, "train_dataset")
        if isinstance(eval_dataset, dict):
            eval_dataset = {key: self._checked(rows, f"eval_dataset[{key!r}]") for key, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._checked(eval_dataset, "eval_dataset")
        self._num_sources = number_of_sources(train_dataset)
        freeze_unused(model, args, has_edits=any(self._num_sources) and args.edit_share != 0)
        frozen = frozen_parts(base)
        if args.row_layout == "packed" and model.config.text_config._attn_implementation == "sdpa":
            base.set_attn_implementation({"text_config": PACKED_ATTENTION})
        if args.torch_compile:
            compile_layers(base, args)
        self._code_metrics = {"train": CodeMetrics(), "eval": CodeMetrics()}
        self._watch = SampleWatch(args.max_skipped_rows)
        self._stop_on_sigterm = StopOnSigterm()
        callbacks = [*(kwargs.pop("callbacks", None) or []), self._watch, self._stop_on_sigterm, EpochTeller()]
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or make_collator(args, processing_class),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self._watch.accelerator = self.accelerator
        check_adapters(self.model, frozen)
        self._check_sharding()
        self._unrounded = image_tokenizer_weights(self.model) if self.is_deepspeed_enabled else {}
        self._add_watchers()

    def _check_sharding(self) -> None:
        args = self.args
        check_parallelism(self.accelerator.parallelism_config)
        if not self.is_deepspeed_enabled:  # which keeps fp32 copies of its own
            check_rounding(self.model, args)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            zero_stage = self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else 0
            check_rows(self.train_dataset, self.has_edits, args.bf16 or args.fp16, zero_stage)

    def _add_watchers(self) -> None:
        args = self.args
        is_half = args.bf16 or args.fp16
        dtype = torch.bfloat16 if is_half else self.model.dtype
        self.throughput = Throughput(TrainingFlops(self.model), args.device, dtype)
        self.add_callback(self.throughput)
        self._average = None if args.ema_decay is None else WeightAverage(self)
        if self._average is not None:
            self.add_callback(self._average)
        if args.sample_steps is not None:
            self.add_callback(SampleImages(self))

    # ------------------------------------------------------------------ beginning, end and checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; SIGTERM saves a checkpoint and ends it, then `was_interrupted` is true.

        `resume_from_checkpoint=True` takes the last checkpoint that was written to its end. A resumed run goes on as
        if it had never stopped, bit by bit.
        """
        checkpoint = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        self._code_metrics["train"] = CodeMetrics()
        with self._stop_on_sigterm.listening():
            return super().train(checkpoint, *args, **kwargs)

    @property
    def was_interrupted(self) -> bool:
        """Whether SIGTERM ended the last `train` before its last step."""
        return self._stop_on_sigterm.was_interrupted

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """The parent's; refuses a checkpoint that was at another place in the data after as many steps."""
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or self.args.ignore_data_skip:
            return epochs, batches
        place = epochs + batches / len(self._order)
        if abs(self.state.epoch - place) > 1e-6:
            raise UserError(
                f"{resume_from_checkpoint} was saved after {self.state.epoch:.4g} epochs, but its "
                f"{self.state.global_step} steps are {place:.4g} epochs of this run. Resume with the rows, the batch "
                "size, the accumulation and the number of processes that it was saved with."
            )
        return epochs, batches

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the parent's, so that a checkpoint is complete once it has the state of the run, its last file."""
        with self.throughput.paused():
            if self.args.should_save:
                folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                mark_incomplete(Path(self._get_output_dir(trial), folder))
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the parent's; the average of the weights is a state, too."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._average is not None:
            self._average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._average is not None and checkpoint is not None:
            self._average.restore_from(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """The parent's, the last that each process writes; what follows waits for all of them."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------ the folder that is left

    @property
    def has_edits(self) -> bool:
        """Whether any sample that is trained on has a source picture."""
        return any(self._num_sources) and self.args.edit_share != 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As the parent's; the files of the run's own folder appear whole, and without pickled arguments."""
        target = Path(output_dir or self.args.output_dir)
        if target != Path(self.args.output_dir) or not self.args.should_save:
            self._save_unsharded(str(target), state_dict)
            return
        with tempfile.TemporaryDirectory(prefix="_saving-", dir=target) as staging:
            self._save_unsharded(staging, state_dict)
            for path in sorted(Path(staging).iterdir()):
                if path.name != TRAINING_ARGS_NAME:
                    path.replace(target / path.name)

    def _save_unsharded(self, output_dir: str, state_dict: dict[str, Any] | None) -> None:
        """The parent's `_save`; class and image tokenizer are what they were before FSDP or DeepSpeed had them."""
        if state_dict is not None:
            state_dict = {name: self._unrounded.get(name, weight) for name, weight in state_dict.items()}
        with unsharded_class(self.model):
            super()._save(output_dir, state_dict)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md`: recipe, data, losses, and how to use what was trained."""
        if self.is_world_process_zero():
            given = [tags] if isinstance(tags, str) else tags or []
            facts = card_facts(self, model_name, dataset_name, tuple(dict.fromkeys([*self._tag_names, *given])))
            Path(self.args.output_dir, "README.md").write_text(render_model_card(facts), encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's, which writes nothing under FSDP's sharded state; every process must call it."""
        is_sharded = self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        if is_sharded and not _internal_call:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def create_accelerator_and_postprocess(self) -> None:
        """The parent's; see [`keep_sums_in_full_precision`]."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            keep_sums_in_full_precision(self.accelerator.state.fsdp_plugin)

    # ------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process, in an order that depends on the seed and the epoch alone."""
        args = self.args
        pairs_of = partial(mix_tasks, self._num_sources, args.edit_share, self._data_seed)
        self._order = SampleOrder(
            pairs_of(0),
            self._data_seed,
            batch_size=self._train_batch_size,
            process_index=args.process_index,
            num_processes=args.world_size,
            max_tokens=args.max_tokens_per_batch,
            lengths=self._sample_lengths() if args.max_tokens_per_batch else None,
            pads=args.row_layout == "padded",
            pairs_of=pairs_of,
        )
        return self._loader(TrainingRows(self.train_dataset), self._order, self.data_collator)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _sample_lengths(self) -> list[int]:
        """Tokens of each training row with its target codes, the last one left out."""
        prompts = self.train_dataset["input_prompt"][:]
        return [
            sample_length(self.processing_class, prompt or "", count)
            for prompt, count in zip(prompts, self._num_sources, strict=True)
        ]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Held-out rows with all their conditions, padded: two evaluations measure the same.

        Each row comes on one process only: the parent's loader repeats some to fill the last batch.
        """
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        rows = TrainingRows(self._checked(chosen, "eval_dataset"))
        order = SampleOrder(
            [(row, 0) for row in range(len(rows))],
            seed=0,
            batch_size=self.args.eval_batch_size,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
            shuffles=False,
        )
        collator = self.data_collator
        if isinstance(collator, DataCollatorForImageGeneration):
            collator = replace(collator, dropout=Dropout(), row_layout="padded")
        return self._loader(rows, order, collator)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader[Any]:
        """For `predict`: as for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, rows: TrainingRows, order: SampleOrder, collator: Any) -> DataLoader[Any]:
        args = self.args
        if args.dataloader_num_workers:
            kill_workers_at_exit()
        return DataLoader(
            rows,
            batch_sampler=order,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers and order.shuffles,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=ignore_sigterm,
        )

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.throughput.paused():
            return super()._evaluate(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a training batch; the parent asks once for each, before it goes to the device."""
        return self.throughput.add(inputs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, which looks at the number of steps only after one of them: a finished run takes no more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------ loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy of the target codes; pictures that come without codes are encoded by the model."""
        self._watch.note_skipped(inputs.pop("skipped", []))
        sample_ids, is_edit = inputs.pop("sample_ids", []), inputs.pop("is_edit")
        loss, outputs = Trainer.compute_loss(
            self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if self.model.training:
            self._watch.note_losses(sample_ids, outputs.token_losses, outputs.target_codes)
        self._code_metrics["train" if self.model.training else "eval"].add(outputs, is_edit)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """As the parent's; the labels are the target codes, of pictures that came without codes, too."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return (loss, None, None) if prediction_loss_only else (loss, outputs.logits, outputs.target_codes)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The parent's, which no callback is told."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._watch.note_gradient_norm(grad_norm)
        return grad_norm

    @property
    def skipped_rows(self) -> dict[str, str]:
        """The rows that this process could not use, and why."""
        return self._watch.skipped_rows

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the parent's, with loss and token accuracy by task and position; blank samples do not count."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        reshard(self.model)
        self._watch.check()
        report = self._code_metrics["eval"].report(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in report.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the parent's, with loss and token accuracy by task and position, and the throughput."""
        if self.model.training:
            report = self._code_metrics["train"].report(self.accelerator)
            logs |= {name: value for name, value in report.items() if name != "loss"}  # the parent's own
            logs |= self.throughput.report(self.accelerator)
        super().log(logs, start_time)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """The parent's without `torch.compile`, which [`compile_layers`] has done."""
        built: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        built.pop("dynamo_plugin", None)
        return built

    # ------------------------------------------------------------------ optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Janus4oSFTConfig, model: Any = None) -> tuple[Any, Any]:
        """As the parent's; with stochastic rounding where it is asked for."""
        if args.optim_bf16_stochastic_rounding:
            return rounding_optimizer(args, model)
        return trl.SFTTrainer.get_optimizer_cls_and_kwargs(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay for matrices only (upstream defect T8), unless the recipe decays norms and embeddings."""
        if self.args.decay_norms_and_embeddings:
            return [name for name, _ in model.named_parameters()]
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in embeddings]


def _check_arguments(args: Any, given: dict[str, Any]) -> None:
    """Refuse what cannot be trained, and what would act in vain."""
    if not isinstance(args, Janus4oSFTConfig):
        raise UserError(
            f"args is a {type(args).__name__}; give a Janus4oSFTConfig, which takes the same arguments and the "
            "recipe's."
        )
    for name, remedy in _UNUSED.items():
        if given.get(name) is not None:
            raise UserError(f"{name} is of no use here: {remedy}.")
    check_parallelism(args.parallelism_config)
    check_method(given.get("peft_config"))
    check_optimizer(args)
