# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of GenEval's pictures is found, and what does not belong there is named."""

import json

import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_layout import picture_requests, read_layout, sample_path, write_metadata
from sharegpt4o_image.evaluation.geneval_prompts import generate_metadata

PROMPTS = generate_metadata()[:4]
NUMBERED = dict(enumerate(PROMPTS))


@pytest.fixture
def folder(tmp_path):
    """Two pictures of each of four prompts, in the official layout."""
    write_metadata(tmp_path, NUMBERED)
    for request in picture_requests(NUMBERED, 2, seed=42):
        path = tmp_path / request.path
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path


def names(layout):
    return [picture.name for picture in layout.pictures]


def test_every_picture_of_a_whole_folder_is_found_with_its_prompt(folder):
    layout = read_layout(folder, NUMBERED, 2)
    assert names(layout) == [sample_path(index, sample) for index in range(4) for sample in range(2)]
    assert [picture.prompt for picture in layout.pictures] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert (layout.missing, layout.notes) == ([], [])


def test_the_official_generators_names_are_found_too(folder):
    for path in (folder / "00001/samples").iterdir():
        path.rename(path.with_name(f"0{path.name}"))  # 00000.png, as generation/diffusers_generate.py writes
    (folder / "00001/grid.png").write_bytes(b"")
    layout = read_layout(folder, NUMBERED, 2)
    assert "00001/samples/00001.png" in names(layout)
    assert (layout.missing, layout.notes) == ([], [])


def test_missing_pictures_and_folders_are_named(folder):
    (folder / "00002/samples/0000.png").unlink()
    (folder / "00003").rename(folder / "3 of 4")
    layout = read_layout(folder, NUMBERED, 2)
    assert [one.item for one in layout.missing] == [
        "00002/samples/0000.png",
        "00003/samples/0000.png",
        "00003/samples/0001.png",
    ]
    assert layout.missing[0].reason == "00002 has 1 of 2 pictures"
    assert layout.missing[1].reason == "there is no folder of this prompt"
    assert layout.notes == ["3 of 4: no folder of a prompt; not looked at"]


def test_surplus_pictures_count_and_are_named(folder):
    Image.new("RGB", (8, 8)).save(folder / "00000/samples/0002.png")
    Image.new("RGB", (8, 8)).save(folder / "00000/samples/best.png")
    (folder / "00009").mkdir()
    layout = read_layout(folder, NUMBERED, 2)
    assert len(layout.pictures) == 9
    assert layout.notes == [
        "00009: not of the 4 prompts asked for; not judged",
        "00000/samples/best.png: no picture of a sample; not judged",
        "00000: 3 pictures instead of 2; all count",
    ]


def test_a_folder_of_another_prompt_is_not_judged(folder):
    first, second = folder / "00000", folder / "00001"
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    layout = read_layout(folder, NUMBERED, 2)
    assert {picture.prompt for picture in layout.pictures} == set(PROMPTS[2:])
    assert len(layout.missing) == 4
    assert f"is of another prompt ({PROMPTS[1].prompt!r} instead of {PROMPTS[0].prompt!r})" in layout.missing[0].reason


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"tag": 1})])
def test_metadata_that_cannot_be_read_is_named(folder, text):
    (folder / "00000/metadata.jsonl").write_text(text)
    layout = read_layout(folder, NUMBERED, 2)
    assert [one.item for one in layout.missing] == ["00000/samples/0000.png", "00000/samples/0001.png"]
    assert layout.missing[0].reason.startswith("00000/metadata.jsonl cannot be read")


def test_a_folder_with_no_picture_is_refused_with_the_layout(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"NNNNN/samples/0000\.png \(cats: no folder of a prompt"):
        read_layout(tmp_path, NUMBERED, 2)
    with pytest.raises(UserError, match="is no folder"):
        read_layout(tmp_path / "nowhere", NUMBERED, 2)


def test_names_that_only_look_like_numbers_are_no_folders(folder):
    (folder / "²").mkdir()  # str.isdigit() takes it, int() does not
    (folder / "1").mkdir()
    (folder / "00003").rename(folder / "3")
    (folder / "3/metadata.jsonl").unlink()
    (folder / "7.png").write_bytes(b"")
    assert read_layout(folder, NUMBERED, 2).notes == [
        "1: the same number as 00001; not judged",
        "7.png, ²: no folder of a prompt; not looked at",
        "3: no metadata.jsonl, so the number says which prompt it is",
    ]


def test_a_part_of_the_prompts_is_found_in_the_whole_folder(folder):
    for number in range(4, 14):
        (folder / f"{number:05d}").mkdir()
    layout = read_layout(folder, {3: PROMPTS[3]}, 2)
    assert names(layout) == ["00003/samples/0000.png", "00003/samples/0001.png"]
    assert layout.notes == ["00000, 00001, 00002, 00004, 00005 and 8 more: not of the 1 prompts asked for; not judged"]


def test_each_picture_has_a_seed_of_its_own_that_no_other_run_has():
    numbered = dict(enumerate(generate_metadata()))
    requests = [request for seed in (42, 43, 1042) for request in picture_requests(numbered, 4, seed)]
    assert len({request.seed for request in requests}) == len(requests) == 3 * 2212
    assert all(0 <= request.seed < 2**63 for request in requests)
    assert requests[5].path == "00001/samples/0001.png"
    part = picture_requests({1: numbered[1]}, 2, 42)
    assert part == requests[4:6]
