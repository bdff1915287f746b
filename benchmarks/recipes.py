# SPDX-License-Identifier: Apache-2.0
"""What each mask of the recipe is worth: `tiny-janus-pro` learns to edit under four recipes, three seeds each.

    python benchmarks/recipes.py --work-dir out/recipes [--seeds 0 1 2] [--arms default paper] [--steps 1500]

All arms of a seed start from the same weights and see the same rows in the same order, with the same draws: they
differ in the fields of `ARMS` alone. Each finished run leaves `ARM-SEED/result.json`, and a run that was stopped goes
on from its last checkpoint, so the command is safe to repeat. All arms of the first seed come first. On one core a
run of 1,500 steps takes about 15 minutes.

Measured on held-out edits (`edit_items`: combinations that training never shows), 100 of each kind:

- score: share of the pictures that are right, by what is drawn: `s` is `guidance_scale`, `s'` is `edit_freedom`.
- kept: of the pixels that the teacher's edit leaves as they are in the source, the share that the drawn picture keeps,
  too (no channel, in [0, 1], further than `KEPT_TOLERANCE` from the source).
- error: mean absolute difference to the source over the same pixels.
- gain: score at s = 2 minus score at s = 1, both at s' = 0.
- loss: mean negative log-likelihood of a code of the teacher's result, with all conditions (cond), without any (null:
  what l_u of the guidance sees) and without the source's codes (part: what l_o sees). `cond_kept` and `cond_edited`
  count the codes that equal the source's, and those that do not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import Tensor

from sharegpt4o_image.checkpoints import TINY_JANUS_PRO, load_checkpoint
from sharegpt4o_image.evaluation.scene_benchmark import (
    EDIT_KINDS,
    EditItem,
    aggregate,
    edit_items,
    judge_edit,
    source_picture,
    teacher_picture,
)
from sharegpt4o_image.evaluation.scene_runner import draw_and_judge
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.offline_teacher.editing import parse_edit
from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "no-code-dropout": {"source_code_dropout": 0.0},
    "no-null": {"null_dropout": 0.0, "instruction_dropout": 0.0},
}
# name -> guidance_scale, edit_freedom
DRAWINGS = {"s=1": (1.0, 0.0), "s=2": (2.0, 0.0), "s=5": (5.0, 0.0), "s=2, s'=1": (2.0, 1.0)}
LOSSES = {"cond": Dropout(), "null": Dropout(null=1.0), "part": Dropout(source_code=1.0)}
KEPT_TOLERANCE = 0.1

NUM_EDITS = 23_000  # drawn; the 0.7 of them that are of the benchmark's kinds are trained
NUM_TEXT_TO_IMAGE = 5_000
ROWS_SEED = 70
BATCH_SIZE = 16
SAVE_STEPS = 250
LOSS_BATCH = 50


# --------------------------------------------------------------------------- training


def training_rows(work_dir: Path) -> Dataset:
    """The rows of every run, made once: edits of the benchmark's kinds, and text to image."""
    folder = work_dir / "rows"
    if not folder.is_dir():
        model, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
        edits = edit_rows(model, processor, NUM_EDITS, ROWS_SEED)
        edits = edits.filter(is_of_the_benchmark, input_columns="input_prompt")
        plain = text_to_image_rows(model, processor, NUM_TEXT_TO_IMAGE, ROWS_SEED + 1)
        partial = folder.with_suffix(".tmp")
        concatenate_datasets([edits, plain]).save_to_disk(partial)
        partial.rename(folder)
    return load_from_disk(folder)


def is_of_the_benchmark(instruction: str) -> bool:
    """Whether the instruction asks for an edit of a kind that is scored."""
    edit = parse_edit(instruction)
    return edit is not None and edit.task in EDIT_KINDS


def train(folder: Path, arm: str, seed: int, steps: int, rows: Dataset) -> Janus4oForImageGeneration:
    """Train one arm, from its last checkpoint if there is one."""
    last = folder / "trainer" / f"checkpoint-{steps}"
    if last.is_dir():  # resuming a run that has ended would take one more step
        return load_checkpoint(str(last), "float32")[0]
    model, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
    arguments = Janus4oSFTConfig(
        output_dir=str(folder / "trainer"), seed=seed, max_steps=steps, per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-3, lr_scheduler_kwargs={"min_lr_rate": 0.02}, warmup_steps=0.03, weight_decay=0.05,
        adam_beta2=0.98, max_grad_norm=1.0, geometry="pad", logging_steps=50, save_steps=SAVE_STEPS,
        save_total_limit=1, report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), **ARMS[arm],
    )  # fmt: skip
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    has_checkpoint = any((folder / "trainer").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=has_checkpoint or None)
    return model.eval()


# --------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class HeldOut:
    """The held-out edits as pixels (N, 3, H, W) in [-1, 1] and as codes (N, P)."""

    items: Sequence[EditItem]
    source_pixels: Tensor
    target_pixels: Tensor
    source_codes: Tensor
    target_codes: Tensor

    @classmethod
    def make(cls, model: Janus4oForImageGeneration, processor: Janus4oProcessor, num_per_kind: int) -> "HeldOut":
        """Drawn by the offline teacher, encoded by the model."""
        items = edit_items(num_per_kind)
        sources = processor.source_pixels([source_picture(item) for item in items])
        targets = processor.source_pixels([teacher_picture(item) for item in items])
        return cls(items, sources, targets, model.encode_image(sources), model.encode_image(targets))

    def rows(self) -> list[dict[str, Any]]:
        """As the collator reads them."""
        return [
            {
                "id": str(index),
                "input_prompt": item.instruction,
                "input_image": [source_picture(item)],
                "source_codes": self.source_codes[index : index + 1].numpy(),
                "target_codes": self.target_codes[index].numpy(),
            }
            for index, item in enumerate(self.items)
        ]

    def preservation(self, drawn: Tensor) -> dict[str, float]:
        """`kept` and `error` of drawn pictures (N, 3, H, W) in [-1, 1]: pixels of all pictures count alike."""
        is_unedited = (self.source_pixels == self.target_pixels).all(1)  # (N, H, W)
        distance = ((drawn - self.source_pixels) / 2).abs()  # (N, 3, H, W)
        is_kept = distance.amax(1) <= KEPT_TOLERANCE
        return {
            "kept": float(is_kept[is_unedited].float().mean()),
            "error": float(distance.mean(1)[is_unedited].mean()),
        }


