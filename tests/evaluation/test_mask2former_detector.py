# SPDX-License-Identifier: Apache-2.0
"""The detector's picture handling equals mmdet 2's, written out here in plain numpy."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_judge import judge_picture
from sharegpt4o_image.evaluation.geneval_prompts import CLASS_NAMES, generate_metadata
from sharegpt4o_image.evaluation.mask2former_detector import (
    Mask2FormerDetector,
    Sizes,
    post_process,
    preprocess,
    resized_size,
    tight_box,
)

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def swin_small(num_labels=80):
    backbone = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(backbone_config=backbone, num_labels=num_labels)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(swin_small()).eval()
    with torch.no_grad():  # untrained, all queries nearly agree: make some masks empty, some full, most neither
        model.model.transformer_module.queries_features.weight.normal_(std=3)
    return model


def bilinear(planes, height, width):
    """(N, h, w) -> (N, height, width), pixel by pixel, `align_corners=False`."""
    rows, columns = planes.shape[1:]
    out = np.zeros((len(planes), height, width))
    for y in range(height):
        v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        top = math.floor(v)
        bottom = min(top + 1, rows - 1)
        for x in range(width):
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            left = math.floor(u)
            right = min(left + 1, columns - 1)
            upper = planes[:, top, left] * (left + 1 - u) + planes[:, top, right] * (u - left)
            lower = planes[:, bottom, left] * (left + 1 - u) + planes[:, bottom, right] * (u - left)
            out[:, y, x] = upper * (top + 1 - v) + lower * (v - top)
    return out


def official(class_logits, mask_logits, original, resized, padded):
    """mmdet 2's post-processing: (class name, score, logits on the picture) for each of the best hundred."""
    exponents = np.exp(class_logits - class_logits.max(axis=1, keepdims=True))
    scores = (exponents / exponents.sum(axis=1, keepdims=True))[:, :80]
    logits = bilinear(bilinear(mask_logits, *padded)[:, : resized[0], : resized[1]], *original)
    rows = []
    for place in np.argsort(-scores.ravel(), kind="stable")[:100]:
        query, label = place // 80, place % 80
        inside = logits[query] > 0
        mask_score = (1 / (1 + np.exp(-logits[query])))[inside].sum() / (inside.sum() + 1e-6)
        rows.append((CLASS_NAMES[label], scores[query, label] * mask_score, logits[query]))
    return rows


