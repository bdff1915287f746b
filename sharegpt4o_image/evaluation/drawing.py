# SPDX-License-Identifier: Apache-2.0
"""What a benchmark asks a generator for, and the folder that keeps the pictures: one by one, whole or not at all.

    requests -> missing_pictures -> generator.draw -> FOLDER/<request.path>

A folder of pictures belongs to one recipe: `claim_folder` refuses to mix those of two models, or of two seeds.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from sharegpt4o_image.errors import UserError

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class PictureRequest:
    """One picture that a benchmark wants.

    Args:
        path (`str`): of its file, below the folder of pictures; a PNG.
        prompt (`str`): or, with sources, the instruction.
        seed (`int`): of its own generator, so that it does not depend on what else is drawn.
        sources (`tuple`): the pictures to edit.
    """

    path: str
    prompt: str
    seed: int
    sources: tuple[Image.Image | Path, ...] = ()


Keep = Callable[[PictureRequest, Image.Image], None]


class Generator(Protocol):
    """Draws pictures: a model in this process, or an endpoint."""

    @property
    def identity(self) -> dict[str, Any]:
        """Model, revision and sampling recipe, as JSON; no addresses with keys, no paths of pictures."""

    def draw(self, requests: Sequence[PictureRequest], keep: Keep) -> Mapping[str, str]:
        """Draw all requests, calling `keep` for each as soon as its picture is there.

        Returns, for those that get no picture, `path` -> reason.
        """


def claim_folder(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write down, before the first picture, how the pictures of `folder` are drawn; another recipe is refused."""
    path = folder / RECIPE_FILE
    text = json.dumps(recipe, indent=1, ensure_ascii=False)
    if not path.exists():
        _write_first(path, json_bytes(text))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable ({error}); choose another folder with --output") from error
    if found != json.loads(text):
        names = sorted(name for name in {*found, *recipe} if found.get(name) != json.loads(text).get(name))
        raise UserError(
            f"{folder} holds pictures that were drawn with another {', '.join(names)}; "
            "choose another folder with --output, or give what they were drawn with"
        )


def missing_pictures(folder: Path, requests: Iterable[PictureRequest]) -> list[PictureRequest]:
    """The requests whose picture is not in the folder yet."""
    return [request for request in requests if not (folder / request.path).is_file()]


def save_picture(folder: Path, path: str, picture: Image.Image) -> None:
    """Write a picture as PNG; the file appears whole or not at all."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".unfinished-{uuid.uuid4().hex}")
    try:
        picture.save(unfinished, "PNG")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    _unfinished(path, data).replace(path)


def json_bytes(text: str) -> bytes:
    """JSON text as UTF-8; half a character, as in names of files that are no UTF-8, becomes JSON's own escape."""
    return text.encode(errors="backslashreplace")


def _write_first(path: Path, data: bytes) -> None:
    """As [`write_whole`], but of several processes that do it at once the first one wins."""
    unfinished = _unfinished(path, data)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{uuid.uuid4().hex}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return unfinished
