# SPDX-License-Identifier: Apache-2.0
"""A folder of DPG-Bench pictures -> the crops that are judged; and drawn pictures -> such a folder.

The official layout: `<item_id>.png`, four pictures of side R as a grid of side 2R, or one of side R.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import PictureRequest, save_picture
from sharegpt4o_image.synthesis.pictures import UnreadablePicture, open_picture

RESOLUTION = 384  # of Janus, as its paper evaluates it
GRID_SIDE = 2  # pictures: top-left, top-right, bottom-left, bottom-right

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # what `open_picture` reads
_MAX_ID_BYTES = 200  # of a file name (our choice; file systems take 255)
_MAX_SEED = 1 << 62


# ------------------------------------------------------------------ the folder


@dataclass(frozen=True)
class PictureFolder:
    """What lies in a folder of pictures.

    Args:
        files (`dict`): item id -> its picture.
        faults (`dict`): item id -> why it has none.
        surplus (`tuple`): names of files that are not judged, each with the reason.
    """

    files: Mapping[str, Path]
    faults: Mapping[str, str]
    surplus: tuple[str, ...]


def read_folder(folder: Path, items: Sequence[str]) -> PictureFolder:
    """Find the picture of each item: the id of a file is its name up to the first dot, as in the official script."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); give --images a folder of pictures") from None
    found: dict[str, list[Path]] = {}
    surplus = []
    wanted = set(items)
    for entry in entries:
        item = entry.name.partition(".")[0]
        if not entry.is_file() or entry.suffix.lower() not in _SUFFIXES:
            surplus.append(f"{entry.name}: no picture")
        elif item not in wanted:
            surplus.append(f"{entry.name}: the question file has no item {item!r}")
        else:
            found.setdefault(item, []).append(entry)
    faults = {item: _why_not_found(item) for item in items if item not in found}
    faults |= {
        item: f"there are {len(paths)} files: {', '.join(path.name for path in paths)}; keep one"
        for item, paths in found.items()
        if len(paths) > 1
    }
    files = {item: found[item][0] for item in items if len(found.get(item, ())) == 1}
    return PictureFolder(files, faults, tuple(surplus))


def _why_not_found(item: str) -> str:
    if "." in item:
        return (
            "its id has a dot, and the id of a picture ends at its name's first; rename the item in the question file"
        )
    return f"there is no {item}.png"


# ------------------------------------------------------------------ a picture


class UnusablePicture(Exception):
    """A file that cannot be cropped as asked; the message says why."""


@dataclass(frozen=True)
class Crops:
    """The pictures of one file, in the official order; `size` is that of the file."""

    pictures: tuple[Image.Image, ...]
    size: tuple[int, int]


def read_crops(path: Path, resolution: int, num_pictures: int) -> Crops:
    """Cut a file as the official script does; raises [`UnusablePicture`].

    Pillow fills a crop that leaves the picture with black, which the official script judges; here it is a fault.
    """
    try:
        picture = open_picture(path.read_bytes())
    except OSError as error:
        raise UnusablePicture(f"{path.name} cannot be read ({error.strerror})") from None
    except UnreadablePicture as error:
        raise UnusablePicture(f"{path.name} is not a readable picture ({error})") from None
    boxes = crop_boxes(resolution, num_pictures)
    width, height = max(box[2] for box in boxes), max(box[3] for box in boxes)
    if picture.width < width or picture.height < height:
        raise UnusablePicture(
            f"{path.name} is {picture.width} x {picture.height}, too small for {num_pictures} "
            f"{'picture' if num_pictures == 1 else 'pictures'} of {resolution} x {resolution}"
        )
    rgb = picture.convert("RGB")
    return Crops(tuple(rgb.crop(box) for box in boxes), picture.size)


def crop_boxes(resolution: int, num_pictures: int) -> list[tuple[int, int, int, int]]:
    """The first boxes of a grid: left, upper, right, lower."""
    corners = [(column * resolution, row * resolution) for row in range(GRID_SIDE) for column in range(GRID_SIDE)]
    return [(left, upper, left + resolution, upper + resolution) for left, upper in corners[:num_pictures]]


def has_odd_size(size: tuple[int, int], resolution: int) -> bool:
    """Whether a file is neither one picture nor a grid, so that its crops cut pictures apart."""
    return size not in ((resolution, resolution), (GRID_SIDE * resolution, GRID_SIDE * resolution))


