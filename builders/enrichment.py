# SPDX-License-Identifier: Apache-2.0
"""A packed set -> the same rows and pictures with labels that a model gave them, as a set of its own.

Reads: `DATASET`, and the answers that `RUN` holds.
Writes: `OUT`, and what `row_labelling.py` writes into `RUN`.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sharegpt4o_image.builders.packed_set import PackedSet
from sharegpt4o_image.builders.packer import pack, refuse_foreign
from sharegpt4o_image.builders.row_labelling import (
    Labelling,
    OnProgress,
    label_rows,
    load_checked_teachers,
    rows_to_label,
    text_only,
)
from sharegpt4o_image.builders.row_source import RowPlan, RowSource, SourceFacts
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, LabelledRecord, Record, RejectedRecord, Task, content_id
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import printable
from sharegpt4o_image.synthesis.labelling import MAX_NAME_LENGTH
from sharegpt4o_image.synthesis.planning import StagePlan, plan_labelling

SHOWN_BYTES = 40_000  # a picture as it is shown, more or less (our choice)
_MOST_DROPPED = 10  # names of objects that a summary lists
_NOT_IN_JSON = ("agreement", "labels", "dropped", "facts")  # parts of `Labelling` that a summary gives otherwise

LABEL_COLUMNS = tuple(name for name in LabelledRecord.model_fields if name not in Record.model_fields)


# --------------------------------------------------------------------------- what was done


@dataclass(frozen=True)
class EnrichmentSummary:
    """What one invocation of `enrich` did; without `out_dir`, the set was not written."""

    run_dir: Path
    out_dir: Path | None
    labelling: Labelling
    seconds: float

    @property
    def is_interrupted(self) -> bool:
        """Whether it was told to stop before all rows were dealt with."""
        return self.labelling.is_interrupted

    def to_json(self) -> str:
        """One line of JSON."""
        done = self.labelling
        columns = done.agreement.columns
        kept = {name: value for name, value in vars(done).items() if name not in _NOT_IN_JSON}
        return json.dumps(
            kept
            | {
                "run_dir": str(self.run_dir),
                "out_dir": None if self.out_dir is None else str(self.out_dir),
                "dropped_objects": done.dropped.total(),
                "most_dropped": {
                    name[:MAX_NAME_LENGTH]: count for name, count in done.dropped.most_common(_MOST_DROPPED)
                },
                "agreement": {name: column.to_dict() for name, column in columns.items()},
                "seconds": self.seconds,
            }
        )

    def to_text(self) -> str:
        """A few lines for people."""
        done = self.labelling
        lines = [f"{done.labelled[task]:,} of {count:,} {task} rows have labels" for task, count in done.rows.items()]
        lines += [f"no labels for {count:,}: {printable(reason)}" for reason, count in done.unlabelled.most_common()]
        lines += [f"unfinished {count:,}: {printable(reason)}" for reason, count in done.unfinished.items()]
        if done.dropped:
            names = ", ".join(printable(name[:MAX_NAME_LENGTH]) for name, _ in done.dropped.most_common(3))
            lines.append(
                f"dropped {done.dropped.total():,} names of objects that cannot be published, such as {names}"
            )
        lines += [f"{name}: {column.to_text()}" for name, column in done.agreement.columns.items()]
        lines.append(f"{done.new_attempts:,} requests just now, {_money(done)}, in {self.seconds:.1f} s")
        return "\n".join([*lines, *self._what_next()])

    def _what_next(self) -> Iterator[str]:
        done = self.labelling
        if done.is_interrupted:
            yield "interrupted, the set was not written: run the same command again to go on"
        elif done.end_of_budget:
            yield f"stopped: {done.end_of_budget}; a larger --budget goes on"
        elif done.unfinished:
            yield "run the same command again to ask for the unfinished ones"
        if self.out_dir is not None:
            yield f"wrote {self.out_dir}"


def _money(done: Labelling) -> str:
    lost = f", at most {done.possibly_spent_usd:.2f} more is unknown" if done.possibly_spent_usd else ""
    return f"{done.spent_usd:.2f} USD spent by the run{lost}"


# --------------------------------------------------------------------------- rows with labels


class LabelledSet:
    """The rows of a source with labels beside what was known when they were made.

    New labels replace all that a row came with; a row without new ones keeps what it has. Negatives, and rows that
    were kept out of the source, are passed on as they are.

    Args:
        source (`RowSource`): the rows.
        labelling ([`Labelling`]): their labels, and what is to be said of them.
    """

    row: type[Record] = LabelledRecord

    def __init__(self, source: RowSource, labelling: Labelling) -> None:
        self.folder = source.folder
        self.has_looked = source.has_looked
        self._source = source
        self._labelling = labelling

    def plan(self) -> Iterator[RowPlan]:
        """Every row; one whose labels have changed has changed."""
        for plan in self._source.plan():
            columns = self._columns_of(plan)
            yield replace(plan, digest=content_id(row=plan.digest, labels=repr(sorted(columns.items()))))

    def load(self, plan: RowPlan) -> Record:
        """The row with its labels."""
        record = self._source.load(plan)
        if plan.is_negative:
            return record
        return LabelledRecord(**(dict(record) | self._columns_of(plan)))

    def _columns_of(self, plan: RowPlan) -> dict[str, Any]:
        labels = self._labelling.labels.get(plan.location)
        return {} if labels is None else dict.fromkeys(LABEL_COLUMNS) | labels.columns()

    def facts(self) -> SourceFacts:
        """Those of the source and of the run that labelled it, and how far the labels agree with what was known."""
        facts, new = self._source.facts(), self._labelling.facts
        agreement = self._labelling.agreement.for_card()
        return replace(
            facts, agreement=agreement, labelling=new, notes=(*facts.notes, *_on_older(facts.labelling, new))
        )

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _on_older(old: SourceFacts | None, new: SourceFacts | None) -> Iterator[str]:
    """A note on the labels that rows came with."""
    if old is not None and new is not None and old.name != new.name:
        yield f"Where the run {new.name} gave no labels, rows keep those of the run {old.name}."


# --------------------------------------------------------------------------- the verb


def enrich_dataset(
    dataset: Path,
    out_dir: Path,
    run_dir: Path,
    config: SynthesisConfig | None = None,
    *,
    limit: int | None = None,
    budget_usd: float | None = None,
    on_progress: OnProgress | None = None,
) -> EnrichmentSummary:
    """Have a model label the rows of a packed set, and write the set anew with the labels.

    Pictures keep their bytes and rows their order. Nothing that was answered is asked or paid again, and every label
    that the run holds is in the set. Ctrl-C ends the requests in flight, keeps their answers and writes no set; a
    spent budget leaves the other rows as they came.

    Args:
        dataset (`Path`): a folder that `pack` wrote.
        out_dir (`Path`): another folder, absent, empty, or written by `pack` or by this.
        run_dir (`Path`): where the answers are kept.
        config ([`SynthesisConfig`], *optional*):
            Its text teacher (`prompt_model`) labels in the words of its `taxonomy`; defaults to the offline teacher.
        limit (`int`, *optional*): number of rows of each task, instead of all.
        budget_usd (`float`, *optional*): the most that the run may cost, all its invocations together.
        on_progress (callable, *optional*): called with a number of steps done, and their total; a row takes two.
    """
    started = time.monotonic()
    _refuse_unwritable_names(dataset, out_dir, run_dir)
    _refuse_overlap(dataset, out_dir, run_dir)
    refuse_foreign(out_dir.resolve())
    source = _open_set(dataset)
    plans = list(source.plan())
    num_to_ask = len(rows_to_label(plans, limit))
    report = _Report(on_progress, num_to_ask + sum(plan.fault is None for plan in plans))
    labelling = label_rows(
        source, run_dir, config, limit=limit, budget_usd=budget_usd, on_progress=lambda done, _: report(done)
    )
    seconds = round(time.monotonic() - started, 3)
    if labelling.is_interrupted:
        return EnrichmentSummary(run_dir, None, labelling, seconds)
    pack(
        LabelledSet(source, labelling),
        out_dir,
        includes_negatives=any(plan.is_negative for plan in plans),
        on_progress=lambda done, _: report(num_to_ask + done),
    )
    return EnrichmentSummary(run_dir, out_dir, labelling, round(time.monotonic() - started, 3))


class _Report:
    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress, self._total = on_progress, total

    def __call__(self, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(done, self._total)


def _refuse_unwritable_names(*folders: Path) -> None:
    """Cards and summaries name the folders, in UTF-8."""
    for folder in folders:
        try:
            f"{folder} {folder.resolve()}".encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the name of {str(folder)!a} is not UTF-8; rename or choose another folder") from error


def _refuse_overlap(dataset: Path, out_dir: Path, run_dir: Path) -> None:
    """The set that is read, the one that is written, and the run are three folders."""
    folders = {"DATASET": dataset.resolve(), "--output": out_dir.resolve(), "--run": run_dir.resolve()}
    for name, folder in folders.items():
        for other_name, other in folders.items():
            if name != other_name and (folder == other or other in folder.parents):
                raise UserError(f"{name} must be outside of {other_name} ({other}); choose another folder")


def _open_set(dataset: Path) -> PackedSet:
    source = PackedSet(dataset)
    if issubclass(source.row, RejectedRecord):
        raise UserError(f"{dataset} holds refused pictures alone; name a data set with records")
    return source


# --------------------------------------------------------------------------- before anything is asked


@dataclass(frozen=True)
class EnrichmentPlan:
    """What the labels of a set, or the rest of them, are going to take.

    Args:
        rows (`dict`): task -> rows.
        stage ([`StagePlan`]): requests, tokens and dollars.
        hours (`float`): if the teacher's rate limits allow it.
        disk_bytes (`int`): for the pictures as they are shown.
    """

    rows: dict[Task, int]
    stage: StagePlan
    hours: float
    disk_bytes: int

    def to_json(self) -> str:
        """One line of JSON."""
        own = {"rows": self.rows, "hours": self.hours, "disk_bytes": self.disk_bytes}
        return json.dumps({name: value for name, value in vars(self.stage).items() if name != "batch_usd"} | own)

    def to_text(self) -> str:
        """A few lines for people."""
        stage = self.stage
        if not stage.requests:
            return "nothing is left to ask"
        rows = " and ".join(f"{count:,} {task} rows" for task, count in self.rows.items())
        tokens = f"{stage.text_input_tokens + stage.image_input_tokens:,} tokens in, {stage.output_tokens:,} out"
        dollars = "no price is known for it" if stage.usd is None else f"{stage.usd:,.2f} USD"
        basis = (
            "assumptions; `--limit 50` measures"
            if not stage.measured_answers
            else f"{stage.measured_answers:,} answers"
        )
        return (
            f"{rows}: {stage.requests:,} requests to {stage.model}, {tokens}, {dollars}\n"
            f"about {self.hours:,.1f} hours and {self.disk_bytes / 1e9:,.2f} GB of shown pictures\n"
            f"numbers from: {basis}"
        )


def plan_enrichment(
    dataset: Path, run_dir: Path, config: SynthesisConfig | None = None, *, limit: int | None = None
) -> EnrichmentPlan:
    """What [`enrich_dataset`] would ask for; asks nothing.

    Rows that the model has answered for in this run are left out; which ones is not looked at.
    """
    _refuse_unwritable_names(dataset, run_dir)
    config = text_only(config or SynthesisConfig())
    teachers = load_checked_teachers(config)
    with closing(_open_set(dataset)) as source:
        plans = rows_to_label(source.plan(), limit)
    rows = Counter(plan.task for plan in plans)
    stage = plan_labelling(config, teachers, len(plans), run_dir)
    num_pictures = rows["text_to_image"] + 2 * rows["text_and_image_to_image"]
    share_left = stage.requests / len(plans) if plans else 0.0
    return EnrichmentPlan(
        rows={task: rows[task] for task in TASKS if rows[task]},
        stage=stage,
        hours=stage.seconds / config.num_workers / 3600,
        disk_bytes=round(num_pictures * share_left * SHOWN_BYTES),
    )