@torch.no_grad()
def losses(model: Janus4oForImageGeneration, processor: Janus4oProcessor, held_out: HeldOut) -> dict[str, float]:
    """Held-out losses by which conditions the model is given."""
    found = {}
    for name, dropout in LOSSES.items():
        collate = DataCollatorForImageGeneration(processor, dropout, row_layout="padded")
        rows = held_out.rows()
        parts = []
        for start in range(0, len(rows), LOSS_BATCH):
            batch = collate(rows[start : start + LOSS_BATCH])
            for column in ("is_edit", "sample_ids", "skipped"):
                del batch[column]
            parts.append(model(**batch).token_losses)
        by_code = torch.cat(parts)  # (N, P)
        found[name] = float(by_code.mean())
        if name == "cond":
            is_kept = held_out.source_codes == held_out.target_codes
            found |= {"cond_kept": float(by_code[is_kept].mean()), "cond_edited": float(by_code[~is_kept].mean())}
    return found


def measure(model: Janus4oForImageGeneration, processor: Janus4oProcessor, held_out: HeldOut) -> dict[str, Any]:
    """Scores and preservation of each way to draw, and the losses."""
    result: dict[str, Any] = {"losses": losses(model, processor, held_out)}
    for name, (scale, freedom) in DRAWINGS.items():
        scored = draw_and_judge(model, processor, held_out.items, guidance_scale=scale, edit_freedom=freedom)
        result[name] = {
            "score": sum(verdict.correct for verdict in scored.verdicts) / len(scored.verdicts),
            "kinds": scored.table,
            **held_out.preservation(processor.source_pixels(scored.pictures)),
        }
    result["gain"] = result["s=2"]["score"] - result["s=1"]["score"]
    return result


def reference(model: Janus4oForImageGeneration, processor: Janus4oProcessor, held_out: HeldOut) -> dict[str, Any]:
    """What is possible: the codes of the teacher's results and of the sources, decoded and measured as drawings."""
    found = {}
    for name, codes in (("the teacher's result", held_out.target_codes), ("the source", held_out.source_codes)):
        pictures = processor.to_pil(model.decode_image(codes))
        verdicts = [judge_edit(item, picture) for item, picture in zip(held_out.items, pictures, strict=True)]
        found[name] = {
            "score": float(np.mean([verdict.correct for verdict in verdicts])),
            "kinds": aggregate([item.kind for item in held_out.items], verdicts),
            **held_out.preservation(processor.source_pixels(pictures)),
        }
    return found


# --------------------------------------------------------------------------- runs


def run(work_dir: Path, arm: str, seed: int, steps: int, num_per_kind: int) -> dict[str, Any]:
    """Train and measure one arm unless its result is there."""
    folder = work_dir / f"{arm}-{seed}"
    path = folder / "result.json"
    if path.is_file():
        done: dict[str, Any] = json.loads(path.read_text())
        if done["steps"] != steps:
            raise SystemExit(f"{path} is of {done['steps']} steps, not {steps}; take another --work-dir.")
        return done
    started = time.perf_counter()
    model = train(folder, arm, seed, steps, training_rows(work_dir))
    trained = time.perf_counter()
    _, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
    result = {"arm": arm, "seed": seed, "steps": steps, "train_seconds": trained - started}
    result |= measure(model, processor, HeldOut.make(model, processor, num_per_kind))
    result["measure_seconds"] = time.perf_counter() - trained
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
    return result


def figures(result: dict[str, Any]) -> dict[str, float]:
    """The columns of the table."""
    columns = {f"score {name}": result[name]["score"] for name in DRAWINGS}
    columns |= {"gain": result["gain"], "kept": result["s=2"]["kept"], "error": result["s=2"]["error"]}
    return columns | {f"loss {name}": value for name, value in result["losses"].items()}


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """A Markdown table: for each arm the mean over its seeds and, in brackets, least and largest."""
    names = list(figures(results[0]))
    print(f"| recipe | seeds | {' | '.join(names)} |\n{'|---' * (len(names) + 2)}|")
    for arm in dict.fromkeys(result["arm"] for result in results):
        runs = [figures(result) for result in results if result["arm"] == arm]
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {arm} | {len(runs)} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="rows, checkpoints and results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_500, help=f"of {BATCH_SIZE} samples")
    parser.add_argument("--limit", type=int, default=100, help="held-out edits of each kind")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
    known = reference(model, processor, HeldOut.make(model, processor, options.limit))
    print(json.dumps({name: {k: v for k, v in row.items() if k != "kinds"} for name, row in known.items()}))
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        for arm in options.arms:
            results.append(run(options.work_dir, arm, seed, options.steps, options.limit))
            print_table(results)
            report = {"reference": known, "runs": results, "torch": torch.__version__, "threads": options.threads}
            (options.work_dir / "recipes.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
