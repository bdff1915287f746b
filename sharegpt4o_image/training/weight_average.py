# SPDX-License-Identifier: Apache-2.0
"""The weights of a run -> their exponential moving average, kept with every checkpoint and saved in `ema/`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer

FOLDER = "ema"


def decay_at(step: int, decay: float) -> float:
    """The decay after `step` optimizer steps (from 1): early steps forget the start sooner.

    As `num_updates` of TensorFlow's `ExponentialMovingAverage`: without it, 11 % of what 0.999 gives after the paper's
    2,162 steps would be the weights before training.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage(TrainerCallback):
    """Averages the trained parameters in fp32 after every optimizer step, on their device (4 bytes for each).

    Args:
        trainer: whose model; its `args.ema_decay` is the decay that the average comes to.
    """

    def __init__(self, trainer: "Janus4oSFTTrainer"):
        if trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise UserError(
                "ema_decay does not work with DeepSpeed ZeRO-3, which keeps no whole weights; leave it out, or use "
                "FSDP or ZeRO-2."
            )
        untyped: Any = trainer  # transformers leaves open what a trainer's model and arguments may be
        self._trainer, self._decay = untyped, untyped.args.ema_decay
        self.averages: dict[str, Tensor] = {}  # what this process holds of each
        self._is_sharded = False
        self._restored_from: Path | None = None

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with the weights, or with the average of the checkpoint that the run goes on from."""
        self._is_sharded = any(isinstance(parameter, DTensor) for parameter in self._trainer.model.parameters())
        self.averages = {name: weight.to(torch.float32, copy=True) for name, weight in self._weights()}
        if self._restored_from is not None:
            self._restore(self._restored_from)
            self._restored_from = None

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the new weights."""
        share = 1 - decay_at(state.global_step + 1, self._decay)
        for name, weight in self._weights():
            self.averages[name].lerp_(weight.float(), share)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model (the adapter, for LoRA) and its processor with the averaged weights, in `ema/`."""
        if self._trainer.was_interrupted:
            return
        folder = Path(args.output_dir, FOLDER)
        trainer = self._trainer
        with self.in_place():
            trainer._save(str(folder), self._whole())
        if args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink()  # it holds local paths

    def _whole(self) -> dict[str, Tensor] | None:
        """The weights to save, where the model has them in another form than they are saved in."""
        if self._trainer.is_fsdp_enabled:
            gathered: dict[str, Tensor] = self._trainer.accelerator.get_state_dict(self._trainer.model)
            return gathered
        # DeepSpeed rounds the image tokenizer, which `_save` puts back into what it is given
        return dict(self._trainer.model.state_dict()) if self._trainer.is_deepspeed_enabled else None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averaged weights, for a while; its own wait on the host."""
        kept = {name: weight.to("cpu", copy=True) for name, weight in self._weights()}
        for name, weight in self._weights():
            weight.copy_(self.averages[name])
        try:
            yield
        finally:
            for name, weight in self._weights():
                weight.copy_(kept[name])

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the trained parameters, of a sharded one what this process holds."""
        for name, parameter in self._trainer.model.named_parameters():
            if parameter.requires_grad:
                weight = parameter.detach()
                yield name, weight.to_local() if isinstance(weight, DTensor) else weight

    # ------------------------------------------------------------------ checkpoints

    def save(self, checkpoint: str) -> None:
        """Write the average into a checkpoint; processes that hold shards write one file each."""
        if self._is_sharded or self._trainer.args.should_save:
            save_file(self.averages, self._file(checkpoint))

    def restore_from(self, checkpoint: str) -> None:
        """Go on with the average of a checkpoint when training begins."""
        self._restored_from = Path(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        path = self._file(checkpoint)
        try:
            stored = load_file(path) if path.is_file() else {}
        except SafetensorError as error:
            raise UserError(
                f"{path} is damaged ({error}); delete {checkpoint} to go on from the one before."
            ) from error
        if stored.keys() != self.averages.keys():
            raise UserError(
                f"{path} is not there or has other parameters than this run trains, so the average cannot go on; "
                "leave ema_decay out, or resume on as many processes and with the settings it was saved with."
            )
        for name, average in self.averages.items():
            average.copy_(stored[name])

    def _file(self, checkpoint: str | Path) -> Path:
        args = self._trainer.args
        shard = f"-{args.process_index + 1}-of-{args.world_size}" if self._is_sharded else ""
        return Path(checkpoint, f"{FOLDER}{shard}.safetensors")
