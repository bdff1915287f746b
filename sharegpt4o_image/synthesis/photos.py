# SPDX-License-Identifier: Apache-2.0
"""A folder, a manifest or a data set of photographs -> one photograph after another, broken ones with their fault.

A photograph that cannot be had is no reason to stop: it is handed on without its bytes, and the run rejects it. What
cannot be a set of photographs at all (no such path, no such column, nothing in it) is a [`UserError`].
"""

import csv
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from PIL import Image, UnidentifiedImageError

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import SourceImage, content_id
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import PhotoSet
from sharegpt4o_image.synthesis.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

MAX_BYTES = 50_000_000  # the images API takes less than 50 MB for each picture of an edit

# What the images API takes, by Pillow's name. Phones write JPEG files with a second picture, which Pillow calls MPO.
_FORMATS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp"}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112  # the EXIF tag

_BESIDE_PHOTOS = {".txt", ".md", ".json", ".jsonl", ".csv"}  # licences and manifests
_PATH_KEYS = ("image", "file_name", "path")
_CHUNK = 1 << 20  # characters read from a JSON manifest at a time
_LONGEST_ROW = 16 << 20  # characters of a row of a JSON manifest


class InvalidPhoto(Exception):
    """A photograph that no teacher can be shown; the message says which and why."""


@dataclass(frozen=True)
class Photo:
    """A photograph as it was found: its bytes, or the fault that it has none for.

    Args:
        name (`str`): tells it from the others of its set.
        origin (`str`): where it comes from.
        license (`str`, *optional*): its terms.
        caption (`str`, *optional*): what came with it.
    """

    name: str
    data: bytes | None
    origin: str
    license: str | None = None
    caption: str | None = None
    fault: str | None = None

    @cached_property
    def sha256(self) -> str | None:
        """Of the bytes, if there are any."""
        return None if self.data is None else hashlib.sha256(self.data).hexdigest()


def iter_photos(photos: PhotoSet) -> Iterator[Photo]:
    """The photographs of a set, always in the same order, one of them in memory at a time.

    - folder: every file in it and below, by its path. Hidden files are left out, and so are `.txt`, `.md`, `.json`,
      `.jsonl` and `.csv` files, which tell about photographs. Any other file that is no picture has a fault.
    - manifest: one row for each picture, with its path below the manifest's own folder.
    - data set: whatever `load_dataset` or `load_from_disk` reads, with an image column.

    A row's own `license`, `origin` (or `url`) and `caption` go before those of the set.
    """
    readers = {"folder": _iter_folder, "manifest": _iter_manifest, "dataset": _iter_dataset}
    photo = None
    for photo in readers[_find_layout(photos)](photos):
        yield photo
    if photo is None:
        raise UserError(f"photos.path: there is no picture in {photos.path}; give a set that has some")


def open_source(photo: Photo, blobs: BlobStore) -> SourceImage:
    """Decode a photograph to be sure of it, and store its bytes as they are; raises [`InvalidPhoto`].

    Width and height are those of the picture as it is meant to be seen, which its EXIF orientation may turn.
    """
    if photo.data is None:
        raise InvalidPhoto(f"{photo.fault}: {photo.name}")
    try:
        picture_format, width, height = _decode(photo.data)
    except InvalidPhoto as fault:
        raise InvalidPhoto(f"{fault}: {photo.name}") from fault
    sha256 = blobs.write(photo.data)
    return SourceImage(
        id=content_id(photo=sha256),
        sha256=sha256,
        format=picture_format,
        width=width,
        height=height,
        text=photo.caption,
        origin=photo.origin,
        license=photo.license,
    )


def _decode(data: bytes) -> tuple[str, int, int]:
    """Format, width and height of a picture of which every pixel can be decoded."""
    if not data:
        raise InvalidPhoto("empty")
    if len(data) >= MAX_BYTES:
        raise InvalidPhoto(_TOO_LARGE)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidPhoto(f"{image.width}x{image.height} are more than {MAX_PIXELS:,} pixels")
            image.load()
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            size = image.size[::-1] if turned else image.size
            return _FORMATS[str(image.format)], *size
    except UnidentifiedImageError as error:
        raise InvalidPhoto("not a picture, or not a PNG, JPEG or WebP") from error
    except InvalidPhoto:
        raise
    except Exception as error:  # Pillow's decoders let anything through on broken data: struct.error, KeyError, ...
        raise InvalidPhoto(f"a broken picture ({error})") from error


