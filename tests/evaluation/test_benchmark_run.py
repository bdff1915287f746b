# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: drawing by a share, going on after an end, the recipe of a folder, sheets of failures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from sharegpt4o_image.checkpoints import TINY_JANUS_4O, resolve_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import (
    MAX_FAILURES_SHOWN,
    SamplingRecipe,
    Share,
    draw_pictures,
    failure_sheet,
    make_generator,
)
from sharegpt4o_image.evaluation.contact_sheet import contact_sheet
from sharegpt4o_image.evaluation.drawing import RECIPE_FILE, PictureRequest, claim_folder, missing_pictures
from sharegpt4o_image.evaluation.model_generator import ModelGenerator
from sharegpt4o_image.evaluation.verdict_store import VerdictStore

REQUESTS = [PictureRequest(f"{number}.png", "a red circle on a white background", number) for number in range(6)]


class Painter:
    """Paints each seed as a grey, refuses some, and may end early."""

    def __init__(self, ends_after=None, refused=()):
        self.identity = {"model": "painter"}
        self.ends_after, self.refused, self.painted = ends_after, refused, []

    def draw(self, requests, keep):
        for request in requests:
            if len(self.painted) == self.ends_after:
                raise KeyboardInterrupt
            if request.path not in self.refused:
                self.painted.append(request.path)
                keep(request, Image.new("L", (4, 4), request.seed))
        return {request.path: "refused" for request in requests if request.path in self.refused}


# ------------------------------------------------------------------ drawing


def test_shares_are_all_of_the_work_and_none_of_it_twice():
    items = list(range(11))
    parts = [list(Share(rank, 3).of(items)) for rank in range(3)]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == items
    assert {len(part) for part in parts} == {3, 4}
    assert (list(Share().of(items)), Share().is_main, Share(1, 3).is_main) == (items, True, False)


def test_each_process_draws_its_share(tmp_path):
    painters = [Painter(), Painter()]
    for rank, painter in enumerate(painters):
        assert draw_pictures(painter, REQUESTS, tmp_path, 42, Share(rank, 2), "pictures") == {}
    assert [painter.painted for painter in painters] == [["0.png", "2.png", "4.png"], ["1.png", "3.png", "5.png"]]
    assert missing_pictures(tmp_path, REQUESTS) == []


def test_what_was_drawn_before_an_end_is_kept(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        draw_pictures(Painter(ends_after=2), REQUESTS, tmp_path, 42, Share(), "pictures")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert set(before) == {"0.png", "1.png"}
    painter = Painter(refused=("3.png",))
    assert draw_pictures(painter, REQUESTS, tmp_path, 42, Share(), "pictures") == {"3.png": "refused"}
    assert painter.painted == ["2.png", "4.png", "5.png"]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert "drew 3 pictures, " in capsys.readouterr().err


def test_a_folder_of_another_seed_is_refused(tmp_path):
    draw_pictures(Painter(), REQUESTS[:1], tmp_path, 42, Share(), "pictures")
    with pytest.raises(UserError, match="drawn with another seed; choose another folder"):
        draw_pictures(Painter(), REQUESTS, tmp_path, 43, Share(), "pictures")
    assert len(missing_pictures(tmp_path, REQUESTS)) == 5


def test_of_two_that_claim_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != RECIPE_FILE and exists(path))  # both came too early
    claim_folder(tmp_path, {"model": "a \udcff"})
    claim_folder(tmp_path, {"model": "a \udcff"})
    with pytest.raises(UserError, match="another model"):
        claim_folder(tmp_path, {"model": "b"})
    assert [path.name for path in tmp_path.iterdir()] == [RECIPE_FILE]


# ------------------------------------------------------------------ verdicts


def test_a_second_process_does_not_judge_into_the_same_file(tmp_path):
    with VerdictStore(tmp_path, "verdicts") as store, VerdictStore(tmp_path, "verdicts", 1):
        store.keep("k", {"reason": "half a character \udcff"})
        with pytest.raises(UserError, match="another process is judging"):
            VerdictStore(tmp_path, "verdicts")
    with VerdictStore(tmp_path, "verdicts", 1) as store:
        assert store.find("k") == {"reason": "half a character \udcff"}


def test_what_a_killed_process_began_to_write_is_cut_off(tmp_path):
    with VerdictStore(tmp_path, "verdicts") as store:
        store.keep("a", {"correct": True})
    path = tmp_path / "verdicts-0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "b", "corr')
    with VerdictStore(tmp_path, "verdicts") as store:
        assert (len(store), store.find("b")) == (1, None)
        store.keep("b", {"correct": False})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
    path.write_text("?\n" + path.read_text())
    with pytest.raises(UserError, match="line 1, is not a verdict"):
        VerdictStore(tmp_path, "verdicts")


