# SPDX-License-Identifier: Apache-2.0
"""`evaluate dpg-bench`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sharegpt4o_image.cli_evaluation_options import (
    AsJson,
    BaseUrl,
    Budget,
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
    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe, Share
    from sharegpt4o_image.evaluation.dpg_items import DpgBench
    from sharegpt4o_image.evaluation.dpg_record import DpgResult
    from sharegpt4o_image.evaluation.dpg_run import PictureSource
    from sharegpt4o_image.evaluation.vqa import Vqa
    from sharegpt4o_image.synthesis.config import Price

_MAX_WARNINGS = 5  # printed; the file of scores has them all (our choice)

VqaModel = Annotated[
    str | None, typer.Option(help="VQA model: Hub id or folder; with --vqa-url, its name there. Default: a Qwen3-VL.")
]
VqaWorker = Annotated[
    str | None, typer.Option(help="Command of a worker process that answers, such as mplug_worker.py.")
]
VqaUrl = Annotated[
    str | None,
    typer.Option(help="OpenAI-compatible endpoint that answers; key from PROMPT_API_KEY or OPENAI_API_KEY."),
]


def dpg_bench(
    questions: Annotated[Path | None, typer.Option(help="The official CSV of questions.")] = None,
    from_answers: Annotated[Path | None, typer.Option(help="JSON of the answers to them.")] = None,
    num_pictures: Annotated[int | None, typer.Option(help="Use the first so many of each item.", min=1, max=4)] = None,
    first_row: Annotated[
        Literal["keep", "drop"] | None, typer.Option(help="The first question, which the official script drops.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Folder of <item_id>.txt; default: the CSV's text column.")
    ] = None,
    images: Images = None,
    model: Model = None,
    base_url: BaseUrl = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of one picture; default: 384, or what is drawn.", min=1, max=8192)
    ] = None,
    vqa: VqaModel = None,
    vqa_worker: VqaWorker = None,
    vqa_url: VqaUrl = None,
    vqa_batch_size: Annotated[int, typer.Option(help="Questions at a time, of a local model.", min=1)] = 16,
    vqa_timeout: Annotated[float, typer.Option(help="Seconds that a worker's answer may take.", min=0.1)] = 600.0,
    vqa_temperature: Annotated[float | None, typer.Option(help="Default: not sent.", min=0, max=2)] = None,
    vqa_max_tokens: Annotated[int, typer.Option(help="Longest answer of an endpoint.", min=1)] = 16,
    price_in: Annotated[float | None, typer.Option(help="VQA model's USD per million tokens in.", min=0)] = None,
    price_out: Annotated[float | None, typer.Option(help="VQA model's USD per million tokens out.", min=0)] = None,
    workers: Annotated[int, typer.Option(help="Most requests at a time.", min=1, max=1000)] = 8,
    device: Annotated[str | None, typer.Option(help="Of the VQA model; default: the GPU, if any.")] = None,
    guidance_scale: GuidanceScale = None,
    guidance_until: GuidanceUntil = 1.0,
    seed: Seed = 42,
    limit: Annotated[int | None, typer.Option(help="The first so many items; default: all.", min=1)] = None,
    budget: Budget = None,
    dry_run: Annotated[bool, typer.Option(help="Say what is left to do, and stop.")] = False,
    output: Output = Path("scores"),
    as_json: AsJson = False,
) -> None:
    """Have pictures judged by DPG-Bench's questions, or score stored answers."""
    sources = [name for name, value in {"--images": images, "--model": model, "--base-url": base_url}.items() if value]
    judges = {"--vqa": vqa, "--vqa-worker": vqa_worker, "--vqa-url": vqa_url}
    given = [name for name, value in judges.items() if value]
    if from_answers is not None or not sources:
        _score_stored(questions, from_answers, num_pictures, first_row, [*sources, *given], as_json)
        return
    if questions is None:
        raise UserError("a run needs the questions; give --questions dpg_bench.csv")
    _check_options(sources, given)

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
    from sharegpt4o_image.evaluation.dpg_items import load_bench

    recipe = SamplingRecipe(guidance_scale, None, guidance_until)
    run = _Run(images, model, base_url, recipe, resolution, seed, budget, output)
    bench = load_bench(questions, prompts, num_pictures or 4, first_row, limit)
    if vqa_worker is not None:
        answerer = _worker(vqa_worker, vqa_timeout)
    elif vqa_url is not None and vqa is not None:
        price = _price(price_in, price_out)
        answerer = run.endpoint(vqa_url, vqa, vqa_temperature, vqa_max_tokens, workers, price)
    else:
        answerer = _local(vqa, device, vqa_batch_size)
    if dry_run:
        run.print_work(bench, answerer, as_json)
        return
    result = run.judge(bench, answerer, _command(bench, answerer, run))
    if result is not None:
        print_result(result.to_json(), _text(result), as_json)


