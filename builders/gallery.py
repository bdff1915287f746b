# SPDX-License-Identifier: Apache-2.0
"""A packed folder -> one HTML file to look through its rows: filters, search, source against edit. It needs no server.

Which rows are shown is decided from the columns without pictures; then only the pictures of those rows are read.
"""

import base64
import hashlib
import heapq
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pyarrow import ArrowException

from sharegpt4o_image.builders.pack_plan import CONFIGS
from sharegpt4o_image.builders.packed_set import PackedSet
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.journal import without_particulars
from sharegpt4o_image.synthesis.pictures import open_picture

TEMPLATE = Path(__file__).with_name("gallery.html")
MARK = '<meta name="generator" content="sharegpt4o-image gallery">'  # by which our pages are known from others

WEBP_QUALITY = 75  # 320 pixels of a photograph take about 15 kB (our choice)

_JSON_COLUMNS = ("image_params", "usage")  # stored as text
_PICTURES = ("input_image", "output_image")
_STRATA = ("edit_category", "pipeline", "label_edit_category")  # the first that a row has


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """Where a row is stored; in this order rows are read and shown."""

    config: int  # number in CONFIGS
    path: Path
    group: int
    row: int
    split: str


def write_gallery(dataset: Path, output: Path, *, limit: int = 200, side: int = 320, seed: int = 0) -> Path:
    """Write the page and return its path; the same rows give the same page.

    Where there are more rows than `limit`, as many as possible are taken from each configuration and category.

    Args:
        dataset (`Path`):
            A folder that `pack` wrote.
        output (`Path`):
            HTML file to write, or one that was written before.
        limit (`int`, *optional*, defaults to 200):
            Most rows to show.
        side (`int`, *optional*, defaults to 320):
            Longest side of a thumbnail, in pixels.
        seed (`int`, *optional*, defaults to 0):
            Draws the rows.
    """
    _refuse_foreign(output)
    title = _title_of(dataset)
    places, num_rows = _choose(PackedSet(dataset).shards, limit, seed)
    rows = [_shown(place, raw, side) for place, raw in _read_rows(places)]
    page = render_page(title, rows, num_rows)
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}); choose another file with --output") from error
    return output


def _refuse_foreign(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file with --output")
    if output.exists() and MARK not in output.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{output} is not a gallery; remove it, or choose another file with --output")


def _title_of(dataset: Path) -> str:
    name = dataset.resolve().name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of the folder {name!r} is not UTF-8; rename the folder") from error
    return name


# --------------------------------------------------------------------------- which rows


def _choose(shards: list[tuple[str, str, Path]], limit: int, seed: int) -> tuple[list[_Place], int]:
    """Places of the rows to show, in their order; and how many rows there are."""
    drawn: dict[tuple[int, str], list[tuple[int, _Place]]] = {}  # stratum -> its rows with the least lots, as a heap
    num_rows = 0
    for place, row in _iter_strata(shards):
        num_rows += 1
        stratum = (place.config, next((row[column] for column in _STRATA if row.get(column)), ""))
        lot = hashlib.sha256(f"{seed}/{row['id']}".encode()).digest()
        heap = drawn.setdefault(stratum, [])
        heapq.heappush(heap, (-int.from_bytes(lot[:8]), place))
        if len(heap) > limit:
            heapq.heappop(heap)
    ranked = [sorted(heap, reverse=True) for _, heap in sorted(drawn.items())]
    in_turn = [
        heap[rank][1] for rank in range(max(map(len, ranked), default=0)) for heap in ranked if rank < len(heap)
    ]
    return sorted(in_turn[:limit]), num_rows


def _iter_strata(shards: list[tuple[str, str, Path]]) -> Iterator[tuple[_Place, dict[str, Any]]]:
    for config, split, path in shards:
        with _opened(path) as file:
            columns = [name for name in ("id", *_STRATA) if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                for index, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    yield _Place(CONFIGS.index(config), path, group, index, split), row


def _read_rows(places: list[_Place]) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """The chosen rows, one in memory at a time."""
    for path, in_file in groupby(places, key=lambda place: place.path):
        with _opened(path) as file:
            for group, in_group in groupby(in_file, key=lambda place: place.group):
                yield from _read_group(file, group, {place.row: place for place in in_group})


def _read_group(
    file: pq.ParquetFile, group: int, wanted: dict[int, _Place]
) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """Reading ends with the last row that is wanted."""
    batches = file.iter_batches(batch_size=1, row_groups=[group], use_threads=False)
    for index in range(max(wanted) + 1):
        batch = next(batches)
        if index in wanted:
            yield wanted[index], batch.to_pylist()[0]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); pack the set again") from error


# --------------------------------------------------------------------------- what is shown of a row


def _shown(place: _Place, raw: dict[str, Any], side: int) -> dict[str, Any]:
    """A row for the page: all columns as stored, pictures as thumbnails."""
    columns = {name: _in_json(value) for name, value in raw.items() if name not in _PICTURES}
    columns |= {name: _in_json(json.loads(columns[name])) for name in _JSON_COLUMNS if columns.get(name)}
    return {
        "config": CONFIGS[place.config],
        "split": place.split,
        "reason": without_particulars(raw["reject_reason"]) if raw.get("reject_reason") else None,
        "columns": {name: value for name, value in columns.items() if value not in (None, [], {})},
        "sources": [_thumbnail(picture, side) for picture in raw["input_image"] or ()],
        "output": _thumbnail(raw["output_image"], side),
    }


def _in_json(value: Any) -> Any:
    """The value, with numbers that JSON lacks as text."""
    if isinstance(value, dict):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_in_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _thumbnail(picture: dict[str, Any] | None, side: int) -> dict[str, Any]:
    """A data URI with its size, or why there is none."""
    try:
        image = ImageOps.exif_transpose(open_picture((picture or {}).get("bytes") or b""))
    except Exception as error:  # what is no picture, and what Pillow lets through where EXIF is broken
        return {"fault": f"unreadable: {error}"}
    size = image.size
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/webp;base64,{data}", "width": size[0], "height": size[1]}


# --------------------------------------------------------------------------- the page


def render_page(title: str, rows: list[dict[str, Any]], num_rows: int) -> str:
    """The template with the rows as JSON; nothing of a row becomes markup.

    Args:
        title (`str`): what the data set is called.
        rows (`list`): the rows to show.
        num_rows (`int`): how many the data set has.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    values = {
        "mark": MARK,
        "policy": _policy(template),
        "title": escape(title),
        "data": _json_for_script({"title": title, "num_rows": num_rows, "rows": rows}),
    }
    return re.sub(r"\{\{(mark|policy|title|data)\}\}", lambda slot: values[slot[1]], template)


def _policy(template: str) -> str:
    """A Content-Security-Policy that allows the page's own style and script, thumbnails, and nothing else."""
    [style] = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in.

    >>> _json_for_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)
