# SPDX-License-Identifier: Apache-2.0
"""Folders of DPG-Bench pictures are read as the official script reads them; what it would judge as black is named."""

import numpy as np
import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.dpg_pictures import (
    UnusablePicture,
    compose_grids,
    first_side,
    has_odd_size,
    hashes_of_singles,
    picture_requests,
    picture_seed,
    pixel_hash,
    read_crops,
    read_folder,
)

COLORS = ("red", "green", "blue", "yellow")


def color_of(picture):
    [(_, color)] = picture.getcolors()
    return color


def save_grid(path, side=8):
    grid = Image.new("RGB", (2 * side, 2 * side))
    for index, color in enumerate(COLORS):
        grid.paste(Image.new("RGB", (side, side), color), (index % 2 * side, index // 2 * side))
    grid.save(path)
    return path


# ------------------------------------------------------------------ folders


def test_the_id_is_the_name_up_to_the_first_dot(tmp_path):
    for name in ("a.png", "b.v2.png", "c.jpg"):
        save_grid(tmp_path / name)
    found = read_folder(tmp_path, ["a", "b", "c"])
    assert {item: path.name for item, path in found.files.items()} == {"a": "a.png", "b": "b.v2.png", "c": "c.jpg"}
    assert (found.faults, found.surplus) == ({}, ())


def test_an_id_with_a_dot_cannot_be_found_and_says_why(tmp_path):
    save_grid(tmp_path / "a.b.png")
    assert read_folder(tmp_path, ["a.b"]).faults["a.b"].startswith("its id has a dot")


def test_a_damaged_first_drawing_does_not_tell_the_side(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"half a pict")
    assert first_side(["a"], tmp_path) is None
    (tmp_path / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "1.png")
    assert first_side(["a", "b"], tmp_path) == 8


def test_what_is_missing_surplus_or_no_picture_is_named(tmp_path):
    for name in ("a.png", "a.jpg", "stranger.png"):
        save_grid(tmp_path / name)
    (tmp_path / "results.txt").write_text("DPG-Bench score: 84")
    (tmp_path / "b.png").mkdir()
    (tmp_path / ".unfinished-123").write_bytes(b"")
    found = read_folder(tmp_path, ["a", "b"])
    assert found.files == {}
    assert found.faults == {"a": "there are 2 files: a.jpg, a.png; keep one", "b": "there is no b.png"}
    assert found.surplus == (
        "b.png: no picture",
        "results.txt: no picture",
        "stranger.png: the question file has no item 'stranger'",
    )
    with pytest.raises(UserError, match="give --images a folder"):
        read_folder(tmp_path / "nowhere", ["a"])


# ------------------------------------------------------------------ crops


def test_crops_are_the_official_ones(tmp_path):
    path = save_grid(tmp_path / "a.png")
    crops = read_crops(path, 8, 4)
    assert [color_of(crop) for crop in crops.pictures] == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)]
    assert [color_of(crop) for crop in read_crops(path, 8, 3).pictures] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    [only] = read_crops(path, 8, 1).pictures
    assert only.size == (8, 8)
    assert color_of(only) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "num_pictures", "message"),
    [
        ((8, 8), 4, "a.png is 8 x 8, too small for 4 pictures of 8 x 8"),
        ((16, 15), 4, "a.png is 16 x 15, too small"),
        ((15, 16), 2, "a.png is 15 x 16, too small"),
        ((7, 8), 1, "a.png is 7 x 8, too small for 1 picture of 8 x 8"),
    ],
)
def test_a_crop_beyond_the_picture_is_a_fault(size, num_pictures, message, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(UnusablePicture, match=message):
        read_crops(tmp_path / "a.png", 8, num_pictures)


def test_two_crops_need_only_the_upper_half(tmp_path):
    Image.new("RGB", (16, 8)).save(tmp_path / "a.png")
    assert len(read_crops(tmp_path / "a.png", 8, 2).pictures) == 2


@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_unreadable_pictures_are_named(damage, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "text":
        path.write_text("no picture")
    else:
        path.unlink()
    with pytest.raises(UnusablePicture, match=r"a\.png (is not a readable picture|cannot be read)"):
        read_crops(path, 32, 4)


def test_odd_sizes():
    assert [has_odd_size(size, 8) for size in ((8, 8), (16, 16), (16, 8), (20, 20))] == [False, False, True, True]


def test_equal_pixels_have_one_hash_whatever_the_file_format(tmp_path):
    picture = Image.new("RGB", (4, 2), "red")
    picture.save(tmp_path / "a.png", compress_level=0)
    picture.save(tmp_path / "a.webp", lossless=True)
    hashes = {pixel_hash(Image.open(tmp_path / name).convert("RGB")) for name in ("a.png", "a.webp")}
    assert hashes == {pixel_hash(picture)}
    assert pixel_hash(Image.new("RGB", (2, 4), "red")) not in hashes


# ------------------------------------------------------------------ drawn pictures


def test_a_seed_depends_on_the_picture_alone():
    requests = picture_requests({"a": "x", "b": "y"}, 4, seed=7)
    assert [request.path for request in requests[:5]] == ["a/1.png", "a/2.png", "a/3.png", "a/4.png", "b/1.png"]
    assert picture_requests({"b": "y"}, 1, seed=7) == requests[4:5]
    assert len({request.seed for request in requests} | {picture_seed(8, "a", 1)}) == 9


@pytest.mark.parametrize("item", ["../x", "a/b", "a.b", "a\nb", "a\\b", "x" * 300])
def test_ids_that_are_no_file_names_are_refused(item):
    with pytest.raises(UserError, match="cannot be the name of a picture"):
        picture_requests({item: "x"}, 1, 0)


def draw_singles(folder, item="a", count=4, side=8):
    (folder / item).mkdir(parents=True)
    for index, color in enumerate(COLORS[:count], start=1):
        Image.new("RGB", (side, side), color).save(folder / item / f"{index}.png")


def test_four_pictures_become_a_grid_that_crops_give_back(tmp_path):
    singles, grids = tmp_path / "singles", tmp_path / "grids"
    draw_singles(singles)
    assert compose_grids(["a"], singles, grids, 4, 8, {}) == {}
    crops = read_crops(grids / "a.png", 8, 4)
    assert crops.size == (16, 16)
    assert [pixel_hash(crop) for crop in crops.pictures] == hashes_of_singles(["a"], singles, 4, None)["a"]
    written = (grids / "a.png").stat().st_mtime_ns
    compose_grids(["a"], singles, grids, 4, 8, {})
    assert (grids / "a.png").stat().st_mtime_ns == written
    Image.new("RGB", (8, 8), "black").save(singles / "a" / "2.png")
    compose_grids(["a"], singles, grids, 4, 8, {})
    assert color_of(read_crops(grids / "a.png", 8, 4).pictures[1]) == (0, 0, 0)


def test_one_picture_makes_no_grid_and_another_side_is_resized(tmp_path):
    draw_singles(tmp_path / "singles")
    compose_grids(["a"], tmp_path / "singles", tmp_path / "grids", 1, 6, {})
    assert Image.open(tmp_path / "grids" / "a.png").size == (6, 6)


def test_items_without_all_their_pictures_get_no_grid(tmp_path):
    draw_singles(tmp_path / "singles", count=3)
    (tmp_path / "singles" / "wide").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "singles" / "wide" / "1.png")
    reasons = {"a/4.png": "refused by moderation: no"}
    faults = compose_grids(["a"], tmp_path / "singles", tmp_path / "grids", 4, 8, reasons)
    assert faults == {"a": "1 of 4 pictures are not drawn: refused by moderation: no"}
    faults = compose_grids(["wide"], tmp_path / "singles", tmp_path / "grids", 1, 8, {})
    assert faults == {"wide": "was drawn as 9 x 8; a grid takes squares"}
    assert hashes_of_singles(["a", "wide"], tmp_path / "singles", 4, 8) == {}
    assert not (tmp_path / "grids").exists()