def box_by_hand(mask):
    places = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not places:
        return (0, 0, 0, 0)
    columns, rows = zip(*places, strict=True)
    return (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


def assert_official(found, expected):
    by_class = {}
    for name, score, logits in expected:
        by_class.setdefault(name, []).append((score, logits))
    assert list(found) == [name for name in CLASS_NAMES if name in by_class]
    for name, rows in by_class.items():
        assert len(found[name]) == len(rows)
        for (detection, mask), (score, logits) in zip(found[name], rows, strict=True):
            assert mask.dtype == bool
            differ = mask != (logits > 0)
            assert np.all(np.abs(logits[differ]) < 1e-4)
            assert detection.box == box_by_hand(mask)
            assert detection.score == pytest.approx(score, rel=1e-3 if differ.any() else 1e-5, abs=1e-7)


# ------------------------------------------------------------------ the whole detector


@pytest.mark.parametrize(
    ("height", "width", "resized", "padded"),
    [(40, 40, (96, 96), (96, 96)), (31, 57, (87, 160), (96, 160)), (150, 50, (160, 53), (160, 64))],
)
def test_detections_of_a_true_sized_model_equal_mmdets(model, height, width, resized, padded):
    picture = noise(height, width)
    detector = Mask2FormerDetector(model, max_long_edge=160, max_short_edge=96)
    found = detector.detect(picture)

    pixel_values, _ = preprocess(picture, 160, 96)
    with torch.no_grad():
        output = model(pixel_values=pixel_values)
    raw = output.class_queries_logits[0].double().numpy(), output.masks_queries_logits[0].double().numpy()
    assert raw[0].shape == (100, 81)
    expected = official(*raw, (height, width), resized, padded)
    assert any(0 < (logits > 0).mean() < 1 for _, _, logits in expected)
    assert sum(len(of_class) for of_class in found.values()) == 100
    assert_official(found, expected)


@pytest.mark.slow
def test_a_picture_of_janus_becomes_800_by_800(model):
    found = Mask2FormerDetector(model).detect(noise(384, 384))
    assert sum(len(of_class) for of_class in found.values()) == 100
    assert all(mask.shape == (384, 384) for of_class in found.values() for _, mask in of_class)


def test_a_model_of_other_classes_is_refused():
    class Panoptic:
        config = swin_small(num_labels=133)

    with pytest.raises(UserError, match="133 classes"):
        Mask2FormerDetector(Panoptic())


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be loaded; give"):
        Mask2FormerDetector.from_pretrained(str(tmp_path / "nowhere"))


def test_damaged_weights_are_named(tmp_path):
    swin_small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be loaded; give"):
        Mask2FormerDetector.from_pretrained(str(tmp_path))


def test_a_model_of_another_kind_is_refused(tmp_path):
    config = swin_small()
    config.save_pretrained(tmp_path)
    save_file({"model.other": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="it has no class_predictor"):
        Mask2FormerDetector.from_pretrained(str(tmp_path))


def test_a_saved_model_finds_the_same_and_says_what_it_is(model, tmp_path):
    model.save_pretrained(tmp_path)
    detector = Mask2FormerDetector.from_pretrained(str(tmp_path))
    assert detector.identity["model"] == tmp_path.name
    assert len(detector.identity["revision"]) == 16  # of the weights
    assert (detector.identity["max_long_edge"], detector.identity["max_short_edge"]) == (1333, 800)
    small = [Mask2FormerDetector(one, 64, 64).detect(noise(9, 9)) for one in (model, detector.model)]
    assert [[d for d, _ in of_class] for of_class in small[0].values()] == [
        [d for d, _ in of_class] for of_class in small[1].values()
    ]


def test_the_row_of_a_picture_on_which_all_queries_see_benches(model, monkeypatch):
    bias = torch.zeros(81)
    bias[CLASS_NAMES.index("bench")] = 50
    monkeypatch.setattr(model.class_predictor, "bias", torch.nn.Parameter(bias))
    detector = Mask2FormerDetector(model, max_long_edge=96, max_short_edge=96)
    prompt = next(prompt for prompt in generate_metadata() if prompt.prompt == "a photo of a bench")
    row = judge_picture(noise(40, 40), prompt, "00000/samples/0000.png", detector, classifier=None)
    details = json.loads(row.details)
    assert (row.correct, list(details), len(details["bench"])) == (True, ["bench"], 16)
    best = max(detector.detect(noise(40, 40))["bench"], key=lambda one: one[0].score)[0]
    assert details["bench"][0] == [*best.box, best.score]


# ------------------------------------------------------------------ before the model


@pytest.mark.parametrize("size", [(40, 40), (31, 57), (150, 50), (203, 150)])
def test_values_are_bilinear_without_antialias_and_rounded_to_the_nearest(size):
    picture = noise(*size)
    pixel_values, sizes = preprocess(picture, 160, 96)
    values = pixel_values[0].double().numpy() * STD[:, None, None] + MEAN[:, None, None]
    height, width = sizes.resized
    unrounded = np.full((3, *sizes.padded), 128.0)
    unrounded[:, :height, :width] = bilinear(np.asarray(picture, dtype=float).transpose(2, 0, 1), height, width)
    assert np.abs(values - values.round()).max() < 1e-3
    assert np.abs(values.round() - unrounded).max() < 0.501  # halves may go either way


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((384, 384), (800, 800)),
        ((512, 300), (1333, 781)),  # 300 * 1333 / 512 = 781.05
        ((480, 640), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((3000, 2000), (1200, 800)),
        ((900, 1500), (800, 1333)),
    ],
)
def test_sizes_are_mmcvs(size, resized):
    assert resized_size(size) == resized


def test_the_short_edge_is_not_rounded_up_but_padded_with_128_before_normalizing():
    pixel_values, sizes = preprocess(noise(100, 51), 160, 96)
    assert sizes == Sizes((100, 51), (160, 82), (160, 96))
    assert pixel_values.shape == (1, 3, 160, 96)
    expected = np.broadcast_to(((128 - MEAN) / STD)[:, None, None], (3, 160, 14))
    np.testing.assert_allclose(pixel_values[0, :, :, 82:], expected, rtol=1e-5)


def test_a_picture_of_the_right_size_keeps_its_values():
    picture = noise(96, 96)
    pixel_values, _ = preprocess(picture, 160, 96)
    np.testing.assert_allclose(pixel_values[0].permute(1, 2, 0), (np.asarray(picture) - MEAN) / STD, atol=1e-5)


def test_exif_orientation_is_applied(tmp_path):
    picture = noise(20, 30)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    turned, sizes = preprocess(Image.open(tmp_path / "turned.png"), 64, 64)
    assert sizes.original == (30, 20)
    upright, _ = preprocess(picture.transpose(Image.Transpose.ROTATE_270), 64, 64)
    assert torch.equal(turned, upright)


def test_transparency_is_dropped():
    transparent = noise(20, 30).convert("RGBA")
    transparent.putalpha(0)
    assert torch.equal(preprocess(transparent, 64, 64)[0], preprocess(noise(20, 30), 64, 64)[0])


# ------------------------------------------------------------------ after the model


def certain(queries):
    """Class logits (Q, 81) of queries that are nearly sure of one class, by its number."""
    logits = torch.zeros(len(queries), 81)
    for query, label in enumerate(queries):
        logits[query, label] = 20
    return logits


def test_a_mask_of_the_upper_left_quarter():
    mask_logits = torch.full((2, 4, 4), -3.0)
    mask_logits[0, :2, :2] = 3
    sizes = Sizes((4, 4), (4, 4), (4, 4))
    found = post_process(certain([64, 80]), mask_logits, sizes)
    detection, mask = found["computer mouse"][0]
    assert mask.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert detection.box == (0, 0, 2, 2)
    assert detection.score == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-5)