def _score_stored(
    questions: Path | None,
    from_answers: Path | None,
    num_pictures: int | None,
    first_row: Literal["keep", "drop"] | None,
    others: list[str],
    as_json: bool,
) -> None:
    from sharegpt4o_image.evaluation import dpg_scores

    if questions is None or from_answers is None or others:
        raise UserError(
            "dpg-bench is scored from stored answers: give --questions FILE and --from-answers FILE, nothing else; or "
            "from pictures: give --questions FILE with --images DIR, --model M, or --base-url URL --model NAME"
        )
    scores = dpg_scores.score_files(questions, from_answers, num_pictures, first_row)
    print_result(scores, dpg_scores.to_text(scores), as_json)


def _check_options(sources: list[str], judges: list[str]) -> None:
    if sources == ["--base-url"]:
        raise UserError("--base-url needs the name of the model there: add --model NAME")
    if len(sources) > 1 and sources != ["--model", "--base-url"]:
        raise UserError("give one source of pictures: --images DIR, --model M, or --base-url URL --model NAME")
    if "--vqa-worker" in judges and len(judges) > 1:
        raise UserError("give one VQA model: --vqa ID_OR_FOLDER, --vqa-worker COMMAND, or --vqa-url URL --vqa NAME")
    if judges == ["--vqa-url"]:
        raise UserError("--vqa-url needs the name of the model there: add --vqa NAME")


def _price(price_in: float | None, price_out: float | None) -> "Price | None":
    from sharegpt4o_image.synthesis.config import Price

    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together; give both")
    return None if price_in is None or price_out is None else Price(text_input=price_in, output=price_out)


def _worker(command: str, timeout_seconds: float) -> "Vqa":
    from sharegpt4o_image.evaluation.vqa_worker import VqaWorker

    return VqaWorker(command, timeout_seconds)


def _local(name: str | None, device: str | None, batch_size: int) -> "Vqa":
    from sharegpt4o_image.evaluation.vqa_transformers import VQA_MODEL, TransformersVqa

    return TransformersVqa(name or VQA_MODEL, device, batch_size)


