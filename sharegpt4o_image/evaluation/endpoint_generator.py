# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible image endpoint as the generator of a benchmark; every answer is kept in a journal.

The API takes no seed: two pictures of one prompt differ by chance alone. The seed, and the picture's path, tell their
requests apart, so that each is asked for, and paid, once.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import ExifTags, Image, ImageOps

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.asking import Asking, Question, ask_all, endpoint_config
from sharegpt4o_image.evaluation.drawing import Keep, PictureRequest
from sharegpt4o_image.schema import SourceImage, content_id
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import EditParams, GenerationParams
from sharegpt4o_image.synthesis.images import check_picture
from sharegpt4o_image.synthesis.journal import Answer, Journal
from sharegpt4o_image.synthesis.pictures import FORMATS, UnreadablePicture, open_picture
from sharegpt4o_image.synthesis.requests import EDITS, GENERATIONS, TeacherRequest

OFFLINE = "offline teacher"

_SENT_AS_THEY_ARE = ("PNG", "JPEG")


class EndpointGenerator:
    """Draws over HTTP, several pictures at a time."""

    def __init__(
        self,
        base_url: str | None,
        model: str,
        run_dir: Path,
        budget_usd: float | None = None,
        size: str | None = None,
        **settings: Any,
    ) -> None:
        """Draw with `model` at an endpoint whose key is in `OPENAI_API_KEY`.

        Args:
            base_url: of the endpoint; without one, the offline teacher draws in this process.
            model: its name there.
            run_dir: of the journal, which one process at a time holds.
            budget_usd: the most that all invocations together may cost; needs a price.
            size: such as `1024x1024`; left out, it is not sent, and the endpoint chooses.
            settings: further fields of `SynthesisConfig`, such as `num_workers` or `prices`.
        """
        params = {"image_params": GenerationParams(size=size), "edit_params": EditParams(size=size)}
        self._config = endpoint_config(base_url, model, **settings, **params)
        self._run_dir = run_dir
        self._budget_usd = budget_usd

    @property
    def identity(self) -> dict[str, Any]:
        """Model, host and what is sent beside the prompt."""
        base_url = self._config.base_url
        return {
            "model": self._config.image_model,
            "endpoint": OFFLINE if base_url is None else urlsplit(base_url).hostname,
            "image_params": self._config.image_params.sent(),
            "sends_seed": False,
        }

    def draw(self, requests: Sequence[PictureRequest], keep: Keep) -> Mapping[str, str]:
        """Ask for all pictures; what the journal has is not asked for again.

        Returns why the endpoint refused, or failed to draw, the others. Raises [`UserError`] where it would draw no
        further one, where the budget is spent, and after Ctrl-C; what is drawn by then is kept.
        """
        drawing = _Drawing(self, requests, keep)
        asking = ask_all(drawing.questions, self._run_dir, self._config, "image", self._budget_usd)
        _raise_stop(asking, drawing.num_drawn, len(requests))
        return drawing.without_picture | self._explain(drawing.refused)

    def _explain(self, refused: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        """Path -> reason; what moderation refused is told apart from what could not be drawn."""
        if not refused:
            return {}
        with closing(Journal.open(self._run_dir)) as journal:
            blocks = {path: journal.recall(key).block for path, (key, _) in refused.items()}
        return {
            path: f"refused by moderation: {block}" if (block := blocks[path]) else f"not drawn: {reason}"
            for path, (_, reason) in refused.items()
        }

    def plan(
        self, request: PictureRequest, sources: tuple[SourceImage, ...], blobs: BlobStore
    ) -> TeacherRequest[Image.Image]:
        """What is sent for a picture."""
        config = self._config
        params = config.edit_params.sent() if sources else config.image_params.sent()
        key = content_id(
            stage="edit" if sources else "image",
            model=config.image_model,
            parameters=params,
            prompt=request.prompt,
            sources=[source.sha256 for source in sources],
            path=request.path,
            seed=request.seed,
        )

        def parse(answer: Answer) -> Image.Image:
            sha256, _ = check_picture(answer, blobs, params)
            return _as_png_can(open_picture(blobs.read(sha256)))

        body = {"model": config.image_model, "prompt": request.prompt, "n": 1, **params}
        if sources:
            return TeacherRequest(key, "edit", config.image_model, EDITS, body, parse, sources)
        return TeacherRequest(key, "image", config.image_model, GENERATIONS, body, parse)


class _Drawing:
    """One call of `draw`: makes its questions, and takes their answers."""

    def __init__(self, generator: EndpointGenerator, requests: Sequence[PictureRequest], keep: Keep) -> None:
        self.num_drawn = 0
        self.refused: dict[str, tuple[str, str]] = {}  # path -> key of the request, reason
        self.without_picture: dict[str, str] = {}  # path -> reason, for any other fault
        self._generator = generator
        self._requests = requests
        self._keep = keep

    def questions(self, blobs: BlobStore) -> Iterator[Question[Image.Image]]:
        """One by one; the sources of a picture are read when it is asked for."""
        for request in self._requests:
            try:
                sources = tuple(_store(source, blobs) for source in request.sources)
            except UnreadablePicture as fault:
                self.without_picture[request.path] = str(fault)
                continue
            yield self._question(request, self._generator.plan(request, sources, blobs))

    def _question(self, request: PictureRequest, asked: TeacherRequest[Image.Image]) -> Question[Image.Image]:
        def keep(picture: Image.Image) -> None:
            self._keep(request, picture)
            self.num_drawn += 1

        def refuse(reason: str) -> None:
            self.refused[request.path] = asked.key, reason

        def leave(reason: str) -> None:
            self.without_picture[request.path] = f"not drawn yet: {reason}"

        return Question(asked, keep, refuse, leave)


def _raise_stop(asking: Asking, num_drawn: int, num_requests: int) -> None:
    """Tell of what ended the drawing before its time: the pictures so far are no sample of all."""
    kept = f"{num_drawn:,} of {num_requests:,} pictures were drawn and are kept"
    if asking.end_of_budget is not None:
        raise UserError(f"{asking.end_of_budget}; {kept}, run again with a larger --budget for the rest")
    if asking.is_interrupted:
        raise UserError(f"stopped; {kept}, run the same command again for the rest")


# ------------------------------------------------------------------ pictures


def _store(source: Image.Image | Path, blobs: BlobStore) -> SourceImage:
    """Write a source for the endpoint: an upright PNG or JPEG file as it is, all else as PNG."""
    data, picture = _read(source) if isinstance(source, Path) else (None, source)
    form = str(picture.format)
    if data is None or form not in _SENT_AS_THEY_ARE or ExifTags.Base.Orientation in picture.getexif():
        picture, form = ImageOps.exif_transpose(picture), "PNG"
        data = _encode(_as_png_can(picture))
    sha256 = blobs.write(data)
    return SourceImage(
        id=sha256,
        sha256=sha256,
        format=form.lower(),
        width=picture.width,
        height=picture.height,
        origin="benchmark",
    )


def _read(path: Path) -> tuple[bytes, Image.Image]:
    """The file and its picture; raises [`UnreadablePicture`] with a sentence for the user."""
    try:
        data = path.read_bytes()
        return data, open_picture(data)
    except OSError as error:
        raise UnreadablePicture(f"its source {path.name} cannot be read ({error.strerror})") from error
    except UnreadablePicture as error:
        raise UnreadablePicture(f"its source {path.name} is no whole {', '.join(FORMATS)} picture") from error


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _as_png_can(picture: Image.Image) -> Image.Image:
    """As RGB or RGBA: PNG knows neither CMYK nor frames."""
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
