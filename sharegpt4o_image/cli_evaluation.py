# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line that evaluate; `cli.py` registers them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sharegpt4o_image.errors import UserError

SCENE_BENCHMARKS = ("scenes", "scene-edits")
# What each benchmark that is scored from stored answers reads.
STORED_OPTIONS = {
    "geneval": ("from_detections", "from_results", "metadata"),
    "dpg-bench": ("questions", "from_answers", "num_pictures", "first_row"),
    "imgedit": ("items", "from_judgements", "suite"),
}
IMGEDIT_SUITES = ("basic", "uge")
BENCHMARKS = (*SCENE_BENCHMARKS, *STORED_OPTIONS)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

preference_app = typer.Typer(no_args_is_help=True, help="Blind human comparison of pictures.")


def evaluate(
    name: Annotated[str, typer.Argument(help=f"Benchmark: {', '.join(BENCHMARKS)}.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint folder, Hub id or shipped name.")
    ] = "tiny-janus-4o",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures and scores.")] = Path("scores"),
    limit: Annotated[int, typer.Option(help="Items of each kind.", min=1)] = 70,
    seed: Annotated[int, typer.Option(help="Seed of the pictures.", min=0, max=2**62)] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance s; default: the checkpoint's.", min=0)] = None,
    edit_freedom: Annotated[
        float | None, typer.Option(help="Freedom s' of edits; default: the checkpoint's.", min=0)
    ] = None,
    guidance_until: Annotated[
        float, typer.Option(help="Share of the codes drawn with guidance; the rest are drawn faster.", min=0.01, max=1)
    ] = 1.0,
    from_detections: Annotated[
        Path | None, typer.Option(help="geneval: JSON lines with metadata, detections and colours of each picture.")
    ] = None,
    from_results: Annotated[Path | None, typer.Option(help="geneval: the official results.jsonl.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="geneval: evaluation_metadata.jsonl, to count missing images against.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="dpg-bench: the official CSV of questions.")] = None,
    from_answers: Annotated[Path | None, typer.Option(help="dpg-bench: JSON of the answers to them.")] = None,
    num_pictures: Annotated[
        int | None, typer.Option(help="dpg-bench: use the first so many of each item.", min=1, max=4)
    ] = None,
    first_row: Annotated[
        str | None, typer.Option(help="dpg-bench: keep or drop the first question, as the official script does.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="imgedit: the official basic_edit.json.")] = None,
    from_judgements: Annotated[Path | None, typer.Option(help="imgedit: result.json of the judge's texts.")] = None,
    suite: Annotated[str | None, typer.Option(help="imgedit: basic (the default) or uge, which has no items.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint on held-out prompts (scenes) or edits (scene-edits), or score stored answers.

    The other benchmarks are scored from stored answers, without any model, by the official scripts' rules.
    """
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}; choose {', '.join(BENCHMARKS)}")
    stored = {
        "from_detections": from_detections,
        "from_results": from_results,
        "metadata": metadata,
        "questions": questions,
        "from_answers": from_answers,
        "num_pictures": num_pictures,
        "first_row": first_row,
        "items": items,
        "from_judgements": from_judgements,
        "suite": suite,
    }
    _check_options(name, stored)
    if name in STORED_OPTIONS:
        _print_stored(name, stored, as_json)
        return
    recipe = {
        "seed": seed,
        "guidance_scale": guidance_scale,
        "edit_freedom": edit_freedom,
        "guidance_until": guidance_until,
    }
    _evaluate_scenes(name, model, output, limit, recipe, as_json)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _check_options(name: str, stored: dict[str, Any]) -> None:
    """Refuse options of another benchmark."""
    for option, value in stored.items():
        if value is not None and option not in STORED_OPTIONS.get(name, ()):
            owner = next(one for one, options in STORED_OPTIONS.items() if option in options)
            raise UserError(f"{_flag(option)} belongs to {owner}, not to {name}; leave it out")


# --------------------------------------------------------------------------- stored answers


def _print_stored(name: str, stored: dict[str, Any], as_json: bool) -> None:
    score = {"geneval": _score_geneval, "dpg-bench": _score_dpg_bench, "imgedit": _score_imgedit}[name]
    scores, text = score(stored)
    _print(json.dumps(scores, allow_nan=False) if as_json else text)


def _print(text: str) -> None:
    """To stdout, with what is no valid Unicode in names and answers written as its number."""
    print(text.encode(errors="backslashreplace").decode())


def _score_geneval(stored: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from sharegpt4o_image.evaluation import geneval_scores
    from sharegpt4o_image.evaluation.geneval_prompts import read_metadata

    detections, results = stored["from_detections"], stored["from_results"]
    if (detections is None) == (results is None):
        raise UserError("geneval is scored from stored answers: give --from-detections FILE or --from-results FILE")
    prompts = None if stored["metadata"] is None else read_metadata(stored["metadata"])
    if detections is not None:
        summary, rows = geneval_scores.score_detections(detections, prompts)
    else:
        summary, rows = geneval_scores.score_results(results, prompts)
    text = f"{geneval_scores.format_official(summary)}\n{geneval_scores.coverage_text(summary)}"
    return geneval_scores.to_json(summary, rows), text


def _score_dpg_bench(stored: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from sharegpt4o_image.evaluation import dpg_scores

    if stored["questions"] is None or stored["from_answers"] is None:
        raise UserError("dpg-bench is scored from stored answers: give --questions FILE and --from-answers FILE")
    if stored["first_row"] not in (None, "keep", "drop"):
        raise UserError(f"--first-row is {stored['first_row']}; choose keep or drop")
    scores = dpg_scores.score_files(
        stored["questions"], stored["from_answers"], stored["num_pictures"], stored["first_row"]
    )
    return scores, dpg_scores.to_text(scores)


def _score_imgedit(stored: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from sharegpt4o_image.evaluation import imgedit_scores

    suite, judgements = stored["suite"] or "basic", stored["from_judgements"]
    if suite not in IMGEDIT_SUITES:
        raise UserError(f"there is no suite {suite!r} of imgedit; choose {' or '.join(IMGEDIT_SUITES)}")
    if judgements is None or (stored["items"] is None) != (suite == "uge"):
        wanted = "--from-judgements FILE" if suite == "uge" else "--items FILE and --from-judgements FILE"
        raise UserError(f"imgedit's {suite} is scored from stored answers: give {wanted}, nothing else")
    if suite == "uge":
        uge = imgedit_scores.score_uge(judgements)
        return uge, imgedit_scores.uge_to_text(uge)
    scores = imgedit_scores.score_files(stored["items"], stored["from_judgements"])
    return scores, imgedit_scores.to_text(scores)


# --------------------------------------------------------------------------- scenes


def _evaluate_scenes(name: str, model: str, output: Path, limit: int, recipe: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from sharegpt4o_image.checkpoints import load_checkpoint
    from sharegpt4o_image.evaluation.scene_benchmark import edit_items, prompt_items
    from sharegpt4o_image.evaluation.scene_runner import draw_and_judge, write_results

    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose a folder with --output")
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
        print(json.dumps(scored.table))
        return
    for kind, score in scored.table.items():
        interval = f"95 % interval {score['low']:.2f} to {score['high']:.2f}"
        print(f"{kind}: {score['score']:.3f} ({score['correct']:.0f} of {score['images']:.0f}, {interval})")
    print(f"wrote {path}")


# --------------------------------------------------------------------------- preference


@preference_app.callback()
def preference() -> None:
    """Blind human comparison of pictures."""


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
    _print(json.dumps(report, allow_nan=False) if as_json else reporting.to_text(report))
