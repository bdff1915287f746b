# SPDX-License-Identifier: Apache-2.0
"""How much of a step is padding, and how long devices wait for each other, by how batches are made.

    python benchmarks/batches.py [--devices 8] [--json out/batches.json]

Nothing is trained: as many samples as the paper's, of about the released models' lengths (650 and 1,850 tokens), go
through `SampleOrder` as in a run. `computed` is against the tokens that are needed; `with waiting` counts every device
as long as the longest of its step, as without accumulation (with it, the sums of several batches wait for each other).
Attention, which grows with the square of a sample, is left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sharegpt4o_image.training.sample_order import SampleOrder

NUM_TEXT_TO_IMAGE, NUM_EDITS = 45_717, 46_539  # the release
# Around 650 and 1,850 tokens (576 codes, or three times as many and their markers); the spread is our choice.
TEXT_TO_IMAGE_TOKENS, EDIT_TOKENS, SPREAD = 650, 1_850, 60
BATCH_SIZES = (1, 2, 4, 8)
BUDGETS = (4_096, 8_192, 16_384)


def draw_lengths() -> list[int]:
    """Tokens of each sample."""
    rng = np.random.default_rng(0)
    means = np.repeat([TEXT_TO_IMAGE_TOKENS, EDIT_TOKENS], [NUM_TEXT_TO_IMAGE, NUM_EDITS])
    lengths: list[int] = (means + rng.integers(-SPREAD, SPREAD + 1, len(means))).tolist()
    return lengths


def measure(lengths: list[int], num_devices: int, pads: bool, batch_size: int = 1, budget: int | None = None) -> Any:
    """Tokens computed, and with waiting, against those needed, of one epoch."""
    pairs = [(row, 0) for row in range(len(lengths))]
    order = SampleOrder(pairs, seed=0, batch_size=batch_size, max_tokens=budget, lengths=lengths, pads=pads)
    batches = [[lengths[key.row] for key in batch if key.row is not None] for batch in order]
    computed = np.array([len(batch) * max(batch) if pads else sum(batch) for batch in batches])
    needed = sum(lengths)
    steps = np.pad(computed, (0, -len(computed) % num_devices)).reshape(-1, num_devices)
    return {
        "layout": "padded" if pads else "packed",
        "batch": f"{batch_size} samples" if budget is None else f"{budget:,} tokens",
        "computed": computed.sum() / needed,
        "with_waiting": steps.max(1).sum() * num_devices / needed,
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lengths = draw_lengths()
    rows = [measure(lengths, given.devices, pads, size) for size in BATCH_SIZES for pads in (False, True)]
    rows += [measure(lengths, given.devices, pads, budget=budget) for budget in BUDGETS for pads in (False, True)]
    print(f"{len(lengths):,} samples, {sum(lengths):,} tokens, {given.devices} devices")
    print(f"{'layout':10}{'batch':>16}{'computed':>12}{'with waiting':>15}")
    for row in rows:
        print(f"{row['layout']:10}{row['batch']:>16}{row['computed']:>11.2f}x{row['with_waiting']:>14.2f}x")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"devices": given.devices, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
