# SPDX-License-Identifier: Apache-2.0
"""The spine: what passes between the stages, and the published row.

    Topic -> Prompt -> GeneratedImage -> Record -> one Parquet row of `published_features()`

Ids are hashes of what was asked for, so resuming is a set difference and refactoring never pays twice.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from datasets import Features

Task = Literal["text_to_image", "text_and_image_to_image"]
Pipeline = Literal["prompt_first", "image_first", "document", "editing"]
Origin = Literal["synthesized", "upstream_release"]

TASKS: tuple[Task, ...] = ("text_to_image", "text_and_image_to_image")

ID_LENGTH = 20  # hexadecimal digits of an id: 80 bits, no collision to be expected in 10^9 rows


def content_id(**request: Any) -> str:
    """The id of a request: the beginning of the sha256 of its canonical JSON.

    >>> content_id(stage="prompt", model="m") == content_id(model="m", stage="prompt")
    True
    """
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_LENGTH]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Topic(_Row):
    """What one sample is to be about: a draw from the taxonomy (paper section 2.1, appendix B.1).

    `subject` is what a document is about; the other attributes become columns of the published row.
    """

    id: str
    pipeline: Pipeline
    objects: list[str] = Field(default_factory=list)
    background: str | None = None
    style: str | None = None
    lighting: str | None = None
    camera: str | None = None
    composition: str | None = None
    document_type: str | None = None
    subject: str | None = None
    edit_category: str | None = None
    edit_task: str | None = None


class SourceImage(_Row):
    """A picture that was given to a teacher, to be described or edited; its bytes lie in the run's blob store.

    Args:
        text (`str`, *optional*): the prompt that it was made from, or the caption that it came with.
        origin (`str`): `synthesized`, or where the photograph comes from.
        license (`str`, *optional*): the terms of the picture.
    """

    id: str
    sha256: str
    format: str
    width: int
    height: int
    text: str | None = None
    origin: str
    license: str | None = None


class Prompt(_Row):
    """A prompt or an edit instruction that the text teacher wrote for a topic, or for the picture `described`."""

    id: str
    topic: Topic
    text: str
    prompt_model: str
    served_model: str | None = None
    template_version: str
    described: SourceImage | None = None
    usage: dict[str, Any] = Field(default_factory=dict)
    cost_usd: float = 0.0


class GeneratedImage(_Row):
    """A picture that the image teacher made for a prompt; its bytes lie in the run's blob store under `sha256`.

    Args:
        image_model (`str`, *optional*): `None` for a photograph that is published as it is.
        sources (`tuple`): what was edited, in the order of the request.
        license (`str`, *optional*): the terms of the published row.
        judgement (`dict`, *optional*): what the judge model said.
    """

    id: str
    prompt: Prompt
    sha256: str
    phash: str
    format: str
    width: int
    height: int
    image_model: str | None
    served_model: str | None = None
    image_params: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[SourceImage, ...] = ()
    usage: dict[str, Any] = Field(default_factory=dict)
    cost_usd: float = 0.0
    created_at: str
    license: str | None = None
    judgement: dict[str, Any] | None = None

    def as_source(self) -> SourceImage:
        """The picture as the source of an edit."""
        described = self.prompt.described
        return SourceImage(
            id=self.id,
            sha256=self.sha256,
            format=self.format,
            width=self.width,
            height=self.height,
            text=self.prompt.text,
            origin=described.origin if described and self.image_model is None else "synthesized",
            license=self.license,
        )


class ImageFile(_Row):
    """Encoded picture exactly as received; `path` is only a name."""

    bytes: bytes
    path: str


class Record(_Row):
    """One published row. Columns of the upstream release keep upstream's names; what is not known is null.

    `output_image_resolution` and `input_image_resolution` are `[width, height]` in pixels (the upstream release does
    not say which order it uses). `cost_usd` is what prompt and picture together cost, in US dollars.
    `served_model` is what the text teacher says that answered; the images API names none. Of several sources,
    `source_id`, `source_origin` and `source_license` name all, joined by "; ", and `input_image_resolution` is that of
    the first.
    """

    id: str
    task: Task
    input_prompt: str
    input_image: list[ImageFile] = Field(default_factory=list)
    output_image: ImageFile
    output_image_resolution: list[int]
    input_image_resolution: list[int] | None = None
    pipeline: Pipeline | None = None
    objects: list[str] | None = None
    background: str | None = None
    style: str | None = None
    lighting: str | None = None
    camera: str | None = None
    composition: str | None = None
    document_type: str | None = None
    edit_category: str | None = None
    edit_task: str | None = None
    prompt_model: str | None = None
    image_model: str | None = None
    served_model: str | None = None
    template_version: str | None = None
    image_params: dict[str, Any] | None = None
    source_id: str | None = None
    source_origin: str | None = None
    source_license: str | None = None
    output_sha256: str | None = None
    output_phash: str | None = None
    usage: dict[str, Any] | None = None
    cost_usd: float | None = None
    created_at: str | None = None
    origin: Origin
    license: str | None = None


class RejectedRecord(Record):
    """A row that a quality gate refused: published, if at all, in a set of its own, as a negative."""

    reject_reason: str


class LabelConfidence(_Row):
    """How sure the labelling model is of each label, from 0 to 1; null where it gave none."""

    objects: float | None = None
    style: float | None = None
    lighting: float | None = None
    camera: float | None = None
    composition: float | None = None
    document_type: float | None = None
    edit_category: float | None = None
    edit_task: float | None = None


class LabelledRecord(Record):
    """A row with labels that a model gave afterwards, beside what was known when it was made.

    `label_objects` are the model's own names, in lower case; the other labels are words of the taxonomy of the run
    that labelled. `label_model` is the model that answered, or the one that was asked where the answer gives no
    printable name; it is null where the row has no labels (yet).
    """

    label_objects: list[str] | None = None
    label_style: str | None = None
    label_lighting: str | None = None
    label_camera: str | None = None
    label_composition: str | None = None
    label_document_type: str | None = None
    label_edit_category: str | None = None
    label_edit_task: str | None = None
    label_model: str | None = None
    label_confidence: LabelConfidence | None = None


def published_features(row: type[Record] = Record) -> "Features":
    """The columns of the published data set, in order: the contract of builders, cards, collator and tests.

    `datasets` is imported here and not above, so that `sharegpt4o-image --help` stays fast.
    """
    from datasets import Features, Image, Json, List, Value

    text = Value("string")
    resolution = List(Value("int32"))
    special = {
        "input_image": List(Image()),
        "output_image": Image(),
        "output_image_resolution": resolution,
        "input_image_resolution": resolution,
        "objects": List(text),
        "image_params": Json(),
        "usage": Json(),
        "cost_usd": Value("float64"),
        "label_objects": List(text),
        "label_confidence": {name: Value("float64") for name in LabelConfidence.model_fields},
    }
    return Features({name: special.get(name, text) for name in row.model_fields})
