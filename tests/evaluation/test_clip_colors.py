# SPDX-License-Identifier: Apache-2.0
"""The colour classifier equals plain torch, one text and one crop at a time; rows are the official ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import geneval_scores
from sharegpt4o_image.evaluation.clip_colors import ClipColorClassifier, pixel_values_of
from sharegpt4o_image.evaluation.geneval_crops import crop_of
from sharegpt4o_image.evaluation.geneval_judge import judge_picture
from sharegpt4o_image.evaluation.geneval_prompts import COLORS, generate_metadata
from sharegpt4o_image.evaluation.geneval_rules import Detection
from sharegpt4o_image.evaluation.pretrained import weights_digest

EDGE = 32
START, END = 1, 29
WORDS = ["[UNK]", "<start>", "a", "photo", "of", "-", "colored", "object", "bench", "dog", *COLORS]


def tiny_tokenizer():
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"<end>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 30, "max_position_embeddings": 16, "bos_token_id": START, "eos_token_id": END}
    config = CLIPConfig(
        text_config=text, vision_config=layers | {"image_size": EDGE, "patch_size": 8}, projection_dim=16
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # the usual start is so small that all crops look alike
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    return model


@pytest.fixture
def classifier(clip):
    return ClipColorClassifier(clip, tiny_tokenizer())


def pictures_with_masks(count):
    """A picture and boxes with masks; each box is filled with another colour."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = []
    for _ in range(count):
        left, upper = int(rng.integers(0, 60)), int(rng.integers(0, 40))
        width, height = int(rng.integers(4, 20)), int(rng.integers(4, 20))
        mask = np.zeros((60, 80), dtype=bool)
        mask[upper : upper + height, left : left + width] = rng.random((height, width)) < 0.8
        pixels[upper : upper + height, left : left + width] = rng.integers(0, 256, 3)
        found.append((Detection((left, upper, left + width, upper + height), 0.9), mask))
    return Image.fromarray(pixels), found


def unit(vector):
    return vector / np.sqrt((vector**2).sum())


def texts_by_hand(clip, name):
    """One text at a time, without padding: [colour, D]."""
    rows = []
    for color in COLORS:
        units = []
        for text in (
            f"a photo of a {color} {name}",
            f"a photo of a {color} - colored {name}",
            f"a photo of a {color} object",
        ):
            ids = [START, *(WORDS.index(word) for word in text.split()), END]
            hidden = clip.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            units.append(unit((clip.text_projection.weight @ hidden).detach().double().numpy()))
        rows.append(unit(sum(units) / 3))
    return np.array(rows)


def test_text_embeddings_equal_those_made_one_by_one(clip, classifier):
    for name in ("bench", "dog"):
        np.testing.assert_allclose(classifier.text_embeddings(name), texts_by_hand(clip, name), atol=1e-5)


def test_text_embeddings_are_kept(classifier):
    assert classifier.text_embeddings("bench") is classifier.text_embeddings("bench")
    assert not torch.equal(classifier.text_embeddings("bench"), classifier.text_embeddings("dog"))


def test_colors_equal_plain_torch(clip, classifier):
    picture, found = pictures_with_masks(12)
    expected = []
    for detection, mask in found:
        values = pixel_values_of(crop_of(picture, mask, detection.box), EDGE)
        hidden = clip.vision_model(pixel_values=values[None]).last_hidden_state[:, 0]
        image = clip.visual_projection(clip.vision_model.post_layernorm(hidden))[0].detach().double().numpy()
        cosines = [float(unit(image) @ text) for text in texts_by_hand(clip, "dog")]
        expected.append(COLORS[cosines.index(max(cosines))])
    assert len(set(expected)) > 1
    assert classifier.colors_of(picture, "dog", found) == expected


def test_a_mask_of_another_size_is_refused(classifier):
    picture, found = pictures_with_masks(1)
    with pytest.raises(UserError, match="EXIF"):
        classifier.colors_of(picture.rotate(90, expand=True), "dog", found)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be loaded; give"):
        ClipColorClassifier.from_pretrained(str(tmp_path / "nowhere"))


def test_a_saved_classifier_says_the_same_and_what_it_is(clip, classifier, tmp_path):
    clip.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = ClipColorClassifier.from_pretrained(str(tmp_path))
    torch.testing.assert_close(loaded.text_embeddings("dog"), classifier.text_embeddings("dog"))
    assert loaded.identity == {
        "model": tmp_path.name,
        "revision": weights_digest(tmp_path),
        "crops": "grey outside the mask, cut to the box",
        "dtype": "float32",
    }


