# SPDX-License-Identifier: Apache-2.0
"""How fast samples are loaded on one core: ours, with and without stored codes, against Pillow alone.

    python benchmarks/loader.py [--samples 16] [--side 1024] [--rounds 3] [--json out/loader.json]

Half of the samples are edits. Each arm reads the same PNG files, which look like photographs to the compressor, from
an Arrow table, and gives pixel values of 384 px. `pillow` opens, converts, crops, resizes and scales each picture in
turn, and no more: ours also lays out prompts, checks pictures and draws masks. `upstream` is Pillow opening as many
pictures as upstream's collator: each source twice. With stored codes only the sources of edits are opened.
"""

import argparse
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from generate import time_arms
from PIL import Image
from torch import Tensor
from training_shapes import SHAPES, make_processor

from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sft_config import PRESETS
from sharegpt4o_image.training.training_rows import TrainingRows

SHAPE = SHAPES["7b"]
SIDE = SHAPE.cells * SHAPE.patch
NUM_CODES = SHAPE.cells**2


def photograph(side: int, seed: int) -> bytes:
    """A PNG of smooth noise and a little grain: at 1024 px about 1.4 MB, as the release's pictures."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    smooth = coarse.resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 2, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_rows(num_samples: int, side: int) -> Dataset:
    """Text to image and edits in turns, as `pack` stores them, with codes."""
    features = Features(
        {
            "id": Value("string"), "input_prompt": Value("string"), "input_image": List(ImageFeature(decode=False)),
            "output_image": ImageFeature(decode=False), "target_codes": List(Value("uint16")),
            "source_codes": List(List(Value("uint16"))),
        }
    )  # fmt: skip
    codes = list(range(NUM_CODES))
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for index in range(num_samples):
        is_edit = index % 2 == 1
        columns["id"].append(str(index))
        columns["input_prompt"].append("make the red circle on the left of the blue square green")
        columns["input_image"].append([{"bytes": photograph(side, 2 * index), "path": None}] if is_edit else [])
        columns["output_image"].append({"bytes": photograph(side, 2 * index + 1), "path": None})
        columns["target_codes"].append(codes)
        columns["source_codes"].append([codes] if is_edit else [])
    return Dataset.from_dict(columns, features=features)


def pillow(stored: dict[str, Any]) -> Tensor:
    """One picture as pixel values (3, H, W)."""
    picture = Image.open(io.BytesIO(stored["bytes"])).convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    square = picture.crop((left, top, left + short, top + short)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def make_arms(rows: Dataset) -> dict[str, Callable[[], Any]]:
    """What is compared, by name; each loads all samples, in batches of 4."""
    recipe = PRESETS["default"]
    dropout = Dropout(source_code=recipe["source_code_dropout"], prompt=recipe["prompt_dropout"])
    processor = make_processor(SHAPE)
    processor.geometry = recipe["geometry"]
    collate = DataCollatorForImageGeneration(processor, dropout)
    uncached = TrainingRows(rows.remove_columns(["target_codes", "source_codes"]))
    cached = TrainingRows(rows.remove_columns("output_image"))

    def ours(samples: TrainingRows) -> list[Any]:
        return [
            collate([samples[i] for i in range(start, min(start + 4, len(samples)))])
            for start in range(0, len(samples), 4)
        ]

    def plain(source_repetitions: int, has_targets: bool) -> list[Tensor]:
        targets = rows["output_image"] if has_targets else []
        sources = [picture for images in rows["input_image"] for picture in images]
        return [pillow(picture) for picture in [*targets, *sources * source_repetitions]]

    return {
        "ours": lambda: ours(uncached),
        "pillow": lambda: plain(1, True),
        "upstream": lambda: plain(2, True),
        "ours, codes stored": lambda: ours(cached),
        "pillow, codes stored": lambda: plain(1, False),
    }


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the stored pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows(given.samples, given.side)
    arms = make_arms(rows)
    check(rows, arms)
    times = time_arms(arms, given.rounds, "cpu")
    size = np.mean([len(picture["bytes"]) for picture in rows["output_image"]])
    print(f"{given.samples} samples, PNG of {given.side} px, {size / 1e6:.2f} MB each; load {os.getloadavg()[0]:.1f}")
    print(f"{'arm':22}{'samples/s':>10}{'median':>9}{'per CPU second':>16}{'against Pillow':>16}")
    for name, time in times.items():
        base = times["pillow, codes stored" if name.endswith("stored") else "pillow"]
        print(
            f"{name:22}{given.samples / time['seconds']:>10.1f}{given.samples / time['median']:>9.1f}"
            f"{given.samples / time['cpu_seconds']:>16.1f}{base['cpu_seconds'] / time['cpu_seconds']:>15.2f}x"
        )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"samples": given.samples, "side": given.side, "mean_bytes": size, "arms": times}
        given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def check(rows: Dataset, arms: dict[str, Callable[[], Any]]) -> None:
    """Ours gives the pixels that Pillow gives, and the stored codes."""
    batches, plain = arms["ours"](), arms["pillow"]()
    targets = torch.cat([batch["target_pixel_values"] for batch in batches])
    sources = torch.cat([batch["source_pixel_values"] for batch in batches if "source_pixel_values" in batch])
    furthest = float((torch.cat([targets, sources]) - torch.stack(plain)).abs().max())
    codes = torch.cat([batch["target_codes"] for batch in arms["ours, codes stored"]()])
    if furthest > 1e-5 or codes.tolist() != rows["target_codes"][:]:
        raise SystemExit(f"The arms load different things (pixels differ by {furthest}); nothing was timed.")


if __name__ == "__main__":
    main()