_TOO_LARGE = f"not less than {MAX_BYTES // 1_000_000} MB"


# --------------------------------------------------------------------------- where the photographs are


def _find_layout(photos: PhotoSet) -> Literal["folder", "manifest", "dataset"]:
    """How the path is to be read; `auto` looks at what is there and never asks the Hub."""
    path = Path(photos.path)
    if photos.layout == "dataset":
        return "dataset"
    if not path.exists():
        remedy = "name a folder or a manifest, or say layout: dataset if it is the Hub id of a data set"
        raise UserError(f"photos.path: there is no {path}; {remedy}")
    if photos.layout == "auto" and path.is_dir():
        return "dataset" if _is_saved_dataset(path) or any(path.rglob("*.parquet")) else "folder"
    layout: Literal["folder", "manifest"] = "manifest" if photos.layout == "auto" else photos.layout
    if path.is_dir() != (layout == "folder"):
        raise UserError(f"photos.path: {path} is no {layout}; leave photos.layout out, or mend the path")
    if layout == "manifest" and path.suffix.lower() not in _ROW_READERS:
        raise UserError(f"photos.path: {path} is no manifest; give a {', '.join(_ROW_READERS)} file, or a folder")
    return layout


def _is_saved_dataset(path: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


# --------------------------------------------------------------------------- a folder


def _iter_folder(photos: PhotoSet) -> Iterator[Photo]:
    folder = Path(photos.path)
    for name in sorted(_find_files(folder)):
        yield _as_photo(photos, name, *_read_file(folder / name), {})


def _find_files(folder: Path) -> Iterator[str]:
    """The names of the files, and of links to folders, which are not followed."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files + links:
            if not name.startswith(".") and Path(name).suffix.lower() not in _BESIDE_PHOTOS:
                yield (Path(root) / name).relative_to(folder).as_posix()


def _refuse(error: OSError) -> None:
    raise UserError(f"photos.path: cannot read {error.filename}: {error.strerror}; make it readable") from error


def _read_file(path: Path) -> tuple[bytes | None, str | None]:
    """The bytes of a photograph, or why they cannot be had."""
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            return None, "a folder, or a link to one"
        if not stat.S_ISREG(facts.st_mode):  # reading from a pipe would never end
            return None, "not a picture"
        if facts.st_size >= MAX_BYTES:
            return None, _TOO_LARGE
        return (path.read_bytes(), None) if facts.st_size else (None, "empty")
    except FileNotFoundError:
        return None, "broken link" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return None, f"cannot be read ({getattr(error, 'strerror', None) or error})"


# --------------------------------------------------------------------------- a manifest


def _iter_manifest(photos: PhotoSet) -> Iterator[Photo]:
    manifest = Path(photos.path)
    keys = _PATH_KEYS if photos.image_column == _PATH_KEYS[0] else (photos.image_column,)
    for number, row in enumerate(_iter_rows(manifest), start=1):
        name = next((name for key in keys if (name := _text(row, key))), None)
        if name is not None:
            yield _as_photo(photos, name, *_read_named(manifest.parent, name), row)
        elif number > 1:
            yield _as_photo(photos, f"{manifest.name}, row {number}", None, "the row names no picture", row)
        else:
            remedy = "set photos.image_column to the key that names the pictures"
            raise UserError(f"{manifest}: the first row has no key {', '.join(keys)}; {remedy}")


def _read_named(folder: Path, name: str) -> tuple[bytes | None, str | None]:
    """The picture that a row names: what others wrote leads to files below the folder of the manifest only."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None, "the path leads out of the folder of the manifest"
    return _read_file(folder / name)


def _iter_rows(manifest: Path) -> Iterator[dict[str, Any]]:
    """The rows of a manifest; what is no row at all is an empty one."""
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            for row in _ROW_READERS[manifest.suffix.lower()](file):
                yield row if isinstance(row, dict) else {}
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"cannot read the manifest {manifest}: {error}; mend it") from error


def _read_lines(file: IO[str]) -> Iterator[Any]:
    """The objects of a JSON lines file."""
    for line in file:
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                yield None


