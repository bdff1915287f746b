# SPDX-License-Identifier: Apache-2.0
"""Quality gates on real photographs, and on pictures whose right verdict can be worked out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.gates import (
    SHARED_WORDS,
    BenchmarkPrompts,
    DuplicateIndex,
    Signature,
    find_blank,
    find_lack_of_change,
    sign,
)

PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "data" / "photographs").glob("*.jpg"))


def compressed(image: Image.Image, image_format: str, quality: int = 60) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=quality)
    return Image.open(buffer)


def with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera that was turned writes it."""
    stored = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.transpose(stored).save(buffer, "PNG", exif=exif)
    return Image.open(buffer)


@pytest.fixture(params=PHOTOGRAPHS, ids=lambda path: path.stem)
def photo(request: pytest.FixtureRequest) -> Image.Image:
    return Image.open(request.param).convert("RGB")


# --------------------------------------------------------------------------- blank


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_one_colour_is_blank_in_any_mode(mode: str) -> None:
    assert find_blank(Image.new(mode, (64, 64), 1)) == "the picture is blank"


def test_compression_does_not_hide_a_blank_picture() -> None:
    plain = Image.new("RGB", (256, 256), (200, 60, 33))
    for image_format in ("JPEG", "WEBP"):
        assert find_blank(compressed(plain, image_format)) == "the picture is blank"


def test_pictures_are_not_blank(photo: Image.Image) -> None:
    assert find_blank(photo) is None
    assert find_blank(photo.convert("L")) is None
    dot = Image.new("RGB", (1024, 1024), "white")
    ImageDraw.Draw(dot).ellipse((500, 500, 508, 508), fill="black")
    assert find_blank(dot) is None


def test_what_transparent_pixels_hide_is_not_seen() -> None:
    icon = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(icon).rectangle((20, 20, 40, 40), fill=(0, 0, 0, 255))
    assert find_blank(icon) is None  # black on nothing
    hidden = Image.open(PHOTOGRAPHS[0]).convert("RGBA")
    hidden.putalpha(0)
    assert find_blank(hidden) == "the picture is blank"


def test_an_edit_may_leave_the_plain_ground_of_its_source(photo: Image.Image) -> None:
    ground = Image.new("RGB", (128, 128), "navy")
    source = ground.copy()
    ImageDraw.Draw(source).ellipse((40, 40, 80, 80), fill="red")
    assert find_blank(ground, source) is None
    assert find_blank(Image.new("RGB", (128, 128), "black"), photo) == "the picture is blank"
    assert find_blank(Image.new("RGB", (128, 128), "white"), source) == "the picture is blank"


# --------------------------------------------------------------------------- change


