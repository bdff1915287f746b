# SPDX-License-Identifier: Apache-2.0
"""Answers of a DPG-Bench run -> its files: `answers.json`, `scores_by_picture.csv`, `failures.png`, the scores."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import MAX_FAILURES_SHOWN, failure_sheet
from sharegpt4o_image.evaluation.dpg_answers import Answered
from sharegpt4o_image.evaluation.dpg_items import NUM_OFFICIAL_PICTURES, OFFICIAL_PROMPTS_SHA256, DpgBench
from sharegpt4o_image.evaluation.dpg_pictures import UnusablePicture, read_crops
from sharegpt4o_image.evaluation.dpg_questions import Item
from sharegpt4o_image.evaluation.dpg_run import NAME, PictureSource, SeenPictures
from sharegpt4o_image.evaluation.dpg_scores import YES, Categories, DpgScores, ScoreBlocks, score_blocks
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord, write_scores
from sharegpt4o_image.evaluation.vqa import Vqa, yes_or_no

OFFICIAL_VQA = "mplug_visual-question-answering_coco_large_en"
SHEET_COLUMNS = 7  # as many as hold pictures, the others make room for the questions (our choice)


@dataclass(frozen=True)
class DpgResult:
    """The record of scores, and both blocks of scores as `--from-answers` prints them."""

    record: ScoreRecord
    blocks: ScoreBlocks

    def to_json(self) -> dict[str, Any]:
        """The record with the blocks beside it."""
        return self.record.to_json() | self.blocks.to_json() | {"benchmark": self.record.benchmark}


def write_result(
    bench: DpgBench,
    source: PictureSource,
    seen: SeenPictures,
    answered: Answered,
    vqa: Vqa,
    output_dir: Path,
    command: str | None = None,
) -> DpgResult:
    """Score, and write every file of a run; the scores last."""
    run_dir = output_dir / NAME
    texts = answered.texts()
    answers_json = json.dumps({"items": bench.item_ids, "answers": texts}, ensure_ascii=False)
    write_whole(run_dir / "answers.json", answers_json.encode())
    first_row = bench.first_row if bench.items == bench.official_items else None
    blocks = score_blocks(bench.items, bench.official_items, texts, bench.num_pictures, first_row)
    if not blocks.corrected.n_items_scored:
        item, reason = next(iter((dict(answered.reasons) or dict(blocks.corrected.failed)).items()))
        raise UserError(f"no item can be scored ({item}: {reason}); put that right and run the same command again")
    write_whole(run_dir / "scores_by_picture.csv", _csv(blocks.corrected, seen).encode())
    _write_sheet(bench, source, seen, answered, blocks.corrected, run_dir / "failures.png")
    record = _record(bench, source, seen, answered, vqa, blocks, command)
    write_scores(record, run_dir)
    return DpgResult(record, blocks)


def variant_name(bench: DpgBench, source: PictureSource, models: Sequence[str], is_worker: bool) -> str:
    """`dpg-bench`, or what differs from the official run in brackets."""
    differs = []
    if not (is_worker and models and all(model.endswith(OFFICIAL_VQA) for model in models)):
        differs.append(f"vqa={'+'.join(map(_short, models)) or 'none'}")
    if not bench.is_whole:
        differs.append(f"items={len(bench.items)}")
    if bench.num_pictures != NUM_OFFICIAL_PICTURES:
        differs.append(f"pictures={bench.num_pictures}")
    if bench.is_whole != (bench.first_row == "drop"):  # of a part of the benchmark, the row is kept
        differs.append(f"first_row={bench.first_row}")
    if source.model is not None and bench.prompts_sha256 not in (None, OFFICIAL_PROMPTS_SHA256):
        differs.append("prompts=own")
    return f"{NAME}[{', '.join(differs)}]" if differs else NAME


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def _record(
    bench: DpgBench,
    source: PictureSource,
    seen: SeenPictures,
    answered: Answered,
    vqa: Vqa,
    blocks: ScoreBlocks,
    command: str | None,
) -> ScoreRecord:
    """By the official rule; where it scores no item, with the first row kept."""
    scores = blocks.official if blocks.official.n_items_scored else blocks.corrected
    models = answered.models()
    is_worker = vqa.identity["kind"] == "worker"
    return ScoreRecord(
        benchmark=NAME,
        name=variant_name(bench, source, models, is_worker),
        unit=100,
        scores=(_overall(scores), *_category_lines(scores.categories_official)),
        num_expected=len(bench.items),
        num_scored=scores.n_items_scored,
        missing=_missing(bench, answered.reasons, scores),
        model=source.model,
        generator={**source.generator, "resolution": source.resolution, "num_pictures": bench.num_pictures},
        judge={**vqa.identity, "models": models},
        command=command,
        details=_details(bench, source, seen, answered, blocks),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _overall(scores: DpgScores) -> ScoreLine:
    assert scores.overall is not None
    low, high = scores.overall_interval or (None, None)
    return ScoreLine("overall", scores.overall, low, high, scores.n_items_scored)


def _category_lines(categories: Categories) -> list[ScoreLine]:
    return [ScoreLine(name, share.percent, *share.interval(), share.asked) for name, share in categories.l1.items()]


def _missing(bench: DpgBench, reasons: Mapping[str, str], scores: DpgScores) -> tuple[MissingItem, ...]:
    missing = []
    for item in bench.items:
        if item.id in scores.per_image:
            continue
        reason = reasons.get(item.id) or scores.failed.get(item.id, "not scored")
        if item is bench.items[0] and item.id not in reasons and bench.first_row == "drop":
            reason = f"the official script drops the file's first question ({reason})"
        missing.append(MissingItem(item.id, reason))
    return tuple(missing)


def _details(
    bench: DpgBench, source: PictureSource, seen: SeenPictures, answered: Answered, blocks: ScoreBlocks
) -> dict[str, Any]:
    details = blocks.to_json()
    del details["official"]["per_image"]
    return details | {
        "num_answers": sum(len(picture) for pictures in answered.by_item.values() for picture in pictures),
        "num_expected_answers": bench.num_answers,
        "prompts": "text column" if bench.prompts_sha256 is None else {"folder_sha256": bench.prompts_sha256},
        "warnings": [*seen.warnings, *_wordless(answered)],
        **answered.notes,
    }


def _wordless(answered: Answered) -> Iterator[str]:
    """A model that would write something else first, such as one that thinks, was forced to choose."""
    kept = [kept for pictures in answered.by_item.values() for picture in pictures for kept in picture.values()]
    forced = [one["raw"] for one in kept if one["answer"] != one["raw"] and yes_or_no(one["raw"]) is None]
    if forced:
        yield (
            f"{len(forced):,} of {len(kept):,} answers would have begun with neither yes nor no (such as "
            f"{forced[0][:40]!r}) and are the likelier of the two; a model that answers at once tells more"
        )


# ------------------------------------------------------------------ files beside the scores


def _csv(scores: DpgScores, seen: SeenPictures) -> str:
    """`path, s1, ..., sk, mean` with scores from 0 to 1, as the official script lists them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    width = max((len(values) for values in scores.per_image.values()), default=1) - 1
    writer.writerow(["path", *(f"picture_{number}" for number in range(1, width + 1)), "mean"])
    writer.writerows([seen.files[item].name, *values] for item, values in scores.per_image.items())
    return text.getvalue()


