# SPDX-License-Identifier: Apache-2.0
"""Pictures in official layouts -> what other tools read, whole, and with nothing dropped silently."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.exporters import to_evalscope, to_lmms_eval, to_torch_fidelity
from sharegpt4o_image.evaluation.layout_pictures import LayoutFolder, read_layout

Run = Callable[..., tuple[int, str, str]]

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
QUESTIONS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
    "a1,A long prompt,,1,0,entity,whole,entity - whole (x),Is there x?\n"
    "b2,Another,,1,0,entity,whole,entity - whole (y),Is there y?\n"
    "c3,A third,,1,0,entity,whole,entity - whole (z),Is there z?\n"
)
ITEMS = {
    key: {"id": f"animal/{key}.jpg", "prompt": f"edit {key} <b>", "edit_type": "add"} for key in ("22", "1023", "7")
}


def plain(path: Path, color: tuple[int, int, int] = (1, 2, 3), side: int = 8, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), color).save(path, **options)
    return path


def pixel(path: Path) -> Any:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB").getpixel((1, 1))


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    folder = tmp_path / "geneval" / "images"
    for number in range(2):
        place = folder / f"{number:05}"
        for sample in range(2):
            plain(place / "samples" / f"{sample:04}.png", COLORS[2 * number + sample])
        (place / "metadata.jsonl").write_text(json.dumps({"tag": "colors", "prompt": f"prompt {number}"}))
    (folder / "recipe.json").write_text("{}")
    return folder


@pytest.fixture
def dpg(tmp_path: Path) -> Path:
    folder = tmp_path / "dpg" / "images"
    grid = Image.new("RGB", (16, 16))
    for index, color in enumerate(COLORS):
        grid.paste(color, (8 * (index % 2), 8 * (index // 2), 8 * (index % 2) + 8, 8 * (index // 2) + 8))
    folder.mkdir(parents=True)
    grid.save(folder / "a1.png")
    plain(folder / "b2.png")
    (tmp_path / "questions.csv").write_text(QUESTIONS)
    return folder


@pytest.fixture
def imgedit(tmp_path: Path) -> Path:
    folder = tmp_path / "imgedit" / "images"
    for key in ("22", "1023"):
        plain(folder / f"{key}.png")
    (tmp_path / "basic_edit.json").write_text(json.dumps(ITEMS))
    return folder


def edits_in(folder: Path) -> LayoutFolder:
    return read_layout(folder, "imgedit", {key: entry["prompt"] for key, entry in ITEMS.items()})


# ------------------------------------------------------------------ torch-fidelity


def test_geneval_becomes_a_flat_folder_of_the_same_bytes(run: Run, geneval: Path) -> None:
    code, out, _ = run("evaluate", "export", geneval, "--to", "torch-fidelity", "--layout", "geneval", "-o", "flat")
    assert code == 0
    assert "Wrote flat: 4 pictures" in out
    assert "4 pictures are fewer than kid_subset_size 1000" in out
    assert sorted(os.listdir("flat")) == ["00000_0000.png", "00000_0001.png", "00001_0000.png", "00001_0001.png"]
    for number in range(2):
        source = geneval / f"{number:05}" / "samples" / "0001.png"
        assert Path(f"flat/{number:05}_0001.png").read_bytes() == source.read_bytes()


def test_grids_are_cut_into_single_pictures(run: Run, dpg: Path) -> None:
    code, out, _ = run(
        "evaluate", "export", dpg, "--to", "torch-fidelity", "--layout", "dpg-bench", "--items", "questions.csv",
        "--resolution", 8, "-o", "flat", "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert (result["num_pictures"], result["missing"], result["left_out"]) == (5, ["c3"], [])
    assert sorted(os.listdir("flat")) == ["a1_0.png", "a1_1.png", "a1_2.png", "a1_3.png", "b2.png"]
    assert [pixel(Path(f"flat/a1_{index}.png")) for index in range(4)] == COLORS


def test_a_jpeg_called_png_is_written_as_png_and_told(tmp_path: Path, imgedit: Path) -> None:
    plain(imgedit / "7.png", (200, 10, 10), format="JPEG")
    exported = to_torch_fidelity(edits_in(imgedit), tmp_path / "flat")
    assert any("1 pictures are of files called .png that hold another format" in note for note in exported.notes)
    pixel(tmp_path / "flat" / "7.png")


def test_a_cmyk_jpeg_called_png_is_written_as_png(tmp_path: Path, imgedit: Path) -> None:
    Image.new("CMYK", (8, 8)).save(imgedit / "7.png", format="JPEG")
    assert to_torch_fidelity(edits_in(imgedit), tmp_path / "flat").num_pictures == 3
    assert pixel(tmp_path / "flat" / "7.png") == (255, 255, 255)


def test_two_pictures_of_an_item_are_left_out_by_name(imgedit: Path) -> None:
    plain(imgedit / "22.old.png")
    found = edits_in(imgedit)
    assert [picture.item for picture in found.pictures] == ["1023"]
    reasons = [(one.item, one.reason) for one in found.left_out]
    assert reasons == [(name, "one of 2 of its item") for name in ("22.old.png", "22.png")]
    assert found.missing == ("22", "7")


def test_a_thousand_pictures_bring_no_warning(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    first = plain(folder / "0.png", side=1)
    for number in range(1, 1000):
        (folder / f"{number}.png").write_bytes(first.read_bytes())
    prompts = {str(number): "x" for number in range(1000)}
    exported = to_torch_fidelity(read_layout(folder, "imgedit", prompts), tmp_path / "flat")
    assert exported.num_pictures == len(os.listdir(tmp_path / "flat")) == 1000
    assert not any("Warning" in note for note in exported.notes)


# ------------------------------------------------------------------ evalscope


def test_lines_of_evalscope_lead_to_pictures(run: Run, dpg: Path) -> None:
    code, _, _ = run(
        "evaluate", "export", dpg, "--to", "evalscope", "--layout", "dpg-bench", "--items", "questions.csv",
        "--resolution", 8, "-o", "es",
    )  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in Path("es/pictures.jsonl").read_text().splitlines()]
    assert [(line["id"], line["prompt"]) for line in lines] == [
        *((f"a1_{index}", "A long prompt") for index in range(4)),
        ("b2", "Another"),
    ]
    assert all(set(line) == {"id", "prompt", "image_path"} for line in lines)
    assert [pixel(Path(line["image_path"])) for line in lines[:4]] == COLORS
    assert Path(lines[4]["image_path"]) == (dpg / "b2.png").resolve()


def test_prompts_of_geneval_come_from_its_folders(tmp_path: Path, geneval: Path) -> None:
    to_evalscope(read_layout(geneval, "geneval"), tmp_path / "es")
    lines = [json.loads(line) for line in (tmp_path / "es" / "pictures.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]


# ------------------------------------------------------------------ lmms-eval


def answers_of_from_log(folder: Path, task: str) -> dict[int, str]:
    """What lmms-eval's model `from_log` answers, by the place in the data set: the facts of its reading."""
    [path] = folder.rglob("*.json")
    log = json.loads(path.read_text())
    assert log["args"]["limit"] is None
    assert isinstance(log["args"]["model"], str)
    assert isinstance(log["args"]["model_args"], str)
    assert log["model_configs"]["task"] == task
    assert len(log["time"]) == 9
    return {line["doc_id"]: line["resps"][0][0] for line in log["logs"]}