def _read_list(file: IO[str]) -> Iterator[Any]:
    """The objects of a JSON list, without holding the list: ALLaVA's have half a million rows."""
    decoder = json.JSONDecoder()
    text = file.read(_CHUNK)
    position = _BEFORE_LIST.match(text).end()  # type: ignore[union-attr]  # it matches anything
    if text[:position].strip() != "[":
        raise json.JSONDecodeError("expected a list of objects", text, position)
    while True:
        position = _BETWEEN_ROWS.match(text, position).end()  # type: ignore[union-attr]
        if text.startswith("]", position):
            return
        try:
            row, position = decoder.raw_decode(text, position)
            yield row
        except json.JSONDecodeError:  # perhaps the row goes on in what was not read yet
            more = file.read(_CHUNK)
            if not more or len(text) - position > _LONGEST_ROW:
                raise
            text, position = text[position:] + more, 0


_BEFORE_LIST, _BETWEEN_ROWS = re.compile(r"\s*\[?"), re.compile(r"[\s,]*")
_ROW_READERS: dict[str, Callable[[IO[str]], Iterable[Any]]] = {
    ".jsonl": _read_lines,
    ".json": _read_list,
    ".csv": csv.DictReader,
}


# --------------------------------------------------------------------------- a data set


def _iter_dataset(photos: PhotoSet) -> Iterator[Photo]:
    from datasets.exceptions import DatasetsError

    number = 0
    try:
        for number, row in enumerate(_open_dataset(photos), start=1):
            data, fault = _read_cell(row[photos.image_column], photos.path)
            yield _as_photo(photos, f"{photos.split} row {number}", data, fault, row)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        where = f"{photos.path} ({photos.split}) after row {number}"
        remedy = "check photos.path, split and image_column, or try again if it is the network"
        raise UserError(f"cannot read the data set {where}: {error}; {remedy}") from error


def _open_dataset(photos: PhotoSet) -> "Dataset | IterableDataset":
    """The rows, their pictures not decoded: decoding and encoding again would change them."""
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets import Image as ImageColumn

    if _is_saved_dataset(Path(photos.path)):
        saved = load_from_disk(photos.path)
        if isinstance(saved, DatasetDict) and photos.split not in saved:
            raise ValueError(f"it has the splits {', '.join(saved)}")
        dataset = saved[photos.split] if isinstance(saved, DatasetDict) else saved
    else:
        # Threads decode what streams from the Hub before the cast below counts: datasets 5.2 must be told twice.
        dataset = load_dataset(photos.path, split=photos.split, streaming=True).decode(False)
    columns = dataset.column_names or []
    if photos.image_column not in columns:
        raise ValueError(f"it has no column {photos.image_column!r} but {', '.join(columns)}")
    return dataset.cast_column(photos.image_column, ImageColumn(decode=False))


def _read_cell(cell: Any, dataset: str) -> tuple[bytes | None, str | None]:
    """The picture in a row, or behind the path that `datasets` gives for a folder of pictures."""
    import fsspec

    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        return None, "the row holds no picture"
    if cell["bytes"] is not None:
        return cell["bytes"], None
    if not _is_within(cell["path"], dataset):
        return None, "the row holds no picture, only a path that leads out of the data set"
    with fsspec.open(cell["path"], "rb") as file:
        return file.read(MAX_BYTES), None


def _is_within(path: str, dataset: str) -> bool:
    """Whether a path leads into the data set, on the Hub (also into its archives) or on the disk."""
    is_on_hub = re.search(rf"(^|::)hf://datasets/{re.escape(dataset)}@", path) is not None
    return is_on_hub or Path(path).resolve().is_relative_to(Path(dataset).resolve())


# --------------------------------------------------------------------------- rows


def _as_photo(photos: PhotoSet, name: str, data: bytes | None, fault: str | None, row: dict[str, Any]) -> Photo:
    """The photograph, and what its row tells about it."""
    origin = _text(row, "origin") or _text(row, "url") or photos.origin or _name_of(photos.path)
    return Photo(name, data, origin, _text(row, "license") or photos.license, _text(row, "caption"), fault)


def _name_of(path: str) -> str:
    """The Hub id, or the last part of the path."""
    return Path(path).resolve().name if Path(path).exists() else path


def _text(row: dict[str, Any], key: str) -> str | None:
    """What a row says under `key`, if it is text."""
    value = row.get(key)
    return (value.strip() or None) if isinstance(value, str) else None
