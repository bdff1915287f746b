# SPDX-License-Identifier: Apache-2.0
"""The whole loop, small but real: synthesize -> pack -> load -> encode -> train -> generate -> evaluate -> report.

sharegpt4o-image demo           a few minutes on 2 cores
sharegpt4o-image demo --fast    without training: the shipped tiny-janus-4o stands for the tuned model
"""

import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.row_source import RowPlan
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.checkpoints import TINY_JANUS_4O, TINY_JANUS_PRO, resolve_checkpoint
from sharegpt4o_image.demo_report import (
    definition_list,
    loss_curve,
    page,
    paragraph,
    picture_tag,
    score_table,
    sheet_table,
)
from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
from sharegpt4o_image.evaluation.contact_sheet import contact_sheet
from sharegpt4o_image.evaluation.geneval_run import run_geneval
from sharegpt4o_image.evaluation.model_generator import ModelGenerator
from sharegpt4o_image.evaluation.scene_benchmark import (
    EditItem,
    edit_items,
    prompt_items,
    source_picture,
    teacher_picture,
)
from sharegpt4o_image.evaluation.scene_geneval import scene_geneval
from sharegpt4o_image.evaluation.scene_record import SCENE_EDITS, SCENES, scene_record
from sharegpt4o_image.evaluation.scene_runner import Item, ScoredPictures, draw_and_judge, text_of
from sharegpt4o_image.evaluation.score_record import ScoreRecord, write_scores
from sharegpt4o_image.offline_teacher.editing import parse_edit
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.offline_teacher.sampling import (
    combination,
    edit_combination,
    has_unseen_pair,
    is_held_out,
    shows_unseen_pair,
)
from sharegpt4o_image.offline_teacher.scene import Scene
from sharegpt4o_image.schema import TASKS, ImageFile, Pipeline, Record
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.training.encode_run import encode_dataset
from sharegpt4o_image.training.run import train
from sharegpt4o_image.training.run_arguments import RunArguments
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

DATASET_DIR = Path("sharegpt4o-image")
DEMO_DIR = Path("demo")


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does."""

    records_per_task: int
    items_per_kind: int
    prompts_per_tag: int
    train_steps: int

    @property
    def command(self) -> str:
        """What runs a demo of this kind."""
        return "sharegpt4o-image demo" if self.train_steps else "sharegpt4o-image demo --fast"


# About a quarter of the samples is set aside because the benchmark asks for them; over 200 of each task remain.
FAST = DemoSize(records_per_task=320, items_per_kind=10, prompts_per_tag=5, train_steps=0)
FULL = DemoSize(records_per_task=600, items_per_kind=30, prompts_per_tag=20, train_steps=400)

_TRAIN_BATCH = 16
_TRAIN_LEARNING_RATE = 5e-4  # a tiny model wants more than the 5e-6 of the 7B
_ROWS_PER_KIND = 4  # rows of each kind on the contact sheet

_SEED = 0

_GENEVAL = "GenEval's rules on held-out prompts"
_GENEVAL_NOTE = (
    "The rules are GenEval's own; the scene detector stands for its detector and its colour classifier. A detection "
    "must overlap the nearest shape by more than 0.3, for counting by more than 0.9, which pictures of 32 x 32 pixels "
    "seldom reach. The overall score is the mean of the tags."
)

_WHAT_IS = {
    "before": "{}: learned to draw, never saw an edit",
    "after": "{}: the same, fine-tuned on drawings and edits",
    "shipped": "{}: the same, fine-tuned for longer and on more",
}


Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class DemoResult:
    """Where the demo's results are, and its tables of scores: column -> row -> numbers."""

    report_path: Path
    sheet_path: Path
    scores: Scores
    geneval: Scores
    seconds: float