def pixel_hash(picture: Image.Image) -> str:
    """The sha256 of a picture's size and pixels, whatever its file format."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------ drawn pictures


def picture_requests(prompts: Mapping[str, str], num_pictures: int, seed: int) -> list[PictureRequest]:
    """What is to be drawn: `<item id>/<number>.png`; each picture's seed depends on nothing but itself and `seed`."""
    _check_names(prompts)
    return [
        PictureRequest(single_path(item, number), prompt, picture_seed(seed, item, number))
        for item, prompt in prompts.items()
        for number in range(1, num_pictures + 1)
    ]


def single_path(item: str, number: int) -> str:
    """Where a drawn picture lies before it becomes part of a grid."""
    return f"{item}/{number}.png"


def picture_seed(seed: int, item: str, number: int) -> int:
    """Our choice: DPG-Bench has no rule of seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item} {number}".encode()).digest()[:8], "big") % _MAX_SEED


def _check_names(items: Iterable[str]) -> None:
    """Item ids become file names, which are read back up to the first dot."""
    for item in items:
        is_plain = item.isprintable() and not set(item) & set("./\\")
        if not is_plain or len(item.encode(errors="surrogatepass")) > _MAX_ID_BYTES:
            raise UserError(
                f"the item id {item!r} cannot be the name of a picture; no dots, slashes or control characters"
            )


def compose_grids(
    items: Sequence[str],
    singles: Path,
    target: Path,
    num_pictures: int,
    resolution: int,
    reasons: Mapping[str, str],
) -> dict[str, str]:
    """Write `target/<item id>.png` of the drawn pictures, where all of an item are there.

    Args:
        items: ids.
        singles: folder of the drawn pictures.
        target: folder of the grids.
        num_pictures: of each item; one makes no grid.
        resolution: side of a picture in the grid.
        reasons: path of a picture that was not drawn -> why.

    Returns, for each item without a grid, the reason.
    """
    faults = {}
    for item in items:
        paths = [single_path(item, number) for number in range(1, num_pictures + 1)]
        missing = [path for path in paths if not (singles / path).is_file()]
        if missing:
            why = next((reasons[path] for path in missing if path in reasons), "not drawn yet")
            faults[item] = f"{len(missing)} of {num_pictures} pictures are not drawn: {why}"
            continue
        try:
            grid = _grid([_fitted(singles / path, resolution) for path in paths], resolution)
        except UnusablePicture as fault:
            faults[item] = str(fault)
            continue
        if not _holds(target / f"{item}.png", grid):
            save_picture(target, f"{item}.png", grid)
    return faults


def _grid(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    if len(pictures) == 1:
        return pictures[0]
    grid = Image.new("RGB", (GRID_SIDE * side, GRID_SIDE * side))
    for picture, box in zip(pictures, crop_boxes(side, len(pictures)), strict=True):
        grid.paste(picture, box[:2])
    return grid


def hashes_of_singles(
    items: Sequence[str], singles: Path, num_pictures: int, resolution: int | None
) -> dict[str, list[str]]:
    """Pixel hashes of the crops that the grids of drawn pictures would have; of items that have all their pictures."""
    side = resolution or first_side(items, singles)
    hashes = {}
    for item in items:
        paths = [singles / single_path(item, number) for number in range(1, num_pictures + 1)]
        try:
            if side is not None and all(path.is_file() for path in paths):
                hashes[item] = [pixel_hash(_fitted(path, side)) for path in paths]
        except UnusablePicture:
            continue
    return hashes


def first_side(items: Sequence[str], singles: Path) -> int | None:
    """Width of the first drawn picture that is whole."""
    for item in items:
        path = singles / single_path(item, 1)
        if path.is_file():
            with suppress(OSError, UnreadablePicture):
                return open_picture(path.read_bytes()).width
    return None


def _fitted(path: Path, side: int) -> Image.Image:
    """A drawn picture, made as large as it is to be."""
    try:
        picture = open_picture(path.read_bytes()).convert("RGB")
    except (OSError, UnreadablePicture) as error:
        raise UnusablePicture(f"{path} is damaged ({error}); delete it to have it drawn again") from None
    if picture.width != picture.height:
        raise UnusablePicture(f"was drawn as {picture.width} x {picture.height}; a grid takes squares")
    return picture if picture.width == side else picture.resize((side, side), Image.Resampling.BICUBIC)


def _holds(path: Path, grid: Image.Image) -> bool:
    """Whether a file has the pixels of a grid."""
    try:
        return pixel_hash(open_picture(path.read_bytes())) == pixel_hash(grid)
    except (OSError, UnreadablePicture):
        return False
