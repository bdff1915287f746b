# SPDX-License-Identifier: Apache-2.0
"""Rebuild the two tiny checkpoints of `assets/` from nothing: the paper's experiment in miniature.

    python -m sharegpt4o_image.training.tiny_checkpoints --work-dir runs/tiny

1. an image tokenizer, then its decoder alone; 2. `tiny-janus-pro`, which learns text to image only; 3.
`tiny-janus-4o`, which is `tiny-janus-pro` fine-tuned on text-to-image and edit samples, and so learns to edit. Each
stage is kept in the work directory: an interrupted run goes on with the stage it was in.
"""

import argparse
import json
import logging
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.image_tokenizer import train_decoder, train_image_tokenizer
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, pixel_batches, text_to_image_rows, training_texts
from sharegpt4o_image.training.tiny_model import copy_codebook, tiny_config, tiny_processor, untrained_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyRecipe:
    """How long each stage runs; the defaults made the shipped checkpoints."""

    seed: int = 42
    tokenizer_texts: int = 5_000
    image_tokenizer_steps: int = 1_500
    image_tokenizer_batch: int = 32
    image_tokenizer_learning_rate: float = 1e-3
    decoder_steps: int = 450
    decoder_learning_rate: float = 5e-4
    text_to_image_rows: int = 80_000
    text_to_image_steps: int = 3_600
    text_to_image_batch: int = 48
    text_to_image_learning_rate: float = 1.5e-3
    edit_rows: int = 64_000
    edit_steps: int = 7_000
    edit_batch: int = 24
    edit_learning_rate: float = 1e-3
    edit_source_code_dropout: float = 0.1  # the paper's 0.5 is for a model that understands pictures already
    edit_share_of_text_to_image: float = 0.25  # the paper mixes both tasks about evenly; edits are what is new here


