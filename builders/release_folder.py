# SPDX-License-Identifier: Apache-2.0
"""A packed data set folder -> the files of a release, and how they differ from what a repository on the Hub holds."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml
from huggingface_hub.hf_api import RepoFile

from sharegpt4o_image.builders.croissant import CROISSANT, validate_croissant, write_croissant
from sharegpt4o_image.builders.dataset_card import MARKER
from sharegpt4o_image.builders.pack_plan import CONFIGS
from sharegpt4o_image.builders.packed_set import SOURCE_FACTS
from sharegpt4o_image.builders.packer import REJECTIONS
from sharegpt4o_image.builders.splits import SPLIT_NAME
from sharegpt4o_image.errors import UserError

CARD = "README.md"
_SHARD = re.compile(rf"({'|'.join(CONFIGS)})/({SPLIT_NAME.pattern})-(\d{{5,}})-of-(\d{{5,}})\.parquet")
_OTHERS = re.compile(
    "|".join([*map(re.escape, (CARD, CROISSANT, REJECTIONS, SOURCE_FACTS)), r"card/[a-z0-9_-]+\.png"])
)
_FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.DOTALL | re.MULTILINE)  # all that the Hub writes into a new card
_NOT_DATA = (".gitattributes", "LICENSE", CARD)  # what a repository may hold that has no data set yet
_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ReleaseFile:
    """A file to publish; its checksums are read when they are first asked for.

    Args:
        path (`str`): in the repository, and below the folder.
        source (`Path`): where it lies.
        size (`int`): in bytes.
        modified_ns (`int`): tells a file that changes while it is published.
    """

    path: str
    source: Path
    size: int
    modified_ns: int

    @cached_property
    def sha256(self) -> str:
        """What the Hub calls a large file."""
        return self._digest("sha256", b"")

    @cached_property
    def git_oid(self) -> str:
        """What git calls a small one."""
        return self._digest("sha1", b"blob %d\0" % self.size)

    def _digest(self, algorithm: str, head: bytes) -> str:
        digest = hashlib.new(algorithm, head)
        with self.source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def equals(self, remote: RepoFile) -> bool:
        """Whether the Hub holds the same bytes."""
        if remote.size != self.size:
            return False
        return remote.lfs.sha256 == self.sha256 if remote.lfs else remote.blob_id == self.git_oid

    def check_unchanged(self) -> None:
        """Refuse a file that is not the one that was hashed."""
        status = self.source.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
            raise UserError(f"{self.source} changed while it was published; run the same command again")


@dataclass(frozen=True)
class ReleaseFolder:
    """A finished data set folder.

    Args:
        folder (`Path`): where it lies.
        files (`tuple`): what is published; the card comes last.
        left_out (`tuple`): what else lies in the folder, such as `codes`.
    """

    folder: Path
    files: tuple[ReleaseFile, ...]
    left_out: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def missing_from(self, tree: Mapping[str, RepoFile]) -> list[ReleaseFile]:
        """The files that a tree on the Hub lacks, or holds with other bytes."""
        return [file for file in self.files if file.path not in tree or not file.equals(tree[file.path])]

    def stale_in(self, tree: Iterable[str]) -> list[str]:
        """The data files in a tree that an earlier release left there and this one does not have; plots may stay."""
        paths = {file.path for file in self.files}
        return sorted(path for path in tree if (_SHARD.fullmatch(path) or path == REJECTIONS) and path not in paths)

    def with_croissant(self, repo_id: str, tag: str) -> "ReleaseFolder":
        """The release with a Croissant file that names the repository and the version; it is written to the folder.

        Args:
            repo_id (`str`): `owner/name`.
            tag (`str`): `v1.0` is version 1.0.0; for a tag that is no number, the version is 1.0.0.
        """
        numbers = _VERSION.fullmatch(tag)
        version = ".".join(number or "0" for number in numbers.groups()) if numbers else "1.0.0"
        digests = {file.path: file.sha256 for file in self.files if _SHARD.fullmatch(file.path)}
        for name, sha256 in _packed_digests(self.folder).items():
            if digests.get(name, sha256) != sha256:
                raise UserError(f"{self.folder / name} is not the file that `pack` wrote; pack the data set again")
        validate_croissant(write_croissant(self.folder, repo_id, version, digests))
        *files, card = (file for file in self.files if file.path != CROISSANT)
        return replace(self, files=(*files, _describe(self.folder, CROISSANT), card))

    def without_croissant(self) -> "ReleaseFolder":
        """The files that do not depend on where they are published."""
        return replace(self, files=tuple(file for file in self.files if file.path != CROISSANT))


def _packed_digests(folder: Path) -> dict[str, str]:
    """Name of a file -> the sha256 that `pack` wrote down."""
    try:
        content = json.loads((folder / CROISSANT).read_text(encoding="utf-8"))
        return {entry["@id"]: entry["sha256"] for entry in content["distribution"] if "sha256" in entry}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_published(path: str) -> bool:
    """Whether a path is one that a release may hold; whatever else a repository holds is left alone.

    >>> is_published("text_to_image/train-00000-of-00001.parquet"), is_published("codes/text_to_image.parquet")
    (True, False)
    """
    return bool(_SHARD.fullmatch(path) or _OTHERS.fullmatch(path))


def is_foreign(tree: Iterable[str], card: str) -> bool:
    """Whether a repository holds something that `pack` did not write, and that a release would bury."""
    if MARKER in card:
        return False
    return bool(_FRONT_MATTER.sub("", card).strip()) or any(path not in _NOT_DATA for path in tree)


def read_release(folder: Path) -> ReleaseFolder:
    """The files that are published: card, shards, rejections, plots and Croissant file.

    Token codes (`codes/`) are not: anyone can make them from the pictures with `encode`.

    Args:
        folder (`Path`): a data set folder that `pack` has finished.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    _check_shards(folder, {name for name in names if _SHARD.fullmatch(name)})
    links = [name for name in names if is_published(name) and (folder / name).is_symlink()]
    if links:
        raise UserError(f"{folder / links[0]} is a link; put the file itself there, or remove it")
    published = sorted(filter(is_published, names), key=lambda name: (name == CARD, not _SHARD.fullmatch(name), name))
    others = [name for name in names if not is_published(name)]
    left_out = dict.fromkeys("codes" if name.startswith("codes/") else name for name in others)
    return ReleaseFolder(folder, tuple(_describe(folder, name) for name in published), tuple(left_out))


