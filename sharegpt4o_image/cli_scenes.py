# SPDX-License-Identifier: Apache-2.0
"""`evaluate scenes`, `scene-edits` and `scene-geneval`: held-out prompts and edits of the offline teacher's world."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sharegpt4o_image.cli_evaluation_options import (
    AsJson,
    BaseUrl,
    Budget,
    EditFreedom,
    GuidanceScale,
    GuidanceUntil,
    Images,
    Limit,
    Model,
    Output,
    Seed,
    print_result,
)
from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.evaluation.scene_folder import PictureFolder, PictureSource
    from sharegpt4o_image.evaluation.scene_runner import Item

_NUM_NAMED = 5  # files that a message names

SceneImages = Annotated[
    Path | None, typer.Option(help="Folder of 0000.png, 0001.png, ... in the order of the items, instead of drawing.")
]


def scenes(
    model: Model = None,
    images: SceneImages = None,
    base_url: BaseUrl = None,
    output: Output = Path("scores"),
    limit: Limit = 70,
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    guidance_until: GuidanceUntil = 1.0,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Score held-out prompts of the offline teacher's world; by default those of tiny-janus-4o."""
    _check(model, images, base_url, output)

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
    from sharegpt4o_image.evaluation.scene_benchmark import prompt_items
    from sharegpt4o_image.evaluation.scene_folder import PictureSource

    recipe = SamplingRecipe(guidance_scale=guidance_scale, guidance_until=guidance_until)
    source = PictureSource(images, model, base_url, recipe, seed, budget)
    _score("scenes", prompt_items(limit), source, output, _command("scenes", source, limit), as_json)


def scene_edits(
    model: Model = None,
    images: SceneImages = None,
    base_url: BaseUrl = None,
    output: Output = Path("scores"),
    limit: Limit = 70,
    seed: Seed = 0,
    guidance_scale: GuidanceScale = None,
    edit_freedom: EditFreedom = None,
    guidance_until: GuidanceUntil = 1.0,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Score held-out edits of the offline teacher's world; by default those of tiny-janus-4o."""
    _check(model, images, base_url, output)

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
    from sharegpt4o_image.evaluation.scene_benchmark import edit_items
    from sharegpt4o_image.evaluation.scene_folder import PictureSource

    recipe = SamplingRecipe(guidance_scale, edit_freedom, guidance_until)
    source = PictureSource(images, model, base_url, recipe, seed, budget)
    _score("scene-edits", edit_items(limit), source, output, _command("scene-edits", source, limit), as_json)


def scene_geneval(
    model: Model = None,
    images: Images = None,
    base_url: BaseUrl = None,
    output: Output = Path("scores"),
    limit: Limit = 20,
    images_per_prompt: Annotated[int, typer.Option(help="Pictures of each prompt.", min=1, max=1000)] = 4,
    seed: Seed = 42,
    guidance_scale: GuidanceScale = None,
    guidance_until: GuidanceUntil = 1.0,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Score held-out prompts of the offline teacher's world by GenEval's rules; by default those of tiny-janus-4o."""
    _check(model, images, base_url, output)

    from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
    from sharegpt4o_image.evaluation.scene_folder import PictureSource
    from sharegpt4o_image.evaluation.scene_geneval import SCENE_GENEVAL, run_scene_geneval
    from sharegpt4o_image.evaluation.score_record import score_path

    recipe = SamplingRecipe(guidance_scale=guidance_scale, guidance_until=guidance_until)
    source = PictureSource(images, model, base_url, recipe, seed, budget)
    command = f"{_command(SCENE_GENEVAL, source, limit)} --images-per-prompt {images_per_prompt}"
    result = run_scene_geneval(limit, images_per_prompt, source, output, command)
    if result is None:  # another process tells
        return
    path = score_path(output / SCENE_GENEVAL, SCENE_GENEVAL)
    print_result(result.to_json(), f"{result.to_text()}\nwrote {path}", as_json)


def _check(model: str | None, images: Path | None, base_url: str | None, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose a folder with --output")
    if images is not None and (model is not None or base_url is not None):
        raise UserError("give one source of pictures: --images DIR, --model M, or --base-url URL --model NAME")
    if base_url is not None and model is None:
        raise UserError("--base-url needs the name of the model there: add --model NAME")


def _score(
    name: str, items: "Sequence[Item]", source: "PictureSource", output: Path, command: str, as_json: bool
) -> None:
    from sharegpt4o_image.evaluation.scene_folder import run_scenes
    from sharegpt4o_image.evaluation.scene_record import combinations_text
    from sharegpt4o_image.evaluation.score_record import score_path

    result = run_scenes(name, items, source, output, command)
    if result is None:  # another process tells
        return
    record, pictures = result
    notes = [combinations_text(record), *_surplus_notes(pictures)]
    if as_json:
        for note in [f"{missing.item}: {missing.reason}" for missing in record.missing] + _surplus_notes(pictures):
            print(note, file=sys.stderr)
    text = "\n".join([record.to_text(), *notes, f"wrote {score_path(output / name, name)}"])
    print_result(record.details, text, as_json)


def _surplus_notes(pictures: "PictureFolder") -> list[str]:
    num = len(pictures.surplus)
    if not num:
        return []
    shown = ", ".join(pictures.surplus[:_NUM_NAMED]) + (", ..." if num > _NUM_NAMED else "")
    return [f"{pictures.path} has {num} more that belong to no item and were not judged: {shown}"]


def _command(name: str, source: "PictureSource", limit: int) -> str:
    """How the run is repeated, without paths and addresses of this machine."""
    from sharegpt4o_image.evaluation.pretrained import short_name

    parts = [f"sharegpt4o-image evaluate {name} --limit {limit}"]
    if source.images is not None:
        return f"{parts[0]} --images IMAGES"
    parts += ["--base-url URL"] if source.base_url else []
    parts += [f"-m {shlex.quote(short_name(source.model))}"] if source.model else []
    parts += [f"--seed {source.seed}"]
    recipe = source.recipe
    parts += [f"--guidance-scale {recipe.guidance_scale}"] if recipe.guidance_scale is not None else []
    parts += [f"--edit-freedom {recipe.edit_freedom}"] if recipe.edit_freedom is not None else []
    parts += [f"--guidance-until {recipe.guidance_until}"] if recipe.guidance_until != 1 else []
    return " ".join(parts)
