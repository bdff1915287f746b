# SPDX-License-Identifier: Apache-2.0
"""A trainer -> the facts of its model card: what it began with, the recipe, the data, what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model

from sharegpt4o_image.builders.model_card import ModelCardFacts, Training
from sharegpt4o_image.training.adapters import without_adapters
from sharegpt4o_image.training.sft_config import PRESETS, Janus4oSFTConfig

if TYPE_CHECKING:
    from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer

# Fields that the card shows besides those of the preset.
_RECIPE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "bf16", "seed",
    "edit_share", "freeze_vision_tower", "freeze_aligners", "ema_decay",
)  # fmt: skip


def card_facts(
    trainer: "Janus4oSFTTrainer", model_name: str | None, dataset_name: str | None, tags: tuple[str, ...]
) -> ModelCardFacts:
    """What the card of a training run says; nothing in it is a path of this machine.

    Args:
        trainer: in training, or done.
        model_name: title of the card; the name of the run's folder by default.
        dataset_name: repository or folder of the data.
        tags: for the Hub.
    """
    args = trainer.args
    model = without_adapters(trainer.model)
    name = model_name or Path(str(args.output_dir)).name
    is_adapter = is_peft_model(trainer.model)
    base, dataset = str(model.config._name_or_path), dataset_name or ""
    return ModelCardFacts(
        name=name,
        summary="Janus-Pro, fine-tuned to draw from a text and to edit pictures.",
        path=trainer.hub_model_id or name,
        base_model=base if _is_repository(base) else None,
        datasets=(dataset,) if _is_repository(dataset) else (),
        can_edit=trainer.has_edits,
        library_name="peft" if is_adapter else "transformers",
        adapter_base=(base if _is_repository(base) else Path(base).name) if is_adapter else None,
        tags=tags,
        sampling={option: getattr(model.config, option) for option in ("guidance_scale", "edit_freedom")},
        training=_training(trainer, _notes(trainer, base, dataset)),
    )


def _is_repository(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).exists()


def _notes(trainer: "Janus4oSFTTrainer", base: str, dataset: str) -> list[str]:
    notes = [] if _is_repository(base) or not base else [f"Training began with the checkpoint {Path(base).name}."]
    if dataset and not _is_repository(dataset):
        notes.append(f"The data set was the folder {Path(dataset).name}.")
    if is_peft_model(trainer.model):
        notes.append("This is a LoRA adapter; sharegpt4o-image convert ADAPTER MERGED merges it into its base.")
    losses = _losses(trainer.state.log_history)
    if losses:
        notes.append(f"Loss on held-out rows: {losses[0]:.4f} at first, {losses[-1]:.4f} at last.")
    if trainer.skipped_rows:
        notes.append(f"Rows left out, since they could not be used: {len(trainer.skipped_rows)}.")
    return notes


def _losses(history: list[dict[str, float]]) -> list[float]:
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def _training(trainer: "Janus4oSFTTrainer", notes: list[str]) -> Training:
    args: Any = trainer.args
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    return Training(
        recipe=_recipe(args) | {"effective batch": trainer.get_total_train_batch_size(args)},
        num_steps=trainer.state.global_step,
        final_loss=round(losses[-1], 4) if losses else None,
        hardware=f"{args.world_size} x {torch.cuda.get_device_name()}" if args.device.type == "cuda" else "CPU",
        minutes=round(seconds[-1] / 60, 1) if seconds else None,
        notes=(*notes, "Trained with Janus4oSFTTrainer of sharegpt4o-image."),
    )


def _recipe(args: Janus4oSFTConfig) -> dict[str, Any]:
    names = ("preset", *PRESETS[args.preset], *_RECIPE)
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
