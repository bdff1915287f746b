# SPDX-License-Identifier: Apache-2.0
"""What every benchmark does alike: choose the generator, draw what is missing, share the work, show failures.

Started by `accelerate launch`, each process draws and judges every n-th item; the main one adds up.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sharegpt4o_image.checkpoints import TINY_JANUS_4O
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.contact_sheet import contact_sheet
from sharegpt4o_image.evaluation.drawing import (
    Generator,
    PictureRequest,
    claim_folder,
    missing_pictures,
    save_picture,
)

if TYPE_CHECKING:
    from accelerate import PartialState

Item = TypeVar("Item")

MAX_FAILURES_SHOWN = 40  # rows of a contact sheet (our choice)
_PATIENCE = timedelta(days=1)  # that one process waits for another, whose share may take longer (our choice)


@dataclass(frozen=True)
class SamplingRecipe:
    """How a local checkpoint draws; what is `None` is the checkpoint's own default."""

    guidance_scale: float | None = None
    edit_freedom: float | None = None
    guidance_until: float = 1.0


@dataclass(frozen=True)
class Share:
    """The part of the work that falls to this process: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process adds up and prints."""
        return self.rank == 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `world`-th item."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            _process_group().wait_for_everyone()


def current_share() -> Share:
    """All of the work, or under `accelerate launch` with several processes the part of this one.

    From then on `cuda` is the GPU of this process, so this is asked before any model is loaded.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    state = _process_group()
    return Share(state.process_index, state.num_processes)


def _process_group() -> "PartialState":
    import torch
    from accelerate import PartialState

    # without `cpu` it takes no launcher's CPUs
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def make_generator(
    model: str | None,
    base_url: str | None,
    recipe: SamplingRecipe,
    run_dir: Path,
    budget_usd: float | None = None,
) -> Generator:
    """What draws the pictures.

    Args:
        model (`str`, *optional*): checkpoint, `tiny-janus-4o` by default; with `base_url` the model's name there.
        base_url (`str`, *optional*): an OpenAI-compatible endpoint.
        recipe ([`SamplingRecipe`]): of a local checkpoint.
        run_dir (`Path`): where the answers of an endpoint are kept.
        budget_usd (`float`, *optional*): the most that an endpoint may cost.
    """
    share = current_share()
    if base_url is None:
        from sharegpt4o_image.evaluation.model_generator import ModelGenerator

        return ModelGenerator.from_pretrained(model or TINY_JANUS_4O, recipe)
    if model is None:
        raise UserError("--base-url needs the name of the model there; give --model NAME")
    if recipe != SamplingRecipe():
        raise UserError("guidance and edit freedom belong to a local checkpoint; leave them out with --base-url")
    if share.world > 1:
        raise UserError("an endpoint is asked many things at once by one process; leave the launcher out")
    from sharegpt4o_image.evaluation.endpoint_generator import EndpointGenerator

    return EndpointGenerator(base_url, model, run_dir, budget_usd)


def progress_bar() -> Progress:
    """Bars on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def draw_pictures(
    generator: Generator, requests: Sequence[PictureRequest], folder: Path, seed: int, share: Share, label: str
) -> dict[str, str]:
    """Draw what is missing of this process's share.

    Args:
        generator ([`Generator`]): what draws.
        requests (sequence): all pictures of the benchmark.
        folder (`Path`): of the pictures; it is claimed for this generator and seed.
        seed (`int`): that the requests' own seeds come from.
        share ([`Share`]): of this process.
        label (`str`): for the progress bar.

    Returns `path` -> reason for the requests of the share that got no picture.
    """
    claim_folder(folder, {**generator.identity, "seed": seed})
    mine = share.of(requests)
    missing = missing_pictures(folder, mine)
    with progress_bar() as progress:
        bar = progress.add_task(label, total=len(mine), completed=len(mine) - len(missing), visible=share.is_main)

        def keep(request: PictureRequest, picture: Image.Image) -> None:
            save_picture(folder, request.path, picture)
            progress.advance(bar)

        if not missing:
            return {}
        started = time.monotonic()
        undrawn = dict(generator.draw(missing, keep))
        if share.is_main:
            progress.console.print(speed_text("drew", len(missing) - len(undrawn), started, share))
    return undrawn


def speed_text(done: str, num_pictures: int, started: float, share: Share) -> str:
    """How fast this process was: `drew 8 pictures, 2.50 a second`."""
    rate = num_pictures / max(time.monotonic() - started, 1e-9)
    where = f" (process 1 of {share.world})" if share.world > 1 else ""
    return f"{done} {num_pictures:,} pictures, {rate:.2f} a second{where}"


def failure_sheet(
    rows: Sequence[tuple[str, Sequence[Path | Image.Image | None]]], path: Path, columns: Sequence[str]
) -> None:
    """Write a contact sheet of what went wrong: at most `MAX_FAILURES_SHOWN` rows, and how many more there are.

    Without failures an older sheet is removed.
    """
    if not rows:
        path.unlink(missing_ok=True)
        return
    shown = [(text, [_opened(picture) for picture in pictures]) for text, pictures in rows[:MAX_FAILURES_SHOWN]]
    if (more := len(rows) - len(shown)) > 0:
        shown.append((f"... and {more:,} more", []))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(columns, shown).save(path)


def _opened(picture: Path | Image.Image | None) -> Image.Image | None:
    if not isinstance(picture, Path):
        return picture
    try:
        with Image.open(picture) as opened:
            return opened.convert("RGB")
    except Exception:  # a sheet is shown without what Pillow cannot read; its reason stands in the text
        return None