def test_lmms_eval_gets_an_answer_for_every_place(run: Run, imgedit: Path) -> None:
    Path("order.json").write_text('["1023", "7", 22]')
    code, out, _ = run(
        "evaluate", "export", imgedit, "--to", "lmms-eval", "--layout", "imgedit", "--items", "basic_edit.json",
        "--order", "order.json", "-m", "org/ours", "-o", "log",
    )  # fmt: skip
    assert code == 0
    answers = answers_of_from_log(Path("log"), "imgedit")
    assert sorted(answers) == [0, 1, 2]
    assert json.loads(answers[0]) == {"text": "", "images": [str((imgedit / "1023.png").resolve())]}
    assert Path(json.loads(answers[2])["images"][0]).name == "22.png"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answers[1])  # so lmms-eval rates it as 0
    assert "1 of 3 items have no picture; lmms-eval rates them as 0" in out
    assert "1 items have no picture: 7" in out
    assert "--model from_log" in out
    assert "--process_with_media" in out


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "give the keys in their order with --order FILE"),
        ("x", "cannot be read as JSON"),
        ("[]", "is no list of keys"),
        ("[1.5]", "is no list of keys"),
        ('["22", 22]', "has the key 22 twice"),
        ('["1"]', "no picture has a key of"),
    ],
)
def test_an_order_that_cannot_be_used_is_refused(tmp_path: Path, imgedit: Path, text: str | None, fault: str) -> None:
    order = None
    if text is not None:
        order = tmp_path / "order.json"
        order.write_text(text)
    with pytest.raises(UserError, match=fault):
        to_lmms_eval(edits_in(imgedit), tmp_path / "log", order, "m")
    assert not (tmp_path / "log").exists()