def test_one_query_is_found_as_several_classes_with_one_mask():
    found = post_process(certain([0, 80]), torch.ones(2, 4, 4), Sizes((5, 7), (4, 4), (4, 4)))
    rows = [row for of_class in found.values() for row in of_class]
    assert len(rows) == 100
    assert all(detection.box == (0, 0, 7, 5) for detection, _ in rows)
    assert len(found) == 80


def test_an_empty_mask_has_a_box_and_a_score_of_zero():
    found = post_process(certain([5, 80]), torch.full((2, 4, 4), -1.0), Sizes((8, 8), (8, 8), (8, 8)))
    detection, mask = found["bus"][0]
    assert (detection.box, detection.score, mask.any()) == ((0, 0, 0, 0), 0, False)


def test_padding_is_cut_off_before_masks_are_resized():
    mask_logits = torch.full((2, 1, 4), -1.0)
    mask_logits[:, :, 3:] = 1  # only within the padding
    found = post_process(certain([5, 80]), mask_logits, Sizes((8, 8), (32, 32), (32, 64)))
    assert not any(mask.any() for of_class in found.values() for _, mask in of_class)


def test_random_logits_equal_the_plain_transcription():
    rng = np.random.default_rng(1)
    class_logits, mask_logits = rng.normal(size=(7, 81)) * 2, rng.normal(size=(7, 6, 5))
    sizes = Sizes((11, 6), (21, 13), (24, 20))
    found = post_process(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), sizes)
    assert_official(found, official(class_logits, mask_logits, sizes.original, sizes.resized, sizes.padded))


def test_tight_boxes():
    mask = np.zeros((6, 9), dtype=bool)
    assert tight_box(mask) == (0, 0, 0, 0)
    mask[2, 3] = mask[4, 7] = True
    assert tight_box(mask) == (3, 2, 8, 5)
