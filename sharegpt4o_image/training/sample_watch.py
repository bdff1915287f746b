# SPDX-License-Identifier: Apache-2.0
"""Names the samples that cannot be used or spoil a step, and stops the run, on every process at once."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE

logger = logging.getLogger(__name__)

# S samples, P image tokens

_NAMED = 20  # samples that a message names; our choice


class SampleWatch(TrainerCallback):
    """Looks once per optimizer step, before it changes a weight, at what was noted for each micro-batch.

    Args:
        max_skipped_rows: stop when more rows than this were skipped, over all processes.

    Attributes:
        skipped_rows: of this process: the id of each row that could not be used, and why.
    """

    accelerator: Accelerator  # the trainer's, which it makes after its callbacks

    def __init__(self, max_skipped_rows: int):
        self.skipped_rows: dict[str, str] = {}
        self._max_skipped_rows = max_skipped_rows
        self._gradient_norm = 0.0
        self._num_unusable = 0  # samples since the last usable one
        self._begin_step()

    def _begin_step(self) -> None:
        self._sample_ids: list[str] = []
        self._is_finite: list[Tensor] = []  # (S,) of each micro-batch, on its device
        self._is_usable: list[Tensor] = []  # as these

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the steps of an earlier run, which may have stopped in one."""
        self._num_unusable = 0
        self._begin_step()

    def note_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Name rows that cannot be used."""
        for row_id, reason in skipped:
            if row_id not in self.skipped_rows:
                logger.warning("Skipped the row %s: %s", row_id, reason)
            self.skipped_rows[row_id] = reason

    def note_losses(self, sample_ids: Sequence[str], token_losses: Tensor, target_codes: Tensor) -> None:
        """The losses and targets (S, P) of a micro-batch that is trained; does not wait for the device."""
        self._sample_ids += sample_ids
        self._is_finite.append(token_losses.sum(1).isfinite())
        self._is_usable.append((target_codes != IGNORED_CODE).any(1))

    def note_gradient_norm(self, gradient_norm: float | Tensor | None) -> None:
        """The norm of a step's gradient over all processes, where it is known."""
        self._gradient_norm = 0.0 if gradient_norm is None else float(gradient_norm)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop a step that would spoil the weights."""
        has_losses = bool(torch.cat(self._is_finite).all())
        # In fp16 the loss is scaled so far up that a gradient overflows now and then: accelerate skips such a step.
        has_gradient = args.fp16 or math.isfinite(self._gradient_norm)
        self.check(num_bad=int(not (has_losses and has_gradient)), step=state.global_step + 1)
        self._check_usable(state.global_step + 1)
        self._begin_step()

    def _check_usable(self, step: int) -> None:
        """Stop a step without a usable sample: it would only repeat where the steps before it went.

        The first of several steps of a single sample passes: one broken picture is no reason to stop.
        """
        usable = torch.cat(self._is_usable)
        counts = torch.tensor([int(usable.sum()), len(usable)], device=self.accelerator.device)
        num_usable, num_samples = self.accelerator.reduce(counts, reduction="sum").tolist()
        self._num_unusable = 0 if num_usable else self._num_unusable + num_samples
        if self._num_unusable > 1:
            raise UserError(
                f"No sample of step {step} can be used: {self._describe_skipped()}. `sharegpt4o-image verify` finds "
                "all."
            )

    def _describe_skipped(self) -> str:
        return _shortened(gather_object([f"{row_id} ({reason})" for row_id, reason in self.skipped_rows.items()]))

    def check(self, num_bad: int = 0, step: int = 0) -> None:
        """Stop on every process if one has a bad step, or if all together skipped too many rows; all must call it."""
        counts = torch.tensor([num_bad, len(self.skipped_rows)], device=self.accelerator.device)
        num_bad, num_skipped = self.accelerator.reduce(counts, reduction="sum").tolist()
        if num_bad:
            raise UserError(self._describe_bad_step(step))
        if num_skipped > self._max_skipped_rows:
            raise UserError(
                f"{num_skipped} rows cannot be used, more than max_skipped_rows ({self._max_skipped_rows}) allows: "
                f"{self._describe_skipped()}. `sharegpt4o-image verify` finds all."
            )

    def _describe_bad_step(self, step: int) -> str:
        is_finite = torch.cat(self._is_finite).tolist()
        bad = [name for name, fine in zip(self._sample_ids, is_finite, strict=True) if not fine]
        bad, all_ids = gather_object(bad), gather_object(self._sample_ids)
        what = f"The loss of {_shortened(bad)}" if bad else f"The gradient of a step on {_shortened(all_ids)}"
        return (
            f"{what} is not finite in step {step}; the step was not made. Take these rows out or lower the learning "
            "rate, in a run of its own: other output folder, and as its model this one's or the last checkpoint."
        )


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
