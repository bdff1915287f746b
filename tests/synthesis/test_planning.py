# SPDX-License-Identifier: Apache-2.0
"""Plans: closed forms from the registry, the means of a pilot, and that neither is mistaken for the other."""

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from sharegpt4o_image.synthesis.client import open_clients
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal, Stage
from sharegpt4o_image.synthesis.planning import (
    BYTES_PER_PICTURE,
    INSTRUCTIONS_PER_EDIT,
    SECONDS_PER_PICTURE,
    SECONDS_PER_TEXT,
    Plan,
    plan_run,
)
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy
from sharegpt4o_image.synthesis.teachers import load_teachers

TEACHERS = load_teachers(None)
PAPER: dict[str, Any] = {  # the size of the upstream release
    "num_topics": 45_717,
    "num_edits": 46_539,
    "taxonomy": "paper",
    "prompt_model": "gemini-3.8-flash",
    "image_model": "gpt-image-2",
    "image_params": {"size": "1024x1024", "quality": "high"},
}


def plan(run_dir: Path | None = None, **keys: Any) -> Plan:
    return plan_run(SynthesisConfig.model_validate(keys), TEACHERS, run_dir)


def requests(made: Plan) -> dict[Stage, int]:
    return {stage.stage: stage.requests for stage in made.stages}


OFFLINE = dict.fromkeys(get_args(Stage), "offline-writer-1") | dict.fromkeys(
    ("image", "control", "edit"), "offline-painter-1"
)


def write_answers(
    run_dir: Path,
    stage: Stage,
    count: int,
    usage: dict[str, Any],
    seconds: float | None = None,
    model: str | None = None,
) -> None:
    """A pilot's journal."""
    with closing(Journal.create_or_resume(run_dir)) as journal:
        for number in range(count):
            attempt = journal.begin(f"{stage} {number}", stage, model or OFFLINE[stage], {})
            journal.end(attempt, "ok", answer="{}", usage=json.dumps(usage), seconds=seconds)


# --------------------------------------------------------------------------- requests


def test_requests_of_every_pipeline(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "num_topics": 10,
        "num_documents": 4,
        "num_described": 3,
        "num_edits": 20,
        "photos": {"path": str(tmp_path)},
        "gates": {"judge": {"model": "offline-writer-1"}},
    }
    texts = {"prompt": 10, "description": 3, "content": 4, "layout": 4, "instruction": 26}
    assert requests(plan(**keys)) == {**texts, "image": 17, "edit": 20, "judge": 37}
    originals = requests(plan(**keys, image_first_target="original"))
    assert originals == {**texts, "image": 14, "edit": 20, "judge": 37}


def test_control_pictures_follow_the_taxonomy() -> None:
    edits = load_taxonomy("paper").edits
    share = sum(edit.weight for edit in edits if edit.prepare) / sum(edit.weight for edit in edits)
    counts = requests(plan(**PAPER))
    assert counts["control"] == pytest.approx(46_539 * INSTRUCTIONS_PER_EDIT * share, abs=1)
    assert "control" not in requests(plan())


def test_empty_run() -> None:
    made = plan(num_topics=0, num_edits=0)
    assert (made.stages, made.usd, made.hours, made.disk_bytes) == ([], 0, 0, 0)
    assert made.to_text() == "nothing is left to ask"


# --------------------------------------------------------------------------- without a pilot


def test_dollars_from_the_registry() -> None:
    [prompts, images] = plan(**{**PAPER, "num_edits": 0}).stages
    assert images.output_tokens == 45_717 * 7_024
    dollars = (images.text_input_tokens * 5 + images.output_tokens * 30) / 1e6
    assert images.usd == pytest.approx(dollars)
    assert dollars == pytest.approx(9_650, rel=0.01)
    assert images.batch_usd == pytest.approx(dollars / 2)
    assert (prompts.usd, prompts.batch_usd) == (None, None)


def test_texts_cost_the_full_price_beside_batches() -> None:
    made = plan(**{**PAPER, "num_edits": 0, "prices": {"gemini-3.8-flash": {"text_input": 1, "output": 10}}})
    [prompts, images] = made.stages
    assert prompts.usd == pytest.approx((prompts.text_input_tokens + 10 * prompts.output_tokens) / 1e6)
    assert prompts.usd == prompts.batch_usd
    assert images.usd is not None
    assert prompts.usd is not None
    assert made.usd == pytest.approx(prompts.usd + images.usd)
    assert made.batch_usd == pytest.approx(prompts.usd + images.usd / 2)


def test_tokens_and_disk_grow_with_the_pixels() -> None:
    small = plan(**{**PAPER, "num_topics": 100, "num_edits": 0})
    large = plan(**{**PAPER, "num_topics": 100, "num_edits": 0, "image_params": {"size": "2048x1024"}})
    assert (small.stages[1].output_tokens, large.stages[1].output_tokens) == (702_400, 1_404_800)
    assert (small.disk_bytes, large.disk_bytes) == (100 * BYTES_PER_PICTURE, 200 * BYTES_PER_PICTURE)


