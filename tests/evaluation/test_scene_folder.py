# SPDX-License-Identifier: Apache-2.0
"""The scene benchmark on folders: drawn once, judged once, resumed; what a given folder lacks is named."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sharegpt4o_image.checkpoints import TINY_JANUS_4O, load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.scene_benchmark import Verdict, edit_items, prompt_items, teacher_picture
from sharegpt4o_image.evaluation.scene_folder import PictureFolder, file_name, score_folder
from sharegpt4o_image.evaluation.scene_record import scene_record
from sharegpt4o_image.evaluation.scene_runner import draw_and_judge
from sharegpt4o_image.evaluation.score_record import read_scores


def by_teacher(folder, items):
    """A folder of what the offline teacher draws."""
    folder.mkdir()
    for index, item in enumerate(items):
        teacher_picture(item).save(folder / file_name(index))
    return folder


def state_of(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")}


def test_a_folder_is_drawn_once_and_gives_what_the_model_gives_in_memory(run, tmp_path):
    command = ["evaluate", "scene-edits", "--limit", 2, "--json"]
    code, out, _ = run(*command)
    assert code == 0
    items = edit_items(2)
    scored = draw_and_judge(*load_checkpoint(TINY_JANUS_4O), items)
    table = json.loads(out)
    assert {kind: row | {"combinations": 2} for kind, row in scored.table.items()} == table
    folder = Path("scores/scene-edits")
    for index, picture in enumerate(scored.pictures):
        with Image.open(folder / "images" / file_name(index)) as drawn:
            assert drawn.tobytes() == picture.tobytes()
    before, verdicts = state_of(folder / "images"), (folder / "verdicts/scene-edits-0.jsonl").read_text()
    removed = folder / "images" / file_name(3)
    removed.unlink()
    assert json.loads(run(*command)[1]) == table
    after = state_of(folder / "images")
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert {name for name in before if after[name] != before[name]} == {removed.name}
    assert (folder / "verdicts/scene-edits-0.jsonl").read_text() == verdicts
    record = read_scores(folder / "scores/scene-edits.json")
    assert (record.details, record.model, record.num_scored) == (table, TINY_JANUS_4O, 6)
    assert record.generator["seed"] == 0
    assert record.overall.value == pytest.approx(sum(row["score"] for row in table.values()) / 3)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["-m", "tiny-janus-pro"], "were drawn with another model, revision"),
        (["--seed", "1"], "were drawn with another seed"),
        (["--guidance-scale", "3"], "were drawn with another guidance_scale"),
        (["--limit", "2"], "were drawn with another limit"),
    ],
)
def test_pictures_of_another_model_or_recipe_are_not_mixed_in(run, others, message):
    assert run("evaluate", "scenes", "--limit", 1)[0] == 0
    code, out, err = run("evaluate", "scenes", "--limit", 1, *others)
    assert (code, out) == (2, "")
    assert message in err
    assert run("evaluate", "scenes", "--limit", 1, *others, "-o", "elsewhere")[0] == 0


def test_what_a_given_folder_lacks_is_named(run, tmp_path):
    given = by_teacher(tmp_path / "given", prompt_items(4))
    (given / "0001.png").unlink()
    (given / "0002.png").write_bytes((given / "0003.png").read_bytes()[:200])
    (given / "0012.png").write_bytes(b"")
    (given / "notes.txt").write_text("mine")
    code, out, _ = run("evaluate", "scenes", "--limit", 4, "--images", given)
    assert code == 0
    assert "overall        1.0000" in out
    assert "10 of 12 scored, 2 missing" in out
    assert "0001.png: there is no such picture" in out
    assert "0002.png: it cannot be read" in out
    assert "2 more that belong to no item and were not judged: 0012.png, notes.txt" in out
    code, out, err = run("evaluate", "scenes", "--limit", 4, "--images", given, "--json")
    assert json.loads(out)["single object"]["images"] == 2
    assert "0001.png: there is no such picture" in err
    assert "notes.txt" in err
    record = read_scores(Path("scores/scenes/scores/scenes.json"))
    assert (record.model, record.num_expected, record.num_scored) == (None, 12, 10)
    assert [missing.item for missing in record.missing] == ["0001.png", "0002.png"]
    rows = [json.loads(line) for line in Path("scores/scenes/results.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows if row["correct"] is None] == [1, 2]
    with Image.open("scores/scenes/failures.png") as sheet:
        assert sheet.height > 250  # two rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "there is no folder nowhere"),
        (["--images", "."], ". has none of the 210 pictures; they are named 0000.png to 0209.png"),
        (["--images", ".", "-m", TINY_JANUS_4O], "give one source of pictures"),
        (["--base-url", "http://127.0.0.1:9"], "--base-url needs the name of the model there"),
    ],
)
def test_no_source_of_pictures(run, arguments, message):
    code, out, err = run("evaluate", "scene-edits", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_changed_picture_is_judged_anew(tmp_path):
    items = prompt_items(2)
    given = by_teacher(tmp_path / "given", items)

    def score():
        return score_folder("scenes", items, PictureFolder(given), tmp_path / "run").overall.value

    assert score() == 1
    assert not (tmp_path / "run/failures.png").exists()
    Image.new("RGB", (64, 64), "white").save(given / "0000.png")
    assert score() == pytest.approx(5 / 6)
    assert (tmp_path / "run/failures.png").exists()
    teacher_picture(items[0]).save(given / "0000.png")
    assert score() == 1
    assert len((tmp_path / "run/verdicts/scenes-0.jsonl").read_text().splitlines()) == 7


def test_pictures_of_one_combination_count_as_one_in_the_interval_of_the_overall_score():
    items = prompt_items(20)
    verdicts = [Verdict(index % 3 > 0) for index in range(len(items))]
    once = scene_record("scenes", items, verdicts)
    four_times = scene_record("scenes", items * 4, verdicts * 4)
    assert four_times.overall.value == pytest.approx(once.overall.value)
    assert (four_times.overall.low, four_times.overall.high) == pytest.approx(
        (once.overall.low, once.overall.high),
        abs=0.02,  # Wilson's ends, by picture, are a little nearer to the middle
    )
    first, first_of_four = once.details["single object"], four_times.details["single object"]
    assert first["combinations"] == first_of_four["combinations"] < 20
    assert first_of_four["high"] - first_of_four["low"] < first["high"] - first["low"]  # Wilson's, by picture


def test_nothing_to_judge_is_no_score():
    with pytest.raises(UserError, match="no picture of scenes that can be judged"):
        scene_record("scenes", prompt_items(1), [None] * 3)