@dataclass(frozen=True)
class _Run:
    """Where the pictures come from, and where everything goes."""

    images: Path | None
    model: str | None
    base_url: str | None
    recipe: "SamplingRecipe"
    resolution: int | None
    seed: int
    budget_usd: float | None
    output: Path

    @property
    def folder(self) -> Path:
        """Of pictures and answers."""
        return self.output / "dpg-bench"

    @property
    def journal_folder(self) -> Path:
        """Of what endpoints answered: one for drawing and judging, so that they share the budget."""
        return self.folder / "endpoints"

    def endpoint(
        self,
        base_url: str,
        model: str,
        temperature: float | None,
        max_tokens: int,
        workers: int,
        price: "Price | None",
    ) -> "Vqa":
        """A VQA model over the OpenAI API."""
        from sharegpt4o_image.evaluation.vqa_endpoint import EndpointSettings, VqaEndpoint

        settings = EndpointSettings(base_url, model, temperature, max_tokens, workers, price, self.budget_usd)
        return VqaEndpoint(settings, self.journal_folder)

    def print_work(self, bench: "DpgBench", vqa: "Vqa", as_json: bool) -> None:
        """What is left to do."""
        from sharegpt4o_image.evaluation.dpg_answers import count_work
        from sharegpt4o_image.evaluation.vqa_endpoint import VqaEndpoint

        left = count_work(bench, vqa, self.folder, self.images, self.resolution, self.seed)
        usd = vqa.usd_for(left.answers) if isinstance(vqa, VqaEndpoint) else None
        text = f"{left.pictures:,} pictures to draw, {left.answers:,} of {bench.num_answers:,} answers to ask"
        if usd is not None:
            text += f", about ${usd:,.2f} for answers (assumed, not measured)"
        print_result({"pictures": left.pictures, "answers": left.answers, "answers_usd": usd}, text, as_json)

    def judge(self, bench: "DpgBench", vqa: "Vqa", command: str) -> "DpgResult | None":
        """Draw, ask, and score; the main process has the result."""
        from sharegpt4o_image.evaluation.benchmark_run import current_share
        from sharegpt4o_image.evaluation.dpg_answers import answer_all
        from sharegpt4o_image.evaluation.dpg_record import write_result
        from sharegpt4o_image.evaluation.dpg_run import look_at

        share = current_share()
        source = self._pictures(bench, share)
        seen = look_at(bench, source)
        answered = answer_all(bench, source, seen, vqa, self.folder, share)
        return write_result(bench, source, seen, answered, vqa, self.output, command) if share.is_main else None

    def _pictures(self, bench: "DpgBench", share: "Share") -> "PictureSource":
        from sharegpt4o_image.checkpoints import TINY_JANUS_4O
        from sharegpt4o_image.evaluation.benchmark_run import make_generator
        from sharegpt4o_image.evaluation.dpg_pictures import RESOLUTION
        from sharegpt4o_image.evaluation.dpg_run import PictureSource, draw
        from sharegpt4o_image.evaluation.pretrained import short_name

        if self.images is not None:
            return PictureSource(self.images, self.resolution or RESOLUTION)
        generator = make_generator(self.model, self.base_url, self.recipe, self.journal_folder, self.budget_usd)
        name = short_name(self.model or TINY_JANUS_4O)
        return draw(bench, generator, name, self.folder, self.seed, share, self.resolution)


def _command(bench: "DpgBench", vqa: "Vqa", run: _Run) -> str:
    """How the run is repeated, without paths and addresses."""
    from sharegpt4o_image.checkpoints import TINY_JANUS_4O
    from sharegpt4o_image.evaluation.pretrained import short_name

    drawn = f"--model {shlex.quote(short_name(run.model or TINY_JANUS_4O))} --seed {run.seed}"
    pictures = ["--images DIR"] if run.images is not None else [drawn]
    if run.base_url is not None:
        pictures += ["--base-url URL"]
    if run.resolution is not None:
        pictures += [f"--resolution {run.resolution}"]
    if run.images is None and run.recipe.guidance_scale is not None:
        pictures += [f"--guidance-scale {run.recipe.guidance_scale:g} --guidance-until {run.recipe.guidance_until:g}"]
    if run.images is None and bench.prompts_sha256 is not None:
        pictures += ["--prompts DIR"]
    judge = {
        "worker": "--vqa-worker COMMAND",
        "endpoint": f"--vqa-url URL --vqa {vqa.identity.get('model')}",
        "transformers": f"--vqa {vqa.identity.get('model')}",
    }[vqa.identity["kind"]]
    parts = ["sharegpt4o-image evaluate dpg-bench --questions dpg_bench.csv", *pictures, judge]
    parts += [f"--num-pictures {bench.num_pictures}"]
    parts += [f"--first-row {bench.first_row}"] if bench.items == bench.official_items else []
    parts += [] if bench.is_whole else [f"--limit {len(bench.items)}"]
    return " ".join(parts)


def _text(result: "DpgResult") -> str:
    """The record, both blocks, and what was odd about the pictures."""
    from sharegpt4o_image.evaluation.dpg_scores import to_text

    warnings = result.record.details["warnings"]
    lines = [result.record.to_text(), "", to_text(result.blocks.to_json())]
    lines += [f"warning: {warning}" for warning in warnings[:_MAX_WARNINGS]]
    if len(warnings) > _MAX_WARNINGS:
        lines.append(f"warning: and {len(warnings) - _MAX_WARNINGS:,} more, see the file of scores")
    return "\n".join(lines)
