# SPDX-License-Identifier: Apache-2.0
"""Pictures of a finished row -> labels in the words of the taxonomy: what the text teacher is asked, and its answer.

What was known when the row was made is not shown to the teacher: what agrees with it afterwards agrees by merit.
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

from sharegpt4o_image.schema import LabelConfidence, Record, SourceImage, Task, content_id
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
    """The words that labels are taken from.

    Args:
        words (`dict`): label -> its words, for labels that are one word of a list.
        categories (`dict`): edit task -> edit category.
        objects (`dict`): what objects may be called, normalised -> the taxonomy's name.
    """

    words: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, str]
    objects: Mapping[str, str]

    @classmethod
    def of(cls, taxonomy: Taxonomy) -> "Vocabulary":
        """The words of a taxonomy; what it has no words for is not asked."""
        words: dict[str, tuple[str, ...]] = {
            str(name): tuple(leaf for group in dimension.groups.values() for leaf in group.leaves)
            for name, dimension in taxonomy.dimensions.items()
        }
        words["document_type"] = tuple(taxonomy.documents.types) if taxonomy.documents else ()
        categories = {edit.task: edit.category for edit in taxonomy.edits}
        words["edit_category"] = tuple(dict.fromkeys(categories.values()))
        words["edit_task"] = tuple(categories)
        asked = {name: words[name] for name in (*PICTURE_LABELS, *EDIT_LABELS) if words.get(name)}
        return cls(asked, categories, _index_objects(taxonomy.object_leaves))

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
    return _ARTICLE.sub("", " ".join(name.casefold().split()))


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
        model (`str`): the one that answered, or that was asked where the answer does not say.
        values (`dict`): label -> words of the taxonomy, or null.
        confidence (`dict`): label -> how sure the model is, 0..1.
        dropped (`tuple`): names of objects that the taxonomy does not have, or that were too many.
    """

    model: str
    values: dict[str, Any]
    confidence: dict[str, float]
    dropped: tuple[str, ...] = ()

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
    )

    def parse(answer: Answer) -> Labels:
        said = parse_reply(answer, reply).model_dump()
        return _read_labels(said, words, vocabulary, answer.served_model or config.prompt_model)

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
    found = {name: vocabulary.find_object(name) for name in named}
    known = list(dict.fromkeys(name for name in found.values() if name is not None))
    dropped = tuple(name for name, match in found.items() if match is None or match in known[MAX_OBJECTS:])
    values["objects"] = known[:MAX_OBJECTS]
    confidence = {name: said[f"{name}_confidence"] for name in ("objects", *words)}
    return Labels(model, values, confidence, dropped)
