# SPDX-License-Identifier: Apache-2.0
"""`evaluate geneval`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from sharegpt4o_image.evaluation.geneval_judge import DetectorJudge
    from sharegpt4o_image.evaluation.geneval_prompts import Prompt
    from sharegpt4o_image.evaluation.geneval_run import Benchmark

SEED = 42  # djghosh13/geneval@af4902f, generation/diffusers_generate.py


def geneval(
    model: Model = None,
    images: Images = None,
    base_url: BaseUrl = None,
    output: Output = Path("scores"),
    detector: Annotated[
        str | None, typer.Option(help="Mask2Former: Hub id, folder, or GenEval's own .pth; default: Meta's weights.")
    ] = None,
    colors: Annotated[str | None, typer.Option(help="CLIP: Hub id or folder; default: GenEval's.")] = None,
    device: Annotated[str | None, typer.Option(help="Where both run; default: a GPU if there is one.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="evaluation_metadata.jsonl; default: the official 553 prompts, made again.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of each task; default: all.", min=1)] = None,
    images_per_prompt: Annotated[int, typer.Option(help="Pictures of each prompt.", min=1, max=100)] = 4,
    seed: Seed = SEED,
    guidance_scale: GuidanceScale = None,
    guidance_until: GuidanceUntil = 1.0,
    budget: Budget = None,
    from_detections: Annotated[
        Path | None, typer.Option(help="Score JSON lines with metadata, detections and colours of each picture.")
    ] = None,
    from_results: Annotated[Path | None, typer.Option(help="Score the official results.jsonl.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw GenEval's pictures, or take a folder of them, detect and score; or score stored answers."""
    if from_detections is not None or from_results is not None:
        if model or images or base_url or detector or colors or limit:
            raise UserError(
                "stored answers are scored without --model, --images, --base-url, --detector, --colors and --limit; "
                "leave these out"
            )
        _score_stored(from_detections, from_results, metadata, images_per_prompt, as_json)
        return
    _check_source(model, images, base_url, output)
    if images is not None and (seed, guidance_scale, guidance_until, budget) != (SEED, None, 1.0, None):
        raise UserError("--seed, guidance and --budget are for drawing; leave them out with --images")

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe, current_share, make_generator
    from sharegpt4o_image.evaluation.geneval_run import run_geneval

    share = current_share()
    folder, generator = output / "geneval", None
    if images is None:
        recipe = SamplingRecipe(guidance_scale=guidance_scale, guidance_until=guidance_until)
        generator = make_generator(model, base_url, recipe, folder / "journal", budget)
    benchmark = _benchmark(metadata, limit, images_per_prompt, _judge(detector, colors, device), detector, colors)
    drawn: dict[str, Any] = {"--model": model, "--base-url": base_url and "URL", "--seed": seed}
    drawn |= {"--guidance-scale": guidance_scale, "--guidance-until": guidance_until}
    judged = {"--detector": detector, "--colors": colors, "--metadata": metadata, "--limit": limit}
    source = drawn if images is None else {"--images": "DIR"}
    command = _command({**source, **judged, "--images-per-prompt": images_per_prompt})
    result = run_geneval(benchmark, folder, generator, images, seed, share, command)
    if result is not None:
        print_result(result.to_json(), result.to_text(), as_json)


def _check_source(model: str | None, images: Path | None, base_url: str | None, output: Path) -> None:
    if images is not None and (model or base_url):
        raise UserError("give either --images, or what draws them: --model, or --base-url with --model")
    if images is not None and not images.is_dir():
        raise UserError(f"{images} is no folder; give one with GenEval's pictures, NNNNN/samples/0000.png")
    if base_url and not model:
        raise UserError("--base-url needs the name of the model there; give --model NAME")
    if images is None and not model:
        raise UserError("geneval needs pictures: give --model NAME or --images FOLDER, or score --from-results FILE")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose a folder with --output")


