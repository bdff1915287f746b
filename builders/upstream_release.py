# SPDX-License-Identifier: Apache-2.0
"""The release of ShareGPT-4o-Image as upstream publishes it -> rows, without unpacking or downloading its tar parts.

    text_to_image.json                  one JSON array: {"input_prompt", "output_image": "image/7.png", ...}
    text_and_image_to_image.json        the same with "input_image"
    text_to_image_part_0.tar            members image/7.png; not compressed
    text_and_image_to_image_part_0.tar  members image/v2v_7.png

What upstream does not say stays null. A row that cannot be had is planned with the fault, so that none is lost.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

from huggingface_hub import HfApi, RepoFile, constants, hf_hub_download

from sharegpt4o_image.builders.byte_ranges import ByteRanges, HubFile, LocalFile, hub_errors
from sharegpt4o_image.builders.json_rows import Element, ElementFault, iter_elements, parse_element
from sharegpt4o_image.builders.picture_look import Look, NoPicture, look_at
from sharegpt4o_image.builders.record_check import size_fault
from sharegpt4o_image.builders.row_source import RowFault, RowPlan, SourceFacts
from sharegpt4o_image.builders.tar_members import TarIndex, find_name_fault, load_index, plain_name, shown
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, ImageFile, Origin, Record, Task, content_id

ORIGIN: Origin = "upstream_release"
CACHE_NAME = "sharegpt4o-image"  # below HF_HOME
MAX_PICTURE_BYTES = 2**28  # a picture of the release takes about 2 MB (our choice)
MAX_NOTES = 20  # sentences in the card on what is wrong with the release (our choice)

_NUM_SCANS = 8  # tar parts whose headers are read at once: the Hub's answers are waited for (our choice)
_PART = re.compile(rf"({'|'.join(TASKS)})_part_([0-9]+)\.tar(\.(?:gz|bz2|xz|zst))?")
_COLUMNS = frozenset(
    ["input_prompt", "input_image", "output_image", "output_image_resolution", "input_image_resolution"]
)
_LFS_POINTER = b"version https://git-lfs"
_SEVERAL = "lies in several places with different content"


class UpstreamRelease:
    """Text-to-image rows first, then edits, each in the order of upstream's file.

    An id says which row it is (`row` is its index, from 0), so that two equal rows have two ids.

    Args:
        name (`str`): what the release is called.
        rows (`dict`): task -> its JSON file, for the tasks that there are.
        parts (`Sequence`): the tar parts.
        folder (`Path`, *optional*): where pictures may lie that were unpacked already.
        cache_dir (`Path`): where the indexes of the tar parts are kept.
        on_member (`Callable`): called, from several threads, for each picture that is found in a tar part.
    """

    row: type[Record] = Record
    has_looked = True

    def __init__(
        self,
        name: str,
        rows: dict[Task, Path],
        parts: Sequence[ByteRanges],
        folder: Path | None,
        cache_dir: Path,
        on_member: Callable[[], None],
    ):
        self._name = name
        self._rows = {task: LocalFile(path) for task, path in rows.items()}
        self._row_paths = rows
        self._parts = parts
        self.folder = folder
        self._cache_dir = cache_dir
        self._on_member = on_member
        self._pictures: _Pictures | None = None
        self._unknown_columns: dict[str, int] = {}

    @classmethod
    def open(
        cls, source: str | Path, cache_dir: Path | None = None, on_member: Callable[[], None] = lambda: None
    ) -> "UpstreamRelease":
        """Open a release.

        Args:
            source (`str` or `Path`): a folder, or `owner/name` of a data set repository on the Hub, of which only the
                JSON files are downloaded.
            cache_dir (`Path`, *optional*): where the indexes of the tar parts are kept, so that the next plan reads no
                header; below HF_HOME by default.
            on_member (`Callable`, *optional*): called, from several threads, for each picture that is found.
        """
        cache = cache_dir or Path(constants.HF_HOME) / CACHE_NAME
        folder = Path(source)
        if folder.is_dir():
            rows, parts = _open_folder(folder)
            return cls(folder.resolve().name, rows, parts, folder, cache, on_member)
        rows, parts = _open_repository(str(source))
        return cls(str(source), rows, parts, None, cache, on_member)

    def plan(self) -> Iterator[RowPlan]:
        """Every element of upstream's arrays; headers of tar parts are read unless they are remembered."""
        pictures = self._index_pictures()
        self._unknown_columns = {}
        for task, path in self._row_paths.items():
            with path.open("rb") as file:
                for index, element in enumerate(iter_elements(file, path.name)):
                    yield self._plan_of(pictures, task, index, element)

    def load(self, plan: RowPlan) -> Record:
        """The row of a plan with its pictures as they lie in the tar parts."""
        if plan.fault is not None:
            raise RowFault(plan.fault)
        offset, length = plan.locator
        try:
            row = _read_row(parse_element(self._rows[plan.task].read(offset, length)), plan.task)
        except (ElementFault, json.JSONDecodeError) as error:
            raise RowFault("the row has changed while the release was read") from error
        try:
            return self._record_of(self._index_pictures(), plan, row)
        except RowFault as fault:
            raise RowFault(fault.reason, row.input_prompt) from fault

    def facts(self) -> SourceFacts:
        """Its name, and what is wrong with it as a whole."""
        notes = [*self._iter_notes()]
        if len(notes) > MAX_NOTES:
            notes[MAX_NOTES:] = [f"{len(notes) - MAX_NOTES:,} more remarks like these are left out."]
        return SourceFacts(kind="upstream_release", name=self._name, notes=tuple(notes))

    def close(self) -> None:
        """Files are open only while they are read."""

    def _index_pictures(self) -> "_Pictures":
        if self._pictures is None:
            self._pictures = _Pictures(self._parts, self._scan(), self.folder)
        return self._pictures

    def _scan(self) -> list[TarIndex]:
        is_over = Event()

        def go_on() -> None:
            if is_over.is_set():
                raise _Stopped
            self._on_member()

        pool = ThreadPoolExecutor(_NUM_SCANS)
        try:
            scans = [pool.submit(load_index, part, self._cache_dir, go_on) for part in self._parts]
            wait(scans, return_when=FIRST_EXCEPTION)
            return [scan.result() for scan in scans if scan.done()]  # all of them, or the error
        finally:
            is_over.set()  # after an error or Ctrl-C, so that the other scans end, too
            pool.shutdown(cancel_futures=True)

    def _plan_of(self, pictures: "_Pictures", task: Task, index: int, element: Element) -> RowPlan:
        row, places, fault, prompt = None, [], None, None
        try:
            if element.fault is not None:
                raise RowFault(f"the row {element.fault}")
            row = _read_row(element.value, task)
            self._count_unknown(element.value)
            places = [pictures.find(task, column, name) for column, name in row.pictures]
        except RowFault as error:
            fault = error.reason
            prompt = error.input_prompt if row is None else row.input_prompt
        known = {} if row is None else {"prompt": row.input_prompt, "output": row.output_image}
        extents = [[place.file.name, place.file.stamp, place.offset, place.size] for spot in places for place in spot]
        return RowPlan(
            id=content_id(origin=ORIGIN, task=task, row=index, **known),
            task=task,
            digest=content_id(row=sha256(element.raw).hexdigest(), length=element.length, pictures=extents),
            num_bytes=sum(spot[0].size for spot in places),
            location=f"{task}.json, row {index}",
            locator=(element.offset, element.length),
            pictures=() if row is None else tuple(plain_name(name) for _, name in row.pictures),
            fault=fault,
            input_prompt=prompt,
        )

    def _record_of(self, pictures: "_Pictures", plan: RowPlan, row: "_Row") -> Record:
        files, sizes, phash = [], [], None  # the hash that stays is the output's
        for (column, name), recorded in zip(row.pictures, row.resolutions, strict=True):
            data = pictures.read(plan.task, column, name)
            look = _look_at(column, data, recorded)
            files.append(ImageFile(bytes=data, path=PurePosixPath(name).name))
            sizes.append(look.size)
            phash = look.phash
        return Record(
            id=plan.id,
            task=plan.task,
            input_prompt=row.input_prompt,
            input_image=files[:-1],
            output_image=files[-1],
            output_image_resolution=sizes[-1],
            input_image_resolution=sizes[0] if len(sizes) > 1 else None,
            output_sha256=sha256(files[-1].bytes).hexdigest(),
            output_phash=phash,
            origin=ORIGIN,
        )

    def _count_unknown(self, value: dict[str, Any]) -> None:
        for column in value.keys() - _COLUMNS:
            if column in self._unknown_columns or len(self._unknown_columns) < MAX_NOTES:
                self._unknown_columns[column] = self._unknown_columns.get(column, 0) + 1

    def _iter_notes(self) -> Iterator[str]:
        if self._pictures is not None:
            yield from self._pictures.iter_notes()
        for column, count in sorted(self._unknown_columns.items()):
            yield f"{count:,} rows have the column {shown(column)}, which is not imported."
        yield from _iter_gaps(self._parts, self._rows)


