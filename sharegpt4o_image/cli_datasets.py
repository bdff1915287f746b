# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line that make, check, change and publish data sets; `cli.py` registers them."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C
DATASET_DIR = Path("sharegpt4o-image")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="Data set folder that `pack` wrote.")]


@contextmanager
def _show_progress(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr; what is yielded takes the number that is done, and the total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Run directory, upstream release (its folder, or owner/name on the Hub), or packed set.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Data set folder to write.")] = DATASET_DIR,
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SHARE", help="Split beside train, by hash; may be repeated.")
    ] = None,
    include_negatives: Annotated[
        bool, typer.Option("--include-negatives", help="Pack refused pictures too, as configurations of their own.")
    ] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Pack only the pictures that quality gates refused, with the reasons.")
    ] = False,
    max_side: Annotated[int | None, typer.Option(min=1, help="Shrink pictures to this many pixels a side.")] = None,
    image_format: Annotated[
        str | None, typer.Option("--format", help="Re-encode pictures as png, jpeg or webp.")
    ] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Quality of jpeg or webp.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the rows of SOURCE as Parquet files that `load_dataset` reads.

    A run that was killed goes on from the files it has finished; otherwise the folder is replaced as a whole. A
    folder that holds anything else is refused.
    """
    from sharegpt4o_image.builders.light_variant import check_encoding
    from sharegpt4o_image.builders.packer import pack as pack_rows
    from sharegpt4o_image.builders.source_kinds import open_source
    from sharegpt4o_image.builders.splits import parse_splits

    splits = parse_splits(split or [])
    encoding = check_encoding(max_side, image_format, quality)
    with _show_progress("Packing") as on_progress:
        members = itertools.count(1)
        opened = open_source(source, rejected, on_member=lambda: on_progress(next(members), None))
        summary = pack_rows(
            opened, output, splits=splits, includes_negatives=include_negatives, encoding=encoding,
            on_progress=on_progress,
        )  # fmt: skip
    print(summary.to_json() if as_json else summary.to_text())


def verify(
    dataset: Dataset = DATASET_DIR,
    sample: Annotated[int | None, typer.Option(min=1, help="Decode only this many pictures, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    taxonomy: Annotated[
        str | None, typer.Option(help="Taxonomy of the package, or a YAML file; default: the set's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a packed data set: schema, pictures, checksums, ids, sources, splits, counts, categories.

    The exit code is 2 when something is wrong.
    """
    from rich.console import Console

    from sharegpt4o_image.builders.verification import verify_dataset

    with _show_progress("Verifying") as on_progress:
        report = verify_dataset(dataset, sample=sample, seed=seed, taxonomy=taxonomy, on_progress=on_progress)
    if as_json:
        print(report.to_json())
    else:
        Console().print(report.to_table())
    if not report.is_sound:
        sys.exit(2)


def enrich(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Data set folder to write.")],
    run_dir: Annotated[Path, typer.Option("--run", metavar="RUN", help="Run directory that keeps the answers.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file; without it, the offline teacher labels.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Label this many rows of each task.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Most US dollars that all labels may cost.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be asked; ask nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a model label the rows of DATASET, in columns of their own, and write the set anew to OUT.

    Running it again goes on where it stopped and pays for nothing twice.
    """
    from sharegpt4o_image.builders.enrichment import enrich_dataset, plan_enrichment
    from sharegpt4o_image.synthesis.config import load_config

    loaded = load_config(config)
    if dry_run:
        planned = plan_enrichment(dataset, run_dir, loaded, limit=limit)
        print(planned.to_json() if as_json else planned.to_text())
        return
    with _show_progress("Labelling") as on_progress:
        summary = enrich_dataset(
            dataset, output, run_dir, loaded, limit=limit, budget_usd=budget, on_progress=on_progress
        )
    print(summary.to_json() if as_json else summary.to_text())
    if summary.is_interrupted:
        sys.exit(EXIT_INTERRUPTED)


def export(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Packed folder, or owner/name on the Hub.")],
    to: Annotated[str, typer.Option("--to", help="janus-json, webdataset, imagefolder or messages.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    config: Annotated[str | None, typer.Option(help="Only this configuration.")] = None,
    split: Annotated[str, typer.Option(help="Split to export.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each configuration.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set in the layout of other tools; pictures keep their bytes."""
    from sharegpt4o_image.builders.exporter import export_dataset

    with _show_progress("Exporting") as on_progress:
        summary = export_dataset(dataset, output, to, config=config, split=split, limit=limit, on_progress=on_progress)
    print(summary.to_json() if as_json else summary.to_text())


def gallery(
    dataset: Dataset = DATASET_DIR,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("gallery.html"),
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the rows, where there are more.")] = 0,
) -> None:
    """Write one HTML file to look through DATASET: filter by category, compare source and edit."""
    from sharegpt4o_image.builders.gallery import write_gallery

    print(write_gallery(dataset, output, limit=limit, seed=seed))


publish_app = typer.Typer(no_args_is_help=True, help="Publish to the Hugging Face Hub.")


@publish_app.command("dataset")
def publish_dataset(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data set folder that `pack` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub; made when it is not there.")],
    tag: Annotated[str, typer.Option(help="Name of the release, such as v1.0.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request; leave main alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload DIR to REPO and tag it, once all of it is there; what is there already is not uploaded again.

    The token is read as by `huggingface_hub`: from HF_TOKEN, or where `hf auth login` put it.
    """
    from sharegpt4o_image.builders.publisher import plan_release
    from sharegpt4o_image.builders.publisher import publish_dataset as publish

    if dry_run:
        planned = plan_release(folder, repo, tag, is_private=private, creates_pull_request=create_pr)
        print(planned.to_json() if as_json else planned.to_text())
        return
    with _show_progress("Publishing") as on_progress:
        release = publish(
            folder, repo, tag, is_private=private, creates_pull_request=create_pr, on_progress=on_progress
        )
    print(release.to_json() if as_json else release.to_text())
