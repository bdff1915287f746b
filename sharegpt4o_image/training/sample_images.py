# SPDX-License-Identifier: Apache-2.0
"""The same prompts with the same seeds, every N steps -> pictures that show what a run has learnt, in `samples/`."""

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont, ImageOps
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.training.adapters import without_adapters
from sharegpt4o_image.training.row_checks import number_of_sources
from sharegpt4o_image.training.training_rows import TrainingRows

if TYPE_CHECKING:
    from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer

logger = logging.getLogger(__name__)

FOLDER, SHEET = "samples", "sheet.png"
ROWS_PER_TASK = 4  # held-out rows that are drawn when no prompts are given (our choice)
_TILE, _GAP, _LINE = 256, 8, 16  # pixels of the sheet: a picture's side, a gap, a line of text
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Sample:
    """What is drawn: a prompt, or an edit of source pictures."""

    prompt: str
    sources: list[Image.Image]


class SampleImages(TrainerCallback):
    """Draws `args.sample_prompts`, or the first held-out rows of both tasks, every `args.sample_steps` steps.

    Writes `samples/step-000100/00.png` and so on, with `sheet.png`, all of them beside their prompts and sources; the
    sheet also goes to TensorBoard and Weights & Biases where the run reports there. The main process draws, one
    picture at a time, with the checkpoint's own guidance; training goes on as if nothing had been drawn.

    Args:
        trainer: whose model draws.
    """

    def __init__(self, trainer: "Janus4oSFTTrainer"):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError(
                "sample_steps needs a process that holds all weights by itself, which FSDP and DeepSpeed do not "
                "leave; leave it out and draw from checkpoints with `sharegpt4o-image generate`."
            )
        untyped: Any = trainer  # transformers leaves open what a trainer's model and arguments may be
        self._trainer, self._args = untyped, untyped.args
        prompts = self._args.sample_prompts
        if not all(prompt.strip() for prompt in prompts):
            raise UserError("One of sample_prompts is empty; say what to draw, or leave all out for held-out rows.")
        self._samples = [Sample(prompt, []) for prompt in prompts] or _held_out(trainer.eval_dataset)
        self._last_step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw when it is time, and after the last step."""
        if state.global_step % args.sample_steps == 0 or state.global_step == state.max_steps:
            self._draw(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw at the end of a run that stopped early by itself."""
        if state.global_step != self._last_step and not self._trainer.was_interrupted:
            self._draw(state.global_step)

    def _draw(self, step: int) -> None:
        self._last_step = step
        trainer = self._trainer
        with trainer.throughput.paused():
            if trainer.is_world_process_zero():
                try:
                    self._draw_sheet(step)
                except Exception as error:  # a picture, a full disk or a tracker is not worth the run
                    logger.warning("The sample pictures of step %d could not be drawn: %s", step, error)
            trainer.accelerator.wait_for_everyone()

    def _draw_sheet(self, step: int) -> None:
        folder = Path(self._args.output_dir, FOLDER, f"step-{step:06}")
        with _without_graphs(without_adapters(self._trainer.model)) as model:
            pictures = [self._picture(model, number) for number in range(len(self._samples))]
        sheet = contact_sheet(self._samples, pictures, f"step {step}")
        _save(folder, pictures, sheet)
        self._report(sheet, step)

    def _picture(self, model: Janus4oForImageGeneration, number: int) -> Image.Image:
        sample = self._samples[number]
        pictures: Any = model.generate_image(
            sample.prompt,
            [sample.sources] if sample.sources else None,
            generator=torch.Generator().manual_seed(self._args.sample_seed + number),
            processor=self._trainer.processing_class,
        )
        picture: Image.Image = pictures[0]
        return picture

    def _report(self, sheet: Image.Image, step: int) -> None:
        """To the places where the run's logs go and that show pictures."""
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image(FOLDER, np.asarray(sheet), step, dataformats="HWC")
        if "wandb" in self._args.report_to:
            import wandb  # the reporting callback needs it, too

            wandb.log({FOLDER: wandb.Image(sheet), "train/global_step": step})


@contextmanager
def _without_graphs(model: Janus4oForImageGeneration) -> Iterator[Janus4oForImageGeneration]:
    """Draw without CUDA graphs: captured, they would hold on to their memory while training goes on."""
    kept, model.uses_cuda_graph = model.uses_cuda_graph, False
    try:
        yield model
    finally:
        model.uses_cuda_graph = kept


def _held_out(rows: Any) -> list[Sample]:
    """The first rows of each task, text to image first."""
    sets: Sequence[Dataset] = list(rows.values()) if isinstance(rows, dict) else [rows] if rows is not None else []
    found: dict[bool, list[Sample]] = {False: [], True: []}
    for one in sets:
        readable = TrainingRows(one)
        for number, num_sources in enumerate(number_of_sources(one)):
            chosen = found[num_sources > 0]
            if len(chosen) == ROWS_PER_TASK:
                continue
            row = readable[number]
            if row["input_prompt"].strip() and not row.get("is_blank"):
                chosen.append(Sample(row["input_prompt"], row["input_image"]))
    samples = found[False] + found[True]
    if not samples:
        raise UserError("sample_steps has nothing to draw: give sample_prompts, or held-out rows as eval_dataset.")
    return samples


def contact_sheet(samples: Sequence[Sample], pictures: Sequence[Image.Image], heading: str) -> Image.Image:
    """A row for each sample: its prompt, and below it its sources and, in the last column, what was drawn."""
    num_sources = max(len(sample.sources) for sample in samples)
    lefts = [_GAP + column * (_TILE + _GAP) for column in range(num_sources + 1)]
    width = lefts[-1] + _TILE + _GAP
    font = ImageFont.load_default(size=12)
    letters = int((width - 2 * _GAP) / font.getlength("n"))
    texts = [textwrap.wrap(" ".join(sample.prompt.split()), letters) for sample in samples]
    heights = [len(text) * _LINE + _TILE + _GAP for text in texts]
    sheet = Image.new("RGB", (width, _LINE + _GAP + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, [*["source"] * num_sources, heading], strict=True):
        draw.text((left, _GAP // 2), title, _INK, font)
    top = _LINE + _GAP
    for sample, picture, text, height in zip(samples, pictures, texts, heights, strict=True):
        draw.multiline_text((_GAP, top), "\n".join(text), _INK, font)
        columns = [*zip(lefts, sample.sources, strict=False), (lefts[-1], picture)]
        for left, shown in columns:
            sheet.paste(_tile(shown), (left, top + len(text) * _LINE))
        top += height
    return sheet


def _tile(picture: Image.Image) -> Image.Image:
    """The picture fitted into a tile; a small one enlarged without smoothing, to be seen as it is."""
    is_small = max(picture.size) <= _TILE // 2
    fitted = ImageOps.contain(
        picture.convert("RGB"), (_TILE, _TILE), Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    )
    return ImageOps.pad(fitted, (_TILE, _TILE), color=_PAPER)


def _save(folder: Path, pictures: Sequence[Image.Image], sheet: Image.Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:02}.png")
    sheet.save(folder / SHEET)
