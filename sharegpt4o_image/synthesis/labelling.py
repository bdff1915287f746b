# SPDX-License-Identifier: Apache-2.0
"""Pictures of a finished row -> labels: what the text teacher is asked, and its answer.

Objects keep the names that the teacher gives them; all other labels are words of the taxonomy. What was known when the
row was made is not shown to the teacher: what agrees with it afterwards agrees by merit.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, create_model

from sharegpt4o_image.schema import LabelConfidence, LabelledRecord, Record, SourceImage, Task, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.pictures import open_picture
from sharegpt4o_image.synthesis.prompts import ask_writer, parse_reply, render_template, writer_id
from sharegpt4o_image.synthesis.requests import TeacherRequest
from sharegpt4o_image.synthesis.taxonomy import Taxonomy

LABEL_TEMPLATE = "label.v1"
NONE = "none"  # the teacher's word for null: some endpoints refuse schemas with unions
MAX_OBJECTS = 8  # the template names the number, too (our choice)
MAX_NAME_LENGTH = 60  # characters of the name of an object or a model (our choice)

# Pictures are shown small, which saves tokens and keeps the run small (our choice).
SHOWN_SIDE, SHOWN_FORMAT, SHOWN_QUALITY = 512, "webp", 85

PICTURE_LABELS = ("style", "lighting", "camera", "composition", "document_type")
EDIT_LABELS = ("edit_category", "edit_task")

_ARTICLE = re.compile(r"^(?:an?|the) ")
_EXPLANATION = re.compile(r" \([^)]*\)$")  # "crane (bird)"

Confidence = Annotated[float, Field(ge=0, le=1)]


# --------------------------------------------------------------------------- words


@dataclass(frozen=True)
class Vocabulary:
    """The words that labels are taken from, and the names that objects are compared by.

    Args:
        name (`str`): that of the taxonomy.
        words (`dict`): label -> its words, for labels that are one word of a list.
        categories (`dict`): edit task -> edit category.
        objects (`dict`): what objects may be called, normalised -> the taxonomy's name.
    """

    name: str
    words: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, str]
    objects: Mapping[str, str]

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> "Vocabulary":
        """The words of a taxonomy; what it has no words for is not asked."""
        words = taxonomy.column_words
        asked = {name: words[name] for name in (*PICTURE_LABELS, *EDIT_LABELS) if words.get(name)}
        return cls(taxonomy.name, asked, taxonomy.edit_categories, _index_objects(taxonomy.object_leaves))

    def words_for(self, task: Task) -> dict[str, tuple[str, ...]]:
        """The lists of the labels that rows of a task get."""
        is_edit = task == "text_and_image_to_image"
        return {name: words for name, words in self.words.items() if is_edit or name not in EDIT_LABELS}

    def find_object(self, name: str) -> str | None:
        """The taxonomy's name of an object: the same words, but for case, article, explanation and plural."""
        wanted = _normalize(name)
        forms = (wanted, wanted.removesuffix("s"), wanted.removesuffix("es"))
        return next((self.objects[form] for form in forms if form in self.objects), None)


def _normalize(name: str) -> str:
    return _ARTICLE.sub("", " ".join(name.lower().split()))


