# SPDX-License-Identifier: Apache-2.0
"""Rows -> files in the layouts of other tools. Each layout writes one configuration, row by row.

Pictures keep their bytes, and get the file extension of the format that they truly have.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from datasets import Features, Image, List, Value

from sharegpt4o_image.builders.export_rows import ExportRow, Picture, RowRefused
from sharegpt4o_image.builders.parquet_shards import ParquetFile

TAR_BYTES = 10**9  # of a WebDataset shard (our choice)
MAX_HELD = 64  # samples of a series in memory, more than a row has columns (our choice)

_PICTURE = r"\.(png|jpg|gif|webp)"
_SORTED_PICTURES = rf"images(/[0-9A-Za-z_-]+(/[0-9A-Za-z_-]+\.[a-z0-9]+{_PICTURE})?)?"


class Layout(Protocol):
    """One configuration in the layout of another tool.

    `how_to` says how it is used, for the README; `{config}` stands for a configuration. `own_files` matches the paths
    of all that it writes.
    """

    how_to: ClassVar[str]
    own_files: ClassVar[re.Pattern[str]]

    def __init__(self, folder: Path, config: str, features: Features): ...

    def write(self, row: ExportRow) -> None:
        """Add a row, or raise [`RowRefused`] before anything of it is written."""

    def close(self) -> None:
        """Write what is left."""

    def card_configs(self) -> dict[str, "CardConfig"]:
        """What `load_dataset(folder)` finds, by name."""


@dataclass(frozen=True)
class CardConfig:
    """What `load_dataset(folder)` finds under a name: pattern of files, rows, and the columns if it must be told."""

    files: str
    num_rows: int
    features: Features | None = None


class JanusJson:
    """Upstream's own layout, which its training script reads.

    text_to_image.json            [{"input_prompt", "output_image": "image/0.png", "output_image_resolution"}, ...]
    text_and_image_to_image.json  the same with "input_image": ["image/v2v_1.png"], "input_image_resolution"
    image/0.png  image/v2v_0.png  the numbers of an edit's pictures follow each other, the result's first
    """

    how_to = (
        "The layout of the release of ShareGPT-4o-Image, as its training script reads it: one JSON array for each "
        "task, with the paths of pictures relative to this folder. It has no place for ids, categories, provenance; "
        "`license` is added where a row has one. "
        "Pictures that are no PNG keep their bytes and their own file extension."
    )
    own_files = re.compile(rf"text_(and_image_)?to_image(_negatives)?\.json|image(/(v2v_)?\d+{_PICTURE})?")

    def __init__(self, folder: Path, config: str, features: Features):
        self._folder = folder
        self._num_pictures = 0
        self._before_row = "[\n"
        (folder / "image").mkdir(exist_ok=True)
        self._file = (folder / f"{config}.json").open("w", encoding="utf-8")

    def write(self, row: ExportRow) -> None:
        is_edit = row.metadata["task"] == "text_and_image_to_image"
        output, *sources = [
            self._write_picture(picture, "v2v_" if is_edit else "") for picture in (row.output, *row.sources)
        ]
        entry = {
            "input_prompt": row.metadata["input_prompt"],
            "output_image": output,
            "output_image_resolution": row.metadata.get("output_image_resolution"),
        }
        if is_edit:
            entry |= {"input_image": sources, "input_image_resolution": row.metadata.get("input_image_resolution")}
        entry["license"] = row.metadata.get("license")
        known = {name: value for name, value in entry.items() if value is not None}
        self._file.write(self._before_row + json.dumps(known, ensure_ascii=False))
        self._before_row = ",\n"

    def _write_picture(self, picture: Picture, prefix: str) -> str:
        name = f"image/{prefix}{self._num_pictures}.{picture.extension}"
        self._num_pictures += 1
        _write_new(self._folder / name, picture.data)
        return name

    def close(self) -> None:
        self._file.write("\n]\n" if self._num_pictures else "[]\n")
        self._file.close()

    def card_configs(self) -> dict[str, CardConfig]:
        return {}


class WebDataset:
    """Tar files whose members `ID.output.png`, `ID.source.png` (or `.source0.png`, ...) and `ID.json` make a sample.

    `datasets` wants the same members in every sample of a set. So rows with other picture formats or other numbers of
    sources go to tar files of their own, named after what they hold.
    """

    how_to = (
        "Tar files for WebDataset: `ID.output.png` is the picture, `ID.source.png` what was edited (`ID.source0.png`, "
        "... where there are several), `ID.json` all other columns.\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        'load_dataset("PATH/TO/THIS/FOLDER", "{config}", split="{split}")  # with the types that stand above\n'
        'load_dataset("webdataset", data_files="PATH/TO/THIS/FOLDER/{config}-[0-9]*.tar")  # types are guessed\n'
        "```\n\n"
        "The second guesses types from the first five samples; so rows that have a value where others are null come "
        "first."
    )
    own_files = re.compile(r"text_(and_image_)?to_image(_negatives)?(-[a-z0-9_]+)*-\d{5}\.tar")

    def __init__(self, folder: Path, config: str, features: Features, tar_bytes: int = TAR_BYTES):
        self._folder = folder
        self._config = config
        self._features = features
        self._tar_bytes = tar_bytes
        self._series: dict[tuple[str, ...], _TarSeries] = {}

    def write(self, row: ExportRow) -> None:
        members = {f"{role}.{picture.extension}": picture.data for role, picture in row.pictures.items()}
        fields = tuple(members)
        try:
            members["json"] = json.dumps(row.metadata, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise RowRefused("a number is NaN or infinite, which JSON cannot hold") from error
        if fields not in self._series:
            self._series[fields] = _TarSeries(self._folder, self._name_of(fields), self._tar_bytes)
        self._series[fields].write(_Sample(row.id, members, frozenset(_filled(row.metadata))))

    def _name_of(self, fields: tuple[str, ...]) -> str:
        """`text_to_image`, or with what is unusual: `text_to_image-output_jpg`."""
        if fields in (("output.png",), ("output.png", "source.png")):
            return self._config
        return "-".join([self._config, *(name.replace(".", "_") for name in fields)])

    def close(self) -> None:
        for series in self._series.values():
            series.close()

    def card_configs(self) -> dict[str, CardConfig]:
        key_features = {"__key__": Value("string"), "__url__": Value("string")}
        return {
            series.name: CardConfig(
                f"{series.name}-[0-9]*.tar",
                series.num_rows,
                Features({field: Image() for field in fields} | {"json": {**self._features}} | key_features),
            )
            for fields, series in sorted(self._series.items())
        }


@dataclass(frozen=True)
class _Sample:
    key: str
    members: dict[str, bytes]
    filled: frozenset[str]  # where its metadata have values

    @property
    def num_bytes(self) -> int:
        return sum(len(data) + 2 * tarfile.BLOCKSIZE for data in self.members.values())


class _TarSeries:
    """Numbered tar files. The first one is written last: it begins with samples that show the type of every value.

    `datasets` takes types from the first five samples, and fails at a value where those five have null. So a sample
    that is the first to have some value is held back.
    """

    def __init__(self, folder: Path, name: str, tar_bytes: int):
        self.name = name
        self.num_rows = 0
        self._folder = folder
        self._tar_bytes = tar_bytes
        self._held: list[_Sample] = []
        self._shown: set[str] = set()
        self._number = 0
        self._tar: tarfile.TarFile | None = None

    def write(self, sample: _Sample) -> None:
        self.num_rows += 1
        if sample.filled <= self._shown or len(self._held) == MAX_HELD:
            _add(self._tar_with_room(sample.num_bytes), sample)
            return
        self._shown |= sample.filled
        self._held.append(sample)

    def _tar_with_room(self, num_bytes: int) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset + num_bytes > self._tar_bytes:
            self._tar.close()
            self._tar = None
        if self._tar is None:
            self._number += 1
            self._tar = self._open(self._number)
        return self._tar

    def _open(self, number: int) -> tarfile.TarFile:
        return tarfile.open(self._folder / f"{self.name}-{number:05d}.tar", "x", format=tarfile.USTAR_FORMAT)

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        with self._open(0) as tar:
            for sample in _typical_first(self._held):
                _add(tar, sample)


def _add(tar: tarfile.TarFile, sample: _Sample) -> None:
    for field, data in sample.members.items():
        member = tarfile.TarInfo(f"{sample.key}.{field}")  # time 0, user 0: the same rows give the same file
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _typical_first(samples: list[_Sample]) -> Iterator[_Sample]:
    """Samples, each time the one with most values that those before it lack."""
    shown: frozenset[str] = frozenset()
    remaining = list(samples)
    while remaining:
        best = max(remaining, key=lambda sample: len(sample.filled - shown))  # the first of equals
        remaining.remove(best)
        shown |= best.filled
        yield best


def _filled(value: Any, path: str = "") -> Iterator[str]:
    """Where there is a value: `style`, `usage/details/text`."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _filled(part, f"{path}/{name}")
    elif value not in (None, []):
        yield path