class _Stopped(Exception):
    """Another scan has failed."""


def is_upstream_release(path: Path) -> bool:
    """Whether a folder has a JSON file of the release."""
    return any((path / f"{task}.json").is_file() for task in TASKS)


# ------------------------------------------------------------------ rows


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as upstream writes it, with the right types; `pictures` and `resolutions` end with the output."""

    input_prompt: str
    pictures: list[tuple[str, str]]  # (column, name)
    resolutions: list[list[int] | None]

    @property
    def output_image(self) -> str:
        return self.pictures[-1][1]


def _read_row(value: Any, task: Task) -> _Row:
    """Check an element of the array; raises [`RowFault`]."""
    if not isinstance(value, dict):
        raise RowFault("the row is no object")
    prompt = _require_text(value, "input_prompt")
    sources = _read_sources(value, task)
    output = _require_text(value, "output_image")
    pictures = [*(("input_image", source) for source in sources), ("output_image", output)]
    for column, name in pictures:
        fault = find_name_fault(name)
        if fault is not None:
            raise RowFault(f"{column} {fault}", prompt)
    # one resolution is recorded, so with several input images it is the first one's
    recorded = _read_resolution(value, "input_image_resolution")
    if recorded is not None and not sources:
        raise RowFault("input_image_resolution is given, but the task is text_to_image", prompt)
    resolutions = [recorded if index == 0 else None for index in range(len(sources))]
    return _Row(prompt, pictures, [*resolutions, _read_resolution(value, "output_image_resolution")])


def _require_text(value: dict[str, Any], column: str) -> str:
    text = value.get(column)
    if text is None:
        raise RowFault(f"{column} is missing")
    if not isinstance(text, str):
        raise RowFault(f"{column} is no text")
    if not text.strip():
        raise RowFault(f"{column} is empty")
    return text


def _read_sources(value: dict[str, Any], task: Task) -> list[str]:
    """Upstream writes a list of one name; a name alone is taken, too."""
    given = value.get("input_image")
    sources = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise RowFault("input_image is no list of names")
    if task == "text_to_image" and sources:
        raise RowFault("input_image is given, but the task is text_to_image")
    if task == "text_and_image_to_image" and not sources:
        raise RowFault("input_image is missing")
    return sources


def _read_resolution(value: dict[str, Any], column: str) -> list[int] | None:
    pair = value.get(column)
    if pair is None:
        return None
    if not isinstance(pair, list) or [type(side) for side in pair] != [int, int] or min(pair) < 1:
        raise RowFault(f"{column} is no pair of numbers of pixels")
    return pair


# ------------------------------------------------------------------ pictures


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of a picture lie."""

    file: ByteRanges
    offset: int
    size: int
    is_unpacked: bool = False