def run_demo(size: DemoSize, progress: Progress) -> DemoResult:
    """Run the loop in the current directory.

    Writes: `./sharegpt4o-image` (data set and codes), `./demo/` (run, checkpoint, `report.html`,
    `contact_sheet.png`, `scores.json`, and for each checkpoint `<column>/scores/*.json`).
    """
    started = time.monotonic()
    resolve_checkpoint(TINY_JANUS_PRO)  # first: without it nothing is begun
    DEMO_DIR.mkdir(exist_ok=True)
    _make_dataset(size, progress)
    encoding = progress.add_task("Encoding", total=None)
    encode_dataset(DATASET_DIR, TINY_JANUS_PRO, on_progress=partial(_show, progress, encoding))
    tuned, log = _tune(size, progress)
    names = {"before": TINY_JANUS_PRO, "after": tuned}
    if size.train_steps:
        names["shipped"] = TINY_JANUS_4O
    for column in _WHAT_IS:
        shutil.rmtree(DEMO_DIR / column, ignore_errors=True)  # what an earlier demo drew and scored
    generators = {column: ModelGenerator.from_pretrained(name, SamplingRecipe()) for column, name in names.items()}
    scored = {column: _score(column, generator, size, progress) for column, generator in generators.items()}
    progress.stop()  # what follows shows bars of its own
    geneval = {column: _score_by_geneval(column, generator, size) for column, generator in generators.items()}
    return _report(names, scored, geneval, log, started)


def _make_dataset(size: DemoSize, progress: Progress) -> None:
    """Synthesize with the offline teacher, pack, and load the result back."""
    names: tuple[Pipeline, ...] = ("prompt_first", "editing")
    bars = {name: progress.add_task(f"Synthesizing {name}", total=size.records_per_task) for name in names}

    def advance(pipeline: Pipeline, done: int, total: int) -> None:
        progress.update(bars[pipeline], completed=done, total=total)

    synthesize(DEMO_DIR / "run", limit=size.records_per_task, on_progress=advance)
    packing = progress.add_task("Packing", total=None)
    pack(_TrainingRows(DEMO_DIR / "run"), DATASET_DIR, on_progress=partial(_show, progress, packing))
    for task in TASKS:
        rows = load_dataset(str(DATASET_DIR), task, split="train")
        progress.console.print(f"load_dataset({str(DATASET_DIR)!r}, {task!r}): {len(rows)} rows")


class _TrainingRows(RunSource):
    """The rows of the run that may be trained on."""

    def plan(self) -> Iterator[RowPlan]:
        return (plan for plan in super().plan() if not is_benchmark_record(self.load(plan)))


def is_benchmark_record(record: Record) -> bool:
    """Whether the scene benchmark may ask for what this sample shows, so that it must not be trained on."""
    if record.task == "text_to_image":
        request = parse_request(record.input_prompt)
        return is_held_out(combination(request)) or has_unseen_pair(request)
    source = _perceived(record.input_image[0])
    edit = parse_edit(record.input_prompt)
    if edit is None or is_held_out(edit_combination(source, edit)):
        return True
    return shows_unseen_pair(source) or shows_unseen_pair(_perceived(record.output_image))


def _perceived(picture: ImageFile) -> Scene:
    with Image.open(io.BytesIO(picture.bytes)) as opened:
        return perceive(opened).scene


def _tune(size: DemoSize, progress: Progress) -> tuple[str, dict[str, Any]]:
    """Fine-tune `tiny-janus-pro` on the data set just made; without steps, the shipped result stands for it."""
    if not size.train_steps:
        return TINY_JANUS_4O, {"curve": []}
    output_dir = DEMO_DIR / "tuned"
    shutil.rmtree(output_dir, ignore_errors=True)
    bar = progress.add_task("Fine-tuning", total=size.train_steps)
    config = Janus4oSFTConfig(
        str(output_dir), max_steps=size.train_steps, per_device_train_batch_size=_TRAIN_BATCH,
        learning_rate=_TRAIN_LEARNING_RATE, logging_steps=5, save_strategy="no",
    )  # fmt: skip
    arguments = RunArguments(dataset=str(DATASET_DIR), model=TINY_JANUS_PRO)
    return str(output_dir), train(arguments, config, partial(_show, progress, bar)).log


def _score(column: str, generator: ModelGenerator, size: DemoSize, progress: Progress) -> list[ScoredPictures]:
    """Held-out prompts, then held-out edits."""
    parts: dict[str, Sequence[Item]] = {
        SCENES: prompt_items(size.items_per_kind),
        SCENE_EDITS: edit_items(size.items_per_kind),
    }
    recipe = {**generator.identity, "seed": _SEED}
    scored = []
    for benchmark, items in parts.items():
        bar = progress.add_task(f"Scoring {column}", total=len(items))
        part = draw_and_judge(
            generator.model, generator.processor, items, _SEED, on_progress=partial(progress.advance, bar)
        )
        record = scene_record(benchmark, items, part.verdicts, generator=recipe, command=size.command)
        write_scores(record, DEMO_DIR / column)
        scored.append(part)
    return scored


