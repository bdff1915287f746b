# SPDX-License-Identifier: Apache-2.0
"""How fast a training step is: ours, what it would cost without each of its savings, and upstream's.

    python benchmarks/train.py --shape small [--samples 4] [--rounds 2] [--json out/train.json]

Every arm trains on the same samples, half of them edits, with the same weights (learning rate 0). Losses and
gradients are compared first; without equality in fp32 nothing is timed. Then the arms take an update each in turns, a
warm-up round and the rounds that count; the least of each is reported. Batches are collated before: loading runs in
other processes in a real run, and is reported apart. Nothing is dropped, so that all arms compute the same.

Upstream's step is that of `upstream_step.py`. It runs one sample at a time, as the command of its README does, and
padded, as its collator makes batches of several.

Shapes: `small` (4 layers of 512, 144 codes, parts in about the proportions of the 7B), `long` (4 layers of 256,
samples as long as the released models': attention counts for more), `vocabulary` (`small` with the released
vocabulary, which is then most of the model), `tiny` (a check that it runs), `1b` and `7b` (Janus-Pro's, random weights
in bf16, for a GPU; the arms then run one after the other, each with the memory to itself, ours with moments of 8 bits
and stochastic rounding, as `docs/training.md` advises for one GPU, which needs torchao; losses are compared by code).
"""

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import torch.nn.functional as F
import transformers
import trl
from datasets import Dataset
from generate import time_arms
from torch import Tensor, nn
from training_shapes import SHAPES, Shape, make_model, make_processor, make_rows
from upstream_step import FullPrecisionAdamW, UpstreamMetrics, upstream_batch, upstream_losses

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.flops import TrainingFlops, peak_flops_per_second
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer, freeze_unused
from sharegpt4o_image.training.training_rows import TrainingRows

# S samples, L prompt tokens, P image tokens, T tokens of a sample with its codes, D width, V codes, N sources

EPOCH_SAMPLES, EPOCHS, NUM_DEVICES, PAPER_HOURS = 92_256, 3, 8, 6.0  # paper section 3
LEARNING_RATE = 0.0  # the weights stay the same, the work is that of any other
TOLERANCE = 1e-4  # of losses, and of gradients relative to the largest of their tensor; fp32
SMALLEST_GRADIENT = 1e-3  # of the largest of all: tensors below it, such as biases of keys, are nothing but rounding
# Of the losses of a code, the median difference in nats, where arms run apart in bf16: rounding makes 0.01, and other
# codes or masks make 0.5 and more, even untrained.
BF16_TOLERANCE = 0.1


# --------------------------------------------------------------------------- arms


@dataclass
class Arm:
    """One way to make an update from all samples.

    Args:
        model: its own.
        batches: the micro-batches, collated.
        run: a micro-batch -> losses by code (S, P), or without the first code (S, P - 1); adds the gradients of the
            mean over all samples.
        optimizer: of all that it trains.
        steps_each: the optimizer steps after each micro-batch.
        collate_seconds: what making the batches took.
    """

    model: Janus4oForImageGeneration
    batches: list[dict[str, Any]]
    run: Callable[[dict[str, Any]], Tensor]
    optimizer: Any
    collate_seconds: float
    steps_each: bool = False

    def update(self) -> Any:
        """Forward, backward and optimizer."""
        for batch in self.batches:
            self.run(batch)
            if self.steps_each:
                self._step()
        if not self.steps_each:
            self._step()

    def _step(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def computed_tokens(self) -> int:
        """Tokens that go through the language model, padding included."""
        num_codes = self.model.config.num_image_tokens
        return sum(
            batch["input_ids"].numel()
            + (len(batch["labels"]) * (num_codes - 1) if "labels" in batch else len(batch["input_ids"]) * num_codes)
            for batch in self.batches
        )


# name -> arguments of `our_arm` and `upstream_arm`
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, not encoded": {"is_encoded": False},
    "ours, one by one": {"micro_batch": 1},
    "ours, padded": {"layout": "padded"},
    "ours, dense mask": {"attention": "sdpa"},
    "ours, vocabulary logits": {"has_vocabulary_logits": True},
    "ours, compiled": {"is_compiled": True},
}
UPSTREAM: dict[str, dict[str, Any]] = {
    "upstream, one by one": {"micro_batch": 1},
    "upstream, accumulation off": {"micro_batch": 1, "steps_each": True},  # T2
    "upstream, padded": {},
    "upstream, padded, eager": {"attention": "eager"},
}
CPU_ARMS = [name for name in (*OURS, *UPSTREAM) if name != "ours, compiled"]
GPU_ARMS = ["ours", "ours, compiled", "ours, not encoded", "ours, padded", "upstream, one by one", "upstream, padded"]


