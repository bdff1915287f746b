# SPDX-License-Identifier: Apache-2.0
"""Picture or prompt -> why it must not become a record, or nothing: the quality gates that need no model.

The thresholds are our choice, set where real photographs that were scaled and compressed (JPEG and WebP, quality 60)
stay below them.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageStat

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.pictures import difference_hash
from sharegpt4o_image.synthesis.taxonomy import Scope

BLANK_DEVIATION = 1.0  # of 255: a picture that varies less in every channel is of one colour

PLAIN_GROUND = 0.5  # part of the rim that has the colour that is left where all things on a plain ground were removed

COMPARED_SIDE = 48  # before and after are compared as so many cells a side
CELL_DIFFERENCE = 13  # of 255, in one channel: from here on a cell has changed; noise of compression reaches 12
LOCAL_LIMIT = 0.9  # a local edit that changes more of the cells is none
SAME_SHAPE = 1.05  # where width by height changes by a larger factor, cells do not lie on one another

THUMBNAIL_SIDE = 8  # a thumbnail is 8 x 8 pixels of red, green and blue: 192 bytes
COLOR_DIFFERENCE = 16  # of 255, the largest in a thumbnail: beyond it the pictures differ; compression reaches 2

SHARED_WORDS = 13  # words in a row that make a text a copy: GPT-3's decontamination (arXiv 2005.14165, appendix C)
_PROMPT_KEYS = ("prompt", "text", "Prompt")
_SHOWN = 80  # characters of a benchmark's prompt in a reason


# --------------------------------------------------------------------------- one picture


def find_blank(image: Image.Image, source: Image.Image | None = None) -> str | None:
    """Whether the picture is of one colour, or wholly transparent.

    The result of an edit may be: where the ground of its `source` had that colour, and all that stood on it is gone.
    """
    if max(ImageStat.Stat(_visible(image)).var) >= BLANK_DEVIATION**2:
        return None
    if source is not None and _change_of_rim(source, image) <= 1 - PLAIN_GROUND:
        return None
    return "the picture is blank"


def _visible(image: Image.Image) -> Image.Image:
    """The picture upright, as red, green and blue times alpha, and alpha: what a transparent pixel hides is zero."""
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit gray off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return ImageOps.exif_transpose(image).convert("RGBA").convert("RGBa")


# --------------------------------------------------------------------------- before and after an edit


def find_lack_of_change(before: Image.Image, after: Image.Image, scope: Scope) -> str | None:
    """Whether an edit changed nothing to be seen or, being local, nearly everything.

    Size and format may differ. Of a picture whose shape was changed, cropped for example, it cannot be told how much
    of it was: it passes.
    """
    if _shape(after) / _shape(before) > SAME_SHAPE or _shape(before) / _shape(after) > SAME_SHAPE:
        return None
    share = float(_find_changed_cells(before, after).mean())
    if share == 0:
        return "the edit changed nothing"
    if scope == "local" and share > LOCAL_LIMIT:
        return f"a local edit changed {share:.0%} of the picture"
    return None


def _change_of_rim(before: Image.Image, after: Image.Image) -> float:
    """The part of the cells along the four sides that differ to the eye."""
    changed = _find_changed_cells(before, after)
    return float(np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]]).mean())


def _find_changed_cells(before: Image.Image, after: Image.Image) -> np.ndarray:
    difference = np.abs(_cells(after) - _cells(before)).max(axis=-1)  # (side, side)
    return np.asarray(difference >= CELL_DIFFERENCE)


def _shape(image: Image.Image) -> float:
    upright = ImageOps.exif_transpose(image)
    return upright.width / upright.height


def _cells(image: Image.Image) -> np.ndarray:
    # A triangle filter: Pillow's box does not weigh pixels that two cells share, which shows in small pictures.
    size = (COMPARED_SIDE, COMPARED_SIDE)
    return np.asarray(_visible(image).resize(size, Image.Resampling.BILINEAR), dtype=np.int16)  # (side, side, 4)


# --------------------------------------------------------------------------- duplicates


@dataclass(frozen=True)
class Signature:
    """What a picture looks like, in 200 bytes: edges (a difference hash in hexadecimal) and colours (a thumbnail)."""

    phash: str
    thumbnail: bytes


def sign(image: Image.Image) -> Signature:
    """The signature of a picture."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = _visible(image).resize(size, Image.Resampling.BILINEAR)
    return Signature(difference_hash(image), np.asarray(small)[..., :3].tobytes())


