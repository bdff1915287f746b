# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures in a benchmark's official layout -> single pictures, each with an id and its prompt.

geneval     NNNNN/samples/0000.png, NNNNN/metadata.jsonl   ->  00017_0000
dpg-bench   <item_id>.png, a grid of four or one picture   ->  partiprompts12_0
imgedit     <key>.png                                      ->  1023
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_pictures import GRID_SIDE, RESOLUTION, crop_boxes, has_odd_size
from sharegpt4o_image.evaluation.drawing import RECIPE_FILE
from sharegpt4o_image.evaluation.score_record import MissingItem

LAYOUTS = ("geneval", "dpg-bench", "imgedit")
_SAMPLE = re.compile(r"\d+\.png")
_SAFE = re.compile(r"[\w.-]+", re.ASCII)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class LayoutPicture:
    """One picture.

    Args:
        id (`str`): its own, in letters that a file name may have.
        item (`str`): what it is a picture of: folder, item or key.
        path (`Path`): its file.
        prompt (`str`): or the edit instruction.
        box (`tuple`, *optional*): where in the file it is, in a grid.
    """

    id: str
    item: str
    path: Path
    prompt: str
    box: Box | None = None

    def open(self) -> Image.Image:
        """The picture, cut out of its grid."""
        with Image.open(self.path) as picture:
            picture.load()
            return picture.copy() if self.box is None else picture.crop(self.box)

    def is_png(self) -> bool:
        """Whether its file is one inside, too."""
        with Image.open(self.path) as picture:
            return picture.format == "PNG"


@dataclass(frozen=True)
class LayoutFolder:
    """What a folder holds; `left_out` names what cannot be used, `missing` the items without a picture."""

    pictures: tuple[LayoutPicture, ...]
    left_out: tuple[MissingItem, ...]
    missing: tuple[str, ...]


def read_layout(
    folder: Path, layout: str, prompts: Mapping[str, str] | None = None, resolution: int = RESOLUTION
) -> LayoutFolder:
    """Look through a folder; every picture is decoded once, so that what is unreadable is known now.

    Args:
        folder: of pictures.
        layout: one of `LAYOUTS`.
        prompts: item or key -> prompt, of the two layouts that do not hold them.
        resolution: side of one picture of DPG-Bench; grids have twice that.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the pictures of a benchmark, such as OUT/geneval/images")
    left_out: list[MissingItem] = []
    found: Iterable[LayoutPicture]
    if layout == "geneval":
        found = _geneval(folder, left_out)
    elif prompts is None:
        raise UserError(f"the layout {layout} holds no prompts; give the benchmark's own file of items with --items")
    else:
        cut = _cells(resolution) if layout == "dpg-bench" else _whole
        found = _flat(folder, prompts, cut, left_out)
    pictures = tuple(picture for picture in found if _is_readable(picture, left_out))
    if not pictures:
        reason = f" ({left_out[0].item}: {left_out[0].reason})" if left_out else ""
        raise UserError(f"{folder} holds no picture in the layout {layout}{reason}; check --layout and the folder")
    items = {picture.item for picture in pictures}
    return LayoutFolder(pictures, tuple(left_out), tuple(item for item in prompts or () if item not in items))


def _is_readable(picture: LayoutPicture, left_out: list[MissingItem]) -> bool:
    try:
        picture.open()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        left_out.append(MissingItem(picture.id, f"unreadable: {error}"))
        return False
    return True


def _geneval(folder: Path, left_out: list[MissingItem]) -> Iterator[LayoutPicture]:
    for place in sorted(folder.iterdir()):
        if place.name == RECIPE_FILE:
            continue
        if not (place.name.isdigit() and place.is_dir()):
            left_out.append(MissingItem(place.name, "not a folder with a number"))
            continue
        prompt = _prompt_of(place / "metadata.jsonl")
        samples = sorted((place / "samples").glob("*"))
        if not samples:
            left_out.append(MissingItem(place.name, "no samples in it"))
        for path in samples:
            if _SAMPLE.match(path.name):
                yield LayoutPicture(f"{place.name}_{path.stem}", place.name, path, prompt)
            else:
                left_out.append(MissingItem(f"{place.name}/samples/{path.name}", "not named as a sample"))


def _prompt_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["prompt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the prompt of its folder ({error}); put the official line there"
        ) from error


def _flat(
    folder: Path, prompts: Mapping[str, str], cut: Callable[[Path], list[Box | None]], left_out: list[MissingItem]
) -> Iterator[LayoutPicture]:
    paths = sorted(path for path in folder.iterdir() if path.name != RECIPE_FILE)
    faults = {path: _name_fault(path, _item_of(path), prompts) for path in paths}
    times = Counter(_item_of(path) for path in paths if faults[path] is None)
    for path in paths:
        item = _item_of(path)
        fault = faults[path] or (f"one of {times[item]} of its item" if times[item] > 1 else None)
        if fault is not None:
            left_out.append(MissingItem(path.name, fault))
            continue
        try:
            boxes = cut(path)
        except (OSError, ValueError) as error:
            left_out.append(MissingItem(path.name, str(error)))
            continue
        for index, box in enumerate(boxes):
            name = item if boxes == [None] else f"{item}_{index}"
            yield LayoutPicture(name, item, path, prompts[item], box)


def _item_of(path: Path) -> str:
    """The name up to the first dot, as in the official script of DPG-Bench."""
    return path.name.split(".")[0]


def _name_fault(path: Path, item: str, prompts: Mapping[str, str]) -> str | None:
    if path.suffix.lower() != ".png" or not path.is_file():
        return "no PNG file"
    if item not in prompts:
        return "not an item of the benchmark"
    return None if _SAFE.fullmatch(item) else "its name cannot be that of a file everywhere"


def _whole(path: Path) -> list[Box | None]:
    return [None]


def _cells(side: int) -> Callable[[Path], list[Box | None]]:
    """The four pictures of a grid, row by row, or the only one."""

    def cut(path: Path) -> list[Box | None]:
        with Image.open(path) as picture:
            size = picture.size
        if size == (side, side):
            return [None]
        if has_odd_size(size, side):
            raise ValueError(f"is {size[0]} x {size[1]} pixels, not {side} or {2 * side} a side; see --resolution")
        return [*crop_boxes(side, GRID_SIDE**2)]

    return cut
