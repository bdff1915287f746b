# SPDX-License-Identifier: Apache-2.0
"""Literal batches: what each mask does to the ids of a sample, packed and padded."""

import pytest
import torch
from PIL import Image

from sharegpt4o_image.janus4o import Janus4oProcessor
from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.tiny_model import tiny_processor

# BOS 0, pad 2, boi 3, eoi 4, image placeholder 5, user 6, assistant 7, a 72, b 73, colon 33, space 228, newline 206;
# four image tokens a picture.
TEXT_TO_IMAGE = [0, 6, 33, 228, 72, 73, 206, 206, 7, 33, 3]
SEMANTICS, CODES = [3, 5, 5, 5, 5, 4], [3, 2, 2, 2, 2, 4]
SOURCE = SEMANTICS + CODES
EDIT = [0, 6, 33, 228, *SOURCE, 72, 73, 206, 206, 7, 33, 3]
EDIT_OF_TWO = [0, 6, 33, 228, *SOURCE, *SOURCE, 72, 73, 206, 206, 7, 33, 3]

PICTURE = Image.new("RGB", (40, 32), "red")


def text_to_image(**extra):
    return {"id": "t", "input_prompt": "ab", "input_image": [], "target_codes": [1, 2, 3, 4], **extra}


def edit(num_sources=1, **extra):
    sources = {"input_image": [PICTURE] * num_sources, "source_codes": [[5, 6, 7, 8]] * num_sources}
    return {"id": "e", "input_prompt": "ab", "target_codes": [9, 10, 11, 12], **sources, **extra}


@pytest.fixture(scope="module")
def processor():
    tiny = tiny_processor([])  # a token is a byte
    return Janus4oProcessor(tiny.image_processor, tiny.tokenizer, num_image_tokens=4)


@pytest.fixture
def collate(processor):
    def collated(rows, row_layout="packed", **rates):
        return DataCollatorForImageGeneration(processor, Dropout(**rates), row_layout=row_layout)(rows)

    return collated


def samples_of(batch):
    """The ids of each sample, whatever the layout."""
    if "prompt_lengths" in batch:
        return [ids.tolist() for ids in batch["input_ids"][0].split(batch["prompt_lengths"].tolist())]
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_a_packed_batch_literally(collate):
    batch = collate([text_to_image(), edit()])
    assert batch["input_ids"].tolist() == [TEXT_TO_IMAGE + EDIT]
    assert batch["prompt_lengths"].tolist() == [11, 23]
    assert "attention_mask" not in batch
    assert batch["target_codes"].tolist() == [[1, 2, 3, 4], [9, 10, 11, 12]]
    assert batch["source_codes"].tolist() == [[5, 6, 7, 8]]
    assert batch["dropped_source_codes"].tolist() == [[False] * 4]
    assert torch.equal(batch["labels"], batch["target_codes"])
    assert batch["is_edit"].tolist() == [False, True]
    assert batch["sample_ids"] == ["t", "e"]
    assert batch["skipped"] == []


def test_a_padded_batch_literally(collate):
    batch = collate([text_to_image(), edit()], row_layout="padded")
    assert batch["input_ids"].tolist() == [[2] * 12 + TEXT_TO_IMAGE, EDIT]
    assert batch["attention_mask"].tolist() == [[0] * 12 + [1] * 11, [1] * 23]
    assert "prompt_lengths" not in batch


@pytest.mark.parametrize("row_layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("row", "rates", "expected"),
    [
        (text_to_image(), {"prompt": 1.0}, [0, *[2] * 9, 3]),
        (text_to_image(), {"null": 1.0, "instruction": 1.0, "source_code": 1.0}, TEXT_TO_IMAGE),
        (edit(), {"null": 1.0}, [0, *[2] * 21, 3]),
        (edit(), {"instruction": 1.0}, [0, 2, 2, 2, *SOURCE, 2, 2, 2, 2, 2, 2, 3]),
        (edit(), {"prompt": 1.0}, EDIT),
        (edit(), {"source_code": 1.0}, EDIT),  # its codes, not its ids, say so
        (edit(2), {}, EDIT_OF_TWO),
        (edit(2), {"null": 1.0}, [0, *[2] * 33, 3]),
        (edit(2), {"instruction": 1.0}, [0, 2, 2, 2, *SOURCE, *SOURCE, 2, 2, 2, 2, 2, 2, 3]),
    ],
)
def test_the_ids_of_each_mask(collate, row_layout, row, rates, expected):
    plain = text_to_image(input_prompt="b" * 9)
    batch = collate([plain, row], row_layout=row_layout, **rates)
    assert samples_of(batch)[1] == expected
    assert batch["target_codes"][1].tolist() == row["target_codes"]  # no mask touches what is to be predicted
    assert torch.equal(batch["labels"], batch["target_codes"])