# ------------------------------------------------------------------ a checkpoint that draws


def drawn(generator, requests):
    pictures = {}
    generator.draw(requests, lambda request, picture: pictures.update({request.path: np.asarray(picture)}))
    return pictures


def test_a_picture_is_the_same_whatever_is_drawn_with_it():
    generator = make_generator(TINY_JANUS_4O, None, SamplingRecipe(guidance_scale=1), None)
    source = Image.new("RGB", (32, 32), "red")
    edit = PictureRequest("edit.png", "Make the background blue.", 3, (source,))
    together = drawn(generator, [*REQUESTS, edit])
    assert together.keys() == {*(request.path for request in REQUESTS), "edit.png"}
    for request in (REQUESTS[4], edit):
        np.testing.assert_array_equal(drawn(generator, [request])[request.path], together[request.path])
    assert len({picture.tobytes() for picture in together.values()}) > 4  # of one prompt, by their seeds


def test_the_identity_tells_checkpoints_of_one_name_and_recipes_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_checkpoint(TINY_JANUS_4O), "mine")
    identity = ModelGenerator.from_pretrained("mine", SamplingRecipe()).identity
    assert identity["model"] == "mine"
    assert ModelGenerator.from_pretrained(str(tmp_path / "mine"), SamplingRecipe()).identity == identity
    assert identity["size"] == 32
    assert (identity["guidance_scale"], identity["guidance_until"]) == (1.5, 1)  # the checkpoint's own
    assert ModelGenerator.from_pretrained("mine", SamplingRecipe(guidance_scale=1)).identity == {
        **identity,
        "guidance_scale": 1,
    }
    weights = load_file("mine/model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, "mine/model.safetensors", metadata={"format": "pt"})
    changed = ModelGenerator.from_pretrained("mine", SamplingRecipe()).identity
    assert changed["revision"] != identity["revision"]
    assert {**changed, "revision": identity["revision"]} == identity


def test_a_checkpoint_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    shutil.copytree(resolve_checkpoint(TINY_JANUS_4O), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    identity = ModelGenerator.from_pretrained("owner/name", SamplingRecipe()).identity
    assert (identity["model"], identity["revision"]) == ("owner/name", commit)


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [(None, SamplingRecipe(), "needs the name of the model there"), ("m", SamplingRecipe(2.0), "leave them out")],
)
def test_an_endpoint_needs_a_name_and_takes_no_recipe(tmp_path, model, recipe, message):
    with pytest.raises(UserError, match=message):
        make_generator(model, "http://127.0.0.1:1/v1", recipe, tmp_path)


# ------------------------------------------------------------------ sheets


def test_a_sheet_shows_the_first_failures_and_says_how_many_more_there_are(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "sharegpt4o_image.evaluation.benchmark_run.contact_sheet",
        lambda columns, rows: shown.append(rows) or contact_sheet(columns, rows),
    )
    good, bad, sheet = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "failures.png"
    Image.new("RGB", (8, 8), "red").save(good)
    bad.write_bytes(b"nothing")
    rows = [
        (f"failure {number}", [good, bad, tmp_path / "none.png", None]) for number in range(MAX_FAILURES_SHOWN + 5)
    ]
    failure_sheet(rows, sheet, ("drawn", "", "", ""))
    assert len(shown[0]) == MAX_FAILURES_SHOWN + 1
    assert shown[0][-1] == ("... and 5 more", [])
    assert [picture is not None for picture in shown[0][0][1]] == [True, False, False, False]
    assert sheet.is_file()
    failure_sheet([], sheet, ("drawn",))
    assert not sheet.exists()


def test_long_texts_are_wrapped_and_pictures_keep_their_shape():
    wide = Image.new("RGB", (400, 100), "red")
    short, long, unbroken = (
        contact_sheet(["drawn"], [(text, [wide])]) for text in ("few words", "many words " * 40, "w" * 300)
    )
    assert short.width == long.width
    assert long.height > short.height + 3 * 18
    assert unbroken.height > short.height + 18
    pixels = np.asarray(short)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == (128, 32)
    endless = contact_sheet(["drawn"], [("w" * 10**6, [])])
    assert 40 * 18 < endless.height < 200 * 18
    for sheet in (long, unbroken, endless):
        assert (np.asarray(sheet)[:, -6:] == 255).all()  # no text runs out of the sheet
