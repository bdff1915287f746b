# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: its benchmarks, each a verb of its own; `cli.py` registers them."""

from pathlib import Path
from typing import Any

import typer

from sharegpt4o_image.cli_dpg_bench import dpg_bench
from sharegpt4o_image.cli_evaluation_options import (
    AsJson,
    EditFreedom,
    GuidanceScale,
    GuidanceUntil,
    Limit,
    Model,
    Output,
    Seed,
    print_result,
)
from sharegpt4o_image.cli_geneval import geneval
from sharegpt4o_image.cli_imgedit import imgedit
from sharegpt4o_image.errors import UserError

evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model, a folder of pictures, or stored answers.")


@evaluate_app.callback()
def evaluate() -> None:
    """Score a model, a folder of pictures, or stored answers."""


evaluate_app.command("geneval")(geneval)
evaluate_app.command("dpg-bench")(dpg_bench)
evaluate_app.command("imgedit")(imgedit)


@evaluate_app.command("scenes")
def scenes(
    model: Model = "tiny-janus-4o",
    output: Output = Path("scores"),
    limit: Limit = 70,
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    guidance_until: GuidanceUntil = 1.0,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint on held-out prompts of the offline teacher's world."""
    recipe = {"seed": seed, "guidance_scale": guidance_scale, "edit_freedom": None, "guidance_until": guidance_until}
    _evaluate_scenes("scenes", model, output, limit, recipe, as_json)


@evaluate_app.command("scene-edits")
def scene_edits(
    model: Model = "tiny-janus-4o",
    output: Output = Path("scores"),
    limit: Limit = 70,
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    edit_freedom: EditFreedom = None,
    guidance_until: GuidanceUntil = 1.0,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint on held-out edits of the offline teacher's world."""
    recipe = {
        "seed": seed,
        "guidance_scale": guidance_scale,
        "edit_freedom": edit_freedom,
        "guidance_until": guidance_until,
    }
    _evaluate_scenes("scene-edits", model, output, limit, recipe, as_json)


def _evaluate_scenes(
    name: str, model: str | None, output: Path, limit: int, recipe: dict[str, Any], as_json: bool
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from sharegpt4o_image.checkpoints import TINY_JANUS_4O, load_checkpoint
    from sharegpt4o_image.evaluation.scene_benchmark import edit_items, prompt_items
    from sharegpt4o_image.evaluation.scene_runner import draw_and_judge, write_results

    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose a folder with --output")
    model = model or TINY_JANUS_4O
    items = prompt_items(limit) if name == "scenes" else edit_items(limit)
    loaded, processor = load_checkpoint(model)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"Drawing {name}", total=len(items))
        scored = draw_and_judge(
            loaded, processor, items, **recipe, on_progress=lambda count: progress.advance(bar, count)
        )
    for field in ("guidance_scale", "edit_freedom"):
        recipe[field] = getattr(loaded.config, field) if recipe[field] is None else recipe[field]
    path = write_results(scored, output / name, name, {"model": model, **recipe})
    if as_json:
        print_result(scored.table, "", as_json)
        return
    for kind, score in scored.table.items():
        interval = f"95 % interval {score['low']:.2f} to {score['high']:.2f}"
        print(f"{kind}: {score['score']:.3f} ({score['correct']:.0f} of {score['images']:.0f}, {interval})")
    print(f"wrote {path}")
