# SPDX-License-Identifier: Apache-2.0
"""`evaluate dpg-bench` as typed: pictures, a real worker process, answers that are kept, scores, and what is named."""

import csv
import hashlib
import json
import subprocess
import sys
import textwrap
import time

import pytest
from PIL import Image

from sharegpt4o_image.evaluation import dpg_items
from sharegpt4o_image.evaluation.dpg_items import folder_sha256, load_bench
from sharegpt4o_image.evaluation.dpg_pictures import picture_seed
from sharegpt4o_image.evaluation.dpg_record import variant_name
from sharegpt4o_image.evaluation.dpg_run import PictureSource
from sharegpt4o_image.evaluation.score_record import read_scores

SIDE = 8
MPLUG = "damo/mplug_visual-question-answering_coco_large_en"

# A question is answered with yes where the colour that it names is that of the picture.
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
QUESTIONS = {
    "apple": [(1, "0", "entity - whole (apple)", "red?"), (2, "1", "attribute - color (apple)", "green?")],
    "leaf": [(1, "0", "entity - whole (leaf)", "green?"), (2, "1", "attribute - color (leaf)", "red or green?")],
    "sky": [(1, "0", "global - (sky)", "blue?"), (2, "1", "relation - spatial (sky)", "blue or red?")],
}
GRIDS = {"apple": ["red", "red", "green", "blue"], "leaf": ["green"] * 4, "sky": ["red", "blue", "red", "blue"]}

WORKER = """
    import json, sys, time
    from pathlib import Path
    from PIL import Image
    here = Path(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        with (here / "asked.jsonl").open("a") as file: file.write(line)
        COLORS = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}
        color = COLORS.get(Image.open(asked["image_path"]).getpixel((0, 0)), "none")
        answer = "yes" if color in asked["question"] else "no"
        EXTRA
        print(json.dumps({**asked, "answer": answer, "model": MODEL}), flush=True)
"""


