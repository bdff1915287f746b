# SPDX-License-Identifier: Apache-2.0
"""Rows, one after the other -> what is wrong with them, each for itself and against all others.

Of every row, its id and the checksums of its pictures are kept, 16 bytes each, and where they were first seen.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sharegpt4o_image.builders.pack_plan import NEGATIVES
from sharegpt4o_image.builders.picture_look import NoPicture, look_at
from sharegpt4o_image.builders.record_check import size_fault
from sharegpt4o_image.builders.verification_files import Shard
from sharegpt4o_image.builders.verification_report import Check
from sharegpt4o_image.schema import ID_LENGTH, TASKS, ImageFile
from sharegpt4o_image.synthesis.taxonomy import Taxonomy

_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_JSON_COLUMNS = ("image_params", "usage")
_PLACEHOLDER = ImageFile(bytes=b"", path="")  # pictures are checked apart from the other columns


@dataclass(frozen=True, slots=True)
class SeenPicture:
    """What the bytes of a picture show; without them, or where they are no picture, `fault` says why."""

    sha256: str | None = None
    size: list[int] | None = None  # width and height, upright, as `datasets` shows it
    phash: str | None = None
    fault: str | None = None


def see_picture(image: dict[str, Any] | None) -> SeenPicture:
    """Decode every pixel of a stored picture."""
    data = None if image is None else image["bytes"]
    if data is None:
        return SeenPicture(fault="is not embedded: it has no bytes")
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        look = look_at(data)
    except NoPicture as fault:
        return SeenPicture(sha256, fault=str(fault))
    return SeenPicture(sha256, look.size, look.phash)


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row with its place; `pictures` are its source pictures, then its output, where they were decoded."""

    shard: int
    number: int
    values: dict[str, Any]
    pictures: list[SeenPicture] | None


class ColumnWords:
    """The words that a taxonomy has for the columns which are drawn from it.

    Args:
        taxonomy ([`Taxonomy`]): the words.
        prefix (`str`, *optional*, defaults to `""`): `label_` for the columns of labels.
    """

    def __init__(self, taxonomy: Taxonomy, prefix: str = ""):
        self._name, self._prefix = taxonomy.name, prefix
        self._words = {column: {*words} for column, words in taxonomy.column_words.items()}
        self._categories = taxonomy.edit_categories

    def iter_faults(self, row: dict[str, Any]) -> Iterator[str]:
        """What a row says that the taxonomy does not know."""
        for column, words in self._words.items():
            word = row.get(self._prefix + column)
            if word is not None and word not in words:
                yield f"{self._prefix}{column} {word!r} is not in the taxonomy {self._name}"
        category, task = row.get(f"{self._prefix}edit_category"), row.get(f"{self._prefix}edit_task")
        if category in self._words["edit_category"] and self._categories.get(str(task), category) != category:
            yield f"{self._prefix}edit_task {task!r} does not belong to {category!r}"