def _describe(folder: Path, name: str) -> ReleaseFile:
    status = (folder / name).stat()
    return ReleaseFile(name, folder / name, status.st_size, status.st_mtime_ns)


def _check_shards(folder: Path, shards: set[str]) -> None:
    """Refuse a folder that is not the whole of what its card names."""
    named = _named_splits(folder)
    found = [match.groups() for match in map(_SHARD.fullmatch, sorted(shards)) if match]
    for config, split in named:
        totals = {total for c, s, _, total in found if (c, s) == (config, split)}
        if len(totals) != 1:
            count = "no files" if not totals else "files of two packings"
            raise UserError(f"{folder} holds {count} of {config}, split {split}; pack it again")
        [total] = totals
        for index in range(int(total)):
            name = f"{config}/{split}-{index:05d}-of-{total}.parquet"
            if name not in shards:
                raise UserError(f"{folder / name} is missing; pack the data set again")
    if extra := {(config, split) for config, split, *_ in found} - set(named):
        raise UserError(
            f"{folder} holds files of {', '.join(map('/'.join, extra))} that its card does not name; pack it again"
        )


def _named_splits(folder: Path) -> list[tuple[str, str]]:
    """Configuration and split of all data files that the card names."""
    remedy = "name a folder that `sharegpt4o-image pack` wrote"
    try:
        card = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} has no {CARD} that can be read; {remedy}") from error
    if MARKER not in card:
        raise UserError(f"{folder / CARD} is no card of a packed data set; {remedy}")
    try:
        configs = yaml.safe_load(card.split("---\n")[1])["configs"]
        return [(config["config_name"], files["split"]) for config in configs for files in config["data_files"]]
    except (IndexError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"the head of {folder / CARD} names no configurations; pack the data set again") from error
