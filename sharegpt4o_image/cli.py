# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs only. Each verb imports its stage when it runs, so that `--help` stays fast."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sharegpt4o_image.errors import UserError

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


def main() -> None:
    """Run the command line; an expected error becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


# --------------------------------------------------------------------------- synthesis


# --------------------------------------------------------------------------- data sets


@app.command()
def pack(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that `synthesize` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Data set folder to write.")] = Path(
        "sharegpt4o-image"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the finished records of RUN as Parquet files that `load_dataset` reads.

    Running it again replaces the folder; a folder that holds anything else is refused.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from sharegpt4o_image.builders.packer import pack as pack_records
    from sharegpt4o_image.synthesis.records import iter_records

    if not run_dir.is_dir():
        raise UserError(f"there is no run directory {run_dir}; `sharegpt4o-image synthesize` writes one")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        records = progress.track(iter_records(run_dir), total=None, description="Packing records")
        summary = pack_records(records, output)
    print(summary.to_json() if as_json else summary.to_text())


# --------------------------------------------------------------------------- model


# --------------------------------------------------------------------------- evaluation


if __name__ == "__main__":
    main()
