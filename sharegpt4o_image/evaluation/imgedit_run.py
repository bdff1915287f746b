# SPDX-License-Identifier: Apache-2.0
"""ImgEdit, whole: items -> edited pictures (drawn, or of a folder) -> a judge's texts -> scores.

    OUT/imgedit/images/<key>.png      the official layout
    OUT/imgedit/verdicts/             judgements, each as soon as it is there; judging/ is the journal of requests
    OUT/imgedit/judgements.jsonl      those of this run
    OUT/imgedit/result.json           key -> text, which the official scripts read; result_repeat1.json, ...
    OUT/imgedit/failures.png          the lowest scores
    OUT/imgedit/scores/imgedit.json

The seed of an edit is `--seed` plus its place in the file of items (our choice).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import Asking
from sharegpt4o_image.evaluation.benchmark_run import (
    Share,
    current_share,
    draw_pictures,
    failure_sheet,
    make_generator,
    progress_bar,
)
from sharegpt4o_image.evaluation.drawing import Generator, write_whole
from sharegpt4o_image.evaluation.edit_geometry import DEFAULT_GEOMETRY, EditGenerator
from sharegpt4o_image.evaluation.imgedit_items import UGE, Benchmark
from sharegpt4o_image.evaluation.imgedit_judge import RUN_FOLDER, Judging, judge_edits, texts_of
from sharegpt4o_image.evaluation.imgedit_judgement import JudgeSettings
from sharegpt4o_image.evaluation.imgedit_pictures import (
    PictureSource,
    edits_of,
    find_missing_origins,
    picture_requests,
    read_folder,
)
from sharegpt4o_image.evaluation.imgedit_record import (
    item_scores,
    missing_items,
    name_of,
    repeats_of,
    reported_parser,
    score_lines,
    score_repeats,
    without_samples,
)
from sharegpt4o_image.evaluation.model_generator import ModelGenerator
from sharegpt4o_image.evaluation.score_record import ScoreRecord, write_scores
from sharegpt4o_image.synthesis.journal import Journal, utc_now
from sharegpt4o_image.synthesis.run_folder import FILE_NAME

LOW_SCORE = 2.0  # edits with at most this score are shown among the failures (our choice)
_UNIT = 5.0
_DRAWING_FOLDER = "drawing"  # of the journal of an endpoint that draws
_NUM_NAMED = 5


@dataclass
class _Pictures:
    """A folder with edited pictures: what drew them, which are not there and why, and what else lies there."""

    folder: Path
    identity: dict[str, Any]
    missing: dict[str, str]
    unexpected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the record, the scores of every repeat, and lines for people."""

    record: ScoreRecord
    scored: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def run_imgedit(
    benchmark: Benchmark,
    source: PictureSource,
    settings: JudgeSettings,
    output: Path,
    command: str | None = None,
) -> Outcome | None:
    """Draw what is missing, have it judged, and score it; None in all processes but the main one."""
    folder = output / benchmark.suite.name
    share = current_share()
    origin_faults = find_missing_origins(benchmark)
    drawing_budget = _budget_left(settings.budget_usd, folder / RUN_FOLDER)
    pictures = _pictures_of(benchmark, source, origin_faults, folder, drawing_budget, share)
    share.wait()
    if not share.is_main:
        return None
    if source.images is None:
        pictures.missing |= _find_missing(benchmark, pictures)
    edits = edits_of(benchmark, pictures.folder, {**origin_faults, **pictures.missing})
    total = len(edits) * settings.repeats
    settings = replace(settings, budget_usd=_budget_left(settings.budget_usd, folder / _DRAWING_FOLDER))
    with progress_bar() as progress:
        bar = progress.add_task("judging", total=total)
        judging = judge_edits(edits, settings, folder, lambda num_done: progress.update(bar, completed=num_done))
        progress.update(bar, completed=len(judging.judgements) + len(judging.unanswered))
    _refuse_to_score(judging, total, settings)
    return _score(benchmark, pictures, origin_faults, judging, settings, folder, command)


# ------------------------------------------------------------------ pictures


