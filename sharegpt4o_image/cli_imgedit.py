# SPDX-License-Identifier: Apache-2.0
"""`evaluate imgedit` and `evaluate judge-agreement`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sharegpt4o_image.cli_evaluation_options import (
    AsJson,
    BaseUrl,
    Budget,
    EditFreedom,
    GuidanceScale,
    GuidanceUntil,
    Images,
    Model,
    Output,
    Seed,
    print_result,
)
from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.evaluation.imgedit_items import Benchmark
    from sharegpt4o_image.evaluation.imgedit_judgement import JudgeSettings

SuiteName = Literal["basic", "uge"]
Items = Annotated[Path | None, typer.Option(help="The official basic_edit.json; for uge, UGE_edit.json.")]
Parser = Annotated[
    Literal["both", "official", "strict"],
    typer.Option(help="What must read an answer, else it is asked again; strict also reports strict scores."),
]


def imgedit(
    items: Items = None,
    from_judgements: Annotated[Path | None, typer.Option(help="result.json of the judge's texts.")] = None,
    suite: Annotated[SuiteName, typer.Option(help="basic, or uge, which has no types.")] = "basic",
    origins: Annotated[Path | None, typer.Option(help="Root of the source pictures.")] = None,
    templates: Annotated[Path | None, typer.Option(help="The official prompts.json; for uge, a text.")] = None,
    images: Images = None,
    model: Model = None,
    base_url: BaseUrl = None,
    judge: Annotated[str | None, typer.Option(help="Model that judges.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Its OpenAI-compatible endpoint; key from PROMPT_API_KEY or OPENAI_API_KEY.")
    ] = None,
    judge_temperature: Annotated[float | None, typer.Option(help="Default: not sent.", min=0, max=2)] = None,
    parser: Parser = "both",
    repeats: Annotated[int, typer.Option(help="Judgements of each edit.", min=1, max=100)] = 1,
    max_asks: Annotated[int, typer.Option(help="Times an unreadable judgement is asked for.", min=1)] = 3,
    workers: Annotated[int, typer.Option(help="Most requests at a time.", min=1, max=1000)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.", min=0.1)] = 600.0,
    geometry: Annotated[
        Literal["raw384", "unpad", "unpad_resize_to_source"] | None,
        typer.Option(help="What a checkpoint's edits are judged as; default: unpad."),
    ] = None,
    guidance_scale: GuidanceScale = None,
    edit_freedom: EditFreedom = None,
    guidance_until: GuidanceUntil = 1.0,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(help="Items of each type; default: all.", min=1)] = None,
    budget: Budget = None,
    price_in: Annotated[float | None, typer.Option(help="Judge's USD per million tokens in.", min=0)] = None,
    price_out: Annotated[float | None, typer.Option(help="Judge's USD per million tokens out.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what is left to do, and stop.")] = False,
    output: Output = Path("scores"),
    as_json: AsJson = False,
) -> None:
    """Have edited pictures judged by ImgEdit's rules, or score a judge's stored texts."""
    given = [name for name, value in {"--images": images, "--model": model, "--base-url": base_url}.items() if value]
    if from_judgements is not None or not (given or judge or origins or templates):
        _score_stored(items, from_judgements, suite, [*given, *(["--judge"] if judge else [])], as_json)
        return
    if len(given) != 1 and given != ["--model", "--base-url"]:
        raise UserError("give one source of edited pictures: --images DIR, --model M, or --base-url URL --model NAME")
    if given == ["--base-url"]:
        raise UserError("--base-url needs the name of the model there: add --model NAME")
    if geometry is not None and given != ["--model"]:
        raise UserError("--geometry is for what a checkpoint draws; other pictures are judged as they are")
    if suite == "uge" and parser == "strict":
        raise UserError("the uge suite has no labels that the strict parser could read; leave out --parser")
    if items is None or origins is None or templates is None or judge is None or judge_url is None:
        raise UserError(
            "a run needs --items FILE, --origins DIR, --templates FILE, --judge MODEL and --judge-url URL; "
            "docs/evaluation.md says where the files come from"
        )

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe, current_share
    from sharegpt4o_image.evaluation.imgedit_items import SUITES, load_benchmark
    from sharegpt4o_image.evaluation.imgedit_judgement import JudgeSettings
    from sharegpt4o_image.evaluation.imgedit_pictures import PictureSource

    benchmark = load_benchmark(SUITES[suite], items, templates, origins, limit)
    settings = JudgeSettings(
        judge, judge_url, parser, repeats, judge_temperature, max_asks, workers, timeout,
        price=_price(price_in, price_out), budget_usd=budget,
    )  # fmt: skip
    recipe = SamplingRecipe(guidance_scale, edit_freedom, guidance_until)
    source = PictureSource(images, model, base_url, recipe, geometry, seed)
    if dry_run:
        if current_share().is_main:
            _print_plan(benchmark, source, settings, output, as_json)
        return
    from sharegpt4o_image.evaluation.imgedit_run import run_imgedit

    settings.check_price()
    outcome = run_imgedit(benchmark, source, settings, output, _command(benchmark, source, settings, limit))
    if outcome is None:
        return
    shown = outcome.record.to_json() | dict(outcome.scored[0])
    print_result(shown, "\n".join([outcome.record.to_text(), *outcome.notes]), as_json)


def judge_agreement(
    judgements: Annotated[list[Path], typer.Argument(help="result.json of each judge, or of each time.")],
    items: Annotated[Path, typer.Option(help="The official basic_edit.json.")],
    repeated: Annotated[bool, typer.Option(help="The files are of one judge, asked several times.")] = False,
    parser: Annotated[Literal["official", "strict"], typer.Option(help="That reads the texts.")] = "strict",
    as_json: AsJson = False,
) -> None:
    """Say how far two judges agree on ImgEdit, or one with itself."""
    from sharegpt4o_image.evaluation import judge_agreement as comparison

    if repeated:
        spread = comparison.spread_of_files(items, judgements, parser)
        print_result(spread, comparison.spread_to_text(spread), as_json)
        return
    if len(judgements) != 2:
        raise UserError(f"give result.json of two judges, not {len(judgements)}; for one judge's, add --repeated")
    first, second = judgements
    found = comparison.agreement_of_files(items, first, second, parser)
    print_result(found, comparison.agreement_to_text(found), as_json)


def _score_stored(
    items: Path | None, from_judgements: Path | None, suite: SuiteName, others: list[str], as_json: bool
) -> None:
    from sharegpt4o_image.evaluation import imgedit_scores

    if from_judgements is None or (items is None) != (suite == "uge") or others:
        wanted = "--from-judgements FILE" if suite == "uge" else "--items FILE and --from-judgements FILE"
        raise UserError(f"imgedit's {suite} is scored from stored answers: give {wanted}, nothing else")
    if items is None:
        uge = imgedit_scores.score_uge(from_judgements)
        print_result(uge, imgedit_scores.uge_to_text(uge), as_json)
        return
    scores = imgedit_scores.score_files(items, from_judgements)
    print_result(scores, imgedit_scores.to_text(scores), as_json)


def _price(price_in: float | None, price_out: float | None) -> Any:
    from sharegpt4o_image.synthesis.config import Price

    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together; give both")
    return None if price_in is None or price_out is None else Price(text_input=price_in, output=price_out)


def _print_plan(benchmark: "Benchmark", source: Any, settings: "JudgeSettings", output: Path, as_json: bool) -> None:
    from sharegpt4o_image.evaluation.imgedit_plan import plan_run

    plan = plan_run(benchmark, source, settings, output)
    print_result(plan.to_json(), plan.to_text(), as_json)


def _command(benchmark: "Benchmark", source: Any, settings: "JudgeSettings", limit: int | None) -> str:
    """How the run is repeated, without paths and addresses."""
    parts = ["sharegpt4o-image evaluate imgedit --items ITEMS --origins ORIGINS --templates TEMPLATES"]
    parts += _source_options(source)
    parts += ["--suite uge"] if benchmark.suite.name != "imgedit" else []
    parts += [f"--judge {settings.model} --judge-url URL --parser {settings.parser} --repeats {settings.repeats}"]
    parts += [f"--judge-temperature {settings.temperature}"] if settings.temperature is not None else []
    parts += [f"--limit {limit}"] if limit is not None else []
    return " ".join(parts)


def _source_options(source: Any) -> list[str]:
    from sharegpt4o_image.evaluation.pretrained import short_name

    if source.images is not None:
        return ["--images DIR"]
    options = [f"--model {shlex.quote(short_name(source.model))} --seed {source.seed}"]
    options += ["--base-url URL"] if source.base_url else []
    options += [f"--geometry {source.geometry}"] if source.geometry else []
    return options