def make_arm(name: str, shape: Shape, processor: Janus4oProcessor, rows: Dataset, folder: str, device: str) -> Arm:
    """An arm by name, with a model of its own."""
    model = make_model(shape, processor, device)
    if name in UPSTREAM:
        return upstream_arm(model, processor, rows, **UPSTREAM[name])
    return our_arm(model, processor, rows, folder, **OURS[name])


def parts_of(num_samples: int, size: int | None) -> list[range]:
    """Numbers of the samples of each micro-batch; all in one without `size`."""
    size = size or num_samples
    return [range(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def our_arm(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    rows: Dataset,
    folder: str,
    layout: str = "packed",
    micro_batch: int | None = None,
    attention: str | None = None,
    is_encoded: bool = True,
    is_compiled: bool = False,
    has_vocabulary_logits: bool = False,
) -> Arm:
    """The trainer's own collator, loss and optimizer."""
    is_cpu = model.device.type == "cpu"
    arguments = Janus4oSFTConfig(
        output_dir=folder, row_layout=layout, geometry="pad", learning_rate=LEARNING_RATE, max_steps=1,
        prompt_dropout=0.0, source_code_dropout=0.0, instruction_dropout=0.0, null_dropout=0.0, bf16=False,
        use_cpu=is_cpu, optim="adamw_torch" if is_cpu else "adamw_torch_8bit",
        optim_bf16_stochastic_rounding=not is_cpu, torch_compile=is_compiled, report_to="none",
    )  # fmt: skip
    rows = rows if is_encoded else rows.remove_columns(["target_codes", "source_codes"])
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    if attention is not None:
        model.set_attn_implementation({"text_config": attention})
    samples, started = TrainingRows(trainer.train_dataset), time.perf_counter()
    batches = [trainer.data_collator([samples[i] for i in part]) for part in parts_of(len(rows), micro_batch)]
    seconds = time.perf_counter() - started
    vocabulary_loss = VocabularyLoss(model) if has_vocabulary_logits else None
    num_codes = len(rows) * processor.num_image_tokens

    def run(batch: dict[str, Any]) -> Tensor:
        inputs = trainer._prepare_inputs(dict(batch))
        loss, outputs = trainer.compute_loss(model.train(), inputs, return_outputs=True, num_items_in_batch=num_codes)
        if vocabulary_loss is not None:
            loss = loss + vocabulary_loss.take()
        trainer.accelerator.backward(loss)
        return outputs.token_losses

    return Arm(model, batches, run, trainer.create_optimizer(), seconds)


class VocabularyLoss:
    """What a language model's forward pass does besides: logits of the whole vocabulary at every token, and a loss.

    The loss counts 0 times, so that the arm computes the same otherwise.
    """

    def __init__(self, model: Janus4oForImageGeneration):
        self._head = model.lm_head.requires_grad_(True)
        self._hidden: list[Tensor] = []
        model.model.language_model.register_forward_hook(
            lambda _, __, output: self._hidden.append(output.last_hidden_state)
        )

    def take(self) -> Tensor:
        """Of the last forward pass."""
        logits_TV = self._head(self._hidden.pop().flatten(0, 1)).float()
        return 0.0 * F.cross_entropy(logits_TV, torch.zeros(len(logits_TV), dtype=torch.long, device=logits_TV.device))


def upstream_arm(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    rows: Dataset,
    micro_batch: int | None = None,
    attention: str = "sdpa",
    steps_each: bool = False,
) -> Arm:
    """Upstream's step."""
    model.train().set_attn_implementation({"text_config": attention})
    if model.device.type == "cuda":
        model.model.vqmodel.to(torch.bfloat16)  # T10
    started = time.perf_counter()
    batches = [upstream_batch(processor, [rows[i] for i in part]) for part in parts_of(len(rows), micro_batch)]
    seconds = time.perf_counter() - started
    batches = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]
    metrics = UpstreamMetrics()

    def run(batch: dict[str, Any]) -> Tensor:
        losses, num_right = upstream_losses(model, batch)
        loss = losses.mean()
        metrics.add(losses, loss, num_right)
        (loss / len(batches)).backward()
        return losses.detach()

    return Arm(model, batches, run, FullPrecisionAdamW(model, LEARNING_RATE), seconds, steps_each)


# --------------------------------------------------------------------------- comparing


def losses_and_gradients(arm: Arm) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses by code of all samples, and the gradients of their mean."""
    found = torch.cat([arm.run(batch) for batch in arm.batches])
    gradients = {name: p.grad.clone() for name, p in arm.model.named_parameters() if p.grad is not None}
    arm.optimizer.zero_grad()
    return found, gradients


def differences(arms: dict[str, Arm]) -> dict[str, dict[str, float]]:
    """How far each arm is from the first.

    Losses of the codes after the first code; where the first is trained, too, also the gradients, relative to the
    largest of their tensor.
    """
    (_, first), *others = arms.items()
    base, base_gradients = losses_and_gradients(first)
    found = {}
    for name, arm in others:
        losses, gradients = losses_and_gradients(arm)
        found[name] = {"losses": float((losses[:, -(base.shape[1] - 1) :] - base[:, 1:]).abs().max())}
        if losses.shape == base.shape:
            found[name]["gradients"] = furthest_gradient(gradients, base_gradients)
    return found


def furthest_gradient(gradients: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest entry of the tensor that it is in."""
    largest = {name: float(value.abs().max()) for name, value in base.items()}
    floor = SMALLEST_GRADIENT * max(largest.values())
    return max(
        float((gradients[name] - value).abs().max()) / max(largest[name], floor) for name, value in base.items()
    )


# --------------------------------------------------------------------------- measuring


def time_together(
    names: list[str], make: Callable[[str], Arm], rounds: int, device: str
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """The arms in turns, compared before: times, and differences to the first."""
    arms = {name: make(name) for name in names}
    apart = differences(arms)
    if any(value > TOLERANCE for row in apart.values() for value in row.values()):
        raise SystemExit(f"The arms compute different things; nothing was timed. {json.dumps(apart, indent=1)}")
    times = time_arms({name: arm.update for name, arm in arms.items()}, rounds, device)
    return {name: {**times[name], **facts_of(arm)} for name, arm in arms.items()}, apart


def time_apart(names: list[str], make: Callable[[str], Arm], rounds: int, device: str) -> dict[str, dict[str, Any]]:
    """Each arm with the device to itself: times and peak memory. Arms that do not fit, or differ, are named."""
    found: dict[str, dict[str, Any]] = {}
    base: Tensor | None = None
    for name in names:
        arm: Arm | None = None  # the last one goes first
        gc.collect()
        torch.cuda.empty_cache()
        try:
            arm = make(name)
            losses, _ = losses_and_gradients(arm)
            losses = losses[:, 1 - arm.model.config.num_image_tokens :].float().cpu()  # upstream's has no first code
            base = losses if base is None else base
            difference = float((losses - base).abs().median())
            if difference > BF16_TOLERANCE:
                print(f"{name}: left out, it computes something else (losses differ by {difference:.2f})")
            else:
                found[name] = {"difference": difference, **time_alone(arm, rounds, device)}
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit into the memory of this device")
    if not found:
        raise SystemExit("No arm fits into the memory of this device; name a smaller --shape.")
    return found


def time_alone(arm: Arm, rounds: int, device: str) -> dict[str, Any]:
    """One arm of [`time_apart`]."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = time_arms({"arm": arm.update}, rounds, device)["arm"]
    peak = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
    return {**times, **facts_of(arm), **peak}


def facts_of(arm: Arm) -> dict[str, float]:
    """What an arm is, apart from time."""
    return {"computed_tokens": arm.computed_tokens, "collate_seconds": arm.collate_seconds}


def useful_flops(shape: Shape, processor: Janus4oProcessor, rows: Dataset) -> tuple[int, int]:
    """Operations and tokens that an update needs: no padding, no encoding, no unused head."""
    with torch.device("meta"):
        model = Janus4oForImageGeneration(shape.config(processor))
    freeze_unused(model, Janus4oSFTConfig("unused", use_cpu=True), has_edits=True)
    num_sources = [len(images) for images in rows["input_image"]]
    lengths = [
        len(processor.image_generation_ids(prompt, count)) + processor.num_image_tokens - 1
        for prompt, count in zip(rows["input_prompt"], num_sources, strict=True)
    ]
    return TrainingFlops(model).of(lengths, sum(num_sources)), sum(lengths)


def matrix_rate(device: str) -> float:
    """Operations a second of a large matrix product."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    factor = torch.randn(side, side, device=device, dtype=dtype)
    times = time_arms({"product": lambda: factor @ factor}, 5, device)
    return 2 * side**3 / times["product"]["seconds"]


def report(given: argparse.Namespace, device: str) -> dict[str, Any]:
    """All that was measured, for the table and the JSON file."""
    shape = SHAPES[given.shape]
    processor = make_processor(shape)
    rows = make_rows(make_model(shape, processor, device), processor, given.samples)
    names = given.arms or (GPU_ARMS if given.apart else CPU_ARMS)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu"
    result: dict[str, Any] = {
        "shape": given.shape, "samples": given.samples, "rounds": given.rounds, "seed": 0,
        "device": name,
        "threads": torch.get_num_threads(), "load": os.getloadavg(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl, accelerate)},
        "matrix_flops_per_second": matrix_rate(device), "peak_flops_per_second": peak_flops_per_second(name),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:

        def make(name: str) -> Arm:
            return make_arm(name, shape, processor, rows, folder, device)

        if given.apart:
            result["arms"] = time_apart(names, make, given.rounds, device)
        else:
            result["arms"], result["differences"] = time_together(names, make, given.rounds, device)
    result["useful_flops"], result["real_tokens"] = useful_flops(shape, processor, rows)
    result["load_after"] = os.getloadavg()
    for arm in result["arms"].values():
        arm["samples_per_second"] = given.samples / arm["seconds"]
        arm["flops_per_second"] = result["useful_flops"] / arm["seconds"]
        arm["epochs_hours"] = EPOCHS * EPOCH_SAMPLES / (NUM_DEVICES * arm["samples_per_second"]) / 3600
    return result


def print_report(result: dict[str, Any]) -> None:
    """One table of ratios, and what belongs to it."""
    rate = result["peak_flops_per_second"] or result["matrix_flops_per_second"]
    of = "the data sheet's peak" if result["peak_flops_per_second"] else "a large matrix product here"
    print(
        f"{result['shape']}: {result['samples']} samples of {result['real_tokens']} tokens, half of them edits; "
        f"{result['device']}, {result['threads']} threads, load {result['load'][0]:.1f}, "
        f"then {result['load_after'][0]:.1f}"
    )
    (base, *_) = result["arms"].values()
    print(f"{'arm':28}{'samples/s':>10}{'median s':>9}{'cpu s':>7}{'tokens':>8}{'MFU':>6}{'time':>8}{'cpu time':>9}")
    for name, arm in result["arms"].items():
        print(
            f"{name:28}{arm['samples_per_second']:>10.2f}{arm['median']:>9.2f}{arm['cpu_seconds']:>7.2f}"
            f"{arm['computed_tokens'] / result['real_tokens']:>7.2f}x{arm['flops_per_second'] / rate:>6.0%}"
            f"{arm['seconds'] / base['seconds']:>7.2f}x{arm['cpu_seconds'] / base['cpu_seconds']:>8.2f}x"
        )
    print(
        f"MFU is against {of}, {rate / 1e12:.3f} TFLOP/s; tokens against those that are needed; time against "
        f'"{next(iter(result["arms"]))}"'
    )
    for name, arm in result["arms"].items():
        if "peak_bytes" in arm:
            print(
                f"{name}: {arm['peak_bytes'] / 2**30:.1f} GiB at most; {EPOCHS} epochs of {EPOCH_SAMPLES:,} samples "
                f"on {NUM_DEVICES} such devices: {arm['epochs_hours']:.1f} h (the paper's: {PAPER_HOURS:.0f} h, A800)"
            )
    for name, row in result.get("differences", {}).items():
        print(f"{name}: " + ", ".join(f"{what} differ by {value:.1e} at most" for what, value in row.items()))


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--samples", type=int, default=4, help="of an update, every second one an edit")
    parser.add_argument("--arms", nargs="+", choices=[*OURS, *UPSTREAM], help="default: those that fit the device")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--apart", action="store_true", help="one arm after the other, as on a GPU")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.apart = given.apart or device == "cuda"
    result = report(given, device)
    print_report(result)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
