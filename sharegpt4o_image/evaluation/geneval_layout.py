# SPDX-License-Identifier: Apache-2.0
"""GenEval's folder of pictures: `<ROOT>/NNNNN/metadata.jsonl` and `<ROOT>/NNNNN/samples/0000.png`, ...

Written for the official evaluator, and read as it reads (djghosh13/geneval@af4902f, evaluation/evaluate_images.py):
folders whose names are digits, pictures whose names begin with digits and `.png`. Unlike it, what is missing, too much
or in the wrong place is named.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import PictureRequest, write_whole
from sharegpt4o_image.evaluation.geneval_prompts import Prompt, parse_prompt
from sharegpt4o_image.evaluation.score_record import MissingItem

METADATA_FILE = "metadata.jsonl"
SAMPLES = "samples"
_SEED_STRIDE = 1000  # seeds of a prompt, of which only the first few are used (our choice)
_OURS = ("recipe.json",)
_PICTURE_NAME = re.compile(r"\d+\.png")


@dataclass(frozen=True)
class PlacedPicture:
    """A picture and the prompt it was drawn for; `name` is its path below the folder."""

    name: str
    path: Path
    prompt: Prompt


@dataclass
class Layout:
    """What a folder holds.

    Args:
        pictures (`list`): in the order of the folders, then of the names.
        missing (`list`): pictures that should be there.
        notes (`list`): sentences on what else is odd: surplus pictures, folders of other names.
    """

    pictures: list[PlacedPicture] = field(default_factory=list)
    missing: list[MissingItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def picture_requests(prompts: Sequence[Prompt], images_per_prompt: int, seed: int) -> list[PictureRequest]:
    """The pictures to draw, each with its own seed.

    The official generator seeds anew for each prompt and draws its pictures one after the other; here every picture
    has a seed of its own (our choice), so that it does not depend on the others.
    """
    return [
        PictureRequest(sample_path(index, sample), prompt.prompt, seed + _SEED_STRIDE * index + sample)
        for index, prompt in enumerate(prompts)
        for sample in range(images_per_prompt)
    ]


def sample_path(index: int, sample: int) -> str:
    """Where a picture of the prompt in line `index` lies."""
    return f"{index:05d}/{SAMPLES}/{sample:04d}.png"


def write_metadata(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write each prompt beside its pictures, as the official evaluator expects it."""
    for index, prompt in enumerate(prompts):
        path = folder / f"{index:05d}" / METADATA_FILE
        if not path.exists():
            write_whole(path, (json.dumps(prompt.to_json()) + "\n").encode())


def read_layout(folder: Path, prompts: Sequence[Prompt], images_per_prompt: int) -> Layout:
    """Find the pictures of `prompts` in a folder.

    A folder's own `metadata.jsonl` must be the prompt in that line; one that is not is a wrong folder, whose pictures
    are not judged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with GenEval's pictures, NNNNN/samples/0000.png")
    layout = Layout()
    found: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.name.isdigit() or not entry.is_dir():
            if entry.name not in _OURS and not entry.name.startswith("."):
                layout.notes.append(f"{entry.name} is no folder of a prompt and was not looked at")
        elif int(entry.name) >= len(prompts):
            layout.notes.append(f"{entry.name} is beyond the {len(prompts)} prompts and was not judged")
        elif int(entry.name) in found:
            layout.notes.append(f"{entry.name} is the same number as {found[int(entry.name)].name}; it was not judged")
        else:
            found[int(entry.name)] = entry
    for index, prompt in enumerate(prompts):
        _read_prompt(layout, found.get(index), index, prompt, images_per_prompt)
    if not layout.pictures:
        raise UserError(
            f"{folder} holds no picture of the {len(prompts)} prompts; GenEval's layout is NNNNN/samples/0000.png"
            + (f" ({layout.notes[0]})" if layout.notes else "")
        )
    return layout


def _read_prompt(layout: Layout, folder: Path | None, index: int, prompt: Prompt, images_per_prompt: int) -> None:
    fault = "there is no folder of this prompt" if folder is None else _find_fault(folder, prompt)
    if folder is None or fault is not None:
        missing = [sample_path(index, sample) for sample in range(images_per_prompt)]
        layout.missing += [MissingItem(path, fault or "") for path in missing]
        return
    samples = folder / SAMPLES
    entries = sorted(samples.iterdir()) if samples.is_dir() else []
    pictures = [path for path in entries if _PICTURE_NAME.match(path.name)]
    layout.notes += [
        f"{folder.name}/{SAMPLES}/{path.name} is no picture of a sample and was not judged"
        for path in entries
        if path not in pictures and not path.name.startswith(".")
    ]
    layout.pictures += [PlacedPicture(f"{folder.name}/{SAMPLES}/{one.name}", one, prompt) for one in pictures]
    if len(pictures) > images_per_prompt:
        layout.notes.append(f"{folder.name} has {len(pictures)} pictures instead of {images_per_prompt}; all count")
    reason = f"{folder.name} has {len(pictures)} of {images_per_prompt} pictures"
    taken = {int(one.name.partition(".")[0]) for one in pictures}
    free = [number for number in range(images_per_prompt) if number not in taken]
    for number in free[: max(images_per_prompt - len(pictures), 0)]:
        layout.missing.append(MissingItem(sample_path(index, number), reason))


def _find_fault(folder: Path, prompt: Prompt) -> str | None:
    """Why the folder is not the one of the prompt."""
    path = folder / METADATA_FILE
    try:
        found = parse_prompt(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        return None  # the number of the folder says which prompt it is
    except (ValueError, OSError, UserError) as error:
        return f"{folder.name}/{METADATA_FILE} cannot be read ({error})"
    if found == prompt:
        return None
    return f"{folder.name}/{METADATA_FILE} is of another prompt ({found.prompt!r} instead of {prompt.prompt!r})"