def _command(options: dict[str, Any]) -> str:
    """How the run is repeated, without paths and addresses: scores are shown to others."""
    from sharegpt4o_image.evaluation.pretrained import short_name

    given = [(name, short_name(str(value))) for name, value in options.items() if value is not None]
    return shlex.join(["sharegpt4o-image", "evaluate", "geneval", *(word for option in given for word in option)])


def _judge(detector: str | None, colors: str | None, device: str | None) -> "DetectorJudge":
    import torch

    from sharegpt4o_image.evaluation.clip_colors import CLIP, ClipColorClassifier
    from sharegpt4o_image.evaluation.geneval_judge import DetectorJudge
    from sharegpt4o_image.evaluation.mask2former_detector import DETECTOR, Mask2FormerDetector

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError):  # as a torch without CUDA says it
        raise UserError(f"this torch has no device {place!r}; give --device cpu, or one that is there") from None
    found = Mask2FormerDetector.from_pretrained(detector or DETECTOR, place)
    return DetectorJudge(found, ClipColorClassifier.from_pretrained(colors or CLIP, place))


def _benchmark(
    metadata: Path | None,
    limit: int | None,
    images_per_prompt: int,
    judge: "DetectorJudge",
    detector: str | None,
    colors: str | None,
) -> "Benchmark":
    """The benchmark with its variant: whatever differs from GenEval's own."""
    from sharegpt4o_image.evaluation.clip_colors import CLIP
    from sharegpt4o_image.evaluation.geneval_prompts import IMAGES_PER_PROMPT, generate_metadata, read_metadata
    from sharegpt4o_image.evaluation.geneval_run import Benchmark
    from sharegpt4o_image.evaluation.mask2former_detector import DETECTOR
    from sharegpt4o_image.evaluation.pretrained import short_name

    official = generate_metadata()
    every = read_metadata(metadata) if metadata else official
    numbers = _first_of_each_tag(every, limit)
    prompts = [every[number] for number in numbers]
    variant = {}
    if not _is_official(detector):
        variant["detector"] = short_name(detector or DETECTOR)
    if colors is not None and colors != CLIP:
        variant["colors"] = short_name(colors)
    if prompts != official:
        whole = "553" if every == official or metadata is None else metadata.name
        variant["prompts"] = whole if prompts == every else f"{len(prompts)} of {whole}"
    if images_per_prompt != IMAGES_PER_PROMPT:
        variant["images_per_prompt"] = str(images_per_prompt)
    return Benchmark("geneval", variant, prompts, judge, images_per_prompt, numbers)


def _is_official(detector: str | None) -> bool:
    """Whether these are the weights that GenEval names."""
    from sharegpt4o_image.evaluation.openmmlab_converter import OFFICIAL_DIGEST, sha256_of

    return detector is not None and detector.endswith(".pth") and sha256_of(Path(detector)).startswith(OFFICIAL_DIGEST)


def _first_of_each_tag(prompts: "list[Prompt]", limit: int | None) -> list[int]:
    """Their numbers."""
    by_tag: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_tag.setdefault(prompt.tag, []).append(number)
    return sorted(number for numbers in by_tag.values() for number in numbers[:limit])


def _score_stored(
    from_detections: Path | None,
    from_results: Path | None,
    metadata: Path | None,
    images_per_prompt: int,
    as_json: bool,
) -> None:
    from sharegpt4o_image.evaluation import geneval_scores
    from sharegpt4o_image.evaluation.geneval_prompts import read_metadata

    prompts = None if metadata is None else read_metadata(metadata)
    if from_detections is not None and from_results is None:
        summary, rows = geneval_scores.score_detections(from_detections, prompts, images_per_prompt)
    elif from_results is not None and from_detections is None:
        summary, rows = geneval_scores.score_results(from_results, prompts, images_per_prompt)
    else:
        raise UserError("give --from-detections FILE or --from-results FILE, not both")
    text = f"{geneval_scores.format_official(summary)}\n{geneval_scores.coverage_text(summary)}"
    print_result(geneval_scores.to_json(summary, rows), text, as_json)
