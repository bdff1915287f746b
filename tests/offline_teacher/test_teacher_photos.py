# SPDX-License-Identifier: Apache-2.0
"""Photographs: told from scenes, described, painted from the description, and edited."""

import json
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from teacher_client import chat, data_url, edit, generate, json_format, png, scene

from sharegpt4o_image.offline_teacher.photo_edits import (
    BORDER_COLORS,
    DISC_COLORS,
    PHOTO_ABILITIES,
    SPOTS,
    PhotoEdit,
    apply_photo_edit,
    choose_photo_edit,
    describe_photo_edit,
    parse_photo_edit,
)
from sharegpt4o_image.offline_teacher.photos import (
    COLORS,
    REGIONS,
    PhotoLook,
    describe_photo,
    look_at,
    paint_photo,
    parse_photo,
)
from sharegpt4o_image.offline_teacher.pictures import is_photo, open_picture
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.scene import LIGHTINGS, STYLES, Scene

INSTRUCTION_SCHEMA = {
    "type": "object",
    "properties": {"instruction": {"type": "string"}, "is_applicable": {"type": "boolean"}},
}
EDITS = [
    *(PhotoEdit(kind) for kind in ("warmer", "cooler", "brighter", "darker", "contrast", "monochrome", "sepia")),
    PhotoEdit("posterize"),
    *(PhotoEdit("border", color) for color in BORDER_COLORS),
    *(PhotoEdit("cover", color, spot) for color in DISC_COLORS for spot in SPOTS),
    *(PhotoEdit("inset", None, spot) for spot in SPOTS),
]


def photograph(width: int = 150, height: int = 100) -> Image.Image:
    """Brown ground, a tan upper third, an orange thing in the lower left, and the grain of a photograph."""
    pixels = np.empty((height, width, 3))
    pixels[:] = COLORS["brown"]
    pixels[: height * 2 // 5] = COLORS["tan"]
    pixels[height * 7 // 10 :, : width // 4] = COLORS["orange"]
    pixels += np.random.default_rng(0).normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ask_for_instruction(task: str, *pictures: Image.Image) -> dict[str, Any]:
    text = {"type": "text", "text": json.dumps({"source_prompt": None, "edit_task": task})}
    answer = chat([text, *map(data_url, pictures)], response_format=json_format(INSTRUCTION_SCHEMA))
    read: dict[str, Any] = json.loads(answer)
    return read


# --------------------------------------------------------------------------- what is a photograph


def test_drawings_are_no_photographs() -> None:
    for style in STYLES:
        for lighting in LIGHTINGS:
            drawn = scene(("red", "circle", 0.25, 0.5), ("blue", "star", 0.75, 0.5))
            image = render(Scene("beige", drawn.objects, style, lighting), 192)
            grain = np.random.default_rng(0).normal(0, 12, (192, 192, 3))
            noisy = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
            for shown in (image, image.resize((160, 96)), noisy, image.filter(ImageFilter.GaussianBlur(2))):
                assert not is_photo(open_picture(png(shown), "image"))


def test_photographs_and_pages_are_no_scenes() -> None:
    [page] = generate('A clean slide titled "Lakeside bakery" with the lines "One", "Two"')
    [field] = generate("A photo in mostly brown and teal tones.")
    for shown in (photograph(), page, field, Image.new("RGB", (64, 64), (200, 60, 10))):
        assert is_photo(open_picture(png(shown), "image"))


# --------------------------------------------------------------------------- descriptions


def test_photograph_is_described_by_what_it_shows() -> None:
    expected = "A photo in mostly brown and tan tones, brighter at the top, with orange in the lower left."
    assert describe_photo(photograph()) == expected
    assert chat([{"type": "text", "text": "Describe it."}, data_url(photograph())]) == expected
    task = {"type": "text", "text": 'One sentence. {"image_first": true} Answer with JSON: {"prompt": "..."}'}
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}}
    answer = json.loads(chat([task, data_url(photograph())], response_format=json_format(schema)))
    assert answer == {"prompt": expected}


def test_every_color_is_called_by_its_name() -> None:
    for name, color in COLORS.items():
        assert look_at(Image.new("RGB", (30, 20), color)) == PhotoLook((name,))


def random_look(rng: random.Random) -> PhotoLook:
    colors = rng.sample(list(COLORS), 3)
    accent, region = (colors[2], rng.choice(list(REGIONS))) if rng.random() < 0.5 else (None, None)
    lights = ("at the top", "at the bottom", "on the left", "on the right", "in the middle", None)
    return PhotoLook(tuple(colors[: rng.randint(1, 2)]), rng.choice(lights), accent, region)


def test_painted_field_shows_what_its_sentence_says() -> None:
    rng = random.Random(0)
    num_colors = num_accents = num_seen_colors = num_seen_accents = 0
    for _ in range(100):
        look = random_look(rng)
        seen = look_at(paint_photo(look, 96, rng))
        num_colors += len(look.colors)
        num_seen_colors += len(set(look.colors) & {*seen.colors, seen.accent})
        num_accents += look.accent is not None
        num_seen_accents += look.accent is not None and (seen.accent, seen.region) == (look.accent, look.region)
    # Light, and where two colours meet, some pixels get other names; combinations in photographs are kinder.
    assert num_seen_colors / num_colors > 0.85
    assert num_seen_accents / num_accents > 0.6


