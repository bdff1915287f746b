# SPDX-License-Identifier: Apache-2.0
"""A prompts file and a folder of pictures for each model -> what can be compared, and what is missing.

    prompts.jsonl   {"prompt_id": "014", "prompt": "a red circle", "source": "sources/014.png"}
    MODEL_DIR/      014.png, or 014.jpg, 014.jpeg, 014.webp

A CSV file has the same columns. A TXT file has a prompt on each line; their ids are 0000, 0001, ...
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_pictures import read_upright

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MAX_ID_LENGTH = 200  # of a file name that every file system takes, with its suffix


@dataclass(frozen=True)
class Prompt:
    """What the models were given.

    Args:
        prompt_id (`str`): names the models' picture files.
        text (`str`): the prompt, or the instruction of an edit.
        source (`Path`, *optional*): the picture to edit.
    """

    prompt_id: str
    text: str
    source: Path | None = None


@dataclass(frozen=True)
class Fault:
    """Why a prompt cannot be compared; `model` is None where the source picture is at fault."""

    prompt_id: str
    model: str | None
    reason: str


def parse_models(values: Sequence[str]) -> dict[str, Path]:
    """`NAME=DIR` of each model -> its folder."""
    models: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        name = name.strip()
        if not equals or not name or not folder.strip():
            raise UserError(f"--model {value} is not NAME=DIR; give a name and the folder of the model's pictures")
        if name.lower() == "nan" or "," in name or not name.isprintable():
            raise UserError(f"{name!r} cannot name a model; choose a name without a comma that is not nan")
        if name in models:
            raise UserError(f"two models are named {name}; give each --model a name of its own")
        if not Path(folder.strip()).is_dir():
            raise UserError(f"there is no folder {folder.strip()} for the model {name}; check --model")
        models[name] = Path(folder.strip())
    if len(models) < 2:
        raise UserError(f"{len(models)} model given; a comparison needs two, each as --model NAME=DIR")
    return models


# ------------------------------------------------------------------ prompts


def read_prompts(path: Path, sources: Path | None = None) -> list[Prompt]:
    """The prompts of a `.jsonl`, `.csv` or `.txt` file; source pictures lie in `sources`, by default beside it."""
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".txt": _txt_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither .jsonl nor .csv nor .txt; give the prompts in one of these formats")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(readers[path.suffix.lower()](file, path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the file of prompts") from error
    except csv.Error as error:
        raise UserError(f"{path} is not readable as CSV: {error}; write it with a CSV library") from error
    if not rows:
        raise UserError(f"{path} has no prompts; give at least one")
    prompts: dict[str, Prompt] = {}
    for number, row in rows:
        prompt = _prompt(row, f"{path}, line {number}", sources or path.parent)
        if prompt.prompt_id in prompts:
            raise UserError(f"{path}, line {number}: prompt_id {prompt.prompt_id} was there before; ids differ")
        prompts[prompt.prompt_id] = prompt
    return list(prompts.values())


def _jsonl_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: no JSON object; write one object a line")
        yield number, row


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    missing = [name for name in ("prompt_id", "prompt") if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}, line 1: no column {missing[0]}; the first line names prompt_id and prompt")
    for row in reader:
        if None in row:
            raise UserError(f"{path}, line {reader.line_num}: more values than columns; quote values with a comma")
        yield reader.line_num, row


def _txt_rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        yield number, {"prompt_id": f"{index:04d}", "prompt": line}


def _prompt(row: Mapping[str, Any], where: str, sources: Path) -> Prompt:
    prompt_id = _text(row.get("prompt_id"), "prompt_id", where)
    is_name = prompt_id.isprintable() and not prompt_id.startswith(".") and not set(prompt_id) & set("/\\:")
    if not is_name or prompt_id.lower() == "nan" or len(prompt_id.encode()) > _MAX_ID_LENGTH:
        raise UserError(
            f"{where}: prompt_id {prompt_id[:80]!r} cannot name a file of the models' folders; choose another"
        )
    source = row.get("source")
    text = _text(row.get("prompt"), "prompt", where)
    return Prompt(prompt_id, text, _source(_text(source, "source", where), sources, where) if source else None)


def _text(value: Any, field: str, where: str) -> str:
    is_given = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value).strip() if is_given else ""
    if not text:
        raise UserError(
            f"{where}: {field} is {'empty' if value in (None, '') or is_given else repr(value)}; fill it in"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field} has half of a surrogate pair; write valid Unicode") from error
    return text


def _source(name: str, folder: Path, where: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{where}: source {name} is outside of {folder}; name the folder of source pictures by --sources"
        )
    return path


# ------------------------------------------------------------------ pictures


def find_pictures(folder: Path) -> dict[str, list[Path]]:
    """The picture files of a folder by the name before their suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


def check_pictures(
    prompts: Iterable[Prompt], found: Mapping[str, Mapping[str, Sequence[Path]]]
) -> tuple[dict[tuple[str, str], Path], list[Fault]]:
    """Every picture is opened: those of `(model, prompt_id)`, and what is missing, doubled or unreadable."""
    pictures: dict[tuple[str, str], Path] = {}
    faults = []
    for prompt in prompts:
        if prompt.source is not None:
            faults += _faults(prompt, None, [prompt.source] if prompt.source.exists() else [])
        for model, of_id in found.items():
            paths = of_id.get(prompt.prompt_id, ())
            new = _faults(prompt, model, paths)
            faults += new
            if not new:
                pictures[model, prompt.prompt_id] = paths[0]
    return pictures, faults


def _faults(prompt: Prompt, model: str | None, paths: Sequence[Path]) -> list[Fault]:
    if not paths:
        named = f": no {prompt.source.name}" if model is None and prompt.source is not None else ""
        return [Fault(prompt.prompt_id, model, f"is missing{named}")]
    if len(paths) > 1:
        return [Fault(prompt.prompt_id, model, f"is there more than once: {', '.join(path.name for path in paths)}")]
    try:
        read_upright(paths[0])
    except ValueError as error:
        return [Fault(prompt.prompt_id, model, f"{paths[0].name} {error}")]
    return []
