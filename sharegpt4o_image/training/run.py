# SPDX-License-Identifier: Apache-2.0
"""One training run: a packed and encoded data set + a checkpoint -> a fine-tuned checkpoint with its log and card."""

import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets, get_dataset_split_names
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import hub

from sharegpt4o_image.builders.loading import config_names
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.schema import TASKS
from sharegpt4o_image.training.adapters import ADAPTER_CONFIG, lora_config
from sharegpt4o_image.training.checkpoints_of_run import last_complete_checkpoint, step_of
from sharegpt4o_image.training.encoding import load_training_rows
from sharegpt4o_image.training.model_loading import load_model, load_processor
from sharegpt4o_image.training.row_checks import number_of_sources
from sharegpt4o_image.training.run_arguments import RunArguments
from sharegpt4o_image.training.run_record import (
    LOG_NAME,
    RECORD_NAME,
    check_folder,
    claimed,
    describe,
    describe_rows,
    read_log,
    without_nan,
    write_json,
)
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.weight_average import FOLDER as AVERAGE

logger = logging.getLogger(__name__)

VALIDATION = "validation"
_MIN_ROWS = 20  # of which at least one is held out
# What stays here when the folder is uploaded: checkpoints, and files with paths of this machine.
_PRIVATE = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", RECORD_NAME, LOG_NAME, "runs/*", "*.tfevents.*", "wandb/*", "*.tmp"]
_DAMAGED = (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class TrainingSummary:
    """How a run ended.

    Args:
        output_dir: its folder.
        log: what `training_log.json` holds; empty where the run was interrupted.
        is_interrupted: whether SIGTERM ended it; the same command goes on.
        was_finished: whether there was nothing left to train.
        uploaded_to: the repository that it was uploaded to.
    """

    output_dir: Path
    log: dict[str, Any]
    is_interrupted: bool = False
    was_finished: bool = False
    uploaded_to: str | None = None

    def to_json(self) -> str:
        """The log, on one line."""
        return json.dumps(self.log | {"is_interrupted": self.is_interrupted}, allow_nan=False)

    def to_text(self) -> str:
        """One line for people."""
        if self.is_interrupted:
            return (
                f"Interrupted; the last step is saved in {self.output_dir}, and the same command goes on from there."
            )
        done = f"{self.output_dir} is finished: " if self.was_finished else ""
        log, held_out = self.log, ""
        if log["held_out_loss_after"] is not None:
            held_out = f"; held-out loss {log['held_out_loss_before']:.3f} -> {log['held_out_loss_after']:.3f}"
        ends = [] if self.was_finished else [f"wrote {self.output_dir}"]
        ends += [f"uploaded it to {self.uploaded_to}"] if self.uploaded_to else []
        return f"{done}Trained {log['steps']} steps on {log['rows']} rows in {log['seconds']} s{held_out}; " + (
            " and ".join(ends) or "nothing was left to do"
        )


class _Trainer(Janus4oSFTTrainer):
    """The trainer; what cannot be made or read becomes one sentence."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with _refusal(f"The optimizer {self.args.optim} cannot be made; see optim and optim_args"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        name = self.args.lr_scheduler_type
        with _refusal(f"The schedule {name} cannot be made; see lr_scheduler_type and lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)


@contextmanager
def _refusal(sentence: str) -> Iterator[None]:
    """What the settings do not allow becomes one sentence."""
    try:
        yield
    except (ImportError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{sentence} ({' '.join(str(error).split())}).") from error


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """A damaged checkpoint is named, and the one before it."""
    try:
        yield
    except _DAMAGED as error:
        if checkpoint is None or isinstance(error, torch.OutOfMemoryError):
            raise
        before = last_complete_checkpoint(Path(checkpoint).parent, before=step_of(checkpoint))
        start = "begins anew" if before is None else f"goes on from {before}"
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{checkpoint} is damaged ({reason}); delete it, and the same command {start}.") from error


class _Reporter(TrainerCallback):
    """Tells the caller how many steps are done and of how many, and what was logged; writes log lines to the log."""

    def __init__(self, on_step: Callable[[int, int], None], on_log: Callable[[dict[str, float]], None]):
        self._on_step, self._on_log = on_step, on_log

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._on_log(logs or {})
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, json.dumps(logs, default=float))


def train(
    arguments: RunArguments,
    config: Janus4oSFTConfig,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_log: Callable[[dict[str, float]], None] = lambda logs: None,
) -> TrainingSummary:
    """Fine-tune a checkpoint on both tasks of a data set, mixed by random sampling (paper section 3).

    The same call again goes on from the last complete checkpoint of the folder; with other settings it is refused.

    Reads: the packed data set and the codes that `encode` wrote beside it.
    Writes: the folder `config.output_dir`, as `run_record` describes it. With LoRA, an adapter instead of weights.

    Args:
        arguments: what is trained, and on what.
        config: how.
        on_step: called with the number of optimizer steps done, and of all.
        on_log: called with what is logged: loss, token accuracy, throughput.
    """
    folder = Path(str(config.output_dir))
    asked = describe(arguments, config)
    check_folder(folder, asked)
    if (folder / LOG_NAME).is_file():
        return _finished(arguments, config, folder, asked)
    config.distributed_state.wait_for_everyone()  # nothing is written before all have looked
    try:
        trainer = _make_trainer(arguments, config, _Reporter(on_step, on_log))
        asked["data"] = describe_rows(trainer.train_dataset, trainer.eval_dataset)
        with claimed(folder, asked) if trainer.is_world_process_zero() else nullcontext():
            return _run(trainer, arguments, folder)
    except BaseException:
        if config.should_save:
            with suppress(OSError):
                folder.rmdir()  # what a run leaves that never began
        raise


def _finished(
    arguments: RunArguments, config: Janus4oSFTConfig, folder: Path, asked: dict[str, Any]
) -> TrainingSummary:
    """A run that is done: refused for other rows; uploaded where that is asked for."""
    log = read_log(folder)
    *_, rows, held_out = _load(arguments, config)
    check_folder(folder, asked | {"data": describe_rows(rows, held_out)})
    repository = None
    if config.push_to_hub:
        repository = str(config.hub_model_id or folder.name)
        if config.should_save:
            with _hub_errors():
                url = hub.hf_api().create_repo(
                    repository, token=config.hub_token, private=config.hub_private_repo, exist_ok=True
                )
                repository = str(url.repo_id)
                _upload(config, folder, repository)
    config.distributed_state.wait_for_everyone()
    return TrainingSummary(folder, log, was_finished=True, uploaded_to=repository)


def _upload(config: Janus4oSFTConfig, folder: Path, repository: str) -> None:
    hub.hf_api().upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="End of training",
        token=config.hub_token,
        revision=config.hub_revision,
        ignore_patterns=_PRIVATE,
    )


@contextmanager
def _hub_errors() -> Iterator[None]:
    """What the Hub, or the way to it, refuses becomes one sentence."""
    try:
        yield
    except (HfHubHTTPError, LocalTokenNotFoundError, ConnectionError, httpx2.HTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the Hub cannot be written to ({reason}); see that `hf auth login` or HF_TOKEN gives write access, then "
            "run the same command again, or leave push_to_hub out."
        ) from error


# ------------------------------------------------------------------ before the first step


def _load(
    arguments: RunArguments, config: Janus4oSFTConfig
) -> tuple[Janus4oForImageGeneration, Janus4oProcessor, Dataset, Dataset | None]:
    """Model, processor, the rows to train on, and the ones held out."""
    given: Any = config.model_init_kwargs or {}
    options: dict[str, Any] = {"dtype": arguments.dtype, **given}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    config.model_init_kwargs = None
    with _refusal(f"The checkpoint {arguments.model} cannot be loaded with these options"):
        model, processor = load_model(arguments.model, options), load_processor(arguments.model, options)
    processor.geometry = str(config.geometry)
    with config.main_process_first():
        rows, held_out = _load_rows(arguments, config.seed, model, processor)
    return model, processor, rows, held_out


def _make_trainer(arguments: RunArguments, config: Janus4oSFTConfig, reporter: _Reporter) -> _Trainer:
    model, processor, rows, held_out = _load(arguments, config)
    adapter = None
    if arguments.use_peft:
        adapter = lora_config(
            arguments.lora_target_modules, arguments.lora_r, arguments.lora_alpha, arguments.lora_dropout
        )
    try:
        with _hub_errors():  # the repository is made now, so that a token that may not write is known
            trainer = _Trainer(
                model, config, processing_class=processor, train_dataset=rows, eval_dataset=held_out,
                peft_config=adapter, callbacks=[reporter],
            )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for printer in (PrinterCallback, ProgressCallback):  # they write among the results on stdout
        trainer.remove_callback(printer)
    return trainer


def _load_rows(
    arguments: RunArguments, seed: int, model: Janus4oForImageGeneration, processor: Janus4oProcessor
) -> tuple[Dataset, Dataset | None]:
    """The rows of both tasks to train on, and the ones held out."""
    dataset = _local_dataset(str(arguments.dataset))
    names = [name for name in config_names(str(dataset)) if name in TASKS]
    rows = load_training_rows(dataset, names, arguments.train_split, model, processor)
    splits = {split for name in names for split in get_dataset_split_names(str(dataset), name)}
    eval_split = arguments.eval_split or (VALIDATION if VALIDATION in splits else None)
    if eval_split is not None:
        return rows, load_training_rows(dataset, names, eval_split, model, processor)
    if arguments.held_out_share and len(rows) < _MIN_ROWS:
        raise UserError(
            f"{dataset} has {len(rows)} rows; training holds some out and needs at least {_MIN_ROWS}: give more, or "
            "--held_out_share 0."
        )
    return hold_out(rows, arguments.held_out_share, seed)


def _local_dataset(name: str) -> Path:
    """The folder, or the repository of that name, downloaded into the Hub's cache."""
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return Path(name)
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"There is no folder {name}, and the Hub gives no such data set ({reason})") from error


def hold_out(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Set a share of each task's rows aside, at least one; none where the share is 0 or a task has a single row."""
    if share == 0:
        return rows, None
    kept, held_out = [], []
    num_sources = number_of_sources(rows)
    for is_edit in (False, True):
        numbers = [number for number, count in enumerate(num_sources) if bool(count) == is_edit]
        if len(numbers) < 2:
            kept.append(rows.select(numbers))
            continue
        if math.ceil(share * len(numbers)) == len(numbers):
            raise UserError(
                f"held_out_share is {share:g}, which leaves none of the {len(numbers)} rows of "
                f"{TASKS[is_edit]} to train on; give a smaller one."
            )
        split = rows.select(numbers).train_test_split(test_size=share, seed=seed)
        kept.append(split["train"])
        held_out.append(split["test"])
    return concatenate_datasets(kept), concatenate_datasets(held_out)


# ------------------------------------------------------------------ from the first step to the log


def _run(trainer: Janus4oSFTTrainer, arguments: RunArguments, folder: Path) -> TrainingSummary:
    rows: Any = trainer.train_dataset
    held_out: Any = trainer.eval_dataset
    checkpoint = last_complete_checkpoint(folder)
    start = 0 if checkpoint is None else step_of(checkpoint)
    trainer.args.eval_on_start = held_out is not None and checkpoint is None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.was_interrupted:
        return TrainingSummary(folder, {}, is_interrupted=True)
    history = trainer.state.log_history
    after = trainer.evaluate()["eval_loss"] if held_out is not None else None
    if after is not None and not math.isfinite(after):
        raise UserError(
            f"The held-out loss is {after} after {result.global_step} steps, so nothing of use was trained; its "
            f"checkpoints are in {folder}. Lower learning_rate, or take bf16 instead of fp16, in another folder."
        )
    log = {
        "rows": len(rows),
        "held_out_rows": len(held_out or []),
        "skipped_rows": {
            row: reason for part in gather_object([trainer.skipped_rows]) for row, reason in part.items()
        },
        "steps": result.global_step,
        "effective_batch_size": trainer.get_total_train_batch_size(trainer.args),
        "resumed_from_step": start or None,
        "seconds": round(result.metrics["train_runtime"], 1),  # since then, and so is the loss
        "train_loss": result.training_loss if result.global_step > start else None,
        "held_out_loss_before": next((entry["eval_loss"] for entry in history if "eval_loss" in entry), None),
        "held_out_loss_after": after,
        "curve": [entry for entry in history if "loss" in entry],
    }
    log = without_nan(log)
    _write_results(trainer, arguments, folder, log)
    return TrainingSummary(folder, log, uploaded_to=trainer.hub_model_id if trainer.args.push_to_hub else None)


def _write_results(trainer: Janus4oSFTTrainer, arguments: RunArguments, folder: Path, log: dict[str, Any]) -> None:
    """The Hub folder, its card, the upload if one is asked for, and last the log."""
    if trainer.is_fsdp_enabled:  # else what is saved is nothing
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(_internal_call=True)  # else it uploads the whole folder
    repository = trainer.hub_model_id if trainer.args.push_to_hub else None
    trainer.create_model_card(model_name=Path(repository or folder).name, dataset_name=str(arguments.dataset))
    if trainer.is_world_process_zero():
        _name_base(folder, arguments.model)
        if repository:
            with _hub_errors():
                _upload(trainer.args, folder, repository)
        write_json(folder / LOG_NAME, log)
    trainer.accelerator.wait_for_everyone()


def _name_base(folder: Path, model: str) -> None:
    """Let the adapters of a run name a shipped checkpoint or a repository so, and no folder of this machine."""
    if Path(model).exists():
        return
    for path in (folder / ADAPTER_CONFIG, folder / AVERAGE / ADAPTER_CONFIG):
        if path.is_file():
            write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": model})
