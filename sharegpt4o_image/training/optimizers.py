# SPDX-License-Identifier: Apache-2.0
"""Optimizers for weights that are kept in bf16 alone: torchao's AdamW, whose updates are rounded at random.

A bf16 number has 8 significant bits: at the recipe's learning rate an update is less than half a step and is lost
when it is rounded to the nearest. Rounded at random, it is kept on average (`docs/training.md`).
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

logger = logging.getLogger(__name__)

QUANTIZED = {OptimizerNames.ADAMW_TORCH_8BIT, OptimizerNames.ADAMW_TORCH_4BIT}  # states of 8 or 4 bits
PLAIN = {OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED}  # states as the weights are
# Above, a bf16 second moment changes by less than half a step and stays behind the gradient (`docs/training.md`).
MAX_BF16_BETA2 = 0.99


def check_optimizer(args: Janus4oSFTConfig) -> None:
    """Refuse what can be known before the model is loaded."""
    optim, rounds = OptimizerNames(args.optim), args.optim_bf16_stochastic_rounding
    if rounds and optim not in QUANTIZED | PLAIN:
        choices = ", ".join(sorted(name.value for name in QUANTIZED | PLAIN))
        raise UserError(f"optim_bf16_stochastic_rounding rounds for {choices}; optim is {optim.value}.")
    if (rounds or optim in QUANTIZED) and find_spec("torchao") is None:
        raise UserError(
            f"optim={optim.value}{' with stochastic rounding' if rounds else ''} needs torchao; "
            'type: pip install "sharegpt4o-image[quantize]"'
        )
    if rounds and optim in PLAIN and args.adam_beta2 > MAX_BF16_BETA2:
        logger.warning(
            "With optim=%s the moments of bf16 weights are bf16, too, and the second does not follow the gradient at "
            "adam_beta2=%s; take optim=adamw_torch_8bit, or adam_beta2=0.95.", optim.value, args.adam_beta2,
        )  # fmt: skip


def check_rounding(model: nn.Module, args: Janus4oSFTConfig) -> None:
    """Name bf16 weights whose updates are rounded to the nearest: at a small learning rate nothing is learned."""
    is_bf16 = any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
    if args.optim_bf16_stochastic_rounding and not is_bf16:
        raise UserError(
            "optim_bf16_stochastic_rounding is set and no trained weight is bf16; load the model in bfloat16, or "
            "leave it out."
        )
    if is_bf16 and not args.optim_bf16_stochastic_rounding:
        logger.warning(
            "The trained weights are bf16, which loses most updates of a learning rate such as %s; load them in "
            "float32, or set optim_bf16_stochastic_rounding=True.", args.learning_rate,
        )  # fmt: skip


def rounding_optimizer(args: Janus4oSFTConfig, model: Any) -> tuple[type, dict[str, Any]]:
    """Class and arguments of the AdamW that `args.optim` names, with stochastic rounding."""
    optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if args.optim in PLAIN:
        from torchao.optim import _AdamW  # the only one of torchao's that leaves the states as they are

        options.pop("fused", None)
        optimizer = _AdamW
    return optimizer, options | {"bf16_stochastic_round": True}