class _Pictures:
    """Finds pictures by name: in tar parts of the row's own task, in the other ones, then unpacked in the folder."""

    def __init__(self, parts: Sequence[ByteRanges], indexes: Sequence[TarIndex], folder: Path | None):
        self._folder = None if folder is None else folder.resolve()  # which may itself be a link
        self._places: dict[Task, dict[str, tuple[_Place, ...]]] = {task: {} for task in TASKS}
        self._refused: dict[str, list[str]] = {}
        self._problems: list[str] = []
        self._asked: set[str] = set()
        for part, index in zip(parts, indexes, strict=True):
            self._add(part, index)

    def _add(self, part: ByteRanges, index: TarIndex) -> None:
        places = self._places[_task_of(part.name)]
        for member in index.members:
            place = _Place(part, member.offset, member.size)
            places[member.name] = (*places.get(member.name, ()), place)
        for name, reason in index.refused.items():
            self._refused.setdefault(name, []).append(f"{reason} in {part.name}")
        if index.problem is not None:
            self._problems.append(f"{part.name} {index.problem}; the members before that are used.")

    def find(self, task: Task, column: str, name: str) -> tuple[_Place, ...]:
        """Where a picture lies; raises [`RowFault`] if it is nowhere, or cannot be the right one."""
        name = plain_name(name)
        self._asked.add(name)
        places = self._look_up(task, column, name)
        if not places:
            raise RowFault(f"{column} {self._refused.get(name, ['is in no tar part'])[0]}")
        size = places[0].size
        if any(place.size != size for place in places):
            raise RowFault(f"{column} {_SEVERAL}")
        if size == 0:
            raise RowFault(f"{column} is empty")
        if size > MAX_PICTURE_BYTES:
            raise RowFault(f"{column} is larger than {MAX_PICTURE_BYTES:,} bytes")
        return places

    def read(self, task: Task, column: str, name: str) -> bytes:
        """The bytes of a picture."""
        contents = {_read_place(column, place) for place in self.find(task, column, name)}
        if len(contents) > 1:
            raise RowFault(f"{column} {_SEVERAL}")
        return contents.pop()

    def iter_notes(self) -> Iterator[str]:
        """What is wrong with the tar parts, as far as no row says it."""
        yield from self._problems
        for name in sorted(self._refused.keys() - self._asked):
            for reason in self._refused[name]:
                yield f"The member {shown(name)} {reason}; no row asks for it."
        num_idle = sum(len(places.keys() - self._asked) for places in self._places.values())
        if num_idle:
            yield f"{num_idle:,} pictures in the tar parts are named by no row."

    def _look_up(self, task: Task, column: str, name: str) -> tuple[_Place, ...]:
        for one in sorted(TASKS, key=lambda other: other != task):
            if name in self._places[one]:
                return self._places[one][name]
        return () if self._folder is None else _find_unpacked(self._folder, column, name)


