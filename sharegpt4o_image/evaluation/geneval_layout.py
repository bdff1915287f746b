# SPDX-License-Identifier: Apache-2.0
"""GenEval's folder of pictures: `<ROOT>/NNNNN/metadata.jsonl` and `<ROOT>/NNNNN/samples/0000.png`, ...

Written for the official evaluator, and read as it reads (djghosh13/geneval@af4902f, evaluation/evaluate_images.py):
folders whose names are digits, pictures whose names begin with digits and `.png`. Unlike it, what is missing, too much
or in the wrong place is named.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import RECIPE_FILE, PictureRequest, write_whole
from sharegpt4o_image.evaluation.geneval_prompts import Prompt, parse_prompt
from sharegpt4o_image.evaluation.score_record import MissingItem

METADATA_FILE = "metadata.jsonl"
SAMPLES = "samples"
_NUM_NAMED = 5  # of many names (our choice)
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


def picture_requests(prompts: Mapping[int, Prompt], images_per_prompt: int, seed: int) -> list[PictureRequest]:
    """The pictures to draw of prompts by their numbers.

    The official generator seeds anew for each prompt and draws its pictures one after the other; here every picture
    has a seed of its own (our choice), so that it depends neither on the others nor on how many are drawn at a time.
    """
    return [
        PictureRequest(sample_path(number, sample), prompt.prompt, picture_seed(seed, number, sample))
        for number, prompt in prompts.items()
        for sample in range(images_per_prompt)
    ]


def picture_seed(seed: int, number: int, sample: int) -> int:
    """Mixed of all three: runs with the seeds 42 and 43 have no picture in common."""
    return int(np.random.SeedSequence((seed, number, sample)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sample_path(number: int, sample: int) -> str:
    """Where a picture of the prompt in that line lies; lines count from 0."""
    return f"{number:05d}/{SAMPLES}/{sample:04d}.png"


def write_metadata(folder: Path, prompts: Mapping[int, Prompt]) -> None:
    """Write each prompt where its pictures will lie, as the official evaluator expects it.

    Done before the first picture, so that those of another list of prompts are never taken for these.
    """
    for number, prompt in prompts.items():
        place = folder / f"{number:05d}"
        fault = _find_fault(place, prompt)
        if fault is not None:
            raise UserError(f"{folder} holds other pictures: {fault}; choose another folder with --output")
        if not (place / METADATA_FILE).exists():
            write_whole(place / METADATA_FILE, (json.dumps(prompt.to_json()) + "\n").encode())


def read_layout(folder: Path, prompts: Mapping[int, Prompt], images_per_prompt: int) -> Layout:
    """Find the pictures of prompts, given by their numbers, in a folder.

    A folder's own `metadata.jsonl` must be the prompt of its number; one that is not is a wrong folder, whose pictures
    are not judged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with GenEval's pictures, NNNNN/samples/0000.png")
    layout = Layout()
    found = _find_folders(folder, prompts, layout.notes)
    for number, prompt in prompts.items():
        _read_prompt(layout, found.get(number), number, prompt, images_per_prompt)
    bare = [place.name for number, place in sorted(found.items()) if not (place / METADATA_FILE).exists()]
    if bare:
        layout.notes.append(f"{_some(bare)}: no {METADATA_FILE}, so the number says which prompt it is")
    if not layout.pictures:
        reasons = [*layout.notes, *dict.fromkeys(one.reason for one in layout.missing)]
        raise UserError(
            f"{folder} holds no picture of the {len(prompts)} prompts; GenEval's layout is NNNNN/samples/0000.png"
            f" ({reasons[0]})"
        )
    return layout


def _find_folders(folder: Path, prompts: Mapping[int, Prompt], notes: list[str]) -> dict[int, Path]:
    """The folders of the prompts by their numbers; notes what else there is."""
    found: dict[int, Path] = {}
    strange, others = [], []
    for entry in sorted(folder.iterdir()):
        if not entry.name.isdecimal() or not entry.is_dir():
            if entry.name != RECIPE_FILE and not entry.name.startswith("."):
                strange.append(entry.name)
        elif int(entry.name) not in prompts:
            others.append(entry.name)
        elif int(entry.name) in found:
            notes.append(f"{entry.name}: the same number as {found[int(entry.name)].name}; not judged")
        else:
            found[int(entry.name)] = entry
    if strange:
        notes.append(f"{_some(strange)}: no folder of a prompt; not looked at")
    if others:
        notes.append(f"{_some(others)}: not of the {len(prompts)} prompts asked for; not judged")
    return found


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _read_prompt(layout: Layout, folder: Path | None, number: int, prompt: Prompt, images_per_prompt: int) -> None:
    fault = "there is no folder of this prompt" if folder is None else _find_fault(folder, prompt)
    if folder is None or fault is not None:
        missing = [sample_path(number, sample) for sample in range(images_per_prompt)]
        layout.missing += [MissingItem(path, fault or "") for path in missing]
        return
    samples = folder / SAMPLES
    entries = sorted(samples.iterdir()) if samples.is_dir() else []
    pictures = [path for path in entries if _PICTURE_NAME.match(path.name)]
    strange = [path.name for path in entries if path not in pictures and not path.name.startswith(".")]
    if strange:
        layout.notes.append(f"{folder.name}/{SAMPLES}/{_some(strange)}: no picture of a sample; not judged")
    layout.pictures += [PlacedPicture(f"{folder.name}/{SAMPLES}/{one.name}", one, prompt) for one in pictures]
    if len(pictures) > images_per_prompt:
        layout.notes.append(f"{folder.name}: {len(pictures)} pictures instead of {images_per_prompt}; all count")
    reason = f"{folder.name} has {len(pictures)} of {images_per_prompt} pictures"
    taken = {int(one.name.partition(".")[0]) for one in pictures}
    free = [sample for sample in range(images_per_prompt) if sample not in taken]
    for sample in free[: max(images_per_prompt - len(pictures), 0)]:
        layout.missing.append(MissingItem(sample_path(number, sample), reason))


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
