# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: a run, an upstream release, or a packed data set, all behind `RowSource`.

A source first says which rows it has, without reading a picture; then it is asked for one row after the other. So the
packer knows every file that it will write before it writes the first one, and goes on after a kill where it stopped.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from sharegpt4o_image.schema import Record, Task


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A row that is known of, but not read.

    Args:
        id (`str`): the row's id.
        task (`str`): `text_to_image` or `text_and_image_to_image`.
        digest (`str`): changes when anything of the row changes, its pictures included.
        num_bytes (`int`): how much its pictures take.
        location (`str`): where it comes from, in words: `text_to_image.json, row 17`.
        locator (`tuple`): what the source needs to find it again.
        pictures (`tuple`): what identifies its pictures, source pictures first. Rows that share one are kept in one
            split.
        split (`str`, *optional*): the split that it belongs to already, in a set that has splits.
        is_negative (`bool`): a quality gate refused its picture.
        fault (`str`, *optional*): why it cannot become a row, where that is known without reading it.
        input_prompt (`str`, *optional*): of a row with a fault, for `rejections.parquet`.
    """

    id: str
    task: Task
    digest: str
    num_bytes: int
    location: str
    locator: tuple[Any, ...] = ()
    pictures: tuple[str, ...] = ()
    split: str | None = None
    is_negative: bool = False
    fault: str | None = None
    input_prompt: str | None = None


class RowFault(Exception):
    """Why a planned row cannot be read, as a phrase for `rejections.parquet`: `image/7.png is in no tar part`."""

    def __init__(self, reason: str, input_prompt: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.input_prompt = input_prompt


@dataclass(frozen=True)
class ImageEncoding:
    """How the pictures of a light variant were made smaller: `pack --max-side 512 --format webp --quality 90`."""

    max_side: int | None
    format: str | None  # `png`, `jpeg` or `webp`
    quality: int | None

    def __str__(self) -> str:
        """In words: `at most 512 pixels a side, stored as webp of quality 90`."""
        parts = [
            self.max_side and f"at most {self.max_side:,} pixels a side",
            self.format and f"stored as {self.format}",
        ]
        quality = f" of quality {self.quality}" if self.quality else ""
        return ", ".join(part for part in parts if part) + quality


@dataclass(frozen=True)
class SourceFacts:
    """What a source says, for the card, of how its rows came to be.

    Args:
        kind (`str`): `run`, `upstream_release` or `data_set`.
        name (`str`): what it is called: the last part of its path, or its repository.
        attempts (`dict`): of a run, status -> number of requests (`ok`, `blocked`, `invalid`, `lost`, ...).
        rejections (`dict`): of a run, reason -> samples that became no record.
        spent_usd (`float`, *optional*): what all answers of a run cost, those of rejected samples included.
        possibly_spent_usd (`float`, *optional*): what its requests of unknown outcome may have cost besides.
        requests (`dict`): of a run, what it asked for -> model -> status -> number of requests; `prompt`, `image`,
            `edit`, `judge`, ...
        settings (`dict`): of a run, what decided the rows: `seed`, `prompt_params`, `image_params`, `edit_params`,
            `gates` (of which `judge` may be one).
        labelling (`SourceFacts`, *optional*): of labelled rows, the run that labelled them; its `taxonomy` has the
            words of the labels.
        agreement (`dict`): of rows that were labelled, column -> `[rows that agree, rows compared]`.
        taxonomy (`str`, *optional*): of a run, the name of what its topics were drawn from.
        encoding (`ImageEncoding`, *optional*): of a set whose pictures were made smaller.
        notes (`tuple`): sentences on what is wrong with it as a whole, such as a truncated tar part.
    """

    kind: Literal["run", "upstream_release", "data_set"]
    name: str
    attempts: dict[str, int] = field(default_factory=dict)
    rejections: dict[str, int] = field(default_factory=dict)
    spent_usd: float | None = None
    possibly_spent_usd: float | None = None
    requests: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    labelling: "SourceFacts | None" = None
    agreement: dict[str, list[int]] = field(default_factory=dict)
    taxonomy: str | None = None
    encoding: ImageEncoding | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The facts as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SourceFacts":
        """What `to_json` wrote."""
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return cls._of(content)

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "SourceFacts":
        encoding, labelling = content.get("encoding"), content.get("labelling")
        parts = {
            "encoding": encoding and ImageEncoding(**encoding),
            "labelling": labelling and cls._of(labelling),
            "notes": tuple(content.get("notes", ())),
        }
        return cls(**(content | parts))


class RowSource(Protocol):
    """Rows in a fixed order; the same source gives the same plan.

    Args:
        row (type): what the rows are.
        folder (`Path`, *optional*): where the source lies, if that is a folder; it is never written over.
        has_looked (`bool`): `load` has decoded every picture and compared its size.
    """

    row: type[Record]
    folder: Path | None
    has_looked: bool

    def plan(self) -> Iterator[RowPlan]:
        """Every row, in the order in which they are published; no picture is read."""

    def load(self, plan: RowPlan) -> Record:
        """The row of a plan; raises [`RowFault`] where it cannot be read. Called from several threads at once."""

    def facts(self) -> SourceFacts:
        """What the card says of the source; asked for after `plan` has ended."""

    def close(self) -> None:
        """Let go of files and connections."""
