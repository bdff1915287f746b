# SPDX-License-Identifier: Apache-2.0
"""ImgEdit's source and edited pictures: where they lie, which are missing, and what is asked of a generator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe
from sharegpt4o_image.evaluation.drawing import PictureRequest
from sharegpt4o_image.evaluation.imgedit_items import Benchmark
from sharegpt4o_image.evaluation.imgedit_judgement import Edit

Geometry = Literal["raw384", "unpad", "unpad_resize_to_source"]  # see `edit_geometry`


@dataclass(frozen=True)
class PictureSource:
    """Where the edited pictures come from: exactly one of a folder, a checkpoint and an endpoint.

    Args:
        images (`Path`, *optional*): folder of `<key>.png`.
        model (`str`, *optional*): checkpoint, or with `base_url` the name there.
        base_url (`str`, *optional*): of an endpoint that edits.
        recipe ([`SamplingRecipe`]): of a checkpoint.
        geometry (`str`, *optional*): of a checkpoint's edits, see `edit_geometry`.
        seed (`int`): of the first item.
    """

    images: Path | None = None
    model: str | None = None
    base_url: str | None = None
    recipe: SamplingRecipe = field(default_factory=SamplingRecipe)
    geometry: Geometry | None = None
    seed: int = 0


def find_missing_origins(benchmark: Benchmark) -> dict[str, str]:
    """Item -> why it has no source picture; a folder without any is refused."""
    missing = {
        key: f"its source picture {item.source} is not in {benchmark.origins}"
        for key, item in benchmark.items.items()
        if not benchmark.origin_of(key).is_file()
    }
    if len(missing) == len(benchmark.items):
        example = next(iter(benchmark.items.values())).source
        raise UserError(
            f"{benchmark.origins} has none of the source pictures, such as {example}; give --origins the folder that "
            "their paths start from (Benchmark/singleturn of ImgEdit's Benchmark.tar)"
        )
    return missing


def read_folder(benchmark: Benchmark, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Item -> why a given folder has no picture of it; and the names of what else lies there."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder of edited pictures with --images")
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    expected = {f"{key}.png" for key in benchmark.all_items}
    unexpected = sorted(name for name in found - expected if not name.endswith((".json", ".jsonl")))
    if not any(f"{key}.png" in found for key in benchmark.items):
        key, other = next(iter(benchmark.items)), f", it has {unexpected[0]}" if unexpected else ""
        raise UserError(
            f"{folder} has no edited picture of the {len(benchmark.items)} that are to be judged{other}; they are "
            f"named after the keys of the items, such as {key}.png"
        )
    missing = {}
    for key in benchmark.items:
        if f"{key}.png" not in found:
            namesakes = [name for name in unexpected if Path(name).stem == key]
            other = f", only {namesakes[0]}, which is not judged" if namesakes else ""
            missing[key] = f"there is no edited picture {key}.png{other}"
    return missing, unexpected


def picture_requests(
    benchmark: Benchmark, source: PictureSource, origin_faults: Mapping[str, str]
) -> list[PictureRequest]:
    """What is asked of the generator: an edit of every source that is there."""
    place = {key: index for index, key in enumerate(benchmark.all_items)}
    return [
        PictureRequest(f"{key}.png", item.prompt, source.seed + place[key], (benchmark.origin_of(key),))
        for key, item in benchmark.items.items()
        if key not in origin_faults
    ]


def edits_of(benchmark: Benchmark, folder: Path, faults: Mapping[str, str]) -> list[Edit]:
    """What is judged: items with both pictures."""
    return [
        Edit.of(
            key,
            item.edit_type,
            benchmark.templates[item.edit_type],
            item.prompt,
            benchmark.origin_of(key),
            folder / f"{key}.png",
        )
        for key, item in benchmark.items.items()
        if key not in faults
    ]