def _score_by_geneval(column: str, generator: ModelGenerator, size: DemoSize) -> ScoreRecord:
    """One picture of each held-out prompt."""
    benchmark = scene_geneval(size.prompts_per_tag, images_per_prompt=1)
    result = run_geneval(benchmark, DEMO_DIR / column, generator, seed=_SEED, command=size.command)
    assert result is not None  # the demo is one process
    return result.record


def _show(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


def _report(
    names: dict[str, str],
    scored: dict[str, list[ScoredPictures]],
    geneval: dict[str, ScoreRecord],
    log: dict[str, Any],
    started: float,
) -> DemoResult:
    scores = {column: {**prompts.table, **edits.table} for column, (prompts, edits) in scored.items()}
    geneval_scores = {column: _table_of(record) for column, record in geneval.items()}
    columns = ["source", *scored, "teacher"]
    rows = _sheet_rows(scored)
    sheet_path, report_path = DEMO_DIR / "contact_sheet.png", DEMO_DIR / "report.html"
    contact_sheet(columns, [(text, pictures) for text, pictures, _ in rows]).save(sheet_path)
    cells = [
        (text, [picture_tag(picture, right) for picture, right in zip(pictures, rights, strict=True)])
        for text, pictures, rights in rows
    ]
    curve = [(entry["step"], entry["loss"]) for entry in log["curve"]]
    sections = [
        ("What is compared", definition_list({column: _WHAT_IS[column].format(names[column]) for column in scored})),
        ("Scores on held-out prompts and edits", score_table(scores)),
        (_GENEVAL, score_table(geneval_scores) + paragraph(_GENEVAL_NOTE)),
        ("Training loss", loss_curve(curve)),
        ("What was drawn (green: judged right, red: wrong)", sheet_table(columns, cells)),
    ]
    report_path.write_text(page("ShareGPT-4o-Image demo", sections), encoding="utf-8")
    (DEMO_DIR / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    return DemoResult(report_path, sheet_path, scores, geneval_scores, time.monotonic() - started)


def _table_of(record: ScoreRecord) -> dict[str, dict[str, float]]:
    """The scores of a record as the tables show them."""
    return {
        line.name: {"score": line.value, "low": line.low or 0.0, "high": line.high or 0.0, "images": line.count or 0}
        for line in record.scores
    }


def _sheet_rows(
    scored: dict[str, list[ScoredPictures]],
) -> list[tuple[str, list[Image.Image | None], list[bool | None]]]:
    """The first few items of each kind: text, pictures by column, and whether each was judged right."""
    rows = []
    for part in range(2):
        by_column: Sequence[ScoredPictures] = [parts[part] for parts in scored.values()]
        seen: dict[str, int] = {}
        for index, item in enumerate(by_column[0].items):
            seen[item.kind] = seen.get(item.kind, 0) + 1
            if seen[item.kind] > _ROWS_PER_KIND:
                continue
            source = source_picture(item) if isinstance(item, EditItem) else None
            pictures = [source, *(column.pictures[index] for column in by_column), teacher_picture(item)]
            rights = [None, *(column.verdicts[index].correct for column in by_column), None]
            rows.append((text_of(item), pictures, rights))
    return rows


def print_result(result: DemoResult, console: Console) -> None:
    """The tables of scores, the files, and what to try next."""
    _print_table("share right", result.scores, console)
    _print_table(_GENEVAL, result.geneval, console)
    console.print(f"{result.seconds:.0f} s; see {result.report_path} and {result.sheet_path}. Try next:")
    for command in (
        'sharegpt4o-image generate "a red circle on a gray background" -n 4 -o out/',
        'sharegpt4o-image generate "make the red circle blue" --image out/0000.png -o edited/',
        "sharegpt4o-image evaluate scene-edits --limit 20",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _print_table(title: str, columns: Scores, console: Console) -> None:
    from rich.table import Table

    table = Table(title, *columns)
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{scores[row]['score']:.2f}" for scores in columns.values()))
    console.print(table)
