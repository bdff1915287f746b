# SPDX-License-Identifier: Apache-2.0
"""ImgEdit from pictures to scores as typed: drawing, folders with faults, dry runs, the UGE suite, agreement."""

import json
import tracemalloc

import pytest
from imgedit_world import TYPES, World
from loopback_judge import MODEL, LoopbackJudge, three_scores
from PIL import Image

from sharegpt4o_image.evaluation import benchmark_run
from sharegpt4o_image.evaluation.benchmark_run import SamplingRecipe, Share
from sharegpt4o_image.evaluation.drawing import PictureRequest
from sharegpt4o_image.evaluation.edit_geometry import EditGenerator
from sharegpt4o_image.evaluation.imgedit_items import BASIC, load_benchmark
from sharegpt4o_image.evaluation.imgedit_judge import judge_edits
from sharegpt4o_image.evaluation.imgedit_judgement import JudgeSettings
from sharegpt4o_image.evaluation.imgedit_pictures import edits_of
from sharegpt4o_image.evaluation.model_generator import ModelGenerator


def fair(asked):
    return three_scores(asked.edit_type, 4, 3, 3)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_checkpoint_edits_and_a_judge_scores(run, world):
    def says(asked):
        low = asked.edit_type == "style"
        return three_scores(asked.edit_type, *((1, 2, 2) if low else (4, 5, 3)))

    with LoopbackJudge(says) as judge:
        command = world.command(judge.base_url, "-m", "tiny-janus-4o", "--geometry", "raw384", images=False)
        code, out, err = run(*command)
        assert code == 0, err
        folder = world.output / "imgedit"
        drawn = {path.name: path.stat().st_mtime_ns for path in (folder / "images").glob("*.png")}
        assert set(drawn) == {f"{key}.png" for key in world.keys}
        assert f"imgedit[judge={MODEL}, items=other, templates=" in out
        assert "6 of 6 scored, 0 missing" in out
        assert run(*command)[0] == 0
        assert {path.name: path.stat().st_mtime_ns for path in (folder / "images").glob("*.png")} == drawn
        assert len(judge.asked) == 6
        code, _, err = run(*command[:-1], "unpad")
        assert code == 2
        assert "geometry" in err
    record = world.record()
    assert record["generator"]["geometry"] == "raw384"
    assert record["generator"]["seed"] == 0
    assert record["judge"]["model"] == MODEL
    assert record["judge"]["served_models"] == [f"{MODEL}-2026"]
    assert record["judge"]["system_fingerprints"] == ["fp_test"]
    scores = {line["name"]: line["value"] for line in record["scores"]}
    assert record["scores"][0] == {
        "name": "overall", "value": pytest.approx((5 * 4 + 1.67) / 6, abs=1e-4),
        "low": record["scores"][0]["low"], "high": record["scores"][0]["high"], "count": 6,
    }  # fmt: skip
    assert scores["style"] == 1.67
    assert "paper8" not in scores
    assert scores["overall (strict)"] == scores["overall"]
    with Image.open(folder / "failures.png") as sheet:
        assert sheet.width > 200
    code, out, err = run(*command, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert shown["official"]["types"]["style"] == 1.67
    assert shown["num_scored"] == 6
    stored = run("evaluate", "imgedit", "--items", world.items, "--from-judgements", folder / "result.json", "--json")
    assert json.loads(stored[1])["official"] == shown["official"]


def test_a_folder_with_faults_is_named(run, world):
    gone, broken, renamed, sourceless = world.keys[:4]
    (world.images / f"{gone}.png").unlink()
    (world.images / f"{broken}.png").write_bytes((world.images / f"{broken}.png").read_bytes()[:200])
    (world.images / f"{renamed}.png").rename(world.images / f"{renamed}.jpg")
    (world.origins / world.entries[sourceless]["id"]).unlink()
    (world.images / "7.png").write_bytes(b"extra")
    (world.images / "notes").mkdir()
    with LoopbackJudge(fair) as judge:
        code, out, err = run(*world.command(judge.base_url))
    assert code == 0, err
    assert "2 of 6 scored, 4 missing" in out
    reasons = {missing["item"]: missing["reason"] for missing in world.record()["missing"]}
    assert reasons[gone] == f"there is no edited picture {gone}.png"
    assert reasons[broken].startswith(f"{broken}.png cannot be read as a picture")
    assert reasons[renamed].endswith(f"only {renamed}.jpg, which is not judged")
    assert reasons[sourceless].startswith("its source picture human/")
    assert f"3 other files in {world.images} were not judged, such as 7.png, {renamed}.jpg, notes" in out
    assert len(judge.asked) == 2


def test_a_limit_names_itself(run, tmp_path):
    world = World(tmp_path, num_items=20)
    with LoopbackJudge(fair) as judge:
        code, out, _ = run(*world.command(judge.base_url, "--limit", 1))
    assert code == 0
    assert "items=9 of 20" in out
    assert "9 of 9 scored" in out
    assert {line["name"] for line in world.record()["scores"]} >= {"overall", *TYPES, "micro", "paper8"}


def test_a_dry_run_asks_and_writes_nothing(run, world):
    (world.images / f"{world.keys[0]}.png").unlink()
    with LoopbackJudge(fair) as judge:
        dry = ["--dry-run", "--price-in", 2, "--price-out", 8]
        code, out, err = run(*world.command(judge.base_url, *dry, "--repeats", 2))
        assert code == 0, err
        assert "6 items, 1 without a picture; 0 edits to draw" in out
        assert "0 judgements are there, 10 are left to ask" in out
        assert "assumed, not measured" in out
        assert not world.output.exists()
        assert judge.asked == []
        run(*world.command(judge.base_url))
        found = json.loads(run(*world.command(judge.base_url, *dry, "--repeats", 2, "--json"))[1])
    assert (found["num_judged"], found["num_to_judge"], found["measured_answers"]) == (5, 5, 5)
    assert found["input_tokens"] == 10_000
    assert found["usd"] == pytest.approx((10_000 * 2 + 250 * 8) / 1e6)
    drawn = run(*world.command("http://127.0.0.1:9/v1", "--dry-run", "-m", "tiny-janus-4o", images=False))[1]
    assert "6 edits to draw" in drawn


def test_of_several_processes_one_says_what_is_left(run, world, monkeypatch):
    for rank, said in ((0, True), (1, False)):
        monkeypatch.setattr(benchmark_run, "current_share", lambda rank=rank: Share(rank, 2))
        code, out, _ = run(*world.command("http://127.0.0.1:9/v1", "--dry-run"))
        assert (code, bool(out)) == (0, said)


def test_uge(run, world):
    entries = {key: {"id": entry["id"], "prompt": entry["prompt"]} for key, entry in world.entries.items()}
    world.items.write_text(json.dumps(entries))
    world.templates.write_text("Judge |uge| <edit_prompt>.")
    said = ["Brief reasoning: good.\nScore: 5", "Score: 3", "Score: 4 (Good)", "no score", "Score: 4", "Score: 4"]
    with LoopbackJudge(lambda asked: said[asked.number - 1]) as judge:
        code, out, err = run(*world.command(judge.base_url, "--suite", "uge", "--workers", 1))
    assert code == 0, err
    assert len(judge.asked) == 6
    assert "4 of 6 scored, 2 missing" in out
    record = world.record("imgedit-uge")
    assert record["scores"][0]["value"] == 4.0
    assert "dropped" in record["missing"][0]["reason"]


def broken_items(world, **changes):
    entry = world.entries[world.keys[0]] | changes
    world.items.write_text(json.dumps({**world.entries, world.keys[0]: entry}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda world: broken_items(world, edit_type="melt"), "has the unknown type 'melt'"),
        (lambda world: broken_items(world, id="../../etc/passwd"), "leads out of the folder"),
        (lambda world: broken_items(world, id="\x1b[2J.png"), r"the `id` '\x1b[2J.png' of item '1000' is no name"),
        (lambda world: broken_items(world, id="a" * 300), "aaa' of item '1000' is no name of a file"),
        (lambda world: broken_items(world, prompt="\ud800"), "prompt of item '1000' holds half a character"),
        (lambda world: world.templates.write_text(json.dumps(dict.fromkeys(TYPES, "<edit_prompt>\ud800"))),
         "template for add holds half a character"),
        (lambda world: world.items.write_text(json.dumps({"a/b": world.entries[world.keys[0]]})), "'a/b' is no name"),
        (lambda world: world.templates.write_text('{"add": "<edit_prompt>"}'), "has no template for remove, replace"),
        (lambda world: world.templates.write_text(json.dumps(dict.fromkeys(TYPES, "x"))), "has no <edit_prompt>"),
        (lambda world: [path.unlink() for path in world.images.iterdir()], "has no edited picture of the 6"),
        (lambda world: world.origins.rename(world.folder / "elsewhere"), "there is no folder"),
        (lambda world: [path.unlink() for path in world.origins.rglob("*.*")], "has none of the source pictures"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(run, world, break_it, message):
    break_it(world)
    code, out, err = run(*world.command("http://127.0.0.1:9/v1"))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "tiny-janus-4o"], "give one source of edited pictures"),
        (["--geometry", "unpad"], "--geometry is for what a checkpoint draws"),
        (["--price-in", 1], "go together"),
        (["--suite", "uge", "--parser", "strict"], "no labels that the strict parser could read"),
    ],
)
def test_options_that_do_not_go_together(run, world, options, message):
    code, _, err = run(*world.command("http://127.0.0.1:9/v1", *options))
    assert code == 2
    assert message in err