def test_a_null_edit_loses_its_source_and_the_others_keep_theirs(collate, processor):
    rows = [edit(id=f"e{i}", source_codes=[[i, i, i, i]]) for i in range(12)]
    batch = collate(rows, null=0.5)
    null = [5 not in ids for ids in samples_of(batch)]
    assert 0 < sum(null) < 12
    assert batch["source_codes"][:, 0].tolist() == [i for i in range(12) if not null[i]]
    assert len(batch["source_pixel_values"]) == len(batch["dropped_source_codes"]) == 12 - sum(null)
    assert batch["is_edit"].all()  # its loss is that of an edit


def test_source_codes_are_dropped_by_block_or_by_token(collate):
    blocks = [collate([edit(2, epoch=i)], source_code=0.5)["dropped_source_codes"] for i in range(40)]
    assert all(set(map(tuple, one.tolist())) <= {(False,) * 4, (True,) * 4} for one in blocks)
    assert any(one[0, 0] != one[1, 0] for one in blocks)
    tokens = [
        collate([edit(2, epoch=i)], source_code=0.5, source_code_granularity="token")["dropped_source_codes"]
        for i in range(40)
    ]
    assert any(0 < int(one[0].sum()) < 4 for one in tokens)


def test_prompt_tokens_are_dropped_one_by_one(collate):
    seen = {
        tuple(samples_of(collate([text_to_image(epoch=i)], prompt=0.5, prompt_granularity="token"))[0])
        for i in range(20)
    }
    assert len(seen) > 10
    for ids in seen:
        assert (ids[0], ids[-1]) == (0, 3)
        assert all(one in (2, kept) for one, kept in zip(ids, TEXT_TO_IMAGE, strict=True))


def test_a_sample_draws_the_same_in_any_batch_order_and_layout(collate):
    rates = {"null": 0.3, "instruction": 0.3, "source_code": 0.5, "prompt": 0.5}
    rows = [edit(id=f"e{i}") for i in range(8)] + [text_to_image(id=f"t{i}") for i in range(8)]
    together = samples_of(collate(rows, **rates))
    alone = [samples_of(collate([row], row_layout="padded", **rates))[0] for row in rows]
    backwards = samples_of(collate(rows[::-1], **rates))[::-1]
    assert together == alone == backwards
    other_epoch = samples_of(collate([row | {"epoch": 1} for row in rows], **rates))
    repeated = samples_of(collate([row | {"repetition": 1} for row in rows], **rates))
    assert together not in (other_epoch, repeated)
    assert other_epoch != repeated


def test_codes_are_encoded_by_the_model_where_a_row_has_none(collate):
    rows = [edit(source_codes=None, target_codes=None, output_image=PICTURE)]
    rows.append(text_to_image(target_codes=None, output_image=PICTURE))
    batch = collate(rows)
    assert "source_codes" not in batch
    assert "target_codes" not in batch
    assert batch["target_pixel_values"].shape == (2, 3, 32, 32)
    torch.testing.assert_close(batch["target_pixel_values"][:1], batch["source_pixel_values"])
    with pytest.raises(ValueError, match="with and without target_codes"):
        collate([text_to_image(), rows[1]])


def test_a_picture_that_does_not_fit_costs_its_own_sample_only(collate, processor):
    processor.image_processor.min_size = 2
    try:
        narrow = edit(id="narrow", input_image=[Image.new("RGB", (400, 10))])
        batch = collate([narrow, edit()])
        alone = collate([narrow | {"target_codes": None, "output_image": PICTURE}])
    finally:
        processor.image_processor.min_size = 1
    assert [row_id for row_id, _ in batch["skipped"]] == ["narrow"]
    assert "crop it" in batch["skipped"][0][1]
    assert batch["labels"].tolist() == batch["target_codes"].tolist() == [[-100] * 4, [9, 10, 11, 12]]
    assert batch["is_edit"].tolist() == [False, True]
    assert (alone["labels"] == -100).all()


def test_a_blank_counts_no_code(collate):
    blank = {"id": "blank", "epoch": 0, "input_prompt": "", "is_blank": True}
    encoded = collate([blank, text_to_image()])
    assert encoded["labels"].tolist() == encoded["target_codes"].tolist() == [[-100] * 4, [1, 2, 3, 4]]
    on_the_fly = collate([blank, text_to_image(target_codes=None, output_image=PICTURE)])
    assert on_the_fly["labels"].tolist() == [[-100] * 4, [0] * 4]
    assert on_the_fly["target_pixel_values"].shape == (2, 3, 32, 32)
    assert (collate([blank])["target_codes"] == -100).all()
