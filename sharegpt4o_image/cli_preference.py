# SPDX-License-Identifier: Apache-2.0
"""`preference`: blind human comparison of pictures, from two folders of pictures to win rates with intervals.

build -> serve (or export, then import) -> unseal -> report
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sharegpt4o_image.cli_evaluation_options import AsJson, print_result

preference_app = typer.Typer(no_args_is_help=True, help="Blind human comparison of pictures.")

Study = Annotated[Path, typer.Argument(help="Folder that `preference build` wrote.")]


class Tool(StrEnum):
    """Where raters can answer instead of on our page."""

    argilla = "argilla"
    label_studio = "label-studio"


@preference_app.callback()
def preference() -> None:
    """Blind human comparison of pictures."""


@preference_app.command("build")
def preference_build(
    model: Annotated[
        list[str], typer.Option("--model", help="NAME=DIR of its pictures, <prompt_id>.png; two or more.")
    ],
    prompts: Annotated[Path, typer.Option(help="JSONL or CSV with prompt_id, prompt[, source], or TXT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study.")],
    pairs: Annotated[list[str] | None, typer.Option(help="A,B: models to compare; default: each with each.")] = None,
    sources: Annotated[
        Path | None, typer.Option(help="Folder of source pictures; default: that of --prompts.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Prompts to draw; default: all.", min=1)] = None,
    repeats: Annotated[float, typer.Option(help="Share of pairs shown again, sides swapped.", min=0, max=1)] = 0.1,
    checks: Annotated[int, typer.Option(help="Pairs of a picture and its spoilt copy.", min=0)] = 0,
    height: Annotated[int, typer.Option(help="Height of all pictures in pixels.", min=16, max=4096)] = 512,
    skip_missing: Annotated[bool, typer.Option(help="Leave out prompts without all pictures.")] = False,
    both_bad: Annotated[bool, typer.Option(help='Offer the answer "both bad".')] = False,
    title: Annotated[str | None, typer.Option(help="What raters read above the pictures.")] = None,
    criteria: Annotated[str | None, typer.Option(help="What makes a picture better, told to raters.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts, sides and order.", min=0, max=2**62)] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a study: prompts x pairs of models -> balanced pairs without names, and the sealed key.json."""
    from sharegpt4o_image.evaluation import preference_pairs as building
    from sharegpt4o_image.evaluation.preference_prompts import parse_models, read_prompts

    models = parse_models(model)
    options = building.StudyOptions(
        seed=seed,
        num_prompts=num_prompts,
        repeats=repeats,
        height=height,
        num_checks=checks,
        skip_missing=skip_missing,
        allows_both_bad=both_bad,
        title=title or building.TITLE,
        criteria=criteria or building.CRITERIA,
    )
    compared = building.model_pairs(list(models), pairs or [])
    summary = building.build_study(output, read_prompts(prompts, sources), models, compared, options)
    print_result(summary, building.to_text(summary), as_json)


@preference_app.command("serve")
def preference_serve(
    study: Study,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 7860,
) -> None:
    """Show a study to raters on a page; votes go to STUDY/votes.jsonl as they are given."""
    from sharegpt4o_image.evaluation.preference_page import serve_study

    serve_study(study, host=host, port=port)


@preference_app.command("export")
def preference_export(
    study: Study,
    tool: Annotated[Tool, typer.Option("--to", help="Tool to write files for.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the files.")],
    picture_url: Annotated[
        str | None, typer.Option(help="Label Studio: address before the pictures' names; default: data in tasks.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study for Argilla or Label Studio, as blind as it is."""
    from sharegpt4o_image.errors import UserError
    from sharegpt4o_image.evaluation.preference_exports import export_argilla, export_label_studio

    if tool is Tool.argilla and picture_url is not None:
        raise UserError("--picture-url is for Label Studio; Argilla gets the pictures in records.json")
    is_argilla = tool is Tool.argilla
    count = export_argilla(study, output) if is_argilla else export_label_studio(study, output, picture_url)
    print_result({"items": count, "folder": str(output)}, f"{count} items for {tool.value} in {output}", as_json)


@preference_app.command("import")
def preference_import(
    study: Study,
    answers: Annotated[Path, typer.Argument(help="JSON that the tool exported.")],
    tool: Annotated[Tool, typer.Option("--from", help="Tool that wrote it.")],
    as_json: AsJson = False,
) -> None:
    """Add answers from Argilla or Label Studio to STUDY/votes.jsonl."""
    from sharegpt4o_image.evaluation import preference_imports as importing

    imported = importing.import_votes(study, answers, tool.value)
    print_result(importing.to_json(imported), importing.to_text(imported), as_json)


@preference_app.command("unseal")
def preference_unseal(
    study: Study,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV for `preference report`.")],
    as_json: AsJson = False,
) -> None:
    """Open the key: join STUDY/votes.jsonl with the models' names, and tell how raters did on checks."""
    from sharegpt4o_image.evaluation import preference_key as sealing

    unsealed = sealing.unseal(study)
    sealing.write_votes(unsealed, output)
    print_result(unsealed.to_json(), f"{output}: {unsealed.to_text()}", as_json)


@preference_app.command("report")
def preference_report(
    votes: Annotated[Path, typer.Argument(help="Votes as CSV or JSON lines.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw wins and ratings into this picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print who wins how often, with intervals, exact tests and Bradley-Terry ratings."""
    from sharegpt4o_image.evaluation import preference_report as reporting
    from sharegpt4o_image.evaluation.preference_votes import read_votes

    report = reporting.report(read_votes(votes))
    if plot is not None:
        reporting.plot(report, plot)
    print_result(report, reporting.to_text(report), as_json)
