# SPDX-License-Identifier: Apache-2.0
"""Crops for the colour classifier equal upstream's, pixel for pixel."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_crops import crop_of

COPIED = Path(__file__).parents[1] / "data" / "evaluation" / "geneval"
SHARED = Path(__file__).parents[3] / "shared" / "conformance"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("root", [COPIED, SHARED], ids=["copied", "shared"])
def test_crops_equal_the_official_ones(root):
    folder = root / "geneval_crops"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: only the copied part of the official crops is compared")
    for item, expected in zip(read(folder / "inputs.jsonl"), read(folder / "expected.jsonl"), strict=True):
        picture = Image.open(folder / f"{item['id']:02d}.png")
        for crop in expected["crops"]:
            name, index = crop["class"], crop["detection_index"]
            mask = Image.open(folder / f"{item['id']:02d}.mask.{name.replace(' ', '_')}.{index}.png")
            got = crop_of(picture, np.asarray(mask), item["detections"][name][index][:4])
            assert list(got.size) == crop["size"]
            assert hashlib.sha256(got.convert("RGB").tobytes()).hexdigest() == crop["sha256"]


def test_grey_outside_the_mask_and_edges_rounded_half_to_even():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = True
    crop = np.asarray(crop_of(Image.new("RGB", (8, 6), "red"), mask, (0.5, 1.5, 4.5, 3.5)))
    expected = np.full((2, 4, 3), 0x99)  # columns 0..3, rows 2..3
    expected[0, 3] = (255, 0, 0)
    np.testing.assert_array_equal(crop, expected)


def test_a_mask_of_another_size_is_an_error():
    with pytest.raises(UserError, match="The mask has 6 x 8 pixels, the picture 8 x 6"):
        crop_of(Image.new("RGB", (8, 6)), np.zeros((8, 6), dtype=bool), (0, 0, 1, 1))
