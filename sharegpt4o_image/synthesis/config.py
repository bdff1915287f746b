# SPDX-License-Identifier: Apache-2.0
"""What a synthesis run is asked to do: the keys of `configs/synthesis_*.yaml`. The defaults are the offline run."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.yaml_files import describe_fault, read_yaml

MAX_ORDERED = 50_000  # requests that may wait for their jobs at a time: as many as a job takes at most


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageParams(_Part):
    """Parameters of the images API that both routes take; what is left out is not sent."""

    size: str | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    background: Literal["auto", "opaque", "transparent"] | None = None

    def sent(self) -> dict[str, str | int]:
        """The parameters as they go into a request."""
        return self.model_dump(exclude_none=True)


class GenerationParams(ImageParams):
    """Parameters of `/v1/images/generations`."""

    moderation: Literal["auto", "low"] | None = None


class EditParams(ImageParams):
    """Parameters of `/v1/images/edits`."""

    input_fidelity: Literal["low", "high"] | None = None


class ChatParams(_Part):
    """Parameters of `/v1/chat/completions`; what is left out is not sent."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)

    def sent(self) -> dict[str, str | int | float]:
        """The parameters as they go into a request."""
        return self.model_dump(exclude_none=True)


class Price(_Part):
    """US dollars for a million tokens."""

    text_input: float = Field(default=0.0, ge=0)
    image_input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)


class PhotoSet(_Part):
    """Pictures that are not the teacher's: what image-first describes, and what edits may start from.

    Args:
        path (`str`):
            A folder; a manifest (`.json`, `.jsonl` or `.csv`, as ALLaVA's) whose rows name pictures; or the Hub id or
            folder of a data set with an image column.
        layout (`str`, *optional*, defaults to `"auto"`):
            How `path` is read; `auto` tells a folder and a manifest by what is there.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the data set, or key of the manifest, that holds the picture.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the data set.
        origin (`str`, *optional*):
            Where the pictures come from; a row's own `origin` or `url` goes first. Defaults to the name of the path.
        license (`str`, *optional*):
            Terms of pictures whose row names none.
    """

    path: str
    layout: Literal["auto", "folder", "manifest", "dataset"] = "auto"
    image_column: str = "image"
    split: str = "train"
    origin: str | None = None
    license: str | None = None


class Judge(_Part):
    """A model that scores every picture from 0 to 10; those below `threshold` are rejected."""

    model: str
    threshold: int = Field(default=7, ge=0, le=10)


class Gates(_Part):
    """What is asked of a picture before it becomes a record; rejected ones keep their reason and may be published.

    That a picture can be decoded and has the size asked for is always asked. The numbers are our choice.

    Args:
        blank (`bool`): reject pictures of one colour.
        exact_duplicates (`bool`): reject a picture whose bytes the run already has.
        similar_within (`int`, *optional*):
            Reject a picture whose difference hash differs in at most so many of 64 bits from one that the run has, and
            whose colours are as close. A world as small as the offline teacher's repeats itself: leave it out there.
        change (`bool`): reject edits that change nothing to be seen, and local ones that change nearly everything.
        benchmark_prompts (`list`): text or JSON lines files of prompts that no record may repeat.
        judge ([`Judge`], *optional*): ask a model for its opinion.
    """

    blank: bool = True
    exact_duplicates: bool = False
    similar_within: int | None = Field(default=None, ge=0, le=16)
    change: bool = True
    benchmark_prompts: list[str] = Field(default_factory=list)
    judge: Judge | None = None


