# SPDX-License-Identifier: Apache-2.0
"""Prompts and pictures -> tensors: layouts token for token, geometry, and pictures of every kind."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw
from small_checkpoints import small_processor
from tokenizers import Tokenizer

from sharegpt4o_image.janus4o import Janus4oProcessor
from sharegpt4o_image.janus4o.processing_janus4o import read_picture


@pytest.fixture(scope="module")
def processor():
    return small_processor()


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------ layouts


def test_text_to_image_layout(processor):
    tokenizer = processor.tokenizer
    batch = processor.prepare_image_generation(["  a red circle "])
    text = "<｜begin▁of▁sentence｜><|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"
    assert batch["input_ids"].tolist() == [tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_edit_layout(processor):
    image, pad = "<image_placeholder>" * 64, "<｜▁pad▁｜>" * 64
    source = f"<begin_of_image>{image}<end_of_image><begin_of_image>{pad}<end_of_image>"
    batch = processor.prepare_image_generation([" make it red "], [[Image.new("RGB", (32, 32))]])
    text = f"<｜begin▁of▁sentence｜><|User|>: {source} make it red\n\n<|Assistant|>:<begin_of_image>"
    assert processor.tokenizer.decode(batch["input_ids"][0]) == text
    two = processor.prepare_image_generation(["join"], [[Image.new("RGB", (32, 32))] * 2])
    text = f"<｜begin▁of▁sentence｜><|User|>: {source}{source}join\n\n<|Assistant|>:<begin_of_image>"
    assert processor.tokenizer.decode(two["input_ids"][0]) == text
    assert two["source_pixel_values"].shape == (2, 3, 32, 32)


def test_batches_are_padded_on_the_left(processor):
    batch = processor.prepare_image_generation(["a star", "a very big red circle"])
    long, short = batch["attention_mask"][1], batch["attention_mask"][0]
    assert long.all()
    missing = int((short == 0).sum())
    assert missing > 0
    assert not short[:missing].any()
    assert (batch["input_ids"][0, :missing] == processor.tokenizer.pad_token_id).all()
    null = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    tokenizer = processor.tokenizer
    boi = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    kept = [[i for i, token in enumerate(row) if token != tokenizer.pad_token_id] for row in null.tolist()]
    assert kept == [[missing, null.shape[1] - 1], [0, null.shape[1] - 1]]
    assert null[:, -1].tolist() == [boi, boi]


SPECIAL = ["<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<|User|>", "<|Assistant|>", "<｜▁pad▁｜>"]


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("has_source", [False, True])
def test_special_tokens_in_a_prompt_are_plain_text(processor, token, has_source):
    images = [[Image.new("RGB", (32, 32))]] if has_source else None
    plain = processor.prepare_image_generation(["a circle"], images)["input_ids"][0].tolist()
    ids = processor.prepare_image_generation([f"a {token} circle"], images)["input_ids"][0].tolist()
    number = processor.tokenizer.convert_tokens_to_ids(token)
    assert ids.count(number) == plain.count(number)
    assert token in processor.tokenizer.decode(ids)


def test_control_tokens_are_found_whatever_their_flags():
    """Released tokenizers flag some of them as ordinary added tokens, which no tokenizer option splits."""
    processor = small_processor()
    state = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in ("<|User|>", "<|Assistant|>")
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    user = processor.tokenizer.convert_tokens_to_ids("<|User|>")
    assert processor.tokenizer("<|User|>", split_special_tokens=True)["input_ids"] == [user]  # no option splits it
    ids = processor.prepare_image_generation(["a <|User|> sign"])["input_ids"][0].tolist()
    assert ids.count(user) == 1
    assert "a <|User|> sign" in processor.tokenizer.decode(ids)


def test_what_a_chat_template_formatted_is_left_to_the_parent(processor):
    text = "<|User|>: a red circle\n\n<|Assistant|>:"
    ids = processor(text=text, generation_mode="image")["input_ids"][0].tolist()
    expected = processor.tokenizer(f"{text}<begin_of_image>", add_special_tokens=False)["input_ids"]
    assert ids[-len(expected) :] == expected


def test_image_mode_uses_the_images(processor):
    picture = Image.new("RGB", (32, 32), "red")
    one = processor(text="make it blue", images=picture, generation_mode="image")
    expected = processor.prepare_image_generation(["make it blue"], [[picture]])
    assert torch.equal(one["input_ids"], expected["input_ids"])
    assert torch.equal(one["source_pixel_values"], expected["source_pixel_values"])


def test_text_mode_counts_placeholders_and_images(processor):
    picture = Image.new("RGB", (32, 32))
    text = "<|User|>: <image_placeholder>\nWhat is it?\n\n<|Assistant|>:"
    batch = processor(text=text, images=picture)
    assert (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image_placeholder>")).sum() == 64
    with pytest.raises(ValueError, match=r"The text has 1 image placeholders .* and 2 images were given"):
        processor(text=text, images=[picture, picture])
    with pytest.raises(ValueError, match=r"The text has 1 image placeholders .* and 0 images were given"):
        processor(text=text)


# ------------------------------------------------------------------ geometry


def test_geometry_is_kept_with_the_checkpoint(processor, tmp_path):
    cropping = Janus4oProcessor(
        processor.image_processor, processor.tokenizer, num_image_tokens=64, geometry="center_crop"
    )
    cropping.save_pretrained(tmp_path)
    assert Janus4oProcessor.from_pretrained(tmp_path).geometry == "center_crop"
    with pytest.raises(ValueError, match="geometry is 'stretch'; choose 'pad' or 'center_crop'"):
        Janus4oProcessor(processor.image_processor, processor.tokenizer, geometry="stretch")


def letterbox(picture, side, min_side):
    """The original `VLMImageProcessor` (image_processing_vlm.py), written out: integer sizes, bars of 127."""
    width, height = picture.size
    longest = max(width, height)
    size = [max(int(length / longest * side), min_side) for length in (width, height)]
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    levels = np.asarray(square).astype(np.float32) / 255
    return torch.tensor((levels - 0.5) / 0.5).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (640, 427), (101, 77), (384, 384), (50, 40), (1200, 67)])
def test_pad_is_the_letterbox_of_the_original_code(processor, size):
    wide = Janus4oProcessor(
        type(processor.image_processor)(
            size={"height": 384, "width": 384}, min_size=14, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        processor.tokenizer,
    )
    noise = Image.effect_noise(size, 90).convert("RGB")
    torch.testing.assert_close(wide.source_pixels([noise])[0], letterbox(noise, 384, 14), atol=1e-6, rtol=0)
    text = wide(text="<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:", images=noise)
    torch.testing.assert_close(text["pixel_values"][0], letterbox(noise, 384, 14), atol=1e-6, rtol=0)


def scene(size):
    """Red on the left or above, blue on the other side, a green middle as wide as the shorter side."""
    picture = Image.new("RGB", size, "red")
    draw = ImageDraw.Draw(picture)
    width, height = size
    draw.rectangle([width // 2, height // 2, width, height], fill="blue")
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    draw.rectangle([left, top, left + side - 1, top + side - 1], fill="lime")
    return picture


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (90, 90), (97, 61)])
def test_pad_keeps_everything_and_restoring_cuts_the_bars(processor, size):
    pixels = processor.source_pixels([scene(size)])
    [square] = processor.to_pil(pixels)
    restored = processor.restore_size(square, size, "aspect_ratio")
    assert restored.width / restored.height == pytest.approx(size[0] / size[1], rel=0.05)
    grey = np.asarray(restored).astype(int) - 127
    assert not (abs(grey) <= 1).all(-1).any()  # no bar is left
    expected = scene(size).resize(restored.size, Image.Resampling.BICUBIC)
    difference = np.asarray(ImageChops.difference(restored, expected)).astype(int)
    assert np.median(difference) <= 1
    assert processor.restore_size(square, size, "source").size == size
    assert processor.restore_size(square, size, "model") is square


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (97, 61)])
def test_center_crop_takes_the_middle(processor, size):
    cropping = Janus4oProcessor(
        processor.image_processor, processor.tokenizer, num_image_tokens=64, geometry="center_crop"
    )
    [square] = cropping.to_pil(cropping.source_pixels([scene(size)]))
    assert square.getcolors() == [(32 * 32, (0, 255, 0))] or square.getpixel((16, 16)) == (0, 255, 0)
    assert np.asarray(square)[2:-2, 2:-2, 1].min() > 250
    assert cropping.restore_size(square, size, "aspect_ratio") is square
    assert cropping.restore_size(square, size, "source").size == (min(size), min(size))


# ------------------------------------------------------------------ pictures of every kind


def test_16_bit_levels_are_scaled():
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    picture = read_picture(Image.fromarray(levels))
    assert picture.mode == "RGB"
    expected = levels // 257
    assert abs(np.asarray(picture)[..., 0].astype(int) - expected).max() <= 1


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    clear.putpixel((3, 3), (0, 0, 255, 255))
    picture = read_picture(clear)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((3, 3)) == (0, 0, 255)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 0
    assert read_picture(palette).getpixel((0, 0)) == (255, 255, 255)


def test_a_mode_that_no_picture_has_is_refused():
    with pytest.raises(ValueError, match="has the mode 'F'; known are 1, L, LA"):
        read_picture(Image.new("F", (16, 16)))


def test_cmyk_grey_and_rotated_pictures(tmp_path):
    assert read_picture(Image.new("CMYK", (16, 16), (0, 255, 255, 0))).getpixel((5, 5)) == (255, 0, 0)
    assert read_picture(Image.new("L", (16, 16), 90)).getpixel((5, 5)) == (90, 90, 90)
    assert read_picture(Image.new("1", (16, 16), 1)).getpixel((5, 5)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp", "a.gif", "a.ppm"])
def test_what_was_read_can_be_read_again(tmp_path, name):
    """Files are closed by then, and nothing was copied that could stay as it is."""
    Image.effect_noise((20, 16), 90).convert("RGB").save(tmp_path / name)
    once = read_picture(tmp_path / name)
    twice = read_picture(once)
    assert (once.mode, twice.mode, twice.size) == ("RGB", "RGB", (20, 16))
    assert twice.tobytes() == once.tobytes() == Image.open(tmp_path / name).convert("RGB").tobytes()


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (64, 64), (32, 32)])
def test_a_crop_is_the_middle_resized_by_the_image_processor(processor, size):
    picture = Image.effect_noise(size, 90).convert("RGB")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    middle = picture.crop((left, top, left + side, top + side))
    cropped = copy.copy(processor)
    cropped.geometry = "center_crop"
    expected = processor.image_processor(images=[middle], return_tensors="pt")["pixel_values"]
    assert cropped.source_pixels([picture]).equal(expected)


def test_bad_pictures_are_refused_in_one_sentence(processor, tmp_path):
    whole = saved(Image.effect_noise((64, 64), 90), format="PNG")
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    files = {
        "truncated.png": whole[: len(whole) // 2],
        "truncated.jpg": saved(Image.effect_noise((64, 64), 90), format="JPEG")[:900],
        "text.png": b"not a picture",
        "empty.png": b"",
        "animated.gif": saved(frames[0], format="GIF", save_all=True, append_images=frames[1:]),
        "dot.png": saved(Image.new("RGB", (1, 1)), format="PNG"),
        "line.png": saved(Image.new("RGB", (20_000, 1)), format="PNG"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    messages = {
        "missing.png": "There is no picture .*missing.png",
        "truncated.png": "truncated.png cannot be read",
        "truncated.jpg": "truncated.jpg cannot be read",
        "text.png": "text.png cannot be read as a picture",
        "empty.png": "empty.png cannot be read as a picture",
        "animated.gif": "animated.gif is animated: it has 3 frames; give a picture with 1",
        "dot.png": "dot.png has 1 x 1 pixels; at least 8 x 8 are needed",
        "line.png": "line.png has 20000 x 1 pixels; at least 8 x 8",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as raised:
            processor.source_pixels([str(tmp_path / name)])
        assert "\n" not in str(raised.value)


def test_a_picture_too_long_for_the_model_is_refused(processor):
    wide = Janus4oProcessor(
        type(processor.image_processor)(size={"height": 384, "width": 384}, min_size=14), processor.tokenizer
    )
    with pytest.raises(ValueError, match=r"has 2000 x 20 pixels: at the model's 384 pixels its shorter side would"):
        wide.source_pixels([Image.new("RGB", (2000, 20))])
    assert wide.source_pixels([Image.new("RGB", (2000, 80))]).shape == (1, 3, 384, 384)