def _pictures_of(
    benchmark: Benchmark,
    source: PictureSource,
    origin_faults: Mapping[str, str],
    folder: Path,
    budget_usd: float | None,
    share: Share,
) -> _Pictures:
    if source.images is not None:
        missing, unexpected = read_folder(benchmark, source.images)
        return _Pictures(source.images, {}, missing, unexpected)
    generator = _generator_of(source, folder, budget_usd)
    requests = picture_requests(benchmark, source, origin_faults)
    images = folder / "images"
    reasons = draw_pictures(generator, requests, images, source.seed, share, "edits")
    missing = {path.removesuffix(".png"): reason for path, reason in reasons.items()}
    return _Pictures(images, {**generator.identity, "seed": source.seed}, missing)


def _generator_of(source: PictureSource, folder: Path, budget_usd: float | None) -> Generator:
    if source.model is None or source.base_url is not None:
        return make_generator(source.model, source.base_url, source.recipe, folder / _DRAWING_FOLDER, budget_usd)
    drawer = ModelGenerator.from_pretrained(source.model, source.recipe)
    return EditGenerator(drawer, source.recipe, source.geometry or DEFAULT_GEOMETRY)


def _find_missing(benchmark: Benchmark, pictures: _Pictures) -> dict[str, str]:
    """What other processes did not draw either."""
    return {
        key: "it was not drawn"
        for key in benchmark.items
        if key not in pictures.missing and not (pictures.folder / f"{key}.png").is_file()
    }


def _budget_left(budget_usd: float | None, other_dir: Path) -> float | None:
    """The budget without what the other journal's requests cost, or may have cost: drawing and judging share it."""
    if budget_usd is None or not (other_dir / FILE_NAME).is_file():
        return budget_usd
    journal = Journal.open(other_dir)
    try:
        return max(0.0, budget_usd - journal.spent_usd() - journal.reserved_usd())
    finally:
        journal.close()


# ------------------------------------------------------------------ scores


def _refuse_to_score(judging: Judging, total: int, settings: JudgeSettings) -> None:
    """A run that was stopped has no score: the edits that were judged so far are no sample of all."""
    asking = judging.asking
    kept = f"{len(judging.judgements):,} of {total:,} judgements are there"
    if asking.end_of_budget is not None:
        raise UserError(f"{asking.end_of_budget}; {kept}, run again with a larger --budget for the rest")
    if asking.is_interrupted:
        raise UserError(f"stopped; {kept}, run the same command again for the rest")


def _score(
    benchmark: Benchmark,
    pictures: _Pictures,
    origin_faults: Mapping[str, str],
    judging: Judging,
    settings: JudgeSettings,
    folder: Path,
    command: str | None,
) -> Outcome:
    repeats = [texts_of(judging, benchmark.items, repeat) for repeat in range(settings.repeats)]
    _write_judgements(judging, repeats, folder)
    scored, parser = score_repeats(benchmark, repeats), reported_parser(settings)
    unanswered = {
        key: f"the judge did not answer yet: {reason}; run the same command again"
        for (key, repeat), reason in judging.unanswered.items()
        if repeat == 0
    }
    reasons = {**unanswered, **judging.unreadable, **pictures.missing, **origin_faults}
    missing = missing_items(benchmark, reasons, judging.judgements, scored, parser)
    details = without_samples(scored[0]) | {"unexpected_files": pictures.unexpected}
    details["repeats"] = repeats_of(benchmark, scored, parser)
    record = ScoreRecord(
        benchmark=benchmark.suite.name,
        name=name_of(benchmark, settings),
        unit=_UNIT,
        scores=score_lines(benchmark, scored, parser),
        num_expected=len(benchmark.items),
        num_scored=len(benchmark.items) - len(missing),
        missing=missing,
        model=pictures.identity.get("model"),
        generator=pictures.identity,
        judge=_judge_identity(benchmark, settings, judging),
        command=command,
        details=details,
        created_at=utc_now(),
    )
    _draw_failures(benchmark, pictures.folder, scored, parser, reasons, folder / "failures.png")
    write_scores(record, folder)
    return Outcome(record, scored, _notes(record, judging, pictures, settings))