def test_sources_of_edits_are_paid_as_input() -> None:
    keys = {**PAPER, "taxonomy": "offline", "num_topics": 10, "num_edits": 100}
    edit = plan(**keys).stages[-1]
    assert edit.stage == "edit"
    assert edit.image_input_tokens == 100 * 7_024
    assert plan(**keys, two_source_share=0.5).stages[-1].image_input_tokens == 150 * 7_024
    assert edit.usd == pytest.approx((edit.text_input_tokens * 5 + 702_400 * 8 + 702_400 * 30) / 1e6)


def test_seconds_are_shared_by_the_workers() -> None:
    keys = {"num_topics": 720, "num_edits": 0}
    hours = 720 * (SECONDS_PER_TEXT + SECONDS_PER_PICTURE) / 3600
    assert plan(**keys, num_workers=1).hours == pytest.approx(hours)
    assert plan(**keys, num_workers=10).hours == pytest.approx(hours / 10)


def test_the_offline_painter_counts_as_the_registry_says() -> None:
    async def paint(side: int) -> int:
        async with open_clients(SynthesisConfig()) as clients:
            size: Any = f"{side}x{side}"
            answer = await clients.images.images.generate(model="offline-painter-1", prompt="a red circle", size=size)
            assert answer.usage is not None
            return answer.usage.output_tokens

    for side in (64, 256):
        made = plan(num_topics=1, num_edits=0, image_params={"size": f"{side}x{side}"})
        assert made.stages[1].output_tokens == asyncio.run(paint(side))


def test_assumptions_are_named() -> None:
    text = plan(**PAPER).to_text()
    assert "no price is known for gemini-3.8-flash" in text
    assert "assumed, not measured: prompt, image, instruction, control, edit" in text
    assert "USD and what has no price" in text
    table = text.split("\n\n")[0].splitlines()
    assert len(table) == 6
    assert all(line.endswith("assumptions") for line in table[1:])
    ends = {line.index(word) + len(word) for line, word in zip(table, ("requests", "45,717", "45,717"), strict=False)}
    assert len(ends) == 1  # aligned


def test_json() -> None:
    made = json.loads(plan(**PAPER).to_json())
    assert made["usd"] is None
    assert {stage["stage"] for stage in made["stages"]} == {"prompt", "image", "instruction", "control", "edit"}


# --------------------------------------------------------------------------- with a pilot


def test_means_of_a_pilot(tmp_path: Path) -> None:
    writer, painter = str(PAPER["prompt_model"]), str(PAPER["image_model"])
    write_answers(tmp_path, "prompt", 10, {"prompt_tokens": 200, "completion_tokens": 1_000}, 9.0, writer)
    details = {"text_tokens": 50, "image_tokens": 30}
    usage = {"input_tokens": 80, "input_tokens_details": details, "output_tokens": 6_000}
    write_answers(tmp_path, "image", 4, usage, 30.0, painter)
    write_answers(tmp_path, "edit", 9, usage, 30.0, "another-painter")  # says nothing of this one
    made = plan(tmp_path, **{**PAPER, "num_topics": 110, "num_edits": 0, "num_workers": 2})
    [prompts, images] = made.stages
    assert (prompts.requests, prompts.text_input_tokens, prompts.output_tokens) == (100, 20_000, 100_000)
    assert (images.requests, images.text_input_tokens, images.image_input_tokens) == (106, 5_300, 3_180)
    assert images.output_tokens == 636_000
    assert images.usd == pytest.approx((5_300 * 5 + 3_180 * 8 + 636_000 * 30) / 1e6)
    assert made.hours == pytest.approx((100 * 9 + 106 * 30) / 2 / 3600)
    assert (prompts.measured_answers, images.measured_answers) == (10, 4)
    text = made.to_text()
    assert "10 answers" in text
    assert "4 answers" in text
    assert "assumed" not in text


def test_instructions_for_one_edit_are_measured(tmp_path: Path) -> None:
    write_answers(tmp_path, "instruction", 30, {"prompt_tokens": 1, "completion_tokens": 1})
    write_answers(tmp_path, "edit", 20, {"input_tokens": 1, "output_tokens": 1})
    counts = requests(plan(tmp_path, num_topics=100, num_edits=100))
    assert (counts["instruction"], counts["edit"]) == (150 - 30, 100 - 20)


def test_a_pilot_of_batches_says_nothing_of_the_seconds(tmp_path: Path) -> None:
    write_answers(tmp_path, "image", 5, {"input_tokens": 1, "output_tokens": 1}, seconds=None)
    images = plan(tmp_path, num_topics=15, num_edits=0).stages[1]
    assert images.seconds == 10 * SECONDS_PER_PICTURE


def test_nothing_is_left_of_a_finished_run(tmp_path: Path) -> None:
    for stage in ("prompt", "image"):
        write_answers(tmp_path, stage, 7, {"output_tokens": 1})  # type: ignore[arg-type]
    assert plan(tmp_path, num_topics=7, num_edits=0).to_text() == "nothing is left to ask"


def test_a_directory_without_a_journal_is_no_pilot(tmp_path: Path) -> None:
    assert plan(tmp_path / "run") == plan()