class RowChecks:
    """The checks of rows, which see each row once.

    Args:
        shards (`list`): the files; rows come in their order.
        checks (`dict`): name -> check, for the names of `ROW_CHECKS`.
        vocabularies (`list`): the words of columns, as far as their taxonomies are known.
        has_own_phash (`bool`): whether `output_phash` is that of the stored picture, not of a larger original.
    """

    def __init__(
        self, shards: list[Shard], checks: dict[str, Check], vocabularies: list[ColumnWords], has_own_phash: bool
    ):
        self._shards = shards
        self._checks = checks
        self._vocabularies = vocabularies
        self._has_own_phash = has_own_phash
        self._ids: dict[bytes, int] = {}  # digest of an id -> place
        self._outputs: dict[bytes, bytes] = {}  # digest of an id -> beginning of the sha256 of its output
        self._pictures: dict[bytes, int] = {}  # beginning of a sha256 -> place of the first row that shows it
        self._published: dict[bytes, int] = {}  # the same of outputs that no gate refused
        self._named_sources: list[tuple[int, str, bytes | None, bool]] = []

    def see(self, row: SeenRow) -> None:
        """Check a row, and remember what others are to be compared with."""
        place = _pack_place(row.shard, row.number)
        values, where = row.values, self._describe(place)
        self._check_values(values, self._shards[row.shard], where)
        key = self._check_id(values["id"], place, where)
        self._check_categories(values, where)
        if row.pictures is not None:
            self._check_pictures(values, row.pictures, where)
        output = _digest_of(values["output_sha256"] if row.pictures is None else row.pictures[-1].sha256)
        sources = [None] * len(values["input_image"] or []) if row.pictures is None else row.pictures[:-1]
        digests = [None if picture is None else _digest_of(picture.sha256) for picture in sources]
        if key is not None and output is not None:
            self._outputs.setdefault(key, output)
        self._check_sources(values, digests, place, where)
        self._compare_pictures(digests, output, place, where)

    def finish(self, rejected_ids: Iterator[str]) -> None:
        """What can only be said once all rows are known."""
        for place, source_id, digest, is_demanded in self._named_sources:
            self._check_named_source(place, source_id, digest, is_demanded)
        for rejected_id in rejected_ids:
            if _key_of(rejected_id) in self._ids:
                place = self._ids[_key_of(rejected_id)]
                self._checks["rejections"].fail(f"{rejected_id} was kept out, but is {self._describe(place)}")

    def _describe(self, place: int) -> str:
        shard, number = _unpack_place(place)
        return f"{self._shards[shard].name}, row {number}"

    def _split_of(self, place: int) -> str:
        return self._shards[_unpack_place(place)[0]].split

    # -------------------------------------------------------------- a row for itself

    def _check_values(self, values: dict[str, Any], shard: Shard, where: str) -> None:
        check = self._checks["rows"]
        check.num_checked += 1
        task = shard.config.removesuffix(NEGATIVES)
        if values["task"] in TASKS and values["task"] != task:
            check.fail(f"{where}: the task is {values['task']}, which does not belong there")
        if not (values["input_prompt"] or "").strip():
            check.fail(f"{where}: input_prompt is empty")
        try:
            opened = {name: json.loads(values[name]) for name in _JSON_COLUMNS if isinstance(values[name], str)}
            shard.row.model_validate({**values, **opened, "input_image": [], "output_image": _PLACEHOLDER})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            check.fail(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (ValueError, RecursionError) as error:
            check.fail(f"{where}: image_params or usage is no JSON: {error}")

    def _check_id(self, row_id: str | None, place: int, where: str) -> bytes | None:
        check = self._checks["ids"]
        check.num_checked += 1
        if row_id is None or not _ID.fullmatch(row_id):
            check.fail(f"{where}: the id {row_id!r} is not {ID_LENGTH} hexadecimal digits")
        if row_id is None:
            return None
        key = _key_of(row_id)
        first = self._ids.setdefault(key, place)
        if first != place:
            check.fail(f"{where}: the id {row_id} is also that of {self._describe(first)}")
        return key

    def _check_categories(self, values: dict[str, Any], where: str) -> None:
        check = self._checks["categories"]
        if not self._vocabularies:
            return
        check.num_checked += 1
        for fault in (fault for words in self._vocabularies for fault in words.iter_faults(values)):
            check.fail(f"{where}: {fault}", kind=fault)
            check.note = "another taxonomy is given by --taxonomy"

    def _check_pictures(self, values: dict[str, Any], pictures: list[SeenPicture], where: str) -> None:
        check = self._checks["pictures"]
        output, first_source = values["output_image_resolution"], values["input_image_resolution"]
        for index, picture in enumerate(pictures):
            is_output = index == len(pictures) - 1
            column = "output_image" if is_output else "input_image"
            # one resolution is recorded, so with several input images it is the first one's
            recorded = output if is_output else first_source if index == 0 else None
            check.num_checked += 1
            if picture.fault is not None:
                check.fail(f"{where}: {column} {picture.fault}")
            elif recorded is not None and picture.size is not None and recorded != picture.size:
                check.fail(f"{where}: {size_fault(column, picture.size, recorded)}")
        self._check_hashes(values, pictures[-1], where)

    def _check_hashes(self, values: dict[str, Any], output: SeenPicture, where: str) -> None:
        check = self._checks["checksums"]
        sha256, phash = values["output_sha256"], values["output_phash"]
        if sha256 is not None and output.sha256 is not None:
            check.num_checked += 1
            if sha256 != output.sha256:
                check.fail(f"{where}: output_image does not have the recorded sha256")
        if phash is not None and output.phash is not None and self._has_own_phash and phash != output.phash:
            check.fail(f"{where}: output_phash is {phash}, that of output_image is {output.phash}")

    # -------------------------------------------------------------- against other rows

    def _check_sources(self, values: dict[str, Any], digests: list[bytes | None], place: int, where: str) -> None:
        """An edit carries its source pictures; what another row describes is a photograph, or that row is there."""
        check = self._checks["sources"]
        is_edit = values["task"] == "text_and_image_to_image"
        named = [name for name in (values["source_id"] or "").split("; ") if name]
        if is_edit or named or digests:
            check.num_checked += 1
        if is_edit and not digests:
            check.fail(f"{where}: input_image is missing")
        if not is_edit and digests:
            check.fail(f"{where}: input_image is given, but the task is {values['task']}")
        if is_edit and named and digests and len(named) != len(digests):
            check.fail(f"{where}: source_id names {len(named)} sources, input_image holds {len(digests)}")
            return
        is_photograph = values["source_origin"] not in (None, "synthesized")
        for index, name in enumerate(named):
            digest = digests[index] if index < len(digests) else None
            self._named_sources.append((place, name, digest, not is_edit and not is_photograph))

    def _check_named_source(self, place: int, source_id: str, digest: bytes | None, is_demanded: bool) -> None:
        key = _key_of(source_id)
        where = self._describe(place)
        if key not in self._ids:
            if is_demanded:
                self._checks["sources"].fail(f"{where}: the source {source_id} is neither a row nor a photograph")
            return
        source = self._ids[key]
        if digest is not None and self._outputs.get(key, digest) != digest:
            self._checks["sources"].fail(f"{where}: input_image is not the output_image of {self._describe(source)}")
        if self._split_of(source) != self._split_of(place):
            self._checks["splits"].fail(f"{where}: its source is in another split, {self._describe(source)}")

    def _compare_pictures(self, sources: list[bytes | None], output: bytes | None, place: int, where: str) -> None:
        self._checks["splits"].num_checked += 1
        for digest in {*sources, output} - {None}:
            assert digest is not None
            first = self._pictures.setdefault(digest, place)
            if self._split_of(first) != self._split_of(place):
                column = "output_image" if digest == output else "input_image"
                self._checks["splits"].fail(f"{where}: its {column} is also in another split, {self._describe(first)}")
        if output is None or self._shards[_unpack_place(place)[0]].config.endswith(NEGATIVES):
            return  # a gate refuses what is there already, so negatives may well repeat a picture
        self._checks["duplicates"].num_checked += 1
        first = self._published.setdefault(output, place)
        if first != place and self._split_of(first) == self._split_of(place):
            self._checks["duplicates"].warn(f"{where}: output_image is also that of {self._describe(first)}")


def _key_of(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode(errors="surrogatepass"), digest_size=16).digest()


def _digest_of(sha256: str | None) -> bytes | None:
    """The beginning of a checksum, if it is one."""
    return bytes.fromhex(sha256[:32]) if sha256 is not None and _SHA256.fullmatch(sha256) else None


def _pack_place(shard: int, number: int) -> int:
    """File and row as one number, since there are millions."""
    return shard << 32 | number


def _unpack_place(place: int) -> tuple[int, int]:
    return place >> 32, place & 0xFFFF_FFFF
