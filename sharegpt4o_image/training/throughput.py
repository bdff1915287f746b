# SPDX-License-Identifier: Apache-2.0
"""How fast a run trains: samples, tokens and floating point operations per second, between one log and the next."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE
from sharegpt4o_image.training.flops import TrainingFlops, peak_flops_per_second
from sharegpt4o_image.training.training_metrics import sum_dtype

_TERA = 1e12


class Throughput(TrainerCallback):
    """Counts what is trained and the time it takes, but for what happens while `paused`.

    Batches are counted on the host, before they go to the device, so counting does not wait for it.

    Args:
        flops: of the model.
        device: that trains.
        dtype: of the matrix products; MFU is told for half precision, where the device's peak is known.
    """

    def __init__(self, flops: TrainingFlops, device: torch.device, dtype: torch.dtype):
        self._flops = flops
        is_half = dtype in (torch.bfloat16, torch.float16)
        is_known = is_half and device.type == "cuda"
        self._peak = peak_flops_per_second(torch.cuda.get_device_name(device)) if is_known else None
        self._start_over()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts here, in a run that goes on as in a new one."""
        self._start_over()

    def add(self, batch: Mapping[str, Any]) -> int:
        """Count a batch of [`DataCollatorForImageGeneration`]; its operations, for samples that a loss counts."""
        labels_SP = batch["labels"]
        num_codes = labels_SP.shape[1]
        prompts_S = batch["prompt_lengths"] if "prompt_lengths" in batch else batch["attention_mask"].sum(1)
        lengths_S = prompts_S + num_codes - 1
        lengths = lengths_S[(labels_SP != IGNORED_CODE).any(1)].tolist()
        self._samples += len(lengths)
        self._tokens += sum(lengths)
        self._positions += _num_positions(batch, lengths_S, num_codes)
        sources = batch.get("source_pixel_values")
        flops = self._flops.of(lengths, 0 if sources is None else len(sources))
        self._operations += flops
        return flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what is not training; before and after, the device finishes what it was given."""
        stopped = _now()
        try:
            yield
        finally:
            self._started += _now() - stopped

    def report(self, accelerator: Accelerator) -> dict[str, float]:
        """Rates over all processes since the last report, and start anew; every process must call it.

        Keys: `samples_per_second`, `tokens_per_second` (without padding), `tflops_per_second`, `mfu` (model FLOPs
        utilisation, a share of the devices' peak; left out where that is not known), and `padding_share`, of all
        positions that were computed. Nothing when nothing was trained.
        """
        seconds = _now() - self._started
        own = [self._samples, self._tokens, self._positions, self._operations / _TERA, seconds, self._peak or 0.0]
        device = accelerator.device
        sums = accelerator.reduce(torch.tensor(own, dtype=sum_dtype(device), device=device), reduction="sum")
        samples, tokens, positions, teraflops, all_seconds, all_peaks = sums.tolist()
        self._start_over()
        if not positions:
            return {}
        seconds = all_seconds / accelerator.num_processes
        rates = {"samples_per_second": samples, "tokens_per_second": tokens, "tflops_per_second": teraflops}
        report = {name: count / seconds for name, count in rates.items()}
        if all_peaks:
            report["mfu"] = report["tflops_per_second"] * _TERA / all_peaks
        return report | {"padding_share": 1 - tokens / positions}

    def _start_over(self) -> None:
        self._samples = self._tokens = self._positions = self._operations = 0
        self._started = _now()


def _num_positions(batch: Mapping[str, Any], lengths_S: Tensor, num_codes: int) -> int:
    """Of the language model for a batch, padding and blank samples with it."""
    if "prompt_lengths" in batch:
        return int(lengths_S.sum())
    rows, longest = batch["attention_mask"].shape
    return rows * (longest + num_codes - 1)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