class ImageFolder:
    """A folder for `imagefolder` of `datasets`: `metadata.parquet` with typed columns, and the pictures it names."""

    how_to = (
        "A folder for `imagefolder` of `datasets`: `metadata.parquet` has all columns, with the paths of pictures.\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        'load_dataset("PATH/TO/THIS/FOLDER", "{config}", split="{split}")\n'
        'load_dataset("imagefolder", data_dir="PATH/TO/THIS/FOLDER/{config}")\n'
        "```"
    )
    own_files = re.compile(rf"text_(and_image_)?to_image(_negatives)?(/(metadata\.parquet|{_SORTED_PICTURES}))?")

    def __init__(self, folder: Path, config: str, features: Features):
        self._config = config
        self._num_rows = 0
        self._folder = folder / config
        self._folder.mkdir()
        columns = {"input_image_file_names": List(Value("string")), "output_image_file_name": Value("string")}
        self._metadata = ParquetFile(self._folder / "metadata.parquet", Features({**features, **columns}))

    def write(self, row: ExportRow) -> None:
        output, *sources = _write_sorted(self._folder, row)
        names = {"input_image_file_names": sources, "output_image_file_name": output}
        self._metadata.write({**row.metadata, **names}, len(json.dumps(row.metadata)))
        self._num_rows += 1

    def close(self) -> None:
        self._metadata.close()

    def card_configs(self) -> dict[str, CardConfig]:
        return {self._config: CardConfig(f"{self._config}/**", self._num_rows)}