def _find_unpacked(folder: Path, column: str, name: str) -> tuple[_Place, ...]:
    """A picture that lies in the folder of the release itself; what a link elsewhere leads to is refused."""
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder):
            raise RowFault(f"{column} is refused: a link out of the folder")
        if not path.is_file():
            raise RowFault(f"{column} is refused: no file")
        file = LocalFile(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, RuntimeError, UserError) as error:  # RuntimeError: a circle of links
        raise RowFault(f"{column} cannot be read: {_cause(error)}") from error
    return (_Place(file, 0, file.size, is_unpacked=True),)


def _read_place(column: str, place: _Place) -> bytes:
    try:
        data = place.file.read(place.offset, place.size)
    except UserError as error:
        if not place.is_unpacked:
            raise
        raise RowFault(f"{column} cannot be read: {_cause(error)}") from error
    if len(data) < place.size:
        raise RowFault(f"{column} is cut off: {len(data):,} of {place.size:,} bytes are in {place.file.name}")
    return data


def _cause(error: Exception) -> str:
    """What the system says: `Permission denied`."""
    reason = error.__cause__ or error
    return str(reason.strerror) if isinstance(reason, OSError) else "a circle of links"


def _look_at(column: str, data: bytes, recorded: list[int] | None) -> Look:
    """What a picture looks like; whether upstream puts width or height first in what it records is not known."""
    try:
        look = look_at(data)
    except NoPicture as fault:
        raise RowFault(f"{column} {fault}") from fault
    if recorded is not None and recorded not in (look.size, look.size[::-1]):
        raise RowFault(f"{size_fault(column, look.size, recorded)}; row and picture do not belong together")
    return look


