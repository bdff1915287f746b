# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs only. Each verb imports its stage when it runs, so that `--help` stays fast."""

import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sharegpt4o_image import cli_datasets, cli_evaluation, cli_preference, cli_report, cli_training
from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.synthesis.config import SynthesisConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Build ShareGPT-4o-Image-style data sets, and train, run and evaluate Janus-4o.\n\n"
        "First steps:\n\n"
        "  sharegpt4o-image demo --fast\n\n"
        '  sharegpt4o-image generate "a red circle on a gray background" -n 4 -o out/'
    ),
)

PAPER_TOPICS, PAPER_EDITS = 45_717, 46_539  # rows of the released data set

_EXTRA_OF = {
    "trl": "train",
    "accelerate": "train",
    "peft": "train",
    "torchao": "quantize",
    "mlcroissant": "publish",
    "gradio": "serve",
}


def main() -> None:
    """Run the command line; an expected error becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f'Error: {error.name} is not installed; type: pip install "sharegpt4o-image[{extra}]"', file=sys.stderr)
        sys.exit(2)
    except sqlite3.DatabaseError as error:
        print(f"Error: the journal of the run cannot be read ({error}); restore it from a copy", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"Error: {error.filename}: {error.strerror}; choose another folder or put that right", file=sys.stderr)
        sys.exit(2)


def _check_output(folder: Path) -> None:
    """Refuse, before any work, a place where no folder can be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder with --output")


# --------------------------------------------------------------------------- synthesis