class Messages:
    """Conversations in the form that TRL and ms-swift read: one line of `messages.jsonl` for each row.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Make it red"}]},
                  {"role": "assistant", "content": [{"type": "image"}]}],
     "images": ["images/0a/0a1b.source.png", "images/0a/0a1b.output.png"], "id": "0a1b", "task": "..."}

    Both fill `{"type": "image"}` from `images`, in their order. ms-swift also reads tags such as `<image>` in the
    text, and knows no way to write them as text, so a prompt that has one is refused.
    """

    how_to = (
        "Conversations for TRL and ms-swift: the user gives the prompt and the pictures to edit, the assistant "
        "answers with a picture. `images` holds their paths, relative to this folder, in the order of the `image` "
        "parts.\n\n"
        "```python\n"
        "from datasets import Image, List, load_dataset\n\n"
        'rows = load_dataset("json", data_files="messages.jsonl", split="train")  # from within this folder\n'
        'rows = rows.cast_column("images", List(Image()))  # for TRL\n'
        "```\n\n"
        "For ms-swift: `ROOT_IMAGE_DIR=PATH/TO/THIS/FOLDER swift sft --dataset PATH/TO/THIS/FOLDER/messages.jsonl`."
    )
    own_files = re.compile(rf"messages\.jsonl|{_SORTED_PICTURES}")

    # ms-swift, swift/template/base.py, `Template.special_tokens`
    tags = ("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")

    def __init__(self, folder: Path, config: str, features: Features):
        self._folder = folder
        self._file = (folder / "messages.jsonl").open("a", encoding="utf-8")

    def write(self, row: ExportRow) -> None:
        prompt = row.metadata["input_prompt"]
        tag = next((tag for tag in self.tags if tag in prompt), None)
        if tag is not None:
            raise RowRefused(f"input_prompt contains {tag}, which ms-swift would take for a tag")
        output, *sources = _write_sorted(self._folder, row)
        question = [*({"type": "image"} for _ in sources), {"type": "text", "text": prompt}]
        line = {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [{"type": "image"}]},
            ],
            "images": [*sources, output],
            "id": row.id,
            "task": row.metadata["task"],
        }
        if row.metadata.get("license") is not None:
            line["license"] = row.metadata["license"]
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()

    def card_configs(self) -> dict[str, CardConfig]:
        return {}


def _write_sorted(folder: Path, row: ExportRow) -> list[str]:
    """Write the pictures of a row to `images/`, sorted by how ids begin; return their paths, the output's first."""
    names = []
    for role, picture in row.pictures.items():
        name = f"images/{row.id[:2]}/{row.id}.{role}.{picture.extension}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write_new(folder / name, picture.data)
        names.append(name)
    return names


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
