# SPDX-License-Identifier: Apache-2.0
"""The scene benchmark on a folder of pictures, drawn here or given: pictures -> verdicts -> scores, kept as files.

    OUT/NAME/images/NNNN.png          the picture of each item, in the order of the items
    OUT/NAME/verdicts/                verdicts by picture, so that only new pictures are judged
    OUT/NAME/results.jsonl            one row for each item
    OUT/NAME/failures.png             the wrong ones beside what the teacher draws
    OUT/NAME/scores/NAME.json

The seed of a picture is that of the run plus its place among the items.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from sharegpt4o_image import __version__
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import (
    SamplingRecipe,
    Share,
    current_share,
    draw_pictures,
    failure_sheet,
    make_generator,
)
from sharegpt4o_image.evaluation.drawing import Generator, PictureRequest, claim_folder, write_whole
from sharegpt4o_image.evaluation.scene_benchmark import EditItem, Verdict, source_picture, teacher_picture
from sharegpt4o_image.evaluation.scene_record import JUDGE, scene_record
from sharegpt4o_image.evaluation.scene_runner import Item, judge, text_of
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreRecord, write_scores
from sharegpt4o_image.evaluation.verdict_store import VerdictStore
from sharegpt4o_image.schema import content_id
from sharegpt4o_image.synthesis.pictures import UnreadablePicture, open_picture


@dataclass(frozen=True)
class PictureSource:
    """Where pictures come from: a folder, or else what draws them.

    Args:
        images (`Path`, *optional*): a folder, instead of drawing.
        model (`str`, *optional*): checkpoint, or with `base_url` the name there; by default the shipped one.
        base_url (`str`, *optional*): of an endpoint that draws.
        recipe ([`SamplingRecipe`]): of a checkpoint.
        seed (`int`): of the first picture.
        budget_usd (`float`, *optional*): most that an endpoint may cost.
    """

    images: Path | None = None
    model: str | None = None
    base_url: str | None = None
    recipe: SamplingRecipe = field(default_factory=SamplingRecipe)
    seed: int = 0
    budget_usd: float | None = None

    def make_generator(self, run_dir: Path) -> Generator:
        """What draws; an endpoint's requests are kept below `run_dir`."""
        return make_generator(self.model, self.base_url, self.recipe, run_dir / "drawing", self.budget_usd)


@dataclass(frozen=True)
class PictureFolder:
    """Where the pictures of a list of items lie.

    Args:
        path (`Path`): the folder of `NNNN.png`.
        generator (`dict`): identity and recipe of what drew them; empty when that is not known.
        reasons (`dict`): name of a file -> why there is none, as far as it is known.
        surplus (`list`): files that belong to no item.
    """

    path: Path
    generator: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    surplus: Sequence[str] = ()


def file_name(index: int) -> str:
    """Of the picture of an item."""
    return f"{index:04d}.png"


def run_scenes(
    name: str, items: Sequence[Item], source: PictureSource, output: Path, command: str | None = None
) -> tuple[ScoreRecord, PictureFolder] | None:
    """Draw what is missing, judge and score; None in all processes but the main one.

    Args:
        name: `scenes` or `scene-edits`.
        items: of that benchmark.
        source: of the pictures.
        output: folder below which the benchmark's own is made.
        command: what to run for it.
    """
    run_dir, share = output / name, current_share()
    if source.images is not None:
        pictures = given_folder(source.images, items)
    else:
        pictures = draw_folder(name, items, source, run_dir, share)
    share.wait()
    return (score_folder(name, items, pictures, run_dir, command), pictures) if share.is_main else None


# ------------------------------------------------------------------ pictures