def write_questions(path, questions=QUESTIONS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"])
        for item, rows in questions.items():
            writer.writerows([item, f"a picture of {item}", *row] for row in rows)
    return path


def save_grid(folder, item, colors, side=SIDE):
    folder.mkdir(exist_ok=True)
    grid = Image.new("RGB", (2 * side, 2 * side))
    for index, color in enumerate(colors):
        grid.paste(
            COLORS[color], (index % 2 * side, index // 2 * side, (index % 2 + 1) * side, (index // 2 + 1) * side)
        )
    grid.save(folder / f"{item}.png")


def worker(folder, extra="pass", model=MPLUG):
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(WORKER).replace("EXTRA", extra).replace("MODEL", repr(model)))
    return f"{sys.executable} {script} {folder}"


def asked(folder):
    path = folder / "asked.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def bench(tmp_path):
    """The arguments of a run on three grids, answered by a worker."""
    write_questions(tmp_path / "q.csv")
    for item, colors in GRIDS.items():
        save_grid(tmp_path / "pictures", item, colors)
    return [
        *("evaluate", "dpg-bench", "--questions", "q.csv", "--images", "pictures", "--resolution", SIDE),
        *("--vqa-worker", worker(tmp_path), "-o", "out"),
    ]


# ------------------------------------------------------------------ whole runs


def test_pictures_become_scores(run, bench, tmp_path):
    code, out, _ = run(*bench, "--json")
    assert code == 0
    found = json.loads(out)
    # apple: red 1/2, red 1/2, green (parent fails, child zeroed) 0, blue 0; leaf 1; sky 0, 1, 0, 1
    assert found["corrected"]["overall"] == pytest.approx(100 * (0.25 + 1 + 0.5) / 3)
    assert found["official"]["per_image"]["apple"] == [0.5, 0.5, 0, 0, 0.25]
    assert found["official"]["l1"] == {"attribute": 50, "entity": 50, "global": 100, "relation": 100}
    assert found["name"] == "dpg-bench[items=3]"
    assert (found["num_expected"], found["num_scored"], found["missing"]) == (3, 3, [])
    assert found["judge"]["models"] == [MPLUG]
    assert str(tmp_path) not in out
    folder = tmp_path / "out" / "dpg-bench"
    record = read_scores(folder / "scores" / "dpg-bench.json")
    assert [line.name for line in record.scores] == ["overall", "attribute", "entity", "global", "relation"]
    assert all(line.low <= line.value <= line.high for line in record.scores)
    assert (folder / "scores_by_picture.csv").read_text() == (
        "path,picture_1,picture_2,picture_3,picture_4,mean\n"
        "apple.png,0.5,0.5,0.0,0.0,0.25\nleaf.png,1.0,1.0,1.0,1.0,1.0\nsky.png,0.0,1.0,0.0,1.0,0.5\n"
    )
    assert Image.open(folder / "failures.png").height > 2 * 128
    stored = ["evaluate", "dpg-bench", "--questions", "q.csv", "--from-answers", folder / "answers.json"]
    again = json.loads(run(*stored, "--first-row", "keep", "--json")[1])
    assert {name: found[name] for name in ("official", "corrected")} == {
        name: again[name] for name in ("official", "corrected")
    }


def test_children_of_failed_questions_are_asked_and_equal_crops_once(run, bench, tmp_path):
    run(*bench)
    lines = [(line["item_id"], line["picture"], line["proposition_id"]) for line in asked(tmp_path)]
    assert ("apple", 3, 2) in lines
    assert len(lines) == 2 * 3 + 2 * 1 + 2 * 2 - 1  # three colours, one, two; green was asked whether it is "green?"


def test_a_second_run_asks_nothing_and_a_changed_picture_is_judged_anew(run, bench, tmp_path):
    first = json.loads(run(*bench, "--json")[1])
    num_asked = len(asked(tmp_path))
    assert run(*bench, "--dry-run")[1] == "0 pictures to draw, 0 of 24 answers to ask\n"
    second = json.loads(run(*bench, "--json")[1])
    assert len(asked(tmp_path)) == num_asked
    assert {**second, "created_at": ""} == {**first, "created_at": ""}
    save_grid(tmp_path / "pictures", "sky", ["blue"] * 3 + ["green"])
    assert run(*bench, "--dry-run")[1] == "0 pictures to draw, 2 of 24 answers to ask\n"
    changed = json.loads(run(*bench, "--json")[1])
    assert [(line["item_id"], line["picture"]) for line in asked(tmp_path)[num_asked:]] == [("sky", 4)] * 2
    assert changed["official"]["per_image"]["sky"] == [1, 1, 1, 0, 0.75]


def test_another_worker_is_asked_anew(run, bench, tmp_path):
    run(*bench)
    num_asked = len(asked(tmp_path))
    run(*bench[:8], "--vqa-worker", worker(tmp_path) + " again", "-o", "out")
    assert len(asked(tmp_path)) == 2 * num_asked


@pytest.mark.parametrize(("count", "answers"), [(1, 6), (2, 12)])
def test_fewer_pictures_are_the_first_ones(count, answers, run, bench, tmp_path):
    found = json.loads(run(*bench, "--num-pictures", count, "--json")[1])
    assert found["name"] == f"dpg-bench[items=3, pictures={count}]"
    assert found["details"]["num_answers"] == answers
    assert len(found["official"]["per_image"]["apple"]) == count + 1
    assert {line["picture"] for line in asked(tmp_path)} <= set(range(1, count + 1))


def test_a_killed_run_goes_on_where_it_was(run, bench, tmp_path):
    command = [*map(str, bench[:8]), "--vqa-worker", worker(tmp_path, "time.sleep(0.15)"), "-o", "killed", "--json"]
    code = "from sharegpt4o_image.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *command], cwd=tmp_path)
    store = tmp_path / "killed" / "dpg-bench" / "verdicts" / "answers-0.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (store.exists() and store.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    kept = store.read_text().count("\n")
    num_asked = len(asked(tmp_path))
    assert not (tmp_path / "killed" / "dpg-bench" / "scores").exists()
    found = json.loads(run(*command)[1])
    assert len(asked(tmp_path)) - num_asked == 11 - kept
    whole = json.loads(run(*bench, "--json")[1])
    assert found["official"] == whole["official"]
    assert found["scores"] == whole["scores"]


def test_drawn_pictures_become_grids_and_are_drawn_once(run, tmp_path):
    write_questions(tmp_path / "q.csv")
    command = ["evaluate", "dpg-bench", "--questions", "q.csv", "--limit", 1, "--model", "tiny-janus-4o", "--seed", 3]
    command += ["--num-pictures", 2, "--vqa-worker", worker(tmp_path), "-o", "out"]
    assert run(*command, "--dry-run")[1] == "2 pictures to draw, 4 of 4 answers to ask\n"
    assert not (tmp_path / "out").exists()
    code, out, _ = run(*command, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["model"], found["generator"]["seed"], found["generator"]["resolution"]) == ("tiny-janus-4o", 3, 32)
    folder = tmp_path / "out" / "dpg-bench"
    assert Image.open(folder / "images" / "apple.png").size == (64, 64)
    single = Image.open(folder / "singles" / "apple" / "2.png").convert("RGB")
    assert single.tobytes() == Image.open(folder / "images" / "apple.png").crop((32, 0, 64, 32)).tobytes()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png") if path.name != "failures.png"}
    assert json.loads(run(*command, "--json")[1])["scores"] == found["scores"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert run(*command, "--dry-run")[1] == "0 pictures to draw, 0 of 4 answers to ask\n"
    code, _, err = run(*command[:8], "--seed", 4, *command[10:])
    assert code == 2
    assert "drawn with another seed" in err


# ------------------------------------------------------------------ what is named


def test_pictures_that_cannot_be_judged_are_named_and_missing(run, bench, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "apple.png").unlink()
    (pictures / "sky.png").write_bytes(b"no picture")
    (pictures / "results.txt").write_text("x")
    save_grid(pictures, "stranger", ["red"] * 4)
    code, out, _ = run(*bench)
    assert code == 0
    assert "1 of 3 scored, 2 missing" in out
    assert "apple: there is no apple.png" in out
    assert "sky: sky.png is not a readable picture" in out
    assert "warning: results.txt: no picture" in out
    assert "warning: stranger.png: the question file has no item 'stranger'" in out
    assert {line["item_id"] for line in asked(tmp_path)} == {"leaf"}


def test_odd_sizes_are_named_and_a_wrong_resolution_is_refused(run, bench, tmp_path):
    odd = Image.new("RGB", (40, 30), COLORS["blue"])
    odd.save(tmp_path / "pictures" / "sky.png")
    Image.new("RGB", (SIDE, SIDE), COLORS["red"]).save(tmp_path / "pictures" / "apple.png")
    code, out, _ = run(*bench)
    assert code == 0
    assert "warning: sky.png: is 40 x 30, neither one picture of 8 x 8 nor a grid of 2 x 2" in out
    assert "apple: apple.png is 8 x 8, too small for 4 pictures of 8 x 8" in out
    for item in QUESTIONS:
        odd.save(tmp_path / "pictures" / f"{item}.png")
    code, _, err = run(*bench)
    assert code == 2
    assert "apple.png and all other pictures have another size than --resolution 8 says: 40 x 30" in err
    code, _, err = run(*bench[:6], "--resolution", 999, *bench[8:])
    assert code == 2
    assert "no picture in pictures can be judged (apple: apple.png is 40 x 30, too small" in err


def test_a_model_that_answers_in_another_language_stops_the_run_and_nothing_is_kept(run, bench, tmp_path):
    questions = {f"item{number}": [(1, "0", "global - (x)", f"red or blue {number}?")] for number in range(30)}
    write_questions(tmp_path / "q.csv", questions)
    for item in questions:
        save_grid(tmp_path / "pictures", item, ["red"] * 4)
    command = worker(tmp_path, "answer = 'oui'")
    code, out, err = run(*bench[:8], "--vqa-worker", command, "-o", "out")
    assert (code, out) == (2, "")
    assert "are neither yes nor no ('red or blue 19?': 'oui')" in err
    assert len(asked(tmp_path)) == 20
    assert (tmp_path / "out" / "dpg-bench" / "verdicts" / "answers-0.jsonl").read_text() == ""
    some = worker(tmp_path, "answer = 'oui' if '7' in asked['question'] else answer")
    code, out, _ = run(*bench[:8], "--vqa-worker", some, "-o", "out")
    assert code == 0
    assert "12 answers are neither 'yes' nor 'no' and count as no" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "pictures"], "give --questions dpg_bench.csv"),
        (["--questions", "q.csv", "--base-url", "http://127.0.0.1:1/v1"], "add --model NAME"),
        (["--questions", "q.csv", "--images", "pictures", "--model", "m"], "give one source of pictures"),
        (["--questions", "q.csv", "--images", "pictures", "--vqa", "x", "--vqa-worker", "y"], "give one VQA model"),
        (["--questions", "q.csv", "--images", "pictures", "--vqa-url", "http://127.0.0.1:1/v1"], "add --vqa NAME"),
        (["--questions", "q.csv", "--images", "pictures", "--vqa", "nowhere"], "nowhere cannot be loaded"),
        (["--questions", "q.csv", "--images", "nowhere", "--vqa-worker", "true"], "nowhere cannot be read"),
        (["--questions", "q.csv", "--images", "pictures", "--prompts", "pictures"], "pictures has no apple.txt (3"),
        (["--questions", "q.csv", "--from-answers", "a.json", "--images", "pictures"], "nothing else"),
        (["--questions", "q.csv", "--vqa-worker", "true"], "or from pictures: give --questions FILE with"),
        (["--questions", "q.csv", "--images", "pictures", "--num-pictures", "5"], "value for '--num-pictures'"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(arguments, message, run, bench):
    code, out, err = run("evaluate", "dpg-bench", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


# ------------------------------------------------------------------ names and files


def test_the_plain_name_is_for_the_official_run_alone(tmp_path, monkeypatch):
    questions = write_questions(tmp_path / "q.csv")
    images, drawn = PictureSource(tmp_path, 384), PictureSource(tmp_path, 384, model="m")
    small = load_bench(questions)
    assert (small.first_row, small.is_whole) == ("keep", False)
    assert variant_name(small, images, [MPLUG], True) == "dpg-bench[items=3]"
    monkeypatch.setattr(dpg_items, "NUM_OFFICIAL_ITEMS", 3)
    official = load_bench(questions)
    assert official.first_row == "drop"
    assert variant_name(official, images, [MPLUG], True) == "dpg-bench"
    assert variant_name(official, images, [MPLUG.replace("damo", "iic")], True) == "dpg-bench"
    assert variant_name(official, images, [MPLUG], False) == f"dpg-bench[vqa={MPLUG[5:]}]"
    mixed = [MPLUG, "Qwen/Qwen3-VL-8B-Instruct"]
    assert variant_name(official, images, mixed, True) == f"dpg-bench[vqa={MPLUG[5:]}+qwen3-vl-8b-instruct]"
    assert variant_name(load_bench(questions, limit=2), images, [MPLUG], True) == "dpg-bench[items=2]"
    kept = load_bench(questions, first_row="keep", num_pictures=1)
    assert variant_name(kept, images, [MPLUG], True) == "dpg-bench[pictures=1, first_row=keep]"
    for item in QUESTIONS:
        (tmp_path / f"{item}.txt").write_text(f"{item}!\n")
    own = load_bench(questions, tmp_path)
    assert own.prompts["leaf"] == "leaf!"
    assert variant_name(own, drawn, [MPLUG], True) == "dpg-bench[prompts=own]"
    assert variant_name(own, images, [MPLUG], True) == "dpg-bench"
    monkeypatch.setattr("sharegpt4o_image.evaluation.dpg_record.OFFICIAL_PROMPTS_SHA256", own.prompts_sha256)
    assert variant_name(own, drawn, [MPLUG], True) == "dpg-bench"


def test_a_first_row_that_is_dropped_is_neither_read_nor_asked(run, bench, tmp_path):
    lines = (tmp_path / "q.csv").read_text().splitlines()
    (tmp_path / "q.csv").write_text("\n".join([lines[0], "apple,a,x,0,entity - whole (apple),red?", *lines[3:]]))
    code, _, err = run(*bench)
    assert code == 2
    assert "--first-row drop does so, too" in err
    found = json.loads(run(*bench, "--first-row", "drop", "--json")[1])
    assert found["name"] == "dpg-bench[items=2, first_row=drop]"
    assert {line["item_id"] for line in asked(tmp_path)} == {"leaf", "sky"}
    assert found["official"]["overall"] == found["corrected"]["overall"] == pytest.approx(75)
    assert found["official"]["first_row"] == found["corrected"]["first_row"] == "drop"
    assert "--resolution 8" in found["command"]
    assert "--first-row drop" in found["command"]


def test_answers_that_were_forced_are_warned_of(run, bench, tmp_path):
    """As a model that thinks first gives them."""
    assert run(*bench)[0] == 0
    store = tmp_path / "out" / "dpg-bench" / "verdicts" / "answers-0.jsonl"
    kept = store.read_text()
    assert "warning" not in run(*bench)[1]
    store.write_text(kept.replace('"raw": "yes"', '"raw": "<think>"').replace('"raw":"yes"', '"raw":"<think>"'))
    assert "answers would have begun with neither yes nor no (such as '<think>')" in run(*bench)[1]


def test_the_official_run_loses_the_first_item_and_says_so(run, bench, monkeypatch):
    monkeypatch.setattr(dpg_items, "NUM_OFFICIAL_ITEMS", 3)
    found = json.loads(run(*bench, "--json")[1])
    assert found["name"] == "dpg-bench"
    assert (found["num_expected"], found["num_scored"]) == (3, 2)
    [missing] = found["missing"]
    assert missing["item"] == "apple"
    assert missing["reason"].startswith("the official script drops the file's first question (")
    assert found["scores"][0]["value"] == found["official"]["overall"] == pytest.approx(75)
    assert "--first-row" not in found["command"]  # which would drop it from the corrected scores, too
    assert found["corrected"]["n_items_scored"] == 3


def test_the_digest_of_prompts_is_that_of_the_conformance_data(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\n")
    (tmp_path / "a.txt").write_bytes("é".encode())
    (tmp_path / "notes.md").write_text("x")
    assert folder_sha256(tmp_path) == hashlib.sha256(b"a.txt\0" + "é".encode() + b"\0b.txt\0two\n\0").hexdigest()


def test_seeds_are_stable():
    """Pictures of earlier runs were drawn with these."""
    assert picture_seed(42, "partiprompts0", 1) == 2906899500898594323
