# SPDX-License-Identifier: Apache-2.0
"""How much memory the states of training take, by setup: weights, gradients, the two moments, the average.

    python benchmarks/training_memory.py [--json out/training_memory.json]
    python benchmarks/training_memory.py --measure [--json out/training_memory_measured.json]

Computed from parameter counts on the meta device, for a training of both tasks. Activations come on top, with the
copies in half precision that autocast makes of fp32 weights (2 bytes for each, until the backward pass). With
`--measure`, each setup trains one step of the tiny model, and the bytes of its tensors are held against the same sum.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import concatenate_datasets
from memory import GIB, SIZES, as_table, shape_model
from peft import get_peft_model
from transformers import TrainerCallback

from sharegpt4o_image.checkpoints import TINY_JANUS_PRO, load_checkpoint
from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.training.adapters import lora_config
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer, freeze_unused
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows
from sharegpt4o_image.training.weight_average import WeightAverage

MIB = 2**20
FP32, BF16 = 4, 2
EIGHT_BITS = 1 + 4 / 256  # torchao: a scale in fp32 for every 256 numbers
_ROUNDED = {"optim_bf16_stochastic_rounding": True}


@dataclass(frozen=True)
class Setup:
    """Bytes of a number: in weights, and in each of the two moments; gradients are as the trained weights."""

    weight: int
    moment: float
    is_lora: bool = False  # adapters are fp32, whatever the base is (peft)
    has_average: bool = False  # `ema_decay`, fp32
    options: dict[str, Any] = field(default_factory=dict)  # of the configuration

    @property
    def trained_weight(self) -> int:
        """Bytes of a number that is trained."""
        return FP32 if self.is_lora else self.weight


SETUPS = {
    "fp32 weights, AdamW": Setup(FP32, FP32),
    "fp32 weights, 8-bit AdamW": Setup(FP32, EIGHT_BITS, options={"optim": "adamw_torch_8bit"}),
    "bf16 weights, bf16 moments, rounded at random": Setup(BF16, BF16, options=_ROUNDED),
    "bf16 weights, 8-bit AdamW, rounded at random": Setup(
        BF16, EIGHT_BITS, options=_ROUNDED | {"optim": "adamw_torch_8bit"}
    ),
    "the same with ema_decay": Setup(
        BF16, EIGHT_BITS, has_average=True, options=_ROUNDED | {"optim": "adamw_torch_8bit", "ema_decay": 0.999}
    ),
    "LoRA (r=32) on bf16 weights, AdamW": Setup(BF16, FP32, is_lora=True),
}


def states(setup: Setup, counts: dict[str, int]) -> dict[str, float]:
    """Bytes of each kind of state; the image tokenizer is fp32 in every setup."""
    trained, frozen, tokenizer = counts["trained"], counts["frozen"], counts["tokenizer"]
    found = {
        "weights": setup.trained_weight * trained + setup.weight * frozen + FP32 * tokenizer,
        "gradients": setup.trained_weight * trained,
        "moments": 2 * setup.moment * trained,
        "average": FP32 * trained * setup.has_average,
    }
    return found | {"all": sum(found.values())}


def count(model: Janus4oForImageGeneration, is_lora: bool) -> dict[str, int]:
    """Numbers of a model that are trained, frozen, and in the image tokenizer."""
    freeze_unused(model, Janus4oSFTConfig("unused", use_cpu=True), has_edits=True)
    parameters = list(get_peft_model(model, lora_config()).parameters() if is_lora else model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    tokenizer = sum(p.numel() for p in model.model.vqmodel.parameters())
    return {
        "trained": trained, "tokenizer": tokenizer, "frozen": sum(p.numel() for p in parameters) - trained - tokenizer,
    }  # fmt: skip


def rows() -> list[dict[str, object]]:
    """A row for each size and setup, in GiB."""
    table: list[dict[str, object]] = []
    for name in SIZES:
        for words, setup in SETUPS.items():
            counts = count(shape_model(name), setup.is_lora)
            gib = {f"{kind} (GiB)": value / GIB for kind, value in states(setup, counts).items()}
            table.append({"model": name, "setup": words, "trained (M)": counts["trained"] / 1e6, **gib})
    return table


# --------------------------------------------------------------------------- measured


class _Gradients(TrainerCallback):
    """Bytes of the gradients before the optimizer's step."""

    num_bytes = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.num_bytes = num_bytes(p.grad for p in model.parameters() if p.grad is not None)


def num_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors; of torchao's, those of the codes and scales inside."""
    parts = [[t.codes, t.scale] if hasattr(t, "codes") else [t] for t in tensors]
    return sum(part.nbytes for group in parts for part in group)


def measure(setup: Setup) -> dict[str, float]:
    """Bytes of the states after one step of the tiny model."""
    model, processor = load_checkpoint(TINY_JANUS_PRO, "bfloat16" if setup.weight == BF16 else "float32")
    data = concatenate_datasets([edit_rows(model, processor, 2, seed=1), text_to_image_rows(model, processor, 2, 2)])
    gradients = _Gradients()
    with tempfile.TemporaryDirectory() as folder, torch.compiler.set_stance("force_eager"):
        config = Janus4oSFTConfig(
            folder, max_steps=1, per_device_train_batch_size=4, report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True, **setup.options,
        )  # fmt: skip
        adapter = lora_config() if setup.is_lora else None
        trainer: Any = Janus4oSFTTrainer(
            model, config, processing_class=processor, train_dataset=data, peft_config=adapter, callbacks=[gradients]
        )
        trainer.train()
    moments = [state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    averages = [one for one in trainer.callback_handler.callbacks if isinstance(one, WeightAverage)]
    found: dict[str, float] = {
        "weights": num_bytes(trainer.model.parameters()),
        "gradients": gradients.num_bytes,
        "moments": num_bytes(moments),
        "average": sum(num_bytes(one.averages.values()) for one in averages),
    }
    return found | {"all": sum(found.values())}


def measured_rows() -> list[dict[str, object]]:
    """A row for each setup, in MiB; torchao keeps tensors of fewer than 4096 numbers as the weights are."""
    table: list[dict[str, object]] = []
    for words, setup in SETUPS.items():
        model, _ = load_checkpoint(TINY_JANUS_PRO)
        computed, measured = states(setup, count(model, setup.is_lora)), measure(setup)
        mib = {f"{kind} (MiB)": value / MIB for kind, value in measured.items()}
        table.append({"setup": words, **mib, "measured / computed": measured["all"] / computed["all"]})
    return table


def main() -> None:
    """Print the table, and write it as JSON on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="train a step of the tiny model in each setup")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = measured_rows() if given.measure else rows()
    print(as_table(table))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