def test_sentence_is_read_back_and_painted() -> None:
    sentence = describe_photo(photograph())
    assert parse_photo(sentence) == look_at(photograph())
    [image] = generate(sentence, size="96x96")
    assert look_at(image) == look_at(photograph())
    assert image.tobytes() == generate(sentence, size="96x96")[0].tobytes()
    assert parse_photo("A photo of a red circle above a blue square") is None


# --------------------------------------------------------------------------- edits


def test_described_edits_are_read_back() -> None:
    dice = random.Random(0)
    for wanted in EDITS * 3:
        assert parse_photo_edit(describe_photo_edit(wanted, dice)) == wanted
    assert parse_photo_edit("add a zebra") is None


@pytest.mark.parametrize("wanted", EDITS, ids=str)
def test_edit_keeps_the_size_and_changes_the_pixels(wanted: PhotoEdit) -> None:
    source = photograph()
    edited = apply_photo_edit([source, render(scene(("red", "circle", 0.5, 0.5)), 64)], wanted)
    assert (edited.mode, edited.size) == ("RGB", source.size)
    change = np.abs(np.asarray(edited, dtype=float) - np.asarray(source)).mean()
    assert change > 2


def test_edits_do_what_they_say() -> None:
    source = photograph()

    def means(kind: str) -> np.ndarray:
        return np.asarray(apply_photo_edit([source], PhotoEdit(kind)), dtype=float).mean((0, 1))

    before = np.asarray(source, dtype=float)
    red, _, blue = before.mean((0, 1))
    assert means("warmer")[0] > red
    assert means("warmer")[2] < blue
    assert means("cooler")[0] < red
    assert means("cooler")[2] > blue
    assert (means("brighter") > before.mean((0, 1))).all()
    assert (means("darker") < before.mean((0, 1))).all()
    contrasted = np.asarray(apply_photo_edit([source], PhotoEdit("contrast")), dtype=float)
    assert contrasted.std() > before.std()
    gray = np.asarray(apply_photo_edit([source], PhotoEdit("monochrome")))
    assert (gray == gray[..., :1]).all()
    poster = apply_photo_edit([source], PhotoEdit("posterize"))
    assert len(poster.getcolors(100_000) or []) <= 6


def test_cover_and_border_touch_nothing_else() -> None:
    source = photograph(200, 100)
    covered = np.asarray(apply_photo_edit([source], PhotoEdit("cover", "blue", "top left corner")))
    assert tuple(covered[25, 50]) == DISC_COLORS["blue"]
    assert (covered[:, 80:] == np.asarray(source)[:, 80:]).all()
    framed = np.asarray(apply_photo_edit([source], PhotoEdit("border", "black")))
    assert (framed[:12] == BORDER_COLORS["black"]).all()
    assert (framed[:, -12:] == BORDER_COLORS["black"]).all()
    inside = Image.fromarray(framed[12:-12, 12:-12]).resize((20, 10), Image.Resampling.BOX)
    assert np.abs(np.asarray(inside, dtype=float) - np.asarray(source.resize((20, 10)), dtype=float)).mean() < 6


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 2)])
def test_tiny_pictures_are_edited_too(size: tuple[int, int]) -> None:
    for wanted in EDITS:
        assert apply_photo_edit([Image.new("RGBA", size, "red")] * 2, wanted).size == size


def test_instruction_for_a_photograph_is_carried_out() -> None:
    source = photograph()
    for task in PHOTO_ABILITIES:
        if task == "element manipulation":
            continue
        answer = ask_for_instruction(task, source)
        assert answer["is_applicable"] is True
        edited = edit(png(source), answer["instruction"])
        assert edited.size == source.size
        assert edited.tobytes() != source.tobytes()
    for task in ("storyboarding/sequential generation", "element manipulation", "background modification"):
        assert ask_for_instruction(task, source) == {"instruction": "", "is_applicable": False}


def test_instruction_for_two_photographs_uses_both() -> None:
    answer = ask_for_instruction("element manipulation", photograph(), photograph(60, 60))
    assert "second picture" in answer["instruction"]
    one = edit([png(photograph()), png(Image.new("RGB", (50, 50), "blue"))], answer["instruction"])
    two = edit([png(photograph()), png(Image.new("RGB", (50, 50), "lime"))], answer["instruction"])
    assert one.size == (150, 100)
    assert one.tobytes() != two.tobytes()
    assert not ask_for_instruction("medium/technique styles", photograph(), photograph(60, 60))["is_applicable"]


def test_pointless_edits_are_not_chosen() -> None:
    dice = random.Random(0)
    gray, night = Image.new("RGB", (9, 9), (90, 90, 90)), Image.new("RGB", (9, 9), (10, 9, 8))
    day = Image.new("RGB", (9, 9), (240, 240, 235))

    def kinds(image: Image.Image, task: str) -> set[str]:
        choices = [choose_photo_edit(image, task, 1, dice) for _ in range(60)]
        return {choice.kind for choice in choices if choice}

    assert kinds(gray, "medium/technique styles") == {"sepia", "posterize"}
    assert kinds(night, "attribute/effect manipulation") == {"warmer", "cooler", "brighter", "contrast"}
    assert kinds(day, "attribute/effect manipulation") == {"warmer", "cooler", "darker", "contrast"}


def test_unknown_instruction_and_mask_keep_the_pixels() -> None:
    source = photograph()
    assert edit(png(source), "add a zebra").tobytes() == source.tobytes()
    mask = Image.new("RGBA", source.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 75, 100))
    edited = edit(png(source), "make the picture darker", mask=png(mask))
    right = (75, 0, 150, 100)
    assert edited.crop(right).tobytes() == source.crop(right).tobytes()
    assert edited.tobytes() != source.tobytes()
