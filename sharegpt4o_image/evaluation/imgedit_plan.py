# SPDX-License-Identifier: Apache-2.0
"""What is left of an ImgEdit run -> how many judgements, tokens and dollars are to come; nothing is asked or drawn."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from sharegpt4o_image.evaluation.drawing import missing_pictures
from sharegpt4o_image.evaluation.imgedit_items import Benchmark
from sharegpt4o_image.evaluation.imgedit_judge import RUN_FOLDER, find_questions
from sharegpt4o_image.evaluation.imgedit_judgement import Edit, JudgeSettings
from sharegpt4o_image.evaluation.imgedit_pictures import (
    PictureSource,
    edits_of,
    find_missing_origins,
    picture_requests,
    read_folder,
)
from sharegpt4o_image.synthesis.answers import cost_of
from sharegpt4o_image.synthesis.journal import Journal, StageUsage
from sharegpt4o_image.synthesis.run_folder import FILE_NAME
from sharegpt4o_image.synthesis.teachers import load_teachers

# Of a judgement where none was measured (our choice): characters of English text in a token, what a judge makes of a
# picture of a megapixel, and a reasoning of 20 words with three scores.
_CHARACTERS_PER_TOKEN, _TOKENS_PER_PICTURE, _ANSWER_TOKENS = 4, 1_000, 80


@dataclass(frozen=True)
class JudgingPlan:
    """What is still to be done.

    Args:
        num_items (`int`): of the benchmark, as far as it is asked for.
        missing (`dict`): items that will have no score, for want of a picture -> reason.
        num_to_draw (`int`): edits that are drawn first.
        num_judged (`int`): judgements that are there.
        num_to_judge (`int`): judgements that are left; a text that cannot be read is asked for again on top.
        input_tokens (`int`): of the judgements that are left; so are `output_tokens`.
        usd (`float`, *optional*): `None` where the judge's price is not known.
        measured_answers (`int`): answers that the tokens are the mean of; 0 where they are assumed.
    """

    num_items: int
    missing: Mapping[str, str]
    num_to_draw: int
    num_judged: int
    num_to_judge: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    measured_answers: int

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        price = "price not known, give --price-in and --price-out" if self.usd is None else f"{self.usd:,.2f} USD"
        source = f"mean of {self.measured_answers:,} answers" if self.measured_answers else "assumed, not measured"
        lines = [
            f"{self.num_items:,} items, {len(self.missing):,} without a picture; {self.num_to_draw:,} edits to draw",
            f"{self.num_judged:,} judgements are there, {self.num_to_judge:,} are left to ask",
            f"{self.input_tokens:,} tokens in, {self.output_tokens:,} tokens out ({source}): {price}",
        ]
        return "\n".join(lines + [f"  {item}: {reason}" for item, reason in list(self.missing.items())[:5]])


def plan_run(benchmark: Benchmark, source: PictureSource, settings: JudgeSettings, output: Path) -> JudgingPlan:
    """What a run with these settings would do."""
    folder = output / benchmark.suite.name
    faults = find_missing_origins(benchmark)
    if source.images is not None:
        missing, _ = read_folder(benchmark, source.images)
        faults = {**missing, **faults}
        return _plan(benchmark, edits_of(benchmark, source.images, faults), faults, 0, settings, folder)
    images = folder / "images"
    to_draw = missing_pictures(images, picture_requests(benchmark, source, faults))
    absent = dict.fromkeys((request.path.removesuffix(".png") for request in to_draw), "not drawn yet")
    edits = edits_of(benchmark, images, {**faults, **absent})
    return _plan(benchmark, edits, faults, len(to_draw), settings, folder)


def _plan(
    benchmark: Benchmark,
    edits: list[Edit],
    missing: Mapping[str, str],
    num_to_draw: int,
    settings: JudgeSettings,
    folder: Path,
) -> JudgingPlan:
    """What is left, of `edits` that are there and of those to be drawn; `folder` holds earlier results, if any."""
    known = find_questions(edits, settings, folder)
    num_left = len(known.unanswered) + num_to_draw * settings.repeats
    usage = _measured(folder / RUN_FOLDER, settings.model)
    if usage is None:
        text = fmean(len(benchmark.templates[item.edit_type] + item.prompt) for item in benchmark.items.values())
        tokens_in = text / _CHARACTERS_PER_TOKEN + 2 * _TOKENS_PER_PICTURE
        tokens_out = float(_ANSWER_TOKENS)
    else:
        tokens_in = (usage.text_input_tokens + usage.image_input_tokens) / usage.answers
        tokens_out = usage.output_tokens / usage.answers
    price = load_teachers(None).price_of(settings.model, settings.config())
    tokens = {"prompt_tokens": tokens_in * num_left, "completion_tokens": tokens_out * num_left}
    return JudgingPlan(
        num_items=len(benchmark.items),
        missing={**missing, **known.unreadable},
        num_to_draw=num_to_draw,
        num_judged=len(known.judgements),
        num_to_judge=num_left,
        input_tokens=round(tokens["prompt_tokens"]),
        output_tokens=round(tokens["completion_tokens"]),
        usd=None if price is None else cost_of(tokens, price),
        measured_answers=usage.answers if usage else 0,
    )


def _measured(run_dir: Path, model: str) -> StageUsage | None:
    """What the judge's useful answers took."""
    if not (run_dir / FILE_NAME).is_file():
        return None
    with closing(Journal.open(run_dir)) as journal:
        return journal.measure_stages().get(("judge", model))