def test_nobody_there(run, world):
    code, _, err = run(*world.command("http://127.0.0.1:9/v1"))
    assert code == 2
    assert "cannot reach the teacher at http://127.0.0.1:9/v1" in err


def test_the_old_name_of_a_type(run, world):
    entries = {key: entry | {"edit_type": "alter"} for key, entry in world.entries.items()}
    world.items.write_text(json.dumps(entries))
    with LoopbackJudge(fair) as judge:
        code, _, err = run(*world.command(judge.base_url))
    assert code == 0, err
    assert {asked.edit_type for asked in judge.asked} == {"adjust"}


# ------------------------------------------------------------------ geometry


@pytest.mark.parametrize(
    ("geometry", "size"), [("raw384", (32, 32)), ("unpad", (32, 21)), ("unpad_resize_to_source", (300, 200))]
)
def test_geometries(tmp_path, geometry, size):
    drawer = ModelGenerator.from_pretrained("tiny-janus-4o", SamplingRecipe())
    generator = EditGenerator(drawer, SamplingRecipe(), geometry)
    sources = [Image.new("RGB", (300, 200), "white"), tmp_path / "thin.png", tmp_path / "nothing.png"]
    Image.new("RGB", (2_000, 9)).save(sources[1])
    requests = [PictureRequest(f"{index}.png", "p", index, (source,)) for index, source in enumerate(sources)]
    kept = {}
    reasons = generator.draw(requests, lambda request, picture: kept.update({request.path: picture.size}))
    assert kept == {"0.png": size}
    assert reasons.keys() == {"1.png", "2.png"}
    assert "There is no picture" in reasons["2.png"]
    assert generator.identity == {**drawer.identity, "geometry": geometry}