def test_compression_and_scaling_change_nothing(photo: Image.Image) -> None:
    half = photo.resize((photo.width // 2, photo.height // 2))
    twice = photo.resize((photo.width * 2, photo.height * 2), Image.Resampling.BICUBIC)
    again = [compressed(photo, "JPEG"), compressed(photo, "WEBP"), photo, half, compressed(twice, "WEBP")]
    assert [find_lack_of_change(photo, picture, "any") for picture in again] == ["the edit changed nothing"] * 5


def test_a_patch_is_a_local_change(photo: Image.Image) -> None:
    edited = photo.copy()
    side = photo.height // 6
    edited.paste(ImageOps.invert(photo).crop((0, 0, side, side)), (photo.width // 2, photo.height // 2))
    for picture in (edited, compressed(edited, "JPEG"), compressed(edited.resize((512, 342)), "WEBP")):
        assert find_lack_of_change(photo, picture, "local") is None


@pytest.mark.parametrize("scope", ["global", "any"])
def test_only_local_edits_must_leave_something(photo: Image.Image, scope: str) -> None:
    everywhere = ImageOps.invert(photo)
    assert find_lack_of_change(photo, everywhere, scope) is None  # type: ignore[arg-type]


def test_a_local_edit_that_redraws_everything_is_refused(photo: Image.Image) -> None:
    other = ImageOps.invert(photo)
    reason = find_lack_of_change(photo, other, "local")
    assert reason is not None
    assert reason.startswith("a local edit changed ")
    assert 90 < int(reason.split()[4].rstrip("%")) <= 100


def test_the_share_of_change_is_an_area() -> None:
    """Of a white picture, 95 and 85 % are painted over."""
    before = Image.new("RGB", (480, 480), "white")
    for percent, expected in ((85, None), (95, "a local edit changed 96% of the picture")):
        after = before.copy()
        ImageDraw.Draw(after).rectangle((0, 0, 480 * percent // 100 - 1, 479), fill="black")
        assert find_lack_of_change(before, after, "local") == expected  # 456 of 480 columns reach 46 of 48 cells


def test_a_removed_background_is_a_change(photo: Image.Image) -> None:
    cut_out = photo.convert("RGBA")
    alpha = Image.new("L", photo.size, 255)
    ImageDraw.Draw(alpha).rectangle((0, 0, photo.width // 3, photo.height), fill=0)
    cut_out.putalpha(alpha)
    assert find_lack_of_change(photo, cut_out, "local") is None


def test_a_new_shape_passes(photo: Image.Image) -> None:
    square = photo.crop((0, 0, photo.height, photo.height))
    assert find_lack_of_change(photo, square, "local") is None


@pytest.mark.parametrize("orientation", [6, 8])
def test_photographs_are_compared_as_they_are_meant_to_be_seen(photo: Image.Image, orientation: int) -> None:
    turned = with_orientation(photo, orientation)
    assert turned.size == photo.size[::-1]
    assert find_lack_of_change(turned, photo, "any") == "the edit changed nothing"


def test_sixteen_bits_of_gray_are_scaled(photo: Image.Image) -> None:
    gray = photo.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 256)
    assert deep.mode == "I;16"
    assert find_lack_of_change(deep, gray, "any") == "the edit changed nothing"


# --------------------------------------------------------------------------- duplicates


def test_the_signature_of_a_photograph_survives_compression_and_scaling(photo: Image.Image) -> None:
    index = DuplicateIndex()
    index.add("photo", "a", sign(photo))
    assert len(sign(photo).thumbnail) == 192
    for again in (compressed(photo, "JPEG"), compressed(photo.resize((640, 427)), "WEBP")):
        assert index.find_similar(sign(again), within=4) == "photo"
    for other in (ImageOps.mirror(photo), ImageOps.invert(photo), ImageEnhance.Brightness(photo).enhance(0.5)):
        assert index.find_similar(sign(other), within=4) is None


def test_photographs_are_not_like_one_another() -> None:
    index = DuplicateIndex()
    for path in PHOTOGRAPHS:
        signature = sign(Image.open(path))
        assert index.find_similar(signature, within=16) is None
        index.add(path.stem, path.stem, signature)


def test_another_thing_on_the_same_ground_is_another_picture() -> None:
    index = DuplicateIndex()
    for color in ("red", "orange", "green", "purple"):
        scene = Image.new("RGB", (256, 256), "gray")
        ImageDraw.Draw(scene).ellipse((20, 20, 70, 70), fill=color)
        assert index.find_similar(sign(scene), within=16) is None
        index.add(color, color, sign(scene))


def test_hash_and_colours_must_both_be_close() -> None:
    index = DuplicateIndex()
    index.add("first", "a", Signature(f"{0b1111:016x}", bytes([100] * 192)))
    assert index.find_similar(Signature(f"{0:016x}", bytes([100] * 192)), within=4) == "first"
    assert index.find_similar(Signature(f"{0:016x}", bytes([100] * 192)), within=3) is None
    assert index.find_similar(Signature(f"{0b1111:016x}", bytes([116] * 192)), within=0) == "first"
    assert index.find_similar(Signature(f"{0b1111:016x}", bytes([84] * 192)), within=0) == "first"
    for odd in (117, 83):  # in one place
        thumbnail = bytes([*[100] * 191, odd])
        assert index.find_similar(Signature(f"{0b1111:016x}", thumbnail), within=0) is None
    assert index.find_similar(Signature("f" * 16, bytes([100] * 192)), within=16) is None


def test_the_index_grows_and_keeps_the_first() -> None:
    index = DuplicateIndex()
    rng = np.random.default_rng(0)
    hashes = rng.integers(2**63, size=5000)
    for number, value in enumerate(hashes):
        index.add(f"item {number}", f"bytes {number % 4000}", Signature(f"{value:016x}", bytes([number % 256] * 192)))
    for number in (0, 1023, 1024, 2047, 2048, 4999):
        signature = Signature(f"{hashes[number]:016x}", bytes([number % 256] * 192))
        assert index.find_similar(signature, within=0) == f"item {number}"
    assert index.find_exact("bytes 999") == "item 999"  # and not item 4999, which has the same bytes
    assert index.find_exact("bytes 4999") is None
    assert DuplicateIndex().find_similar(signature, within=16) is None


# --------------------------------------------------------------------------- prompts of benchmarks


def test_benchmark_files_in_every_layout(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a photo of a bench\n\na photo of a cow\n", encoding="utf-8")
    geneval = [{"tag": "single_object", "prompt": "a photo of a pizza\u2028"}, {"prompt": "a photo of a dog"}]
    (tmp_path / "geneval.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in geneval) + "\n", encoding="utf-8"
    )
    edits = {"1082": {"id": "animal/1.jpg", "prompt": "Remove the dog."}, "7": {"Prompt": "Add a hat."}}
    (tmp_path / "edits.json").write_text(json.dumps(edits), encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps(["three cats", {"text": "four cats"}]), encoding="utf-8")
    (tmp_path / "dpg" / "prompts").mkdir(parents=True)
    (tmp_path / "dpg" / "prompts" / "1.txt").write_text("A long\nprompt.", encoding="utf-8")
    names = ("plain.txt", "geneval.jsonl", "edits.json", "list.json", "dpg")
    benchmarks = BenchmarkPrompts([tmp_path / name for name in names])
    for prompt in (
        "A photo of a cow.",
        "a photo of a pizza",
        "remove the dog",
        "add a hat",
        "Three cats!",
        "four cats",
        "a long  prompt",
    ):
        assert benchmarks.find(prompt) is not None, prompt
    assert benchmarks.find("a photo of a bench") == "the prompt repeats a benchmark prompt: a photo of a bench"
    for prompt in ("a photo of a bench and a cow", "", "..."):
        assert benchmarks.find(prompt) is None, prompt


def test_a_run_of_shared_words_is_enough(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(40)]
    (tmp_path / "long.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    benchmarks = BenchmarkPrompts([tmp_path / "long.txt"])
    shared = words[10 : 10 + SHARED_WORDS]
    reason = benchmarks.find(f"Something else: {', '.join(shared).upper()}; the end")
    assert reason is not None
    assert reason.startswith("the prompt repeats a benchmark prompt: word0 word1 ")
    assert len(reason) < 140
    assert benchmarks.find(" ".join(shared)) == reason
    assert benchmarks.find("something else " + " ".join(shared[1:])) is None
    assert benchmarks.find(" ".join([*shared[:6], "other", *shared[6:]])) is None


def test_no_benchmark_no_reason() -> None:
    assert BenchmarkPrompts([]).find("a photo of a bench") is None


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("absent.txt", None, "cannot read .*No such file"),
        ("empty.txt", b"\n\n", "holds no prompt"),
        ("odd.jsonl", b'{"caption": "a cow"}', "a row has no prompt or text or Prompt"),
        ("odd.json", b"7", "cannot read"),
        ("broken.json", b"[", "cannot read"),
        ("latin.txt", "café".encode("latin-1"), "cannot read"),
    ],
)
def test_faults_of_benchmark_files_are_named(tmp_path: Path, name: str, content: bytes | None, fault: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"gates.benchmark_prompts: .*{fault}"):
        BenchmarkPrompts([tmp_path / name])