def _is_name(text: str) -> bool:
    """Whether a text is fit to be published as a name: no control or bidirectional characters, and not long."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable()


def _index_objects(names: Iterable[str]) -> dict[str, str]:
    """Normalised name -> name; also without the explanation in brackets, where that leaves no doubt."""
    whole = {_normalize(name): name for name in names}
    short: dict[str, list[str]] = {}
    for wanted, name in whole.items():
        short.setdefault(_EXPLANATION.sub("", wanted), []).append(name)
    return {wanted: found[0] for wanted, found in short.items() if len(found) == 1} | whole


# --------------------------------------------------------------------------- rows and their labels


@dataclass(frozen=True)
class Subject:
    """A row that is to be labelled; `pictures` are the sha256 of its sources and of its result, in this order."""

    row: str
    task: Task
    prompt: str
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, record: Record) -> "Subject":
        """A row as a subject."""
        digests = tuple(hashlib.sha256(data).hexdigest() for data in _pictures_of(record))
        return cls(record.id, record.task, record.input_prompt, digests)


def _pictures_of(record: Record) -> list[bytes]:
    return [*(image.bytes for image in record.input_image), record.output_image.bytes]


@dataclass(frozen=True, slots=True)
class Labels:
    """What a model says of a row.

    Args:
        model (`str`): the one that answered, or that was asked where the answer gives no name fit to be published.
        values (`dict`): label -> a word of the taxonomy, or null; `objects` -> the teacher's own names, in lower case
            and without an article.
        confidence (`dict`): label -> how sure the model is, 0..1.
        dropped (`tuple`): names of objects that were too many, or are no names: empty, long, or not printable.
    """

    model: str
    values: dict[str, Any]
    confidence: dict[str, float]
    dropped: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Record) -> "Labels | None":
        """The labels that a row came with."""
        if not isinstance(record, LabelledRecord) or record.label_model is None or record.label_confidence is None:
            return None
        confidence = record.label_confidence.model_dump(exclude_none=True)
        return cls(record.label_model, {name: getattr(record, f"label_{name}") for name in confidence}, confidence)

    def columns(self) -> dict[str, Any]:
        """The label columns of the row."""
        values = {f"label_{name}": value for name, value in self.values.items()}
        return values | {"label_model": self.model, "label_confidence": LabelConfidence(**self.confidence)}


def show_pictures(record: Record, blobs: BlobStore) -> tuple[SourceImage, ...]:
    """The pictures of a row as the teacher sees them; raises `UnreadablePicture`."""
    return tuple(_show(data, blobs) for data in _pictures_of(record))


def _show(data: bytes, blobs: BlobStore) -> SourceImage:
    image = ImageOps.exif_transpose(open_picture(data)).convert("RGBA")
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    buffer = io.BytesIO()
    opaque.save(buffer, SHOWN_FORMAT.upper(), quality=SHOWN_QUALITY)
    sha256 = blobs.write(buffer.getvalue())
    return SourceImage(
        id=sha256, sha256=sha256, format=SHOWN_FORMAT, width=image.width, height=image.height, origin="labelled row"
    )


# --------------------------------------------------------------------------- the question


def settings_of_labels(config: SynthesisConfig) -> dict[str, Any]:
    """What decides the labels beside the model and the taxonomy, and may be published."""
    shown = {"max_side": SHOWN_SIDE, "format": SHOWN_FORMAT, "quality": SHOWN_QUALITY}
    params = config.prompt_params.model_dump(mode="json")
    return {"prompt_params": params, "template": LABEL_TEMPLATE, "shown_pictures": shown}


def plan_labels(
    config: SynthesisConfig, vocabulary: Vocabulary, subject: Subject, shown: tuple[SourceImage, ...] = ()
) -> TeacherRequest[Labels]:
    """Ask the text teacher for the labels of a row.

    `shown` are the row's pictures for the teacher; they are not needed to read an answer that the journal has.
    """
    words = vocabulary.words_for(subject.task)
    reply = _reply_in(tuple(words.items()))
    key = writer_id(
        config,
        "label",
        LABEL_TEMPLATE,
        vocabulary=_words_id(tuple(words.items())),
        row=subject.row,
        prompt=subject.prompt,
        pictures=list(subject.pictures),
        shown=[SHOWN_SIDE, SHOWN_FORMAT, SHOWN_QUALITY],
    )

    def parse(answer: Answer) -> Labels:
        said = parse_reply(answer, reply).model_dump()
        served = answer.served_model
        return _read_labels(said, words, vocabulary, served if served and _is_name(served) else config.prompt_model)

    said_of = "prompt" if subject.task == "text_to_image" else "instruction"
    task = json.dumps({"label": subject.task, said_of: subject.prompt}, ensure_ascii=False)
    message = render_template(LABEL_TEMPLATE, task=task)
    return ask_writer(config, key, "label", message, reply, parse, shown)


@cache
def _words_id(words: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    return content_id(words=words)


@cache
def _reply_in(words: tuple[tuple[str, tuple[str, ...]], ...]) -> type[BaseModel]:
    """The JSON in which the teacher answers: objects in its own words, all else in those of the lists."""
    fields: dict[str, Any] = {"objects": (list[str], ...), "objects_confidence": (Confidence, ...)}
    for name, choices in words:
        fields[name] = (Literal[(NONE, *choices)], ...)
        fields[f"{name}_confidence"] = (Confidence, ...)
    model: type[BaseModel] = create_model("LabelReply", __config__=ConfigDict(extra="forbid"), **fields)
    return model


def _read_labels(said: Mapping[str, Any], words: Iterable[str], vocabulary: Vocabulary, model: str) -> Labels:
    values: dict[str, Any] = {name: None if said[name] == NONE else said[name] for name in words}
    task, category = values.get("edit_task"), values.get("edit_category")
    if task is not None and category != vocabulary.categories[task]:
        raise InvalidAnswer(f"the edit task {task!r} is not of the category {category!r}")
    named = list(dict.fromkeys(_normalize(name) for name in said["objects"]))
    values["objects"] = [name for name in named if _is_name(name)][:MAX_OBJECTS]
    dropped = tuple(name for name in named if name not in values["objects"])
    confidence = {name: said[f"{name}_confidence"] for name in ("objects", *words)}
    return Labels(model, values, confidence, dropped)
