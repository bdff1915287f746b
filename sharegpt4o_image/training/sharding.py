# SPDX-License-Identifier: Apache-2.0
"""What a run needs whose weights are spread over processes (FSDP2, DeepSpeed)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sharegpt4o_image.errors import UserError


def keep_sums_in_full_precision(fsdp_plugin: Any) -> None:
    """Let FSDP2 compute in half precision, but add gradients up in fp32 and leave the loss in fp32.

    accelerate 1.15 takes one dtype for all three: the loss would be logged with three digits.
    """
    policy = fsdp_plugin.mixed_precision_policy
    if fsdp_plugin.fsdp_version == 2 and policy is not None:
        fsdp_plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def reshard(model: nn.Module) -> None:
    """Spread the weights of FSDP2 again after forward passes without a backward one, which leave some gathered.

    The state of the optimizer cannot be read until then.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def unsharded_class(model: nn.Module) -> Iterator[None]:
    """Give a model of FSDP2 its own class back: `save_pretrained` would copy PyTorch's code to the folder."""
    sharded: Any = model.__class__
    model.__class__ = next(one for one in sharded.__mro__ if not issubclass(one, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded


def check_parallelism(config: Any) -> None:
    """Refuse to cut samples or layers apart (accelerate's `ParallelismConfig`, or `None`)."""
    if config is not None and config.non_data_parallel_size > 1:
        raise UserError(
            "parallelism_config sets tp_size, cp_size or sp_size; leave them at 1: samples are packed and counted "
            "whole. configs/accelerate/fsdp2.yaml spreads the weights."
        )


def check_rows(rows: Dataset, has_edits: bool, is_half_precision: bool, zero_stage: int) -> None:
    """Refuse what FSDP and DeepSpeed (`zero_stage`, 0 for FSDP) cannot train, or not rightly.

    ZeRO-3 gathers the weights of each module that is called, and a batch with edits calls more of them than one
    without: the processes wait for each other for ever (measured). And it rounds the image tokenizer while loading.
    """
    if zero_stage == 3:
        raise UserError(
            "DeepSpeed's ZeRO-3 cannot train this model; configs/accelerate/fsdp2.yaml spreads the weights as well, "
            "deepspeed_zero2.yaml the gradients and the optimizer state."
        )
    needed = {"target_codes"} | ({"source_codes"} if has_edits else set())
    missing = sorted(needed - set(rows.column_names))
    if missing and is_half_precision:
        raise UserError(
            f"The rows have no {' and no '.join(missing)}, and FSDP and DeepSpeed round the image tokenizer in half "
            "precision, too; run `sharegpt4o-image encode` first."
        )


def image_tokenizer_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the host, to be saved: DeepSpeed rounds the model's own in half precision, for good."""
    return {
        name: weight.detach().to("cpu", copy=True)
        for name, weight in model.state_dict().items()
        if name.startswith("model.vqmodel.")
    }
