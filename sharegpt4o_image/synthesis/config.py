# SPDX-License-Identifier: Apache-2.0
"""What a synthesis run is asked to do: the keys of `configs/synthesis_*.yaml`. The defaults are the offline run."""

from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.yaml_files import describe_fault, read_yaml


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


class Price(_Part):
    """US dollars for a million tokens."""

    text_input: float = Field(default=0.0, ge=0)
    image_input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)


class SynthesisConfig(_Part):
    """One run: what to make, with which teacher, and how hard to push it.

    Args:
        base_url (`str`, *optional*):
            Endpoint of an OpenAI-compatible teacher; left out, the offline teacher answers in this process. The key
            comes from `OPENAI_API_KEY`.
        taxonomy (`str`, *optional*, defaults to `"offline"`):
            Name of a taxonomy of the package, or path of a YAML file.
        max_attempts (`int`, *optional*, defaults to 5):
            How often one request is sent when the teacher is busy or out of reach.
        max_asks (`int`, *optional*, defaults to 3):
            How often one question is asked when the answers are of no use.
        prices (`dict`, *optional*):
            Model id -> price; the cost of a model that is not listed is counted as 0.
    """

    seed: int = 0
    num_topics: int = Field(default=200, ge=0)
    num_edits: int = Field(default=200, ge=0)
    taxonomy: str = "offline"
    base_url: str | None = None
    prompt_model: str = "offline-writer-1"
    image_model: str = "offline-painter-1"
    image_params: GenerationParams = GenerationParams(size="256x256")
    edit_params: EditParams = EditParams()
    num_workers: int = Field(default=8, ge=1, le=1000)
    timeout_seconds: float = Field(default=600.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    max_asks: int = Field(default=3, ge=1)
    prices: dict[str, Price] = Field(default_factory=dict)
    license: str = "cc-by-nc-4.0"

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("base_url must not carry a user name or password; set OPENAI_API_KEY instead")
        if parts.scheme not in ("http", "https") or not parts.netloc or not _has_valid_port(parts):
            raise ValueError(f"{url!r} is not an http(s) address such as https://api.openai.com/v1")
        return url

    def with_limit(self, limit: int | None) -> "SynthesisConfig":
        """The same run with `limit` topics and as many edits; a route that is switched off (0) stays off."""
        if limit is None:
            return self
        counts = {"num_topics": self.num_topics, "num_edits": self.num_edits}
        return self.model_copy(update={name: limit if count else 0 for name, count in counts.items()})


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
