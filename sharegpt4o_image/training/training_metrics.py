# SPDX-License-Identifier: Apache-2.0
"""What a training run reports: loss and token accuracy by task and by position in the picture."""

import torch
from accelerate import Accelerator
from torch import Tensor

from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE, Janus4oOutput

# S samples, P image tokens, V codes

TASKS = ("text_to_image", "text_and_image_to_image")
NUM_BANDS = 4  # quarters of the picture, from its first row of codes to its last (our choice)
_SUMS = 3  # losses, right guesses, codes


def sum_dtype(device: torch.device) -> torch.dtype:
    """In what is added up: fp64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


class CodeMetrics:
    """Sums since the last report, kept on the device: adding to them does not wait for it."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (tasks, bands, 3)

    @torch.no_grad()
    def add(self, output: Janus4oOutput, is_edit: Tensor) -> None:
        """Count a batch; `is_edit` is bool (S,)."""
        assert output.logits is not None
        assert output.target_codes is not None
        assert output.token_losses is not None
        targets_SP = output.target_codes
        counted_SP = targets_SP != IGNORED_CODE
        right_SP = (output.logits.argmax(-1) == targets_SP) & counted_SP
        stacked = torch.stack([output.token_losses, right_SP, counted_SP], dim=-1)  # (S, P, 3)
        stacked = stacked.to(sum_dtype(stacked.device))
        by_band = torch.stack([band.sum(1) for band in stacked.tensor_split(NUM_BANDS, dim=1)])  # (bands, S, 3)
        of_task = torch.stack([~is_edit, is_edit])  # (tasks, S)
        # Chosen, not multiplied: a loss that is not finite must not spoil the other task's sum.
        sums = torch.where(of_task[:, None, :, None], by_band, 0.0).sum(2)  # (tasks, bands, 3)
        self._sums = sums if self._sums is None else self._sums + sums

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last report, and start anew; every process must call it.

        Keys: `loss`, `token_accuracy`, `loss_<task>`, `token_accuracy_<task>`, and `loss_quarter_<n>`,
        `token_accuracy_quarter_<n>` with n from 1; what was not seen is left out.
        """
        sums = torch.zeros(
            len(TASKS), NUM_BANDS, _SUMS, dtype=sum_dtype(accelerator.device), device=accelerator.device
        )
        if self._sums is not None:
            sums += self._sums
        self._sums = None
        sums = accelerator.reduce(sums, reduction="sum").cpu()
        parts = {"": sums.sum((0, 1))}
        parts |= {f"_{task}": sums[i].sum(0) for i, task in enumerate(TASKS)}
        parts |= {f"_quarter_{band + 1}": sums[:, band].sum(0) for band in range(NUM_BANDS)}
        report = {}
        for name, (loss, right, count) in ((name, part.tolist()) for name, part in parts.items()):
            if count:
                report[f"loss{name}"], report[f"token_accuracy{name}"] = loss / count, right / count
        return report