def main() -> None:
    """Parse the command line and build what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="keep the stages here")
    for name, value in asdict(TinyRecipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(os.cpu_count() or 1)
    build(arguments.pop("work_dir"), TinyRecipe(**arguments))


def build(work_dir: Path, recipe: TinyRecipe) -> None:
    """Run the stages whose results are missing from `work_dir`.

    Writes: `image_tokenizer/`, `decoder/`, `tiny-janus-pro/`, `tiny-janus-4o/` (Hub folders, fp32) and `log.json` in
    each.
    """
    image_tokenizer_stage(work_dir / "image_tokenizer", recipe)
    decoder_stage(work_dir / "image_tokenizer", work_dir / "decoder", recipe)
    text_to_image_stage(work_dir / "decoder", work_dir / "tiny-janus-pro", recipe)
    edit_stage(work_dir / "tiny-janus-pro", work_dir / "tiny-janus-4o", recipe)


def image_tokenizer_stage(target_dir: Path, recipe: TinyRecipe) -> None:
    """Untrained model + fresh pictures -> the same model with a trained, frozen image tokenizer."""
    if _is_done(target_dir):
        return
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    processor = tiny_processor(training_texts(recipe.seed, recipe.tokenizer_texts))
    model = untrained_model(tiny_config(processor))
    curve = train_image_tokenizer(
        model.model.vqmodel,
        pixel_batches(processor, recipe.seed, recipe.image_tokenizer_batch),
        recipe.image_tokenizer_steps,
        recipe.image_tokenizer_learning_rate,
        recipe.seed,
    )
    _round_to_half(model.model.vqmodel)
    copy_codebook(model)
    _save(model, processor, target_dir, recipe, ("tokenizer", "image_tokenizer"), started, curve)


def decoder_stage(source_dir: Path, target_dir: Path, recipe: TinyRecipe) -> None:
    """Image tokenizer -> the same codes, decoded better."""
    if _is_done(target_dir):
        return
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    model, processor = _load(source_dir)
    batches = pixel_batches(processor, recipe.seed + 6, recipe.image_tokenizer_batch)
    curve = train_decoder(
        model.model.vqmodel, model.encode_image, batches, recipe.decoder_steps, recipe.decoder_learning_rate
    )
    _round_to_half(model.model.vqmodel)
    _save(model, processor, target_dir, recipe, ("decoder", "image_tokenizer_batch"), started, curve)


def text_to_image_stage(source_dir: Path, target_dir: Path, recipe: TinyRecipe) -> None:
    """A trained image tokenizer -> `tiny-janus-pro`: text to image only."""
    if _is_done(target_dir):
        return
    started = time.monotonic()
    model, processor = _load(source_dir)
    rows = text_to_image_rows(model, processor, recipe.text_to_image_rows, recipe.seed + 1)
    held_out = text_to_image_rows(model, processor, 256, recipe.seed + 2)
    arguments = _arguments(
        target_dir,
        recipe.seed,
        recipe.text_to_image_steps,
        recipe.text_to_image_batch,
        recipe.text_to_image_learning_rate,
    )
    curve = _train(model, processor, arguments, rows, held_out)
    _save(model, processor, target_dir, recipe, ("text_to_image",), started, curve)


def edit_stage(source_dir: Path, target_dir: Path, recipe: TinyRecipe) -> None:
    """`tiny-janus-pro` -> `tiny-janus-4o`: text-to-image and edit samples, mixed by random sampling."""
    if _is_done(target_dir):
        return
    started = time.monotonic()
    model, processor = _load(source_dir)
    edits = edit_rows(model, processor, recipe.edit_rows, recipe.seed + 3)
    num_plain = int(recipe.edit_rows * recipe.edit_share_of_text_to_image)
    plain = text_to_image_rows(model, processor, num_plain, recipe.seed + 4)
    held_out = edit_rows(model, processor, 256, recipe.seed + 5)
    arguments = _arguments(target_dir, recipe.seed, recipe.edit_steps, recipe.edit_batch, recipe.edit_learning_rate)
    arguments.source_code_dropout = recipe.edit_source_code_dropout
    curve = _train(model, processor, arguments, concatenate_datasets([edits, plain]), held_out)
    _save(model, processor, target_dir, recipe, ("edit",), started, curve)


def _arguments(target_dir: Path, seed: int, steps: int, batch: int, learning_rate: float) -> Janus4oSFTConfig:
    return Janus4oSFTConfig(
        output_dir=str(target_dir.with_name(target_dir.name + "-trainer")),
        seed=seed,
        instruction_dropout=0.0,
        geometry="pad",
        row_layout="padded",
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=0.03,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=max(1, steps // 10),
        save_strategy="steps",
        save_steps=500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def _train(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    arguments: Janus4oSFTConfig,
    rows: Dataset,
    held_out: Dataset,
) -> list[dict[str, float]]:
    """Train in place, from the last checkpoint if there is one; returns the log."""
    trainer = Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=held_out
    )
    has_checkpoint = any(Path(str(arguments.output_dir)).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=has_checkpoint or None)
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def _is_done(target_dir: Path) -> bool:
    return (target_dir / "log.json").is_file()


def _load(source_dir: Path) -> tuple[Janus4oForImageGeneration, Janus4oProcessor]:
    model = Janus4oForImageGeneration.from_pretrained(source_dir, dtype=torch.float32)
    return model, Janus4oProcessor.from_pretrained(source_dir)


def _round_to_half(module: torch.nn.Module) -> None:
    """Round the weights to what fp16 can store, so that the shipped files give the very same codes."""
    for parameter in module.parameters():
        parameter.data = parameter.data.half().float()


def _save(
    model: Janus4oForImageGeneration,
    processor: Janus4oProcessor,
    target_dir: Path,
    recipe: TinyRecipe,
    stage: tuple[str, ...],
    started: float,
    curve: list[dict[str, float]],
) -> None:
    """Write a Hub folder, then the log, which marks the stage as done; `stage` begins the settings that it used."""
    model.save_pretrained(target_dir)
    processor.save_pretrained(target_dir)
    settings = {name: value for name, value in asdict(recipe).items() if name == "seed" or name.startswith(stage)}
    log = {"recipe": settings, "minutes": round((time.monotonic() - started) / 60, 1), "curve": curve}
    (target_dir / "log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    logger.info("wrote %s after %s minutes", target_dir.name, log["minutes"])


if __name__ == "__main__":
    random.seed(0)
    main()
