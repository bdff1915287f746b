# SPDX-License-Identifier: Apache-2.0
"""The verb of the command line that trains; `cli.py` registers it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sharegpt4o_image.cli_datasets import EXIT_INTERRUPTED
from sharegpt4o_image.errors import UserError

# Fields of the program besides TRL's own; here as words, since `--help` must not import them. A test compares.
FIELDS = (
    "train_split", "eval_split", "held_out_share", "dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "prompt_dropout", "prompt_dropout_granularity", "source_code_dropout",
    "source_code_dropout_granularity", "instruction_dropout", "null_dropout", "decay_norms_and_embeddings", "geometry",
    "freeze_vision_tower", "freeze_aligners", "row_layout", "max_tokens_per_batch", "edit_share", "max_skipped_rows",
    "ema_decay", "sample_steps", "sample_prompts", "sample_seed", "optim_bf16_stochastic_rounding",
)  # fmt: skip
# Without a configuration, a run is a short one.
MAX_STEPS, BATCH_SIZE = 200, 16

# What the bar shows of the last log line.
_SHOWN = {"loss": "loss {:.3f}", "token_accuracy": "token accuracy {:.3f}", "samples_per_second": "{:.1f} samples/s"}

# For `cli.app.command`: what it does not know goes to the program, and so it lists what that knows.
SETTINGS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    "epilog": f"Fields, by --name value, besides all of TRL's SFTConfig: {', '.join(FIELDS)}. "
    "What each does: python -m sharegpt4o_image.training.sft --help",
}


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    dataset_and_fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET] [--FIELD VALUE]...",
            help="Data set folder that `pack` and `encode` wrote, or owner/name; then any field.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint folder, Hub id or shipped name.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with any of the fields.")] = None,
    preset: Annotated[str | None, typer.Option(help="Recipe: default or paper.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(help=f"Optimizer steps; {MAX_STEPS} without --config.", min=1)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Samples that a device takes at once; {BATCH_SIZE} without --config.", min=1)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; default: 5e-6.", min=0)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of data order and masks; default: 42.", min=0, max=2**32 - 1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune a checkpoint on DATASET and write it to OUTPUT.

    The same command again goes on where it stopped; after SIGTERM the exit code is 130. On several devices:
    accelerate launch -m sharegpt4o_image.training.sft, with the same fields.
    """
    fields = list(dataset_and_fields or [])
    if any(one.split("=")[0].replace("-", "_") == "__output_dir" for one in fields):
        raise UserError("--output_dir is given besides -o, which names the folder of the run; leave it out")
    named = {
        "dataset": fields.pop(0) if fields and not fields[0].startswith("-") else None,
        "output_dir": output,
        "model": model,
        "preset": preset,
        "max_steps": MAX_STEPS if config is None and max_steps is None else max_steps,
        "per_device_train_batch_size": BATCH_SIZE if config is None and batch_size is None else batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    argv = [] if config is None else ["--config", str(config)]
    argv += [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]
    _train([*argv, *fields], as_json)


def _train(argv: list[str], as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from sharegpt4o_image.training.sft import run

    with Progress(console=Console(stderr=True)) as progress:

        def show(done: int, total: int) -> None:
            [bar] = progress.task_ids or [progress.add_task("Fine-tuning")]
            progress.update(bar, completed=done, total=total)

        def tell(logs: dict[str, float]) -> None:
            shown = [text.format(logs[name]) for name, text in _SHOWN.items() if name in logs]
            if "loss" in logs and progress.task_ids:
                progress.update(progress.task_ids[0], description=", ".join(["Fine-tuning", *shown]))

        summary = run(argv, show, tell)
    print(summary.to_json() if as_json else summary.to_text())
    if summary.is_interrupted:
        sys.exit(EXIT_INTERRUPTED)
