# SPDX-License-Identifier: Apache-2.0
"""The `train` verb: a packed and encoded data set + a checkpoint -> a fine-tuned checkpoint with its log."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PrinterCallback, TrainerCallback

from sharegpt4o_image.builders.loading import config_names
from sharegpt4o_image.builders.staging import require_empty, staged_folder
from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.training.encoding import load_rows_with_codes
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer

LOG_NAME = "training_log.json"
_HELD_OUT_SHARE = 0.05  # rows kept out of training to measure the held-out loss
_MIN_ROWS = 20  # of which one is held out


class _StepReporter(TrainerCallback):
    """Tells the caller how many optimizer steps are done."""

    def __init__(self, on_step: Callable[[int], None]):
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step)


def train(
    dataset_dir: Path,
    model_dir: str,
    output_dir: Path,
    on_step: Callable[[int], None] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Fine-tune a checkpoint on all configs of a data set, mixed by random sampling (paper section 3).

    Reads: the packed data set and the codes that `encode` wrote beside it.
    Writes: a Hub folder in `output_dir`, and `training_log.json` there as the last thing.

    Args:
        dataset_dir: packed data set.
        model_dir: checkpoint to start from.
        output_dir: where the fine-tuned checkpoint goes; must not hold anything yet.
        on_step: called with the number of optimizer steps done.
        overrides: fields of [`Janus4oSFTConfig`].

    Returns:
        the log: `train_loss`, held-out loss before and after, and the curve.
    """
    require_empty(output_dir)
    model, processor = load_checkpoint(model_dir, dtype="float32")
    rows = _all_rows(dataset_dir, model)
    if len(rows) < _MIN_ROWS:
        raise UserError(f"{dataset_dir} has {len(rows)} rows; training holds some out and needs at least {_MIN_ROWS}.")
    split = rows.train_test_split(test_size=_HELD_OUT_SHARE, seed=overrides.get("seed", 42))
    callbacks = [_StepReporter(on_step)] if on_step else None
    with staged_folder(output_dir) as staging, tempfile.TemporaryDirectory() as scratch:
        config = Janus4oSFTConfig(
            output_dir=scratch, report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), **overrides,
        )  # fmt: skip
        trainer = Janus4oSFTTrainer(
            model, config, processor, train_dataset=split["train"], eval_dataset=split["test"], callbacks=callbacks
        )
        trainer.remove_callback(PrinterCallback)  # it prints every log line among the results on stdout
        before = trainer.evaluate()["eval_loss"]
        result = trainer.train()
        after = trainer.evaluate()["eval_loss"]
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        log = {
            "rows": len(split["train"]),
            "steps": result.global_step,
            "seconds": round(result.metrics["train_runtime"], 1),
            "train_loss": result.training_loss,
            "held_out_loss_before": before,
            "held_out_loss_after": after,
            "curve": [entry for entry in trainer.state.log_history if "loss" in entry],
        }
        (staging / LOG_NAME).write_text(json.dumps(log, indent=1), encoding="utf-8")
    return log


def _all_rows(dataset_dir: Path, model: Janus4oForImageGeneration) -> Dataset:
    """Both tasks in one data set, shuffled by the trainer."""
    names = config_names(str(dataset_dir))
    return concatenate_datasets([load_rows_with_codes(dataset_dir, name, model) for name in names])