class SynthesisConfig(_Part):
    """One run: what to make, with which teacher, and how hard to push it.

    Args:
        num_topics (`int`, *optional*, defaults to 200): prompt-first samples.
        num_documents (`int`, *optional*, defaults to 0): samples of the document pipeline.
        num_described (`int`, *optional*, defaults to 0): image-first samples, one for each of the first `photos`.
        num_edits (`int`, *optional*, defaults to 200): samples of the editing pipeline.
        taxonomy (`str`, *optional*, defaults to `"offline"`):
            Name of a taxonomy of the package, or path of a YAML file.
        photos ([`PhotoSet`], *optional*): for image-first, and for edits of photographs.
        image_first_target (`str`, *optional*, defaults to `"regenerated"`):
            The picture of an image-first row: made anew from the description, or the `original`.
        edit_sources (`str`, *optional*, defaults to `"records"`): what edits start from, `records` or `photos`.
        edit_turns (`int`, *optional*, defaults to 1): edits in a row; each starts from the one before.
        two_source_share (`float`, *optional*, defaults to 0): part of the edits that get a second source.
        base_url (`str`, *optional*):
            Endpoint of an OpenAI-compatible teacher; left out, the offline teacher answers in this process. The key
            comes from `OPENAI_API_KEY`.
        prompt_base_url (`str`, *optional*):
            Endpoint of the text teacher where it is another one; its key comes from `PROMPT_API_KEY`.
        teachers (`str`, *optional*): YAML file that adds models to the registry; see `teachers.yaml`.
        prices (`dict`, *optional*): model id -> price, where the registry has none or another one.
        num_workers (`int`, *optional*, defaults to 8): most requests at a time.
        timeout_seconds (`float`, *optional*, defaults to 600): how long an answer may take.
        max_attempts (`int`, *optional*, defaults to 5):
            How often one request is sent when the teacher fails or is out of reach; being asked to wait counts not.
        max_asks (`int`, *optional*, defaults to 3): how often one question is asked when the answers are of no use.
        patience_seconds (`float`, *optional*, defaults to 600):
            The run stops when no request has been answered for so long.
        batch_size (`int`, *optional*, defaults to 200): most requests in one job of `--batch`.
        batch_gather_seconds (`float`, *optional*, defaults to 30):
            A job of `--batch` that is not full is sent when no further request has come for so long.
        open_batches (`int`, *optional*, defaults to 10): most jobs of `--batch` at a time.
        license (`str`, *optional*): terms of the published rows.
    """

    seed: int = 0
    num_topics: int = Field(default=200, ge=0)
    num_documents: int = Field(default=0, ge=0)
    num_described: int = Field(default=0, ge=0)
    num_edits: int = Field(default=200, ge=0)
    taxonomy: str = "offline"
    photos: PhotoSet | None = None
    image_first_target: Literal["regenerated", "original"] = "regenerated"
    edit_sources: Literal["records", "photos"] = "records"
    edit_turns: int = Field(default=1, ge=1, le=10)
    two_source_share: float = Field(default=0.0, ge=0, le=1)
    base_url: str | None = None
    prompt_base_url: str | None = None
    prompt_model: str = "offline-writer-1"
    image_model: str = "offline-painter-1"
    prompt_params: ChatParams = ChatParams()
    image_params: GenerationParams = GenerationParams(size="256x256")
    edit_params: EditParams = EditParams()
    gates: Gates = Gates()
    teachers: str | None = None
    prices: dict[str, Price] = Field(default_factory=dict)
    num_workers: int = Field(default=8, ge=1, le=1000)
    timeout_seconds: float = Field(default=600.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    max_asks: int = Field(default=3, ge=1)
    patience_seconds: float = Field(default=600.0, gt=0)
    batch_size: int = Field(default=200, ge=1, le=50_000)
    batch_gather_seconds: float = Field(default=30.0, ge=0)
    open_batches: int = Field(default=10, ge=1, le=100)
    license: str = "cc-by-nc-4.0"

    def settings_of_rows(self) -> dict[str, Any]:
        """What of it decides the rows and may be published: no addresses, paths or prices."""
        parts = self.model_dump(include={"seed", "prompt_params", "image_params", "edit_params", "gates"}, mode="json")
        lists = parts["gates"].pop("benchmark_prompts")
        return parts | {"gates": parts["gates"] | {"num_benchmark_lists": len(lists)}}

    @field_validator("base_url", "prompt_base_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("the address must not carry a user name or password; set OPENAI_API_KEY instead")
        if parts.scheme not in ("http", "https") or not parts.netloc or not _has_valid_port(parts):
            raise ValueError(f"{url!r} is not an http(s) address such as https://api.openai.com/v1")
        return url

    @model_validator(mode="after")
    def _has_bounded_batches(self) -> "SynthesisConfig":
        if self.batch_size * self.open_batches > MAX_ORDERED:
            raise ValueError(f"batch_size times open_batches is more than {MAX_ORDERED:,}; lower one of them")
        return self

    @model_validator(mode="after")
    def _has_sources(self) -> "SynthesisConfig":
        starts_from_records = self.num_edits and self.edit_sources == "records"
        if starts_from_records and not self.num_topics:
            raise ValueError("edits start from records, and num_topics is 0: set num_topics, or edit_sources: photos")
        if self.photos is None and (self.num_described or (self.num_edits and self.edit_sources == "photos")):
            raise ValueError("photos is missing: say where the photographs are (photos: {path: FOLDER})")
        return self

    def with_limit(self, limit: int | None) -> "SynthesisConfig":
        """The same run with `limit` samples of each pipeline; a pipeline that is switched off (0) stays off."""
        if limit is None:
            return self
        return self.model_copy(update={name: limit for name in _COUNTS if getattr(self, name)})


_COUNTS = ("num_topics", "num_documents", "num_described", "num_edits")


def _has_valid_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:  # beyond 65535
        return False


def load_config(path: Path | None, *, base_url: str | None = None) -> SynthesisConfig:
    """The configuration in a YAML file, or the offline run; `base_url` replaces the endpoint."""
    config = read_yaml(path, SynthesisConfig) if path else SynthesisConfig()
    if base_url is None:
        return config
    try:
        return SynthesisConfig.model_validate({**config.model_dump(), "base_url": base_url})
    except ValidationError as error:
        raise UserError(describe_fault(error)) from error
