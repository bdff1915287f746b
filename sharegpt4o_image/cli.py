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


# --------------------------------------------------------------------------- model


# --------------------------------------------------------------------------- evaluation


if __name__ == "__main__":
    main()
