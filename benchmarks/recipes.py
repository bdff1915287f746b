# SPDX-License-Identifier: Apache-2.0
"""What each mask of the recipe is worth: `tiny-janus-pro` learns to edit under four recipes, three seeds each.

    python benchmarks/recipes.py --work-dir out/recipes [--seeds 0 1 2] [--arms default paper] [--steps 1200]

All arms of a seed start from the same weights and see the same rows in the same order, with the same draws: they
differ in the fields of `ARMS` alone. Each finished run leaves `ARM-SEED/result.json`, and a run that was stopped goes
on from its last checkpoint, so the command is safe to repeat; several commands may share a folder, once its `rows`
are there, if their arms or seeds differ. All arms of the first seed come first. On one core a step takes 0.5 to 0.8 s
and a run a quarter of an hour.

Measured on held-out edits (`edit_items`: combinations that training never shows), 100 of each kind. Everything below
was fixed before the first run of the table, after pilots that are not in it (one run of `default`, and runs of 250
steps on edits alone; they showed that s = 2 is too strong here):

- score: share of the pictures that are right, by what is drawn: `s` is `guidance_scale`, `s'` is `edit_freedom`.
- gain: score at s = 1.25 minus score at s = 1, both at s' = 0; and at s = 1.5 minus s = 1, both at s' = 1.
- kept: of the pixels that the teacher's edit leaves as they are, the share that the drawn picture keeps, too (no
  channel, in [0, 1], further off than `KEPT_TOLERANCE`), and the same over the pixels of objects; averaged over each
  picture, then over the pictures that have such pixels: all edits of backgrounds, of the others those of two objects.
- loss: mean negative log-likelihood of a code of the teacher's result, with all conditions (cond), without any (null:
  what l_u of the guidance sees) and without the source's codes (part: what l_o sees). `cond_kept` and `cond_edited`
  count the codes that equal the source's, and those that do not.
- guided loss: the same under the guided logits, which follow from the three passes above.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from sharegpt4o_image.janus4o.sampling_janus4o import Guidance
from sharegpt4o_image.offline_teacher.editing import parse_edit
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows
from sharegpt4o_image.training.tiny_model import IMAGE_SIZE

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "no-code-dropout": {"source_code_dropout": 0.0},
    "no-null": {"null_dropout": 0.0, "instruction_dropout": 0.0},
}
# guidance_scale, edit_freedom
DRAWINGS = ((1.0, 0.0), (1.25, 0.0), (1.5, 0.0), (2.0, 0.0), (1.0, 1.0), (1.5, 1.0))
GAINS = (((1.25, 0.0), (1.0, 0.0)), ((1.5, 1.0), (1.0, 1.0)))  # score of the first minus score of the second
GUIDED_SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
GUIDED_FREEDOMS = (0.0, 1.0, 5.0)
CONDITIONS = {"cond": Dropout(), "null": Dropout(null=1.0), "part": Dropout(source_code=1.0)}
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
        partial = folder.with_suffix(f".{os.getpid()}.tmp")
        concatenate_datasets([edits, plain]).save_to_disk(partial)
        partial.rename(folder)
    return load_from_disk(folder)


def is_of_the_benchmark(instruction: str) -> bool:
    """Whether the instruction asks for an edit of a kind that is scored."""
    edit = parse_edit(instruction)
    return edit is not None and edit.task in EDIT_KINDS


def train(folder: Path, arm: str, seed: int, steps: int, rows: Dataset) -> Janus4oForImageGeneration:
    """Train one arm, from its last checkpoint if there is one."""
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
    """Held-out edits as the model sees them, and as the training data draws them: at the model's size."""

    items: Sequence[EditItem]
    source_codes: Tensor  # (N, P): of the larger source that is resized, as users' are
    drawn_source_codes: Tensor  # (N, P): of the source drawn at the model's size
    target_codes: Tensor  # (N, P)
    target_pixels: Tensor  # (N, 3, H, W) in [-1, 1]
    is_unedited: Tensor  # (N, H, W)
    is_object: Tensor  # (N, H, W): where the source shows an object

    @classmethod
    def make(cls, model: Janus4oForImageGeneration, processor: Janus4oProcessor, num_per_kind: int) -> "HeldOut":
        """Drawn by the offline teacher, encoded by the model."""
        items = edit_items(num_per_kind)
        resized = processor.source_pixels([source_picture(item) for item in items])
        sources = processor.source_pixels([source_picture(item, IMAGE_SIZE) for item in items])
        targets = processor.source_pixels([teacher_picture(item, IMAGE_SIZE) for item in items])
        empty = processor.source_pixels([render(replace(item.source, objects=()), IMAGE_SIZE) for item in items])
        codes = [model.encode_image(pixels) for pixels in (resized, sources, targets)]
        return cls(
            items, codes[0], codes[1], codes[2], targets, (sources == targets).all(1), (sources != empty).any(1)
        )

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

    def preservation(self, drawn: Tensor) -> dict[str, Any]:
        """Shares that drawn pictures (N, 3, H, W) in [-1, 1] keep of what the teacher's edit leaves as it is."""
        is_kept = ((drawn - self.target_pixels) / 2).abs().amax(1) <= KEPT_TOLERANCE  # (N, H, W)
        shares = {
            "kept": share_of_each(is_kept, self.is_unedited),
            "kept objects": share_of_each(is_kept, self.is_unedited & self.is_object),
        }
        kinds = np.array([item.kind for item in self.items])
        found: dict[str, Any] = {}
        for name, values in shares.items():
            found[name] = mean_of_known(values)
            found[f"{name} by kind"] = {kind: mean_of_known(values[kinds == kind]) for kind in EDIT_KINDS}
        return found


