# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench's prompts -> pictures -> grids -> what is known of them before any question is asked."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import Share, draw_pictures, progress_bar
from sharegpt4o_image.evaluation.dpg_items import DpgBench
from sharegpt4o_image.evaluation.dpg_pictures import (
    RESOLUTION,
    UnusablePicture,
    compose_grids,
    first_side,
    has_odd_size,
    picture_requests,
    pixel_hash,
    read_crops,
    read_folder,
)
from sharegpt4o_image.evaluation.drawing import Generator

NAME = "dpg-bench"
PICTURES_FOLDER, SINGLES_FOLDER = "images", "singles"

Advance = Callable[[], None]


@dataclass(frozen=True)
class PictureSource:
    """The pictures that are judged, and where they come from.

    Args:
        folder (`Path`): of `<item_id>.png`.
        resolution (`int`): side R of a picture.
        model (`str`, *optional*): that drew them.
        generator (`dict`): its identity and recipe.
        faults (`dict`): item id -> why it was not drawn.
    """

    folder: Path
    resolution: int
    model: str | None = None
    generator: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


def draw(
    bench: DpgBench,
    generator: Generator,
    model: str,
    run_dir: Path,
    seed: int,
    share: Share,
    resolution: int | None = None,
) -> PictureSource:
    """Draw what is missing, and put the pictures of each item together.

    Args:
        bench: the prompts.
        generator: draws.
        model: its name for the record of scores.
        run_dir: `OUTPUT/dpg-bench`.
        seed: of the run; each picture has a seed of its own.
        share: of this process.
        resolution: side of a picture in the grids; by default that of the first picture drawn.
    """
    singles, target = run_dir / SINGLES_FOLDER, run_dir / PICTURES_FOLDER
    requests = picture_requests(bench.prompts, bench.num_pictures, seed)
    reasons = draw_pictures(generator, requests, singles, seed, share, "pictures")
    share.wait()
    side = resolution or first_side(bench.item_ids, singles) or RESOLUTION
    items = bench.item_ids if share.is_main else []
    faults = compose_grids(items, singles, target, bench.num_pictures, side, reasons)
    share.wait()
    recipe = {**generator.identity, "seed": seed}
    return PictureSource(target, side, model, recipe, faults)


@dataclass(frozen=True)
class SeenPictures:
    """What is known of the pictures before any question.

    Args:
        hashes (`dict`): item id -> the pixel hash of each of its pictures.
        files (`dict`): item id -> its file.
        faults (`dict`): item id -> why its pictures cannot be judged.
        warnings (`tuple`): files that are not judged, and files of odd sizes.
    """

    hashes: Mapping[str, list[str]]
    files: Mapping[str, Path]
    faults: Mapping[str, str]
    warnings: tuple[str, ...]


def look_at(bench: DpgBench, source: PictureSource) -> SeenPictures:
    """Read every picture once."""
    found = read_folder(source.folder, bench.item_ids)
    faults = dict(found.faults) | dict(source.faults)
    hashes: dict[str, list[str]] = {}
    odd: dict[str, tuple[int, int]] = {}
    with counted("reading pictures", len(found.files)) as advance:
        for item, path in found.files.items():
            advance()
            if item in source.faults:
                continue
            try:
                crops = read_crops(path, source.resolution, bench.num_pictures)
            except UnusablePicture as fault:
                faults[item] = str(fault)
                continue
            hashes[item] = [pixel_hash(picture) for picture in crops.pictures]
            if has_odd_size(crops.size, source.resolution):
                odd[path.name] = crops.size
    _check_any(source, hashes, faults, odd)
    return SeenPictures(hashes, found.files, faults, (*found.surplus, *_odd_warnings(odd, source.resolution)))


def _check_any(
    source: PictureSource,
    hashes: Mapping[str, object],
    faults: Mapping[str, str],
    odd: Mapping[str, tuple[int, int]],
) -> None:
    if not hashes:
        item, reason = next(iter(faults.items()))
        raise UserError(
            f"no picture in {source.folder} can be judged ({item}: {reason}); check --images, --resolution"
        )
    if len(odd) == len(hashes):
        name, (width, height) = next(iter(odd.items()))
        raise UserError(
            f"{name} and all other pictures have another size than --resolution {source.resolution} says: {width} x "
            f"{height} is neither one picture nor a grid of 2 x 2; give the side of one picture"
        )


def _odd_warnings(odd: Mapping[str, tuple[int, int]], resolution: int) -> Iterator[str]:
    for name, (width, height) in odd.items():
        yield (
            f"{name}: is {width} x {height}, neither one picture of {resolution} x {resolution} nor a grid of 2 x 2; "
            "judged as the official script crops it"
        )


@contextmanager
def counted(label: str, total: int, is_shown: bool = True) -> Iterator[Advance]:
    """A bar on stderr, and what takes it one further."""
    with progress_bar() as progress:
        bar = progress.add_task(label, total=total, visible=is_shown)
        yield lambda: progress.advance(bar)