@app.command()
def synthesize(
    run_dir: Annotated[
        Path, typer.Option("--output", "-o", metavar="RUN", help="Run directory to start or go on with.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file; without it, the offline teacher draws scenes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of samples of each pipeline.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint; its key is read from OPENAI_API_KEY.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Most US dollars that the run may cost, all its invocations together.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Order pictures by Batch API, at half the price.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan; ask and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Let a teacher write prompts, make pictures and edit them; every answer is kept in RUN.

    Running it again goes on where it stopped and pays for nothing twice. Ctrl-C ends the requests in flight first.
    """
    from sharegpt4o_image.synthesis.config import load_config
    from sharegpt4o_image.synthesis.progress import show_progress
    from sharegpt4o_image.synthesis.run import synthesize

    loaded = load_config(config, base_url=base_url)
    if dry_run:
        _print_plan(loaded.with_limit(limit), run_dir, as_json)
        return
    with show_progress() as on_progress:
        summary = synthesize(
            run_dir, loaded, limit=limit, budget_usd=budget, uses_batches=batch, on_progress=on_progress
        )
    print(summary.to_json() if as_json else summary.to_text())
    if summary.is_interrupted:
        sys.exit(cli_datasets.EXIT_INTERRUPTED)


Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; without it, the offline run.")]


@app.command()
def plan(
    config: Config = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of samples of each pipeline.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Run whose answers say what a request takes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what a run would ask for: requests, tokens, US dollars and hours; asks nothing.

    With --run, figures come from what that run measured, and what it already holds is left out.
    """
    from sharegpt4o_image.synthesis.config import load_config

    if run_dir is not None and not run_dir.is_dir():
        raise UserError(f"{run_dir} is no run directory; leave --run out, or name one that `synthesize` wrote")
    _print_plan(load_config(config).with_limit(limit), run_dir, as_json)


def _print_plan(config: "SynthesisConfig", run_dir: Path | None, as_json: bool) -> None:
    from datetime import UTC, datetime

    from sharegpt4o_image.synthesis.planning import plan_run
    from sharegpt4o_image.synthesis.teachers import check_teachers, load_teachers

    teachers = load_teachers(config.teachers)
    for warning in check_teachers(config, teachers, datetime.now(UTC).date()):
        print(f"Warning: {warning}", file=sys.stderr)
    planned = plan_run(config, teachers, run_dir)
    print(planned.to_json() if as_json else planned.to_text())


@app.command()
def doctor(
    config: Config = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint instead of the file's.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="Run directory to check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check what a run needs: configuration, keys, models and their retirement, disk, clock.

    The exit code is 2 when something is wrong.
    """
    import asyncio
    from datetime import UTC, datetime

    from sharegpt4o_image.synthesis.config import load_config
    from sharegpt4o_image.synthesis.doctor import examine, to_json, to_text

    checks = asyncio.run(examine(load_config(config, base_url=base_url), run_dir, datetime.now(UTC).date()))
    print(to_json(checks) if as_json else to_text(checks))
    if any(check.verdict == "failure" for check in checks):
        sys.exit(2)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that `synthesize` wrote.")],
    html: Annotated[bool, typer.Option("--html", help="Write pages to look through the records of the run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how far the run in RUN is: records, rejections, attempts, dollars, pace.

    In a terminal, the table follows a run that is going on; Ctrl-C ends the show, not the run.
    """
    from rich.console import Console

    from sharegpt4o_image.synthesis.progress import follow_status
    from sharegpt4o_image.synthesis.status import read_status, render_status

    run_status = read_status(run_dir)
    if html:
        from sharegpt4o_image.synthesis.viewer import write_viewer

        print(write_viewer(run_dir))
    elif as_json:
        print(run_status.to_json())
    elif run_status.is_running and sys.stdout.isatty():
        follow_status(run_dir)
    else:
        Console().print(render_status(run_status))


taxonomy_app = typer.Typer(no_args_is_help=True, help="Look at what samples are drawn from.")
app.add_typer(taxonomy_app, name="taxonomy")


@taxonomy_app.command("report")
def taxonomy_report(
    taxonomy: Annotated[str, typer.Option(help="Taxonomy of the package, or a YAML file.")] = "paper",
    num_topics: Annotated[int, typer.Option(min=0, help="Prompt-first topics to draw.")] = PAPER_TOPICS,
    num_edits: Annotated[int, typer.Option(min=0, help="Edits to draw.")] = PAPER_EDITS,
    num_documents: Annotated[int, typer.Option(min=0, help="Documents to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also write a chart to this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw topics and show how often each leaf comes; the numbers are those of the paper's data set."""
    from sharegpt4o_image.synthesis.taxonomy import load_taxonomy
    from sharegpt4o_image.synthesis.taxonomy_report import plot_coverage, report_coverage

    report = report_coverage(load_taxonomy(taxonomy), num_topics, num_edits, num_documents, seed)
    if plot is not None:
        plot_coverage(report, plot)
    print(report.to_json() if as_json else report.to_text())


# --------------------------------------------------------------------------- data sets


for verb in (cli_datasets.pack, cli_datasets.verify, cli_datasets.enrich, cli_datasets.export, cli_datasets.gallery):
    app.command()(verb)
app.add_typer(cli_datasets.publish_app, name="publish")


# --------------------------------------------------------------------------- model


Model = Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder, Hub id or shipped name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint or adapter: a folder or Hub id (owner/name).")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    base: Annotated[str | None, typer.Option(help="Checkpoint of an adapter; default: the one it names.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of a merged adapter: float32 or bfloat16; default: the base's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn an original Janus checkpoint, or one of transformers' Janus, into a folder that AutoModel loads.

    A Janus-4o folder becomes an original checkpoint again; an adapter (LoRA) is merged into its base.
    """
    import json
    from dataclasses import asdict

    from sharegpt4o_image.builders.converter import convert as convert_checkpoint
    from sharegpt4o_image.builders.converter import local_checkpoint

    folder = local_checkpoint(source)
    if (folder / "adapter_config.json").is_file():
        _merge_adapter(folder, target, base, dtype or "auto", as_json)
        return
    for name, value in {"--base": base, "--dtype": dtype}.items():
        if value is not None:
            raise UserError(f"{name} is for adapters, and {source} has no adapter_config.json; leave it out")
    conversion = convert_checkpoint(folder, target)
    if as_json:
        print(json.dumps(asdict(conversion)))
        return
    print(f"Wrote {target}: {conversion.num_tensors} tensors in the format {conversion.target_format}")
    if conversion.dropped:
        print(f"Left out {len(conversion.dropped)} tensors that nothing uses: {', '.join(conversion.dropped)}")


def _merge_adapter(folder: Path, target: Path, base: str | None, dtype: str, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from sharegpt4o_image.training.adapters import merge_adapter

    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; choose float32 or bfloat16")
    merge = merge_adapter(folder, target, base, dtype)
    if as_json:
        print(json.dumps(asdict(merge)))
    else:
        print(f"Wrote {target}: the adapter of {merge.num_layers} layers merged into {merge.base}")


@app.command()
def encode(
    dataset: Annotated[Path, typer.Argument(help="Data set folder that `pack` wrote.")] = Path("sharegpt4o-image"),
    model: Model = "tiny-janus-pro",
    geometry: Annotated[
        str, typer.Option(help="How pictures become square, as in training: center_crop or pad.")
    ] = "center_crop",
    num_processes: Annotated[int, typer.Option(help="Processes, each on its own GPU if any.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Pictures a process encodes at once.", min=1)] = 16,
    as_json: AsJson = False,
) -> None:
    """Store the image codes of DATASET beside it, so that training need not compute them."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from sharegpt4o_image.training.encode_run import encode_dataset

    if not dataset.is_dir():
        raise UserError(f"{dataset} is no folder; `sharegpt4o-image pack` writes one")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("Encoding", total=None)
        result = encode_dataset(
            dataset, model, geometry=geometry, num_processes=num_processes, batch_size=batch_size,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    for row in result.skipped:
        print(f"No codes for {row['id']} of {row['file']}: {row['reason']}", file=sys.stderr)
    print(json.dumps(asdict(result)) if as_json else result.to_text())


app.command(**cli_training.SETTINGS)(cli_training.train)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, or how to edit the picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("out"),
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Number of pictures.", min=1)] = 1,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Picture to edit; may be repeated.")
    ] = None,
    model: Model = "tiny-janus-4o",
    seed: Annotated[int, typer.Option(help="Seed of the pictures.", min=0, max=2**62)] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="Guidance s; default: the checkpoint's.")] = None,
    edit_freedom: Annotated[float | None, typer.Option(help="Freedom s' of edits; default: the checkpoint's.")] = None,
    guidance_until: Annotated[
        float, typer.Option(help="Share of the codes drawn with guidance; the rest are drawn faster.", min=0.01, max=1)
    ] = 1.0,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many likeliest codes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest codes of this probability.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the picture should not be.")] = None,
    output_size: Annotated[
        str, typer.Option(help="Of edits: aspect_ratio (the source's proportions), source (also its size) or model.")
    ] = "aspect_ratio",
    as_json: AsJson = False,
) -> None:
    """Draw PROMPT, or edit a picture as PROMPT says; writes PNG files and prints their paths."""
    import json

    import torch

    from sharegpt4o_image.checkpoints import load_checkpoint

    _check_output(output)
    loaded, processor = load_checkpoint(model)
    try:
        pictures = loaded.generate_image(
            prompt, image=[[*image]] if image else None, num_images_per_prompt=num_images,
            guidance_scale=guidance_scale, edit_freedom=edit_freedom, guidance_until=guidance_until,
            temperature=temperature, top_k=top_k, top_p=top_p, negative_prompt=negative_prompt,
            generator=torch.Generator().manual_seed(seed), processor=processor, output_size=output_size,
            progress_bar=not as_json,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{index:04d}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    print(json.dumps([str(path) for path in paths]) if as_json else "\n".join(map(str, paths)))


# --------------------------------------------------------------------------- evaluation


app.add_typer(cli_evaluation.evaluate_app, name="evaluate")
app.add_typer(cli_preference.preference_app, name="preference")
app.command()(cli_report.report)


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Without training, in under a minute.")] = False,
) -> None:
    """Run the whole loop in this directory: synthesize, pack, encode, train, generate, evaluate, report."""
    from rich.console import Console
    from rich.progress import Progress

    from sharegpt4o_image.demo import FAST, FULL, print_result, run_demo

    with Progress(console=Console(stderr=True)) as progress:
        result = run_demo(FAST if fast else FULL, progress)
    print_result(result, Console())


if __name__ == "__main__":
    main()