def mean_of_known(values: np.ndarray) -> float | None:
    """Mean of what is not NaN, if there is any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def share_of_each(is_kept: Tensor, where: Tensor) -> np.ndarray:
    """For each picture the share of the pixels `where` that are kept; NaN for pictures without such pixels."""
    counts = where.sum((1, 2)).float()
    return ((is_kept & where).sum((1, 2)) / counts.where(counts > 0, torch.nan)).numpy()


@torch.no_grad()
def log_probabilities(
    model: Janus4oForImageGeneration, processor: Janus4oProcessor, held_out: HeldOut
) -> dict[str, Tensor]:
    """Of every code (N, P, V) before each of the teacher's codes, by which conditions the model is given."""
    found = {}
    rows = held_out.rows()
    for name, dropout in CONDITIONS.items():
        collate = DataCollatorForImageGeneration(processor, dropout, row_layout="padded")
        parts = []
        for start in range(0, len(rows), LOSS_BATCH):
            batch = collate(rows[start : start + LOSS_BATCH])
            for column in ("is_edit", "sample_ids", "skipped"):
                del batch[column]
            parts.append(model(**batch).logits.float().log_softmax(-1))
        found[name] = torch.cat(parts)
    return found


def losses(known: dict[str, Tensor], held_out: HeldOut) -> dict[str, float]:
    """Mean negative log-likelihood of a held-out code, by the conditions and by guidance."""
    wanted = held_out.target_codes[..., None]
    by_code = {name: -values.gather(-1, wanted)[..., 0] for name, values in known.items()}
    found = {name: float(values.mean()) for name, values in by_code.items()}
    is_kept = held_out.drawn_source_codes == held_out.target_codes
    found["cond_kept"] = float(by_code["cond"][is_kept].mean())
    found["cond_edited"] = float(by_code["cond"][~is_kept].mean())
    for freedom, scale in itertools.product(GUIDED_FREEDOMS, GUIDED_SCALES):
        guided = Guidance(scale, freedom).guide(known | {"uncond": known["null"]}).log_softmax(-1)
        found[f"guided {setting_name(scale, freedom)}"] = float(-guided.gather(-1, wanted).mean())
    return found


def setting_name(scale: float, freedom: float) -> str:
    """Such as `s=1.25, s'=0`."""
    return f"s={scale:g}, s'={freedom:g}"


def measure(model: Janus4oForImageGeneration, processor: Janus4oProcessor, held_out: HeldOut) -> dict[str, Any]:
    """Scores and preservation of each way to draw, and the losses."""
    result: dict[str, Any] = {"losses": losses(log_probabilities(model, processor, held_out), held_out)}
    for scale, freedom in DRAWINGS:
        scored = draw_and_judge(model, processor, held_out.items, guidance_scale=scale, edit_freedom=freedom)
        result[setting_name(scale, freedom)] = {
            "score": sum(verdict.correct for verdict in scored.verdicts) / len(scored.verdicts),
            "kinds": scored.table,
            **held_out.preservation(processor.source_pixels(scored.pictures)),
        }
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
        for name, asked in (("steps", steps), ("num_per_kind", num_per_kind)):
            if done[name] != asked:
                raise SystemExit(f"{path} has {name} {done[name]}, not {asked}; take another --work-dir.")
        return done
    started = time.perf_counter()
    model = train(folder, arm, seed, steps, training_rows(work_dir))
    trained = time.perf_counter()
    _, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
    result = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "num_per_kind": num_per_kind,
        "train_seconds": trained - started,
    }
    result |= measure(model, processor, HeldOut.make(model, processor, num_per_kind))
    result["measure_seconds"] = time.perf_counter() - trained
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
    return result


def figures(result: dict[str, Any]) -> dict[str, float]:
    """The lines of the table."""
    lines: dict[str, float] = {}
    for setting in DRAWINGS:
        name = setting_name(*setting)
        lines |= {f"{measured}, {name}": result[name][measured] for measured in ("score", "kept", "kept objects")}
    for first, second in GAINS:
        names = setting_name(*first), setting_name(*second)
        lines[f"gain, {names[0]} over {names[1]}"] = result[names[0]]["score"] - result[names[1]]["score"]
    return lines | {f"loss {name}": value for name, value in result["losses"].items()}


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """A Markdown table with a column for each arm: mean over its seeds and, in brackets, least and largest."""
    columns: dict[str, list[dict[str, float]]] = {}
    for result in results:
        columns.setdefault(result["arm"], []).append(figures(result))
    heads = [f"{arm} ({len(runs)} seeds)" for arm, runs in columns.items()]
    print(f"| measured | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for name in figures(results[0]):
        cells = []
        for runs in columns.values():
            values = [run[name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="rows, checkpoints and results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_200, help=f"of {BATCH_SIZE} samples")
    parser.add_argument("--limit", type=int, default=100, help="held-out edits of each kind")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint(TINY_JANUS_PRO, "float32")
    known = reference(model, processor, HeldOut.make(model, processor, options.limit))
    print(json.dumps({name: {k: v for k, v in row.items() if k != "kinds"} for name, row in known.items()}))
    training_rows(options.work_dir)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        for arm in options.arms:
            results.append(run(options.work_dir, arm, seed, options.steps, options.limit))
            print_table(results)
            finished = [json.loads(path.read_text()) for path in sorted(options.work_dir.glob("*/result.json"))]
            report = {"reference": known, "runs": finished, "torch": torch.__version__, "threads": options.threads}
            (options.work_dir / "recipes.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