# ------------------------------------------------------------------ agreement


def test_judge_agreement(run, world):
    for name, scores in (("a", (4, 4, 4)), ("b", (4, 4, 1)), ("c", (5, 4, 4))):
        texts = {
            key: three_scores(entry["edit_type"], *(scores if index else (1, 1, 1)))
            for index, (key, entry) in enumerate(world.entries.items())
        }
        (world.folder / f"{name}.json").write_text(json.dumps(texts))
    a, b, c = (world.folder / f"{name}.json" for name in "abc")
    code, out, err = run("evaluate", "judge-agreement", a, b, "--items", world.items)
    assert code == 0, err
    assert "6 of 6 items have a score of both judges (strict parser)" in out
    found = json.loads(run("evaluate", "judge-agreement", a, b, "--items", world.items, "--json")[1])
    agreement = found["agreement"]
    assert agreement["mean_difference"] == pytest.approx(-5 / 6)
    low, high = agreement["quadratic_kappa_interval"]
    assert low <= agreement["quadratic_kappa"] <= high
    code, out, _ = run("evaluate", "judge-agreement", a, b, c, "--items", world.items, "--repeated")
    assert code == 0
    assert out.startswith("3 judgements of each item")
    code, _, err = run("evaluate", "judge-agreement", a, b, c, "--items", world.items)
    assert code == 2
    assert "for one judge's, add --repeated" in err


# ------------------------------------------------------------------ size


@pytest.mark.slow
def test_pictures_are_read_one_by_one(tmp_path):
    world = World(tmp_path, num_items=200)
    for key in world.keys:
        Image.effect_noise((600, 600), int(key) % 200 + 20).convert("RGB").save(world.images / f"{key}.png")
    benchmark = load_benchmark(BASIC, world.items, world.templates, world.origins, None)
    edits = edits_of(benchmark, world.images, {})
    peaks = []
    for num_edits in (40, 200):
        with LoopbackJudge(fair, keeps_pictures=False) as judge:
            tracemalloc.start()
            judging = judge_edits(edits[:num_edits], JudgeSettings(MODEL, judge.base_url), tmp_path / str(num_edits))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert len(judging.judgements) == num_edits
    num_bytes = sum(edit.edited.stat().st_size for edit in edits[40:])
    assert peaks[1] - peaks[0] < 0.1 * num_bytes, (peaks, num_bytes)
