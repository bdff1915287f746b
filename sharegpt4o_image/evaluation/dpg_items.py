# SPDX-License-Identifier: Apache-2.0
"""The files of DPG-Bench -> what a run asks: items and their prompts, and what the official loader makes of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_questions import FirstRow, Item, read_questions

# dpg_bench/prompts of TencentQQGYLab/ELLA@3c228f1
NUM_OFFICIAL_ITEMS = 1065
OFFICIAL_PROMPTS_SHA256 = "090f744aaa64391b0b6c7e80b9ff4148bbd78da00e884770005df2245cd0b159"

NUM_OFFICIAL_PICTURES = 4


@dataclass(frozen=True)
class DpgBench:
    """What is asked.

    Args:
        items (`tuple`): that are asked: with all their questions, unless `drop` was asked for.
        official_items (`tuple`): as the official loader has them; the same items where no row is dropped.
        prompts (`dict`): item id -> what its pictures are drawn from.
        num_pictures (`int`): of each item.
        first_row (`str`): what `official_items` make of the first row.
        is_whole (`bool`): all items of a file with as many as the official one.
        prompts_sha256 (`str`, *optional*): of the folder that the prompts came from.
    """

    items: tuple[Item, ...]
    official_items: tuple[Item, ...]
    prompts: Mapping[str, str]
    num_pictures: int
    first_row: FirstRow
    is_whole: bool
    prompts_sha256: str | None = None

    @property
    def item_ids(self) -> list[str]:
        """In the order of the file."""
        return [item.id for item in self.items]

    @property
    def num_answers(self) -> int:
        """Answers that a complete run has."""
        return self.num_pictures * sum(len(item.questions) for item in self.items)


def load_bench(
    questions: Path,
    prompts: Path | None = None,
    num_pictures: int = NUM_OFFICIAL_PICTURES,
    first_row: FirstRow | None = None,
    limit: int | None = None,
) -> DpgBench:
    """Read the question file, and the prompts.

    Args:
        questions: `dpg_bench.csv`, or a file with its columns.
        prompts: folder of `<item_id>.txt`; by default, the file's own `text` is the prompt.
        num_pictures: of each item.
        first_row: by default, it is dropped as the official loader does where all official items are asked, and kept
            elsewhere, where dropping it would tell nothing of any published number. `drop` does not even
            ask it.
        limit: the first so many items.
    """
    items = read_questions(questions, first_row or "keep")
    is_whole = len(items) == NUM_OFFICIAL_ITEMS and (limit is None or limit >= len(items))
    row: FirstRow = first_row or ("drop" if is_whole else "keep")
    chosen = tuple(items[:limit])
    ids = {item.id for item in chosen}
    official = tuple(item for item in read_questions(questions, row) if item.id in ids)
    if prompts is None:
        return DpgBench(chosen, official, {item.id: item.text for item in chosen}, num_pictures, row, is_whole)
    texts = _read_prompts(prompts, [item.id for item in chosen])
    return DpgBench(chosen, official, texts, num_pictures, row, is_whole, folder_sha256(prompts))


def folder_sha256(folder: Path) -> str:
    """One digest of all prompts: of names in order, each with its bytes, both ended by a NUL."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.txt"), key=lambda path: path.name):
        digest.update(path.name.encode(errors="surrogateescape") + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _read_prompts(folder: Path, items: Sequence[str]) -> dict[str, str]:
    missing = [item for item in items if not (folder / f"{item}.txt").is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {missing[0]}.txt ({len(missing):,} of {len(items):,} prompts are missing); "
            "give --prompts the folder of the official prompts, or leave it out"
        )
    texts = {}
    for item in items:
        path = folder / f"{item}.txt"
        try:
            texts[item] = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 ({error}); fetch the prompts again") from None
        if not texts[item]:
            raise UserError(f"{path} is empty; fetch the prompts again")
    return texts