def draw_folder(name: str, items: Sequence[Item], source: PictureSource, run_dir: Path, share: Share) -> PictureFolder:
    """Draw what is missing of this process's share.

    Which items there are depends on how many of each kind, so a folder is of one number of them.
    """
    generator = source.make_generator(run_dir)
    claim_folder(run_dir, {"benchmark": name, "limit": len(items) // len({item.kind for item in items})})
    folder = run_dir / "images"
    reasons = draw_pictures(generator, picture_requests(items, source.seed), folder, source.seed, share, name)
    return PictureFolder(folder, {**generator.identity, "seed": source.seed}, reasons)


def picture_requests(items: Sequence[Item], seed: int) -> list[PictureRequest]:
    """What a generator is asked for."""
    return [
        PictureRequest(
            file_name(index),
            text_of(item),
            seed + index,
            (source_picture(item),) if isinstance(item, EditItem) else (),
        )
        for index, item in enumerate(items)
    ]


def given_folder(path: Path, items: Sequence[Item]) -> PictureFolder:
    """A folder that somebody else filled."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give the folder of {file_name(0)}, ... with --images")
    found = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    expected = {file_name(index) for index in range(len(items))}
    if not found & expected:
        raise UserError(
            f"{path} has none of the {len(items)} pictures; they are named {file_name(0)} to "
            f"{file_name(len(items) - 1)}, in the order of the items"
        )
    surplus = sorted(name for name in found - expected if not name.endswith((".json", ".jsonl")))
    return PictureFolder(path, surplus=surplus)


# ------------------------------------------------------------------ verdicts and scores


def score_folder(
    name: str, items: Sequence[Item], pictures: PictureFolder, run_dir: Path, command: str | None = None
) -> ScoreRecord:
    """Judge every picture that is there, and write verdicts, rows, the sheet of failures and, last, the scores."""
    verdicts: list[Verdict | None] = []
    missing = []
    with VerdictStore(run_dir / "verdicts", name) as store:
        for index, item in enumerate(items):
            path = pictures.path / file_name(index)
            try:
                verdicts.append(_judge_file(item, path, store))
            except FileNotFoundError:
                verdicts.append(None)
                missing.append(MissingItem(path.name, pictures.reasons.get(path.name, "there is no such picture")))
            except (OSError, UnreadablePicture) as error:
                verdicts.append(None)
                missing.append(MissingItem(path.name, f"it cannot be read: {str(error).partition(' <')[0]}"))
    reasons = {entry.item: entry.reason for entry in missing}
    record = scene_record(name, items, verdicts, missing, pictures.generator, command)
    _write_results(items, verdicts, reasons, run_dir / "results.jsonl")
    _draw_failures(items, verdicts, reasons, pictures.path, run_dir / "failures.png")
    write_scores(record, run_dir)
    return record


def _judge_file(item: Item, path: Path, store: VerdictStore) -> Verdict:
    data = path.read_bytes()
    key = content_id(picture=hashlib.sha256(data).hexdigest(), item=repr(item), judge=JUDGE, version=__version__)
    known = store.find(key)
    if known is not None:
        return Verdict(**known)
    verdict = judge(item, ImageOps.exif_transpose(open_picture(data)))
    store.keep(key, asdict(verdict))
    return verdict


def _write_results(
    items: Sequence[Item], verdicts: Sequence[Verdict | None], reasons: Mapping[str, str], path: Path
) -> None:
    """One row for each item; `correct` is null, and `reason` says why, where there is no picture."""
    rows = []
    for index, (item, verdict) in enumerate(zip(items, verdicts, strict=True)):
        row = {"index": index, "kind": item.kind, "text": text_of(item)}
        judged = asdict(verdict) if verdict else {"correct": None, "reason": reasons[file_name(index)]}
        rows.append(json.dumps(row | judged, ensure_ascii=False) + "\n")
    write_whole(path, "".join(rows).encode())


def _draw_failures(
    items: Sequence[Item], verdicts: Sequence[Verdict | None], reasons: Mapping[str, str], folder: Path, path: Path
) -> None:
    """Source, picture and what the teacher draws, for each item that is wrong or without a picture."""
    rows: list[tuple[str, list[Path | Image.Image | None]]] = []
    for index, (item, verdict) in enumerate(zip(items, verdicts, strict=True)):
        if verdict is not None and verdict.correct:
            continue
        source = source_picture(item) if isinstance(item, EditItem) else None
        reason = verdict.reason if verdict is not None else reasons[file_name(index)]
        rows.append((f"{text_of(item)}: {reason}", [source, folder / file_name(index), teacher_picture(item)]))
    failure_sheet(rows, path, ("source", "drawn", "teacher"))
