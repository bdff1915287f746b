# SPDX-License-Identifier: Apache-2.0
"""Prompts -> pictures -> verdicts -> GenEval's scores, resumable by picture.

Writes below `OUT/<benchmark>/`: `images/` (unless a folder was given), `verdicts/`, the official `results.jsonl`,
`failures.png` and, last, `scores/<benchmark>.json`.
"""

import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import geneval_scores
from sharegpt4o_image.evaluation.benchmark_run import (
    Share,
    draw_pictures,
    failure_sheet,
    progress_bar,
    speed_text,
)
from sharegpt4o_image.evaluation.drawing import Generator, claim_folder, json_bytes, write_whole
from sharegpt4o_image.evaluation.geneval_judge import GenEvalJudge
from sharegpt4o_image.evaluation.geneval_layout import (
    Layout,
    PlacedPicture,
    picture_requests,
    read_layout,
    write_metadata,
)
from sharegpt4o_image.evaluation.geneval_prompts import IMAGES_PER_PROMPT, Prompt
from sharegpt4o_image.evaluation.geneval_scores import ResultRow, Summary
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord, write_scores
from sharegpt4o_image.evaluation.verdict_store import VerdictStore
from sharegpt4o_image.schema import content_id

RESULTS_FILE = "results.jsonl"
_NUM_NOTES = 10  # printed (our choice)

Verdict = dict[str, Any]  # `correct`, `reason` and `details` of a row; or `fault`, why there is none


@dataclass(frozen=True)
class Benchmark:
    """What is asked and how it is judged.

    Args:
        name (`str`): of the benchmark: `geneval`, or `scene-geneval`.
        variant (`dict`): what differs from the benchmark of that name: `{"detector": "..."}`.
        prompts (`list`): those asked for.
        judge ([`GenEvalJudge`]): gives the verdicts.
        images_per_prompt (`int`): pictures of each prompt.
        numbers (`list`, *optional*):
            Of the prompts, which are the names of their folders; by default they are counted from 0. A part of the
            official prompts keeps its numbers, so that it can be drawn first and the others later.
    """

    name: str
    variant: dict[str, str]
    prompts: list[Prompt]
    judge: GenEvalJudge
    images_per_prompt: int = IMAGES_PER_PROMPT
    numbers: list[int] | None = None

    @property
    def numbered(self) -> dict[int, Prompt]:
        """The prompts by their numbers."""
        numbers = range(len(self.prompts)) if self.numbers is None else self.numbers
        return dict(zip(numbers, self.prompts, strict=True))

    @property
    def full_name(self) -> str:
        """`geneval[detector=...]`."""
        inside = ", ".join(f"{key}={value}" for key, value in self.variant.items())
        return f"{self.name}[{inside}]" if inside else self.name