class DuplicateIndex:
    """The pictures of a run, to be searched for one like another.

    Pictures are alike when their difference hashes differ in few bits and their thumbnails by little everywhere: the
    hash alone takes a scene by day and the same one by night for one, and the mean of a thumbnail overlooks that
    another thing lies on the same ground.
    """

    def __init__(self) -> None:
        self._items: list[str] = []
        self._by_sha256: dict[str, str] = {}
        self._hashes = np.empty(1024, dtype=np.uint64)
        self._thumbnails = np.empty((1024, 3 * THUMBNAIL_SIDE**2), dtype=np.uint8)

    def add(self, item: str, sha256: str, signature: Signature) -> None:
        """Take a picture in."""
        if len(self._items) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._thumbnails = np.concatenate([self._thumbnails, np.empty_like(self._thumbnails)])
        self._hashes[len(self._items)] = int(signature.phash, 16)
        self._thumbnails[len(self._items)] = np.frombuffer(signature.thumbnail, dtype=np.uint8)
        self._items.append(item)
        self._by_sha256.setdefault(sha256, item)

    def find_exact(self, sha256: str) -> str | None:
        """The first item with these very bytes."""
        return self._by_sha256.get(sha256)

    def find_similar(self, signature: Signature, within: int) -> str | None:
        """The first item whose hash differs in at most `within` of 64 bits, and whose colours are about the same."""
        hashes = self._hashes[: len(self._items)]
        close = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(int(signature.phash, 16))) <= within)
        thumbnail = np.frombuffer(signature.thumbnail, dtype=np.uint8).astype(np.int16)
        difference = np.abs(self._thumbnails[close] - thumbnail).max(axis=1)  # (close,)
        alike = close[difference <= COLOR_DIFFERENCE]
        return self._items[alike[0]] if len(alike) else None


# --------------------------------------------------------------------------- prompts of benchmarks


class BenchmarkPrompts:
    """The prompts of benchmarks: a record that repeats one would make a score mean nothing.

    Args:
        paths (`Sequence[Path]`):
            Text files with a prompt a line, JSON or JSON lines files whose rows have a `prompt` or `text` (GenEval's
            `evaluation_metadata.jsonl`, ImgEdit's `basic_edit.json`), or folders of text files with one prompt each
            (DPG-Bench).
    """

    def __init__(self, paths: Sequence[Path]):
        self._whole: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        for path in paths:
            for prompt in _read_prompts(path):
                words = _words_of(prompt)
                self._whole.setdefault(" ".join(words), prompt)
                for run in _runs_of(words):
                    self._runs.setdefault(run, prompt)

    def find(self, prompt: str) -> str | None:
        """Whether a prompt is a benchmark's but for case and punctuation, or shares 13 words in a row with one."""
        words = _words_of(prompt)
        repeated = self._whole.get(" ".join(words))
        if repeated is None:
            repeated = next((self._runs[run] for run in _runs_of(words) if run in self._runs), None)
        if repeated is None:
            return None
        return f"the prompt repeats a benchmark prompt: {textwrap.shorten(repeated, _SHOWN, placeholder=' ...')}"


def _words_of(prompt: str) -> list[str]:
    return re.findall(r"\w+", prompt.casefold())


def _runs_of(words: list[str]) -> Iterator[str]:
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start : start + SHARED_WORDS])


def _read_prompts(path: Path) -> list[str]:
    """The prompts of a file or folder, at least one."""
    try:
        prompts = [prompt for prompt in _iter_prompts(path) if _words_of(prompt)]
    except (OSError, ValueError, TypeError) as error:  # ValueError: not UTF-8, or not JSON; TypeError: no list
        raise UserError(f"gates.benchmark_prompts: cannot read {path}: {error}; mend it or leave it out") from error
    if not prompts:
        raise UserError(f"gates.benchmark_prompts: {path} holds no prompt; give a .txt, .json or .jsonl file")
    return prompts


def _iter_prompts(path: Path) -> Iterable[str]:
    if path.is_dir():
        return [file.read_text(encoding="utf-8-sig") for file in sorted(path.rglob("*.txt"))]
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        return [_prompt_of(json.loads(line)) for line in text.split("\n") if line.strip()]
    if path.suffix == ".json":
        rows = json.loads(text)
        return [_prompt_of(row) for row in (rows.values() if isinstance(rows, dict) else rows)]
    return text.split("\n")


def _prompt_of(row: Any) -> str:
    if isinstance(row, str):
        return row
    for key in _PROMPT_KEYS:
        if isinstance(row, dict) and isinstance(row.get(key), str):
            return str(row[key])
    raise ValueError(f"a row has no {' or '.join(_PROMPT_KEYS)}")
