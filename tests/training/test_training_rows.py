# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be used are named, one by one or before the first step; nothing is skipped silently."""

import hashlib
import io
import random
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value
from encoded_set import encoded_set
from PIL import Image as PILImage

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.encoding import load_training_rows
from sharegpt4o_image.training.row_checks import checked_rows, number_of_sources
from sharegpt4o_image.training.tiny_model import NUM_CODES, tiny_config, tiny_processor
from sharegpt4o_image.training.training_rows import SampleKey, TrainingRows, without_decoding

P = 64
CODES = list(range(P))
FEATURES = {
    "id": Value("string"),
    "task": Value("string"),
    "input_prompt": Value("string"),
    "input_image": List(Image()),
    "output_image": Image(),
    "target_codes": List(Value("uint16")),
    "source_codes": List(List(Value("uint16"))),
    "source_sha256": List(Value("string")),
}


def encoded_picture(image_format="PNG", seed=0):
    noise = random.Random(seed).randbytes(64 * 64 * 3)
    buffer = io.BytesIO()
    PILImage.frombytes("RGB", (64, 64), noise).save(buffer, image_format)
    return buffer.getvalue()


PICTURE = {"bytes": encoded_picture(), "path": None}


def dataset(*rows):
    names = [name for name in FEATURES if any(name in row for row in rows)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Dataset.from_dict(columns, features=Features({name: FEATURES[name] for name in names}))


def edit(**fields):
    return {"input_prompt": "make it red", "input_image": [PICTURE], "target_codes": CODES} | fields


@pytest.fixture(scope="module")
def processor():
    return tiny_processor([])


@pytest.fixture(scope="module")
def check(processor):
    config = tiny_config(processor)
    return lambda rows: checked_rows(rows, "train_dataset", config, processor)


def skipped(**fields):
    return TrainingRows(dataset(edit(**fields)))[0].get("skipped")


def test_a_sample_has_its_pictures_and_its_key():
    row = TrainingRows(dataset(edit(id="e")))[SampleKey(3, 0, 2)]
    assert (row["id"], row["epoch"], row["repetition"]) == ("e", 3, 2)
    assert row["input_image"][0].size == (64, 64)
    assert "skipped" not in row
    assert TrainingRows(dataset(edit()))[SampleKey(3, None)]["is_blank"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input_image": [{"bytes": b"no picture", "path": None}]}, "cannot identify image file"),
        (
            {"input_image": [{"bytes": PICTURE["bytes"][:5000], "path": None}]},
            "cannot be read (image file is truncated",
        ),
        ({"input_image": [{"bytes": None, "path": "gone.png"}]}, "There is no picture gone.png"),
        ({"input_image": [None]}, "a picture is missing"),
        ({"source_codes": [CODES, CODES]}, "2 blocks of source codes for 1 input images"),
        ({"source_sha256": ["0" * 64]}, "not the one that was encoded"),
        ({"target_codes": None}, "it has no target codes"),
        ({"input_prompt": None}, "it has no prompt"),
    ],
)
def test_why_a_row_cannot_be_used(fields, reason):
    rows = TrainingRows(dataset(edit(**fields), edit()))
    assert reason in rows[0]["skipped"]
    assert rows[0]["is_blank"]
    assert "skipped" not in rows[1]


def test_the_right_hash_and_the_right_task_are_fine():
    sha256 = hashlib.sha256(PICTURE["bytes"]).hexdigest()
    assert skipped(source_sha256=[sha256], task="text_and_image_to_image", source_codes=[CODES]) is None


def test_a_target_that_cannot_be_read_matters_only_without_codes():
    broken = {"bytes": b"", "path": None}
    assert skipped(output_image=broken) is None
    without_codes = {"input_prompt": "a", "input_image": [], "output_image": broken}
    assert "cannot identify" in TrainingRows(dataset(without_codes))[0]["skipped"]


