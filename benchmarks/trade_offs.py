# SPDX-License-Identifier: Apache-2.0
"""What the trade-offs that are off by default cost in scores, and what they save in time.

    pip install -e ".[quantize]"
    python benchmarks/trade_offs.py [--limit 100] [--json out/trade_offs.json]

Each variant of `tiny-janus-4o` draws the held-out prompts and edits of the scene benchmark with the same seeds, and
predicts the codes of the pictures that the offline teacher draws for them: mean negative log-likelihood of a code, and
how often its likeliest code is that of the fp32 model. Time is that of a decode step of the shape `small` (8 layers of
512, random weights) in turns with the fp32 one, both on this machine.
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from generate import GUIDANCE_SCALE, TokenProcessor, make_models, random_prompt, time_arms
from torch import Tensor
from transformers import TorchAoConfig
from transformers.utils import is_torchao_available

from sharegpt4o_image.checkpoints import ASSETS_DIR, TINY_JANUS_4O
from sharegpt4o_image.evaluation.scene_benchmark import (
    EditItem,
    edit_items,
    prompt_items,
    source_picture,
    teacher_picture,
)
from sharegpt4o_image.evaluation.scene_runner import Item, draw_and_judge, text_of
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

NUM_CODES, ROUNDS = 144, 2  # of the timed drawings
BATCH_SIZE = 50  # pictures whose codes are predicted at once


@dataclass(frozen=True)
class Variant:
    """One way to draw: options of `from_pretrained`, and of `generate_image`."""

    name: str
    dtype: torch.dtype = torch.float32
    weights: Any = None  # torchao's configuration
    guidance_until: float = 1.0

    def load(self) -> Janus4oForImageGeneration:
        """The tiny checkpoint, as a user would load it."""
        quantization = None if self.weights is None else TorchAoConfig(self.weights)
        return Janus4oForImageGeneration.from_pretrained(
            ASSETS_DIR / TINY_JANUS_4O, dtype=self.dtype, quantization_config=quantization
        ).eval()

    def applied_to(self, model: Any) -> Any:
        """A copy of an fp32 model."""
        model = copy.deepcopy(model).to(self.dtype)
        if self.weights is not None:
            from torchao.quantization import quantize_

            quantize_(model, self.weights)
        return model


BASE = Variant("fp32")
PLAIN_VARIANTS = (
    BASE,
    Variant("bf16", dtype=torch.bfloat16),
    Variant("half of the codes guided", guidance_until=0.5),
    Variant("a quarter of the codes guided", guidance_until=0.25),
)


def quantized_variants() -> tuple[Variant, ...]:
    """Weight-only quantisation, where torchao is installed."""
    if not is_torchao_available():
        print('int8 and fp8 weights are left out; pip install -e ".[quantize]" adds them')
        return ()
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return (
        Variant("int8 weights", weights=Int8WeightOnlyConfig()),
        Variant("fp8 weights", weights=Float8WeightOnlyConfig()),
    )


@torch.no_grad()
def predict(model: Any, processor: Janus4oProcessor, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood, and likeliest code, at each code of the teacher's pictures: (N, P)."""
    losses, likeliest = [], []
    for start in range(0, len(items), BATCH_SIZE):
        part = items[start : start + BATCH_SIZE]
        codes = model.encode_image(processor.source_pixels([teacher_picture(item) for item in part]))
        sources: Any = [[source_picture(item)] for item in part if isinstance(item, EditItem)] or None
        batch = processor.prepare_image_generation([text_of(item) for item in part], sources)
        logits = model(**batch, target_codes=codes).logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), codes, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return torch.cat(losses), torch.cat(likeliest)


def score(variants: Sequence[Variant], limit: int) -> list[dict[str, Any]]:
    """One row for each variant: what it predicts and what it draws."""
    processor = Janus4oProcessor.from_pretrained(ASSETS_DIR / TINY_JANUS_4O)
    tasks: tuple[Sequence[Item], ...] = (prompt_items(limit), edit_items(limit))
    base_codes: list[Tensor] = []
    table: list[dict[str, Any]] = []
    for variant in variants:
        model = variant.load()
        predicted = [predict(model, processor, items) for items in tasks]
        base_codes = base_codes or [codes for _, codes in predicted]
        equal = [codes == base for (_, codes), base in zip(predicted, base_codes, strict=True)]
        row: dict[str, Any] = {
            "variant": variant.name,
            "NLL": float(torch.cat([loss for loss, _ in predicted]).mean()),
            "same likeliest code": float(torch.cat(equal).float().mean()),
        }
        for items in tasks:
            drawn = draw_and_judge(model, processor, items, guidance_until=variant.guidance_until)
            row |= {kind: result["score"] for kind, result in drawn.table.items()}
        if not table:
            print(as_row({name: name for name in row}))
            print("|---" * len(row) + "|")
        table.append(row)
        print(as_row(row), flush=True)
    return table


def time_steps(variants: Sequence[Variant]) -> dict[str, float]:
    """Milliseconds of a step of the small shape, in turns."""
    model, _ = make_models("small", NUM_CODES, torch.float32, "cpu")
    processor = TokenProcessor(random_prompt("small", 64))

    def arm(variant: Variant) -> Callable[[], Tensor]:
        given = variant.applied_to(model)
        return lambda: given.generate_image(
            "x", guidance_scale=GUIDANCE_SCALE, do_sample=False, output_type="codes", processor=processor,
            guidance_until=variant.guidance_until,
        )  # fmt: skip

    times = time_arms({variant.name: arm(variant) for variant in variants}, ROUNDS, "cpu")
    return {name: 1e3 * time_["seconds"] / NUM_CODES for name, time_ in times.items()}


def as_row(row: dict[str, Any]) -> str:
    """A line of a Markdown table."""
    cells = [value if isinstance(value, str) else f"{value:.3f}" for value in row.values()]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Score, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="items of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    variants = (*PLAIN_VARIANTS, *quantized_variants())
    table = score(variants, given.limit)
    milliseconds = time_steps(variants)
    base = milliseconds[BASE.name]
    for name, value in milliseconds.items():
        print(f"{name}: {value:.2f} ms a step, {base / value:.2f} times as fast as fp32")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"scores": table, "ms_per_step": milliseconds}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