# ------------------------------------------------------------------ opening


def _open_folder(folder: Path) -> tuple[dict[Task, Path], list[ByteRanges]]:
    rows: dict[Task, Path] = {task: path for task in TASKS if (path := folder / f"{task}.json").is_file()}
    names = _part_names(path.name for path in folder.iterdir() if path.is_file())
    if not rows:
        raise UserError(f"{folder} has neither {TASKS[0]}.json nor {TASKS[1]}.json; give the folder of the release")
    if not names and not (folder / "image").is_dir():
        raise UserError(f"{folder} has no tar part and no folder image; download {TASKS[0]}_part_0.tar and the others")
    for path in [*rows.values(), *(folder / name for name in names)]:
        _refuse_pointer(path)
    return rows, [LocalFile(folder / name) for name in names]


def _refuse_pointer(path: Path) -> None:
    if LocalFile(path).read(0, len(_LFS_POINTER)) == _LFS_POINTER:
        raise UserError(f"{path} only says where the file is; run `git lfs pull` in the folder")


def _open_repository(repo_id: str) -> tuple[dict[Task, Path], list[ByteRanges]]:
    api = HfApi()
    with hub_errors(repo_id):
        commit = str(api.dataset_info(repo_id).sha)
        entries = api.list_repo_tree(repo_id, revision=commit, repo_type="dataset")
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        names = _part_names(files)
        wanted = [task for task in TASKS if f"{task}.json" in files]
        if not wanted:
            raise UserError(f"{repo_id} has neither {TASKS[0]}.json nor {TASKS[1]}.json; give the name of the release")
        if not names:
            raise UserError(f"{repo_id} has no tar part; give the name of a whole release")
        rows: dict[Task, Path] = {
            task: Path(hf_hub_download(repo_id, f"{task}.json", repo_type="dataset", revision=commit))
            for task in wanted
        }
    return rows, [_hub_file(repo_id, commit, files[name]) for name in names]


def _hub_file(repo_id: str, commit: str, entry: RepoFile) -> HubFile:
    content = entry.blob_id if entry.lfs is None else entry.lfs.sha256
    return HubFile(repo_id, commit, entry.path, entry.size, content)


def _part_names(names: Iterator[str] | dict[str, Any]) -> list[str]:
    """The tar parts among the names of files, in order; how many there are is not known beforehand."""
    parts = []
    for name in names:
        match = _PART.fullmatch(name)
        if match is not None and match[3] is not None:
            raise UserError(f"{name} is compressed, but members are read by offset; decompress it first")
        if match is not None:
            parts.append((TASKS.index(_task_of(name)), int(match[2]), name))
    return [name for *_, name in sorted(parts)]


def _task_of(name: str) -> Task:
    return next(task for task in TASKS if name.startswith(f"{task}_part_"))


def _iter_gaps(parts: Sequence[ByteRanges], rows: dict[Task, LocalFile]) -> Iterator[str]:
    """What seems to be missing of the release."""
    for task in TASKS:
        numbers = {int(match[2]) for part in parts if (match := _PART.fullmatch(part.name)) and match[1] == task}
        if numbers and task not in rows:
            yield f"{task}.json is missing, but there are tar parts for it."
        first = next(number for number in itertools.count() if number not in numbers)
        if numbers and first < max(numbers):
            yield f"{task}_part_{first}.tar is missing, but there are later parts."