def test_a_model_of_the_hub_is_known_by_its_commit(clip, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    clip.save_pretrained(repository / "snapshots" / commit)
    tiny_tokenizer().save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    identity = ClipColorClassifier.from_pretrained("someone/clip").identity
    assert (identity["model"], identity["revision"]) == ("someone/clip", commit)


def test_half_a_model_is_refused(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = {name: value for name, value in clip.state_dict().items() if "text_projection" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"it has no text_projection\.weight"):
        ClipColorClassifier.from_pretrained(str(tmp_path))


# ------------------------------------------------------------------ crops as CLIP sees them


@pytest.mark.parametrize("size", [(224, 224), (30, 30), (400, 300), (57, 91), (1, 3), (224, 225)])
def test_pixel_values_equal_transformers_where_nothing_is_rounded_otherwise(size):
    width, height = size
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    too_many = int(224 * max(size) / min(size)) - 224
    assert too_many % 4 != 3
    expected = CLIPImageProcessorPil()(crop, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixel_values_of(crop, 224), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "start"), [(225, 0), (226, 1), (227, 2), (229, 2), (231, 4), (233, 4)])
def test_the_middle_is_rounded_half_to_even_as_in_torchvision(length, start):
    ramp = np.zeros((224, length, 3), dtype=np.uint8)
    ramp[:] = np.arange(length)[None, :, None]
    first = pixel_values_of(Image.fromarray(ramp), 224)[0, 0, 0].item()
    assert first == pytest.approx((start / 255 - 0.48145466) / 0.26862954, abs=1e-5)


# ------------------------------------------------------------------ rows


class Found:
    """A detector that always finds the same."""

    def __init__(self, found):
        self.found = found

    def detect(self, picture):
        return self.found


def prompt_of(text):
    return next(prompt for prompt in generate_metadata() if prompt.prompt == text)


def test_a_row_equals_that_of_stored_detections_and_colors(classifier, tmp_path):
    """The colours asked for are those of the kept boxes, best first, wherever the detector put them."""
    picture, found = pictures_with_masks(6)
    scores = (0.2, 0.5, 0.95, 0.31, 0.7, 0.3)
    dogs = [(Detection(one.box, score), mask) for (one, mask), score in zip(found, scores, strict=True)]
    colors = classifier.colors_of(picture, "dog", dogs)
    prompts = [
        prompt for prompt in generate_metadata() if any(clause.class_name == "dog" for clause in prompt.include)
    ]
    assert {prompt.tag for prompt in prompts} >= {"counting", "colors", "two_object"}
    boxes = {"dog": [[*one.box, one.score] for one, _ in dogs], "bench": [[0, 0, 9, 9, 0.8]]}
    detector = Found({"bench": [(Detection((0, 0, 9, 9), 0.8), found[0][1])], "dog": dogs})
    lines = [
        json.dumps(
            {"id": number, "metadata": prompt.to_json(), "detections": boxes, "colors": {"dog": colors, "bench": []}}
        )
        for number, prompt in enumerate(prompts)
        if all(clause.class_name == "dog" or clause.color is None for clause in prompt.include)
    ]
    (tmp_path / "detections.jsonl").write_text("\n".join(lines))
    _, expected = geneval_scores.score_detections(tmp_path / "detections.jsonl")
    assert len(expected) > 3
    for row in expected:
        got = judge_picture(picture, prompts[int(row.filename)], row.filename, detector, classifier)
        assert (got.correct, got.reason, got.metadata, got.tag, got.prompt) == (
            row.correct,
            row.reason,
            row.metadata,
            row.tag,
            row.prompt,
        )
        assert json.loads(got.details) == json.loads(row.details)


def test_the_top_box_decides_the_color(classifier):
    picture, found = pictures_with_masks(12)
    colors = classifier.colors_of(picture, "dog", found)
    other = next(index for index, color in enumerate(colors) if color != colors[0])
    prompt = prompt_of("a photo of a dog")
    clause = prompt.include[0]
    colored = type(prompt)("colors", (type(clause)("dog", 1, colors[other]),), (), f"a photo of a {colors[other]} dog")
    dogs = [(Detection(one.box, 0.6), mask) for one, mask in found]
    assert not judge_picture(picture, colored, "a", Found({"dog": dogs[:1]}), classifier).correct
    dogs[other] = (Detection(dogs[other][0].box, 0.7), dogs[other][1])
    assert judge_picture(picture, colored, "a", Found({"dog": dogs}), classifier).correct


def test_a_turned_picture_is_judged_upright(classifier, tmp_path):
    picture, found = pictures_with_masks(1)
    exif = Image.Exif()
    exif[0x0112] = 8  # turn by 90 degrees anticlockwise to see it upright
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    color = classifier.colors_of(picture, "dog", found)[0]
    prompt = prompt_of("a photo of a dog")
    clause = prompt.include[0]
    colored = type(prompt)("colors", (type(clause)("dog", 1, color),), (), f"a photo of a {color} dog")
    row = judge_picture(Image.open(tmp_path / "turned.png"), colored, "a", Found({"dog": found}), classifier)
    assert (row.correct, row.reason) == (True, "")