@dataclass(frozen=True)
class GenEvalResult:
    """The record of a run, the rows behind it, and what was odd about the folder."""

    record: ScoreRecord
    summary: Summary
    rows: list[ResultRow]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The record, with the keys of stored answers: `overall`, `tasks` and `images`."""
        return {**self.record.to_json(), **geneval_scores.to_json(self.summary, self.rows), "notes": self.notes}

    def to_text(self) -> str:
        """A few lines for people."""
        more = len(self.notes) - _NUM_NOTES
        rest = [f"... and {more:,} more notes, see the file of scores"] if more > 0 else []
        return "\n".join([self.record.to_text(), *self.notes[:_NUM_NOTES], *rest])


def run_geneval(
    benchmark: Benchmark,
    output_dir: Path,
    generator: Generator | None,
    images: Path | None = None,
    seed: int = 42,
    share: Share | None = None,
    command: str | None = None,
) -> GenEvalResult | None:
    """Draw, unless `images` are given, judge and score; `None` in all processes but the main one.

    Args:
        benchmark ([`Benchmark`]): prompts and judge.
        output_dir (`Path`): of this benchmark: `OUT/geneval`.
        generator ([`Generator`], *optional*): what draws.
        images (`Path`, *optional*): pictures in the official layout, in place of a generator.
        seed (`int`, *optional*, defaults to 42): that of the official generator.
        share ([`Share`], *optional*): the part of this process.
        command (`str`, *optional*): kept with the scores.
    """
    share = share or Share()
    undrawn: dict[str, str] = {}
    folder = images or output_dir / "images"
    if images is None:
        assert generator is not None
        undrawn = _draw(benchmark, generator, folder, seed, share)
    layout = read_layout(folder, benchmark.numbered, benchmark.images_per_prompt)
    with VerdictStore(output_dir / "verdicts", "verdicts", share.rank) as store:
        verdicts = _judge(benchmark, share.of(layout.pictures), store, share)
    share.wait()
    if not share.is_main:
        return None
    identity = {**generator.identity, "seed": seed} if generator is not None else {}
    return _collect(benchmark, layout, verdicts, output_dir, identity, undrawn, command)


def _draw(benchmark: Benchmark, generator: Generator, folder: Path, seed: int, share: Share) -> dict[str, str]:
    requests = picture_requests(benchmark.numbered, benchmark.images_per_prompt, seed)
    claim_folder(folder, {**generator.identity, "seed": seed})
    write_metadata(folder, benchmark.numbered)
    undrawn = draw_pictures(generator, requests, folder, seed, share, f"Drawing {benchmark.name}")
    share.wait()
    return undrawn


# --------------------------------------------------------------------------- judging


def _judge(
    benchmark: Benchmark, pictures: Sequence[PlacedPicture], store: VerdictStore, share: Share
) -> dict[str, Verdict]:
    """The verdicts of the pictures, by their names."""
    verdicts = {}
    started, num_judged = time.monotonic(), 0
    with progress_bar() as progress:
        bar = progress.add_task(f"Judging {benchmark.name}", total=len(pictures), visible=share.is_main)
        for placed in pictures:
            num_known = len(store)
            verdicts[placed.name] = _kept_verdict(benchmark, placed, store)
            num_judged += len(store) - num_known
            progress.advance(bar)
        if num_judged and share.is_main:
            progress.console.print(speed_text("judged", num_judged, started, share))
    return verdicts


def _kept_verdict(benchmark: Benchmark, placed: PlacedPicture, store: VerdictStore, may_judge: bool = True) -> Verdict:
    """What the store has; what it has not is judged, and kept, if that may be."""
    try:
        data = placed.path.read_bytes()
    except OSError as error:
        return {"fault": f"the picture cannot be read ({error.strerror})"}
    key = _key(benchmark, placed.prompt, data)
    known = store.find(key)
    if known is not None:
        return known
    if not may_judge:
        return {"fault": "it changed while it was judged; run the same command again"}
    verdict = _verdict(benchmark.judge, placed, data)
    store.keep(key, verdict)
    return verdict


def _key(benchmark: Benchmark, prompt: Prompt, data: bytes) -> str:
    return content_id(
        picture=hashlib.sha256(data).hexdigest(), metadata=prompt.to_json(), judge=benchmark.judge.identity
    )


def _verdict(judge: GenEvalJudge, placed: PlacedPicture, data: bytes) -> Verdict:
    """The row, or why there is none; what a picture is called is not part of its verdict."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Exception as error:  # Pillow's readers raise whatever comes
        return {"fault": f"the picture cannot be read ({' '.join(str(error).split())})"}
    try:
        row = judge.judge(picture, placed.prompt, placed.name)
    except UserError as error:
        return {"fault": str(error)}
    return {"correct": row.correct, "reason": row.reason, "details": row.details}


# --------------------------------------------------------------------------- results


