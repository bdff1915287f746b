# SPDX-License-Identifier: Apache-2.0
"""What is asked about a row, how the answer is read, and how labels are held against what was known."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from picture_records import ListSource, make_record
from PIL import Image

from sharegpt4o_image.builders.enrichment import LabelledSet
from sharegpt4o_image.builders.label_agreement import Agreement, ObjectAgreement, WordAgreement
from sharegpt4o_image.builders.row_labelling import Labelling
from sharegpt4o_image.schema import TASKS, ImageFile, LabelledRecord
from sharegpt4o_image.synthesis import labelling
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Answer
from sharegpt4o_image.synthesis.labelling import (
    NONE,
    PICTURE_LABELS,
    SHOWN_SIDE,
    Labels,
    Subject,
    Vocabulary,
    plan_labels,
    show_pictures,
)
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy

OFFLINE = SynthesisConfig()
WORDS = Vocabulary.of(load_taxonomy("offline"))
NAMES = ("objects", *PICTURE_LABELS)
NOTHING_FITS: dict[str, Any] = dict.fromkeys(NAMES, NONE) | {f"{name}_confidence": 0.5 for name in NAMES}


# --------------------------------------------------------------------------- the question


def test_the_schema_is_flat_and_lists_the_words() -> None:
    for task, names in zip(TASKS, (set(PICTURE_LABELS), set(WORDS.words)), strict=True):
        request = plan_labels(OFFLINE, WORDS, Subject("row", task, "a prompt", ("0",)))
        schema = request.body["response_format"]["json_schema"]["schema"]
        parts = schema["properties"]
        assert schema["required"] == list(parts)
        assert parts["objects"] == {"type": "array", "items": {"type": "string"}}
        assert {name for name, part in parts.items() if "enum" in part} == names
        for name in names:
            assert parts[name] == {"type": "string", "enum": [NONE, *WORDS.words[name]]}
            assert parts[f"{name}_confidence"] == {"type": "number"}
        assert "anyOf" not in json.dumps(schema)


def test_pictures_are_shown_small_upright_and_opaque(tmp_path: Path) -> None:
    def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide = encoded(Image.new("RGB", (2048, 1024), "red"), "JPEG", exif=exif)
    clear = encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG")
    record = make_record(1).model_copy(
        update={
            "input_image": [ImageFile(bytes=wide, path="0.jpg")],
            "output_image": ImageFile(bytes=clear, path="1.png"),
        }
    )
    blobs = BlobStore(tmp_path)
    first, second = show_pictures(record, blobs)
    assert (first.width, first.height) == (SHOWN_SIDE // 2, SHOWN_SIDE)
    assert (second.width, second.height) == (40, 30)
    shown = Image.open(blobs.path_of(second.sha256))
    assert shown.mode == "RGB"
    assert min(low for low, _ in shown.getextrema()) > 250  # type: ignore[misc]


def read_answer(objects: list[str], served_model: str | None = None) -> Labels:
    said = json.dumps(NOTHING_FITS | {"objects": objects})
    request = plan_labels(OFFLINE, WORDS, Subject("row", "text_to_image", "a prompt", ("0",)))
    body = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
    return request.parse(Answer(1, body, None, served_model, {}, 0.0, ""))


def test_more_than_eight_objects_are_dropped_and_counted() -> None:
    names = load_taxonomy("offline").object_leaves[:10]
    labels = read_answer(names)
    assert labels.values["objects"] == names[:8]
    assert labels.dropped == tuple(names[8:])
    assert labels.model == "offline-writer-1"


def test_objects_keep_the_names_that_the_model_gives_if_they_are_names() -> None:
    unfit = ["car\u202ecod", "\x1b[31mred", "", "x" * 61]
    labels = read_answer(["A Person", "the  old\n tree", "person", "caf\u00e9 chair", *unfit])
    assert labels.values["objects"] == ["person", "old tree", "caf\u00e9 chair"]
    assert labels.dropped == tuple(unfit)


@pytest.mark.parametrize("name", ["evil\u202emodel", "red\x1b[31m", "m" * 61, ""])
def test_a_model_without_a_fit_name_is_called_as_it_was_asked(name: str) -> None:
    assert read_answer([], name).model == "offline-writer-1"
    assert read_answer([], "other-1").model == "other-1"


# --------------------------------------------------------------------------- closed forms


def test_kappa_closed_forms() -> None:
    # 20 + 15 of 50 agree: p_o = 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 (Cohen's textbook table)
    pairs = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    column = WordAgreement(Counter(pairs))
    assert (column.agree, column.compared) == (35, 50)
    assert column.kappa == pytest.approx(0.4)
    assert WordAgreement(Counter({("a", "a"): 3, ("b", "b"): 2})).kappa == pytest.approx(1)
    assert WordAgreement(Counter({("a", "a"): 3, ("a", "b"): 2})).kappa is None  # one truth alone
    assert WordAgreement().kappa is None
    assert column.to_text() == "35 of 50 rows agree (70.0 %), kappa 0.40"


def test_object_agreement_closed_forms() -> None:
    column = ObjectAgreement()
    column.add({"cat", "dog"}, {"cat", "dog"})
    column.add({"cat", "dog"}, {"dog", "hat", "cup"})
    column.add({"cat"}, set())
    said = column.to_dict()
    assert (said["agree"], said["compared"]) == (1, 3)
    assert said["jaccard"] == pytest.approx((1 + 1 / 4) / 3)
    assert said["precision"] == pytest.approx((1 + 1 / 3) / 3)
    assert said["recall"] == pytest.approx((1 + 1 / 2) / 3)


def test_agreement_compares_only_what_is_known_and_in_the_vocabulary() -> None:
    agreement = Agreement(WORDS)
    labels = Labels("m", {"style": "outline style", "camera": None, "objects": []}, {})
    known = make_record(0).model_copy(update={"style": "Outline Style", "camera": "fisheye", "objects": None})
    agreement.add(known, labels)
    agreement.add(known.model_copy(update={"style": None, "camera": "close-up"}), labels)
    assert agreement.for_card() == {"style": [1, 1], "camera": [0, 1]}
    assert agreement.words["camera"].num_outside == 1
    assert agreement.words["camera"].pairs == {("close-up", "none"): 1}


def test_objects_that_the_taxonomy_lacks_are_neither_right_nor_wrong() -> None:
    agreement = Agreement(Vocabulary.of(load_taxonomy("paper")))
    record = make_record(0).model_copy(update={"objects": ["tench", "gar (fish)"]})
    agreement.add(record, Labels("m", {"objects": ["gar", "person", "tench", "tree"]}, {"objects": 1.0}))
    assert agreement.for_card() == {"objects": [1, 1]}
    assert agreement.objects.to_dict()["precision"] == 1


def test_labels_that_a_row_came_with_are_read_from_its_columns() -> None:
    labels = Labels("m", {"objects": ["cat"], "style": None}, {"objects": 1.0, "style": 0.25})
    record = make_record(0)
    assert Labels.of(LabelledRecord(**dict(record), **labels.columns())) == labels
    assert Labels.of(LabelledRecord(**dict(record))) is None
    assert Labels.of(record) is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("tench", "tench"),
        ("The Gar", "gar (fish)"),
        ("gar (fish)", "gar (fish)"),
        ("hammerheads", "hammerhead"),
        ("fish", None),
        ("", None),
    ],
)
def test_objects_are_found_by_what_people_call_them(said: str, name: str | None) -> None:
    assert Vocabulary.of(load_taxonomy("paper")).find_object(said) == name


def test_explanations_that_tell_names_apart_are_needed() -> None:
    taxonomy = load_taxonomy("paper")
    both = taxonomy.model_copy(update={"objects": {"all": ["crane (bird)", "crane (machine)", "kite"]}})
    words = Vocabulary.of(both)
    assert words.find_object("crane") is None
    assert words.find_object("crane (bird)") == "crane (bird)"


# --------------------------------------------------------------------------- the source


def test_a_row_changes_with_its_labels_alone() -> None:
    def digests(labels: dict[str, Labels]) -> Iterator[str]:
        return (plan.digest for plan in LabelledSet(ListSource(records), Labelling(Agreement(WORDS), labels)).plan())

    records = [make_record(index) for index in range(3)]
    plans = list(ListSource(records).plan())
    labels = Labels("m", {"objects": ["cat"]}, {"objects": 1.0})
    plain = list(digests({}))
    assert plain == list(digests({}))
    first, *rest = digests({plans[0].location: labels})
    assert first != plain[0]
    assert rest == plain[1:]
    [other, *_] = digests({plans[0].location: Labels("m", {"objects": ["cat"]}, {"objects": 0.5})})
    assert other not in (first, plain[0])


def test_ids_follow_from_all_that_decides_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record(1)
    subject = Subject.of(record)
    assert subject.pictures == tuple(
        hashlib.sha256(image.bytes).hexdigest() for image in (*record.input_image, record.output_image)
    )

    def key(config: SynthesisConfig = OFFLINE, words: Vocabulary = WORDS, **changed: Any) -> str:
        values = {name: getattr(subject, name) for name in ("row", "task", "prompt", "pictures")}
        return plan_labels(config, words, Subject(**(values | changed))).key

    keys = [
        key(),
        key(row="other"),
        key(prompt="other"),
        key(pictures=("0", "1")),
        key(SynthesisConfig(prompt_model="other")),
        key(words=Vocabulary.of(load_taxonomy("paper"))),
    ]
    monkeypatch.setattr(labelling, "SHOWN_SIDE", SHOWN_SIDE // 2)
    keys.append(key())
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
