# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs of evaluation share, and how they print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Checkpoint folder, Hub id or shipped name; with --base-url, the name there."),
]
Images = Annotated[
    Path | None, typer.Option(help="Folder of pictures in the official layout, instead of drawing them.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, verdicts and scores.")]
BaseUrl = Annotated[
    str | None, typer.Option(help="OpenAI-compatible endpoint that draws; its key is read from OPENAI_API_KEY.")
]
Limit = Annotated[int, typer.Option(help="Items of each kind.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the pictures.", min=0, max=2**62)]
GuidanceScale = Annotated[float | None, typer.Option(help="Guidance s; default: the checkpoint's.", min=0)]
EditFreedom = Annotated[float | None, typer.Option(help="Freedom s' of edits; default: the checkpoint's.", min=0)]
GuidanceUntil = Annotated[
    float, typer.Option(help="Share of the codes drawn with guidance; the rest are drawn faster.", min=0.01, max=1)
]
Budget = Annotated[float | None, typer.Option(help="Most US dollars to spend, all invocations together.", min=0)]


def print_result(result: Any, text: str, as_json: bool) -> None:
    """To stdout, with what is no valid Unicode in names and answers written as its number."""
    shown = json.dumps(result, allow_nan=False) if as_json else text
    print(shown.encode(errors="backslashreplace").decode())