def _collect(
    benchmark: Benchmark,
    layout: Layout,
    verdicts: dict[str, Verdict],
    output_dir: Path,
    generator: dict[str, Any],
    undrawn: dict[str, str],
    command: str | None,
) -> GenEvalResult:
    rows, faults = _rows_of(layout, verdicts | _others(benchmark, layout, verdicts, output_dir))
    if not rows:
        raise UserError(f"none of {len(layout.pictures)} pictures could be judged; the first: {faults[0].reason}")
    missing = [MissingItem(one.item, undrawn.get(one.item, one.reason)) for one in layout.missing] + faults
    summary = geneval_scores.summarize(rows, benchmark.prompts, benchmark.images_per_prompt)
    _write_results(rows, output_dir / RESULTS_FILE)
    _write_failures(layout, rows, output_dir / "failures.png")
    details = geneval_scores.to_json(summary, ())
    del details["images"]
    record = ScoreRecord(
        benchmark=benchmark.name,
        name=benchmark.full_name,
        unit=1,
        scores=_lines(summary),
        num_expected=len(benchmark.prompts) * benchmark.images_per_prompt,
        num_scored=len(rows),
        missing=tuple(missing),
        model=generator.get("model"),
        generator=generator,
        judge=benchmark.judge.identity,
        command=command,
        details={**details, "notes": layout.notes},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_scores(record, output_dir)
    return GenEvalResult(record, summary, rows, layout.notes)


def _others(benchmark: Benchmark, layout: Layout, own: dict[str, Verdict], output_dir: Path) -> dict[str, Verdict]:
    """The verdicts that other processes gave, by the names of the pictures."""
    rest = [placed for placed in layout.pictures if placed.name not in own]
    with VerdictStore(output_dir / "verdicts", "verdicts") as store:
        return {placed.name: _kept_verdict(benchmark, placed, store, may_judge=False) for placed in rest}


def _rows_of(layout: Layout, verdicts: dict[str, Verdict]) -> tuple[list[ResultRow], list[MissingItem]]:
    """In the order of the pictures; apart from the rows, pictures without a verdict."""
    rows, faults = [], []
    for placed in layout.pictures:
        verdict = verdicts[placed.name]
        if "fault" in verdict:
            faults.append(MissingItem(placed.name, verdict["fault"]))
        else:
            rows.append(_row(placed, verdict))
    return rows, faults


def _row(placed: PlacedPicture, verdict: Verdict) -> ResultRow:
    return ResultRow(
        filename=placed.name,
        tag=placed.prompt.tag,
        prompt=placed.prompt.prompt,
        correct=verdict["correct"],
        reason=verdict["reason"],
        metadata=json.dumps(placed.prompt.to_json()),
        details=verdict["details"],
    )


def _lines(summary: Summary) -> tuple[ScoreLine, ...]:
    overall = ScoreLine("overall", summary.overall, summary.low, summary.high, summary.num_images)
    tasks = (ScoreLine(tag, task.score, task.low, task.high, task.images) for tag, task in summary.tasks.items())
    return overall, *tasks


def _write_results(rows: Sequence[ResultRow], path: Path) -> None:
    """The official columns: its `summary_scores.py` runs on this file."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in sorted(rows, key=lambda row: row.filename)]
    write_whole(path, json_bytes("\n".join(lines) + "\n"))


def _write_failures(layout: Layout, rows: Sequence[ResultRow], path: Path) -> None:
    """A sheet with the first picture of each tag that failed, then of the next prompts in turn."""
    paths = {placed.name: placed.path for placed in layout.pictures}
    by_tag: dict[str, list[ResultRow]] = {}
    for row in rows:
        if not row.correct:
            by_tag.setdefault(row.tag, []).append(row)
    deepest = max(map(len, by_tag.values()), default=0)
    ordered = [failed[place] for place in range(deepest) for failed in by_tag.values() if place < len(failed)]
    sheet = [
        (f"{row.filename} {row.tag}: {row.prompt} | {' '.join(row.reason.split())}", [paths[row.filename]])
        for row in ordered
    ]
    failure_sheet(sheet, path, ["drawn"])