def _write_sheet(
    bench: DpgBench, source: PictureSource, seen: SeenPictures, answered: Answered, scores: DpgScores, path: Path
) -> None:
    """The items with the lowest picture, and what failed on it."""
    ranked = sorted(
        (item for item in bench.items if item.id in scores.per_image and min(scores.per_image[item.id]) < 1),
        key=lambda item: min(scores.per_image[item.id][:-1]),
    )
    columns = [f"picture {number}" for number in range(1, bench.num_pictures + 1)]
    rows: list[tuple[str, Sequence[Image.Image | Path | None]]] = []
    for place, item in enumerate(ranked):  # of those that the sheet only counts, no picture is read
        crops = _crops(bench, source, seen, item.id) if place < MAX_FAILURES_SHOWN else []
        rows.append((_failed_text(item, answered, scores), crops))
    failure_sheet(rows, path, columns + [""] * (SHEET_COLUMNS - len(columns)))


def _failed_text(item: Item, answered: Answered, scores: DpgScores) -> str:
    values = scores.per_image[item.id][:-1]
    worst = values.index(min(values))
    kept = answered.by_item[item.id][worst]
    failed = [question.text for question in item.questions if kept[question.number]["answer"] != YES]
    return f"{item.id}, picture {worst + 1}: {100 * values[worst]:.0f} %, failed: {' | '.join(failed)}"


def _crops(
    bench: DpgBench, source: PictureSource, seen: SeenPictures, item: str
) -> Sequence[Image.Image | Path | None]:
    try:
        return read_crops(seen.files[item], source.resolution, bench.num_pictures).pictures
    except UnusablePicture:  # it went away since it was judged
        return []
