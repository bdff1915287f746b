# SPDX-License-Identifier: Apache-2.0
"""Configuration + registry + a pilot's journal, if there is one -> requests, tokens, dollars and hours to come.

An estimate is worth what it rests on: the means of the answers that the run already has. Without any, the assumptions
below stand in, and the plan says so.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from sharegpt4o_image.synthesis.answers import BATCH_DISCOUNT
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal, Stage, StageUsage
from sharegpt4o_image.synthesis.run_folder import FILE_NAME
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy
from sharegpt4o_image.synthesis.teachers import Teachers

BYTES_PER_PICTURE = 1_700_000  # a PNG of 1024x1024 as GPT image models send it, more or less
TOKENS_PER_IMAGE = 7_024  # output of 1024x1024 at high quality where the registry has no number: that of gpt-image-2
INSTRUCTIONS_PER_EDIT = 1.3  # some tasks do not apply to some sources, and another one is tried (our choice)
SECONDS_PER_PICTURE = 20.0  # our choice
SECONDS_PER_TEXT = 5.0  # our choice

_STAGES: tuple[Stage, ...] = get_args(Stage)
_PICTURE_STAGES: tuple[Stage, ...] = ("image", "control", "edit")
_STANDARD_PIXELS = 1024 * 1024

# Text tokens in, pictures in, text tokens out of one request (our choice, from the length of the templates and of the
# answers that they ask for). What a model thinks comes on top.
_TOKENS: dict[Stage, tuple[int, int, int]] = {
    "prompt": (300, 0, 120),
    "description": (300, 1, 150),
    "content": (300, 0, 400),
    "layout": (700, 0, 250),
    "instruction": (350, 1, 60),
    "judge": (350, 2, 80),
    "label": (2_500, 2, 150),  # with the schema of the answer, which lists the words of the paper's taxonomy
    "image": (150, 0, 0),
    "control": (60, 1, 0),
    "edit": (60, 1, 0),
}
_TOKENS_PER_SHOWN_PICTURE = 1_000  # of a chat request (our choice)


@dataclass(frozen=True)
class StagePlan:
    """What is still to be asked in one stage.

    Args:
        stage (`str`): as the journal calls it.
        text_input_tokens (`int`): of all the requests; so are the other numbers.
        usd (`float`, *optional*): `None` when the price of the model is not known.
        batch_usd (`float`, *optional*): with `--batch`, which orders the pictures through the Batch API.
        seconds (`float`): one request after the other.
        measured_answers (`int`): answers that the numbers for one request are the mean of; 0 when they are assumed.
    """

    stage: Stage
    model: str
    requests: int
    text_input_tokens: int
    image_input_tokens: int
    output_tokens: int
    usd: float | None
    batch_usd: float | None
    seconds: float
    measured_answers: int


@dataclass(frozen=True)
class Plan:
    """What a run, or the rest of it, is going to take.

    Args:
        disk_bytes (`int`): for the pictures.
        hours (`float`): with `num_workers` requests at a time, if the teacher's rate limits allow it.
    """

    stages: list[StagePlan]
    num_workers: int
    usd: float | None
    batch_usd: float | None
    hours: float
    disk_bytes: int

    def to_json(self) -> str:
        """One JSON object, for programs."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """A table and what it rests on, for people."""
        if not self.stages:
            return "nothing is left to ask"
        return "\n".join([*_table(self.stages), "", *self._totals(), *self._caveats()])

    def _totals(self) -> Iterator[str]:
        requests = sum(stage.requests for stage in self.stages)
        usd = _dollars_in_all([stage.usd for stage in self.stages])
        batch_usd = _dollars_in_all([stage.batch_usd for stage in self.stages])
        yield f"{requests:,} requests, {usd}; or with --batch {batch_usd}"
        at_a_time = f"with {self.num_workers} requests at a time"
        yield f"about {self.hours:,.1f} hours {at_a_time}; a job of --batch takes up to 24 hours"
        yield f"{self.disk_bytes / 1e9:,.1f} GB of pictures"

    def _caveats(self) -> Iterator[str]:
        if unpriced := sorted({stage.model for stage in self.stages if stage.usd is None}):
            yield f"no price is known for {', '.join(unpriced)}: add it under `prices` in the configuration"
        if assumed := [stage.stage for stage in self.stages if not stage.measured_answers]:
            yield f"assumed, not measured: {', '.join(assumed)}; what a model thinks before it answers is not in it"
            yield "to measure it, make a pilot (`synthesize --limit 50`) and let `plan` read its directory"


def plan_run(config: SynthesisConfig, teachers: Teachers, run_dir: Path | None) -> Plan:
    """What is still to be done, and what it will take.

    Reads: the taxonomy, and `run_dir/journal.sqlite` if it is there. Its useful answers are subtracted stage by stage.
    """
    usage = _read_usage(run_dir, config)
    planned = _count_requests(config, usage)
    stages = []
    for stage in _STAGES:
        done = usage[stage].answers if stage in usage else 0
        if (requests := max(0, planned[stage] - done)) > 0:
            stages.append(_plan_stage(stage, requests, config, teachers, usage.get(stage)))
    num_bytes = sum(
        stage.requests * BYTES_PER_PICTURE * _relative_size(stage.stage, config)
        for stage in stages
        if stage.stage in _PICTURE_STAGES
    )
    return Plan(
        stages=stages,
        num_workers=config.num_workers,
        usd=_add([stage.usd for stage in stages]),
        batch_usd=_add([stage.batch_usd for stage in stages]),
        hours=sum(stage.seconds for stage in stages) / config.num_workers / 3600,
        disk_bytes=round(num_bytes),
    )


def plan_labelling(config: SynthesisConfig, teachers: Teachers, num_rows: int, run_dir: Path) -> StagePlan:
    """What the labels of so many rows, less those that the run has answers for, will take."""
    usage = _read_usage(run_dir, config).get("label")
    requests = max(0, num_rows - (usage.answers if usage else 0))
    return _plan_stage("label", requests, config, teachers, usage)


def assume_costs(config: SynthesisConfig, teachers: Teachers) -> dict[Stage, float]:
    """Stage -> US dollars that one request is assumed to cost; a model without a price costs nothing."""
    return {
        stage: _cost(_assume(stage, config, teachers), 1, teachers.price_of(_model_of(stage, config), config)) or 0.0
        for stage in _STAGES
    }


def _read_usage(run_dir: Path | None, config: SynthesisConfig) -> Mapping[Stage, StageUsage]:
    """What the run measured with the models of the configuration; other models say nothing of these."""
    if run_dir is None or not (run_dir / FILE_NAME).is_file():
        return {}
    with closing(Journal.open(run_dir)) as journal:
        measured = journal.measure_stages()
    return {stage: usage for (stage, model), usage in measured.items() if model == _model_of(stage, config)}


# --------------------------------------------------------------------------- requests


def _count_requests(config: SynthesisConfig, usage: Mapping[Stage, StageUsage]) -> dict[Stage, int]:
    """Stage -> requests of the whole run."""
    edit_tasks = load_taxonomy(config.taxonomy).edits
    edits = config.num_edits if edit_tasks else 0
    instructions = edits * _ratio(usage, "instruction", "edit", INSTRUCTIONS_PER_EDIT)
    prepared = sum(task.weight for task in edit_tasks if task.prepare is not None)
    controls = instructions * prepared / sum(task.weight for task in edit_tasks) if prepared else 0.0
    redrawn = config.num_described if config.image_first_target == "regenerated" else 0
    samples = config.num_topics + config.num_described + config.num_documents + edits
    return {
        "prompt": config.num_topics,
        "image": config.num_topics + config.num_documents + redrawn,
        "description": config.num_described,
        "content": config.num_documents,
        "layout": config.num_documents,
        "instruction": math.ceil(instructions),
        "control": math.ceil(controls),
        "edit": edits,
        "judge": samples if config.gates.judge else 0,
        "label": 0,
    }


def _ratio(usage: Mapping[Stage, StageUsage], stage: Stage, per: Stage, default: float) -> float:
    """Answers of a stage for one of another, as measured."""
    if stage not in usage or per not in usage:
        return default
    return usage[stage].answers / usage[per].answers


# --------------------------------------------------------------------------- tokens, dollars, seconds


@dataclass(frozen=True)
class _Effort:
    """What one request takes."""

    text_input_tokens: float
    image_input_tokens: float
    output_tokens: float
    seconds: float


def _plan_stage(
    stage: Stage, requests: int, config: SynthesisConfig, teachers: Teachers, usage: StageUsage | None
) -> StagePlan:
    model = _model_of(stage, config)
    assumed = _assume(stage, config, teachers)
    effort = _measure(usage, assumed) if usage else assumed
    usd = _cost(effort, requests, teachers.price_of(model, config))
    discount = BATCH_DISCOUNT if stage in _PICTURE_STAGES else 1.0
    return StagePlan(
        stage=stage,
        model=model,
        requests=requests,
        text_input_tokens=round(requests * effort.text_input_tokens),
        image_input_tokens=round(requests * effort.image_input_tokens),
        output_tokens=round(requests * effort.output_tokens),
        usd=usd,
        batch_usd=None if usd is None else usd * discount,
        seconds=requests * effort.seconds,
        measured_answers=usage.answers if usage else 0,
    )


def _model_of(stage: Stage, config: SynthesisConfig) -> str:
    if stage in _PICTURE_STAGES:
        return config.image_model
    return config.gates.judge.model if stage == "judge" and config.gates.judge else config.prompt_model


def _measure(usage: StageUsage, assumed: _Effort) -> _Effort:
    """The means of a pilot; one that went through the Batch API says nothing of the seconds."""
    return _Effort(
        text_input_tokens=usage.text_input_tokens / usage.answers,
        image_input_tokens=usage.image_input_tokens / usage.answers,
        output_tokens=usage.output_tokens / usage.answers,
        seconds=usage.seconds / usage.answers or assumed.seconds,
    )


def _assume(stage: Stage, config: SynthesisConfig, teachers: Teachers) -> _Effort:
    text, pictures, output = _TOKENS[stage]
    sources = pictures + (config.two_source_share if stage in ("instruction", "edit") else 0.0)
    if stage not in _PICTURE_STAGES:  # chat answers count the pictures among the prompt's tokens
        return _Effort(text + sources * _TOKENS_PER_SHOWN_PICTURE, 0.0, output, SECONDS_PER_TEXT)
    teacher = teachers.find(config.image_model)
    full = teacher.tokens_per_image if teacher and teacher.tokens_per_image else TOKENS_PER_IMAGE
    tokens = full * _relative_size(stage, config)  # a source is taken to have the size of its edit
    return _Effort(text, sources * tokens, tokens, SECONDS_PER_PICTURE)


def _relative_size(stage: Stage, config: SynthesisConfig) -> float:
    """The pixels of a picture against those of 1024x1024, which also stands for a size that the teacher chooses."""
    size = config.image_params.size
    if stage != "image":
        size = config.edit_params.size or (size if config.edit_sources == "records" else None)
    match = re.fullmatch(r"(\d+)x(\d+)", size or "")
    return int(match[1]) * int(match[2]) / _STANDARD_PIXELS if match else 1.0


def _cost(effort: _Effort, requests: int, price: Price | None) -> float | None:
    if price is None:
        return None
    dollars = (
        effort.text_input_tokens * price.text_input
        + effort.image_input_tokens * price.image_input
        + effort.output_tokens * price.output
    )
    return requests * dollars / 1e6


def _add(dollars: list[float | None]) -> float | None:
    """The sum; unknown as soon as one part is."""
    known = [part for part in dollars if part is not None]
    return sum(known) if len(known) == len(dollars) else None


# --------------------------------------------------------------------------- text


_HEADER = ("stage", "model", "requests", "tokens in", "tokens out", "USD", "with --batch", "numbers from")
_LEFT = (0, 1, 7)  # columns of words


def _dollars(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount:,.2f}"


def _dollars_in_all(parts: list[float | None]) -> str:
    known = sum(part for part in parts if part is not None)
    return f"{known:,.2f} USD" + (" and what has no price" if None in parts else "")


def _table(stages: list[StagePlan]) -> list[str]:
    rows: list[tuple[Any, ...]] = [_HEADER, *map(_row, stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return [
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(stage: StagePlan) -> tuple[str, ...]:
    return (
        stage.stage,
        stage.model,
        f"{stage.requests:,}",
        f"{stage.text_input_tokens + stage.image_input_tokens:,}",
        f"{stage.output_tokens:,}",
        _dollars(stage.usd),
        _dollars(stage.batch_usd),
        f"{stage.measured_answers:,} answers" if stage.measured_answers else "assumptions",
    )