def test_whatever_pillow_raises_for_a_picture_is_a_reason():
    whole = encoded_picture("DDS")
    without_format = whole[:80] + bytes(4) + whole[84:]  # Pillow: NotImplementedError
    reason = skipped(input_image=[{"bytes": without_format, "path": None}])
    assert reason == "Unknown pixel format flags 0"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_damaged_picture_never_raises(image_format):
    """Whatever Pillow raises for bytes that were flipped or cut, the row is skipped by name or read."""
    rng = random.Random(0)
    whole = encoded_picture(image_format)
    damaged = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 8, 64))):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        damaged.append(edit(input_image=[{"bytes": bytes(data[: rng.randrange(8, len(data))]), "path": None}]))
    rows = TrainingRows(dataset(*damaged))
    reasons = [rows[i].get("skipped") for i in range(len(rows))]
    assert sum(reason is not None for reason in reasons) > 10
    assert all(reason for reason in reasons if reason is not None)


# ------------------------------------------------------------------ before the first step


def test_numbers_of_sources_follow_a_choice_of_rows():
    rows = dataset(edit(), edit(input_image=[]), edit(input_image=[PICTURE, PICTURE]), edit(input_image=None))
    assert number_of_sources(rows) == [1, 0, 2, 0]
    assert number_of_sources(rows.select([2, 0])) == [2, 1]
    assert number_of_sources(rows.select_columns(["input_prompt"])) == [0] * 4


