# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: its benchmarks, each a verb of its own; `cli.py` registers them."""

import typer

from sharegpt4o_image.cli_dpg_bench import dpg_bench
from sharegpt4o_image.cli_geneval import geneval
from sharegpt4o_image.cli_imgedit import imgedit, judge_agreement
from sharegpt4o_image.cli_report import card, export, results
from sharegpt4o_image.cli_scenes import scene_edits, scene_geneval, scenes

evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model, a folder of pictures, or stored answers.")


@evaluate_app.callback()
def evaluate() -> None:
    """Score a model, a folder of pictures, or stored answers."""


evaluate_app.command("geneval")(geneval)
evaluate_app.command("dpg-bench")(dpg_bench)
evaluate_app.command("imgedit")(imgedit)
evaluate_app.command("judge-agreement")(judge_agreement)
evaluate_app.command("scenes")(scenes)
evaluate_app.command("scene-edits")(scene_edits)
evaluate_app.command("scene-geneval")(scene_geneval)
evaluate_app.command("results")(results)
evaluate_app.command("card")(card)
evaluate_app.command("export")(export)