def test_pictures_that_the_order_lacks_are_named(tmp_path: Path, imgedit: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text('["22"]')
    exported = to_lmms_eval(edits_in(imgedit), tmp_path / "log", order, "m")
    assert [(one.item, one.reason) for one in exported.left_out] == [("1023", "not in order.json")]


# ------------------------------------------------------------------ what cannot be used


def test_what_cannot_be_used_is_named(tmp_path: Path, imgedit: Path) -> None:
    (imgedit / "7.png").write_bytes(b"no picture")
    plain(imgedit / "99.png")
    plain(imgedit / "22.jpg")
    (imgedit / "folder.png").mkdir()
    found = edits_in(imgedit)
    assert [picture.id for picture in found.pictures] == ["1023", "22"]
    reasons = {one.item: one.reason for one in found.left_out}
    assert reasons["99.png"] == "not an item of the benchmark"
    assert reasons["22.jpg"] == reasons["folder.png"] == "no PNG file"
    assert "unreadable" in reasons["7"]
    assert found.missing == ("7",)
    exported = to_torch_fidelity(found, tmp_path / "flat")
    assert "4 left out" in exported.to_text()


def test_a_cut_off_picture_is_unreadable(imgedit: Path) -> None:
    whole = plain(imgedit / "7.png", side=64).read_bytes()
    (imgedit / "7.png").write_bytes(whole[:-40])
    assert "unreadable" in edits_in(imgedit).left_out[0].reason


def test_a_grid_of_another_size_is_named(dpg: Path) -> None:
    found = read_layout(dpg, "dpg-bench", {"a1": "x", "b2": "y"}, resolution=16)
    assert [picture.id for picture in found.pictures] == ["a1"]
    assert "is 8 x 8 pixels, not 16 or 32 a side" in found.left_out[0].reason


def test_folders_of_geneval_are_checked(geneval: Path) -> None:
    (geneval / "x1").mkdir()
    (geneval / "00005").mkdir()
    (geneval / "00005" / "metadata.jsonl").write_text('{"prompt": "p"}')
    plain(geneval / "00000" / "samples" / "grid.png")
    reasons = {one.item: one.reason for one in read_layout(geneval, "geneval").left_out}
    assert reasons == {
        "x1": "not a folder with a number",
        "00005": "no samples in it",
        "00000/samples/grid.png": "not named as a sample",
    }
    (geneval / "00001" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"00001/metadata\.jsonl does not hold the prompt"):
        read_layout(geneval, "geneval")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--to", "torch-fidelity", "--layout", "imgedit", "-o", "flat"), "holds no prompts; give"),
        (("--to", "torch-fidelity", "--layout", "geneval", "-o", "flat"), "holds no picture in the layout geneval"),
        (("--to", "lmms-eval", "--layout", "geneval", "-o", "flat"), "lmms-eval has no task for geneval"),
        (
            ("--to", "evalscope", "--layout", "imgedit", "--items", "basic_edit.json", "-o", "imgedit"),
            "imgedit is there already; choose an empty or new folder",
        ),
        (
            ("--to", "evalscope", "--layout", "geneval", "--items", "basic_edit.json", "-o", "flat"),
            "--items is for dpg-bench and imgedit",
        ),
    ],
)
def test_faults_are_one_sentence(run: Run, imgedit: Path, arguments: tuple[str, ...], fault: str) -> None:
    code, out, err = run("evaluate", "export", imgedit, *arguments)
    assert (code, out) == (2, "")
    assert fault in err
    assert err.count("\n") == 1
    assert not Path("flat").exists()
    assert not list(Path().glob(".unfinished*"))