def _judge_identity(benchmark: Benchmark, settings: JudgeSettings, judging: Judging) -> dict[str, Any]:
    kept = judging.judgements.values()
    dates = sorted(judgement.answered_at for judgement in kept if judgement.answered_at)
    return {
        "model": settings.model,
        "served_models": sorted({judgement.served_model for judgement in kept if judgement.served_model}),
        "system_fingerprints": sorted({kept_.system_fingerprint for kept_ in kept if kept_.system_fingerprint}),
        "host": urlsplit(settings.base_url).hostname,
        "temperature": settings.temperature,
        "repeats": settings.repeats,
        "parser": reported_parser(settings),
        "asked_again_unless_read_by": settings.parser,
        "templates_sha256": benchmark.templates_sha256,
        "first_answer": dates[0] if dates else None,
        "last_answer": dates[-1] if dates else None,
    }


def _write_judgements(judging: Judging, repeats: Sequence[Mapping[str, str]], folder: Path) -> None:
    rows = [json.dumps(asdict(kept), ensure_ascii=False) for _, kept in sorted(judging.judgements.items(), key=_order)]
    write_whole(folder / "judgements.jsonl", "".join(row + "\n" for row in rows).encode())
    for repeat, texts in enumerate(repeats):
        name = f"result_repeat{repeat}.json" if repeat else "result.json"
        write_whole(folder / name, json.dumps(texts, indent=4, ensure_ascii=False).encode())


def _order(entry: tuple[tuple[str, int], Any]) -> tuple[int, str]:
    (key, repeat), _ = entry
    return repeat, key


def _draw_failures(
    benchmark: Benchmark,
    pictures: Path,
    scored: Sequence[Mapping[str, Any]],
    parser: str,
    reasons: Mapping[str, str],
    path: Path,
) -> None:
    """A sheet of the edits without a score, then of the lowest."""
    scores = item_scores(scored, parser)
    low = sorted((score, key) for key, score in scores.items() if score <= LOW_SCORE)
    without = [key for key in benchmark.items if key not in scores]
    texts = {key: reasons.get(key, "no score") for key in without} | {key: f"{score:.2f}" for score, key in low}
    rows = []
    for key, text in texts.items():
        item = benchmark.items[key]
        name = key if benchmark.suite is UGE else f"{key} {item.edit_type}"
        rows.append((f"{text}  {name}: {item.prompt}", (benchmark.origin_of(key), pictures / f"{key}.png")))
    failure_sheet(rows, path, ("source", "edited"))


def _notes(record: ScoreRecord, judging: Judging, pictures: _Pictures, settings: JudgeSettings) -> list[str]:
    what = "all answers" if record.benchmark == UGE.name else "the types"
    notes = [f"overall: mean of {what}, {reported_parser(settings)} parser" + _repeats_note(record)]
    if pictures.unexpected:
        named = ", ".join(pictures.unexpected[:_NUM_NAMED])
        notes.append(f"{len(pictures.unexpected):,} other files in {pictures.folder} were not judged, such as {named}")
    if judging.unanswered:
        notes.append(f"{len(judging.unanswered):,} judgements are left: run the same command again")
    return [*notes, _cost_note(judging.asking)]


def _cost_note(asking: Asking) -> str:
    if not asking.num_questions:
        return "nothing was left to ask the judge"
    unknown = f", and up to {asking.possibly_spent_usd:.4f} on requests whose outcome is not known"
    spent = f"{asking.new_attempts:,} requests to the judge now; {asking.spent_usd:.4f} USD spent on judging in all"
    return spent + unknown if asking.possibly_spent_usd else spent


def _repeats_note(record: ScoreRecord) -> str:
    repeats = record.details.get("repeats")
    if not repeats:
        return ""
    return (
        f"; mean of {repeats['n_runs']} judgements of each edit, whose overall scores have a standard deviation of "
        f"{repeats['macro']['deviation']:.3f}"
    )