def test_rows_that_fit_come_back_undecoded(check):
    rows = check(dataset(edit(source_codes=[CODES])).select([0]))
    assert rows[0]["input_image"] == [PICTURE]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"input_prompt": ["a"]}, "train_dataset is a dict; give a datasets.Dataset"),
        (dataset(edit()).to_iterable_dataset(), "train_dataset is a IterableDataset"),
        (None, "train_dataset is a NoneType"),
        (dataset(edit()).with_transform(lambda row: row), "train_dataset has a transform, which is not applied here"),
        (dataset(edit()).select([]), "train_dataset has no rows"),
        (Dataset.from_dict({"text": ["a"]}), "have the columns text; needed are input_prompt"),
        (Dataset.from_dict({"input_prompt": [1], "target_codes": [CODES]}),
         "The column input_prompt is of the type Value('int64'); give strings"),
        (Dataset.from_dict({"input_prompt": ["a"], "target_codes": [CODES], "input_image": [[3]]}),
         "The column input_image is of the type List(Value('int64')); give pictures"),
        (Dataset.from_dict({"input_prompt": ["a"], "output_image": [3]}), "The column output_image is of the type"),
        (Dataset.from_dict({"input_prompt": ["a"], "target_codes": ["1"]}), "The column target_codes is of the type"),
        (Dataset.from_dict({"input_prompt": ["a"], "target_codes": [[0.5] * P]}), "give lists of whole numbers"),
        (Dataset.from_dict({"input_prompt": ["a"], "target_codes": [CODES], "source_codes": [CODES]}),
         "The column source_codes is of the type List(Value('int64')); give lists of lists"),
        (dataset(edit(target_codes=[*CODES[1:], None])), "One of the target_codes has an empty place"),
        (dataset(edit(id="one"), edit(id="two"), edit(id="one")), "The id one comes 2 times; give each row an id"),
        (dataset(edit(), edit(id="t", task="text_to_image"), edit(id="u", task="text_to_image")),
         "The row t is a text_to_image row with 1 input images (and 1 more); mend its task"),
        (dataset(edit(task="text_and_image_to_image", input_image=[])),
         "The row 0 is a text_and_image_to_image row with 0 input images; mend"),
        (dataset(edit(), edit(id="short", target_codes=[1, 2])), "The row short has 2 target_codes"),
        (dataset(edit(id="few", source_codes=[CODES, [1]])), "The row few has 1 source_codes"),
        (dataset(edit(), edit(target_codes=None), edit(id="high", target_codes=[*CODES[1:], NUM_CODES])),
         f"The row high has {NUM_CODES} among its target_codes; the codebook has 0 to {NUM_CODES - 1}"),
        (dataset(edit(source_codes=None), edit(id="far", source_codes=[CODES, [60000] * P])),
         "The row far has 60000 among its source_codes"),
        (dataset(edit(id="long", input_prompt="word " * 400)), "The row long has 2"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_are_refused(check, rows, message):
    with pytest.raises(UserError) as error:
        check(rows)
    assert message in str(error.value)


def test_rows_without_an_id_are_named_by_their_number(check):
    rows = check(dataset(edit(id=None), edit(id="e"), edit(id=None)))
    assert [TrainingRows(rows)[i]["id"] for i in range(3)] == ["0", "e", "2"]


def test_a_row_without_a_prompt_is_left_to_be_skipped(check):
    assert "it has no prompt" in TrainingRows(check(dataset(edit(input_prompt=None), edit())))[0]["skipped"]


def test_pictures_may_be_paths_or_single_ones(check, tmp_path):
    path = tmp_path / "source.png"
    path.write_bytes(PICTURE["bytes"])
    plain = {"input_prompt": ["a", "b"], "target_codes": [CODES] * 2}
    single = Features({"input_prompt": Value("string"), "target_codes": List(Value("uint16")), "input_image": Image()})
    for sources, features in (
        ([str(path), ""], None),
        ([[str(path)], []], None),
        ([PICTURE, None], single),
        ([str(path), None], single),
    ):
        rows = check(Dataset.from_dict(plain | {"input_image": sources}, features=features))
        assert number_of_sources(rows) == [1, 0]
        read = [TrainingRows(rows)[i] for i in range(2)]
        assert [[one.size for one in row["input_image"]] for row in read] == [[(64, 64)], []]
    as_path = Dataset.from_dict({"input_prompt": ["a"], "output_image": [str(path)]})
    assert TrainingRows(check(as_path))[0]["output_image"].size == (64, 64)


def test_undecoded_rows_are_a_view_of_the_same_table():
    """`cast_column` would write the lists of pictures to the disk once more."""
    decoded = dataset(edit(output_image=PICTURE), edit()).select([1, 0])
    rows = without_decoding(decoded)
    assert rows.data.table is decoded.data.table
    assert rows[1]["input_image"] == [PICTURE]
    assert rows[1]["output_image"] == PICTURE
    assert decoded[0]["input_image"][0].size == (64, 64)  # what it was made from stays as it was


def test_rows_with_their_codes_are_read_from_the_file_of_the_data_set():
    """No file of `datasets` is a copy made afterwards, by a `map` or a cast."""
    model, processor = load_checkpoint("tiny-janus-pro", "float32")
    processor.geometry = "center_crop"
    tasks = ["text_to_image", "text_and_image_to_image"]
    rows = load_training_rows(encoded_set(), tasks, "train", model, processor)
    assert isinstance(rows[len(rows) - 1]["input_image"][0]["bytes"], bytes)
    names = [Path(one["filename"]).name for one in rows.cache_files]
    assert len(names) == 2
    assert not [name for name in names if name.startswith("cache-")]


def test_rows_left_out_do_not_matter(check):
    rows = dataset(edit(id="high", target_codes=[NUM_CODES] * P), edit(), edit(input_prompt="word " * 400))
    assert len(check(rows.select([1]))) == 1


def test_the_longest_row_that_fits(check, processor):
    """The model has room for 1024 tokens: 2 (P + 2) of the source, P - 1 codes, 9 of the template."""
    room = 1024 - 2 * (P + 2) - (P - 1) - 9
    assert check(dataset(edit(input_prompt="x" * room)))
    with pytest.raises(UserError, match="has 1025 tokens with its image codes; the model has room for 1024"):
        check(dataset(edit(input_prompt="x" * (room + 1))))
