# SPDX-License-Identifier: Apache-2.0
"""A study is balanced, blind, repeatable with its key; what cannot be compared is named; votes find their models."""

import csv
import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_key import unseal
from sharegpt4o_image.evaluation.preference_pairs import StudyOptions, build_study, model_pairs
from sharegpt4o_image.evaluation.preference_pictures import bare_picture, degraded, read_upright
from sharegpt4o_image.evaluation.preference_prompts import parse_models, read_prompts
from sharegpt4o_image.evaluation.preference_votes import read_votes

MODELS = {"janus-4o": (48, 48), "janus-pro": (40, 50), "rival": (60, 40)}
NUM_PROMPTS = 7


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def work(tmp_path):
    """Three folders of pictures, each of a colour of its own, and prompts of which every second has a source."""
    for number, (model, size) in enumerate(MODELS.items()):
        (tmp_path / model).mkdir()
        for prompt in range(NUM_PROMPTS):
            picture = Image.new("RGB", size, (90 * number, 10 * prompt, 200))
            ImageDraw.Draw(picture).rectangle((5, 5, 20, 20), "white")
            picture.save(tmp_path / model / f"p{prompt}.png")
    (tmp_path / "sources").mkdir()
    rows = []
    for prompt in range(NUM_PROMPTS):
        row = {"prompt_id": f"p{prompt}", "prompt": f"<b>circle</b> {prompt}"}
        if prompt % 2:
            Image.new("RGB", (30, 20), (0, 10 * prompt, 0)).save(tmp_path / "sources" / f"{prompt}.png")
            row["source"] = f"sources/{prompt}.png"
        rows.append(row)
    write_rows(tmp_path / "prompts.jsonl", rows)
    return tmp_path


def build(work, name="study", height=96, **options):
    models = parse_models([f"{model}={work / model}" for model in MODELS])
    prompts = read_prompts(work / "prompts.jsonl")
    return build_study(
        work / name, prompts, models, model_pairs(list(models), []), StudyOptions(height=height, **options)
    )


def study_of(work, name="study"):
    pairs = [json.loads(line) for line in (work / name / "pairs.jsonl").read_text().splitlines()]
    return pairs, json.loads((work / name / "key.json").read_text())


# ------------------------------------------------------------------ build


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_models_and_their_sides_are_balanced(work, seed):
    build(work, seed=seed, num_checks=4)
    pairs, key = study_of(work)
    assert {row["pair"] for row in pairs} == key["pairs"].keys()
    assert len(key["pairs"]) == 3 * NUM_PROMPTS + 4
    compared = [entry for entry in key["pairs"].values() if "degraded" not in entry]
    sides = Counter((entry["first_model"], entry["second_model"]) for entry in compared)
    for a, b in (("janus-4o", "janus-pro"), ("janus-4o", "rival"), ("janus-pro", "rival")):
        assert sides[a, b] + sides[b, a] == NUM_PROMPTS
        assert abs(sides[a, b] - sides[b, a]) == 1
    checks = [entry for entry in key["pairs"].values() if "degraded" in entry]
    assert Counter(entry["degraded"] for entry in checks) == {"first": 2, "second": 2}
    assert all(entry["first_model"] == entry["second_model"] for entry in checks)


def test_the_order_is_mixed(work):
    build(work)
    pairs, key = study_of(work)
    order = [key["pairs"][row["pair"]] for row in pairs]
    assert order != sorted(order, key=lambda entry: entry["prompt_id"])
    of_pair = [frozenset((entry["first_model"], entry["second_model"])) for entry in order]
    assert len(set(of_pair[:NUM_PROMPTS])) > 1


def test_pictures_belong_to_the_models_that_the_key_names(work):
    build(work)
    pairs, key = study_of(work)
    names = list(MODELS)
    for row in pairs:
        entry = key["pairs"][row["pair"]]
        for side in ("first", "second"):
            with Image.open(work / "study" / "pictures" / row[side]) as picture:
                color = picture.getpixel((picture.width - 1, picture.height - 1))
            assert color == (90 * names.index(entry[f"{side}_model"]), 10 * int(entry["prompt_id"][1:]), 200)


def test_nothing_that_raters_may_see_tells_a_model(work):
    for model in MODELS:  # which says in its files who drew them
        for path in (work / model).iterdir():
            with Image.open(path) as picture:
                exif = Image.Exif()
                exif[0x0131] = f"drawn by {model}"
                picture.convert("RGB").save(path, exif=exif, dpi=(72, 72))
    build(work, num_checks=3)
    study = work / "study"
    shown = [path for path in study.rglob("*") if path.is_file() and path.name != "key.json"]
    assert len(shown) == 2 + 3 * NUM_PROMPTS + NUM_PROMPTS // 2 + 3
    for path in shown:
        assert not any(model.encode() in path.read_bytes() + path.name.encode() for model in MODELS)
    for path in (study / "pictures").iterdir():
        assert len(path.stem) == 32
        assert int(path.stem, 16) >= 0
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.height, picture.info) == ("PNG", "RGB", 96, {})
    assert not any("check" in row or "degraded" in row for row in study_of(work)[0])
    assert stat.S_IMODE((study / "key.json").stat().st_mode) == 0o600


def test_names_and_sides_follow_from_the_salt_and_not_from_the_seed_alone(work):
    build(work, seed=3)
    first = (work / "study" / "pairs.jsonl").read_bytes()
    assert build(work, seed=3)["pairs"] == 3 * NUM_PROMPTS  # again, with the salt of the key
    assert (work / "study" / "pairs.jsonl").read_bytes() == first
    (work / "copy").mkdir()
    (work / "copy" / "key.json").write_bytes((work / "study" / "key.json").read_bytes())
    build(work, "copy", seed=3)
    assert (work / "copy" / "pairs.jsonl").read_bytes() == first
    for path in (work / "study" / "pictures").iterdir():
        assert (work / "copy" / "pictures" / path.name).read_bytes() == path.read_bytes()
    build(work, "other", seed=3)
    here, there = ({row["first"] for row in study_of(work, name)[0]} for name in ("study", "other"))
    assert not here & there
    entries = [study_of(work, name)[1]["pairs"].values() for name in ("study", "other")]
    assert list(entries[0]) != list(entries[1])


def test_a_study_of_other_inputs_is_not_written_over(work):
    build(work)
    with pytest.raises(UserError, match="study was built from other options, pairs, pictures"):
        build(work, num_prompts=3)
    with pytest.raises(UserError, match="built from other seed"):
        build(work, seed=1)
    Image.new("RGB", (48, 48)).save(work / "rival" / "p1.png")
    with pytest.raises(UserError, match="built from other pictures"):
        build(work)
    (work / "full").mkdir()
    (work / "full" / "letter.txt").touch()
    with pytest.raises(UserError, match="full holds something else than a study"):
        build(work, "full")


def test_a_build_that_was_killed_goes_on(work):
    build(work)
    whole = {path.name: path.read_bytes() for path in (work / "study" / "pictures").iterdir()}
    lines = (work / "study" / "pairs.jsonl").read_bytes()
    for name in [*sorted(whole)[10:]]:
        (work / "study" / "pictures" / name).unlink()
    (work / "study" / "pairs.jsonl").unlink()
    (work / "study" / "study.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (work / "study" / "pictures").iterdir()}
    build(work)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert {path.name: path.read_bytes() for path in (work / "study" / "pictures").iterdir()} == whole
    assert (work / "study" / "pairs.jsonl").read_bytes() == lines


def test_prompts_are_drawn_by_the_seed_and_pairs_of_models_chosen(work):
    models = parse_models([f"{model}={work / model}" for model in MODELS])
    chosen = model_pairs(list(models), ["rival, janus-4o"])
    drawn = []
    for number, seed in enumerate((0, 0, 1, 2)):
        options = StudyOptions(seed=seed, num_prompts=3)
        summary = build_study(work / f"s{number}", read_prompts(work / "prompts.jsonl"), models, chosen, options)
        assert summary["pairs_of_models"] == {"rival vs janus-4o": 3}
        assert summary["extra"] == {}
        drawn.append({entry["prompt_id"] for entry in study_of(work, f"s{number}")[1]["pairs"].values()})
    assert drawn[0] == drawn[1]
    assert len({frozenset(ids) for ids in drawn}) > 1
    with pytest.raises(UserError, match="7 prompts have all their pictures"):
        build(work, "s9", num_prompts=8)


def test_missing_doubled_unreadable_and_extra_pictures_are_named(work):
    (work / "janus-pro" / "p0.png").unlink()
    (work / "rival" / "p1.png").write_bytes((work / "rival" / "p1.png").read_bytes()[:60])
    (work / "rival" / "p2.webp").write_bytes((work / "rival" / "p2.png").read_bytes())
    (work / "sources" / "3.png").unlink()
    Image.new("RGB", (900, 10)).save(work / "janus-4o" / "p4.png")
    Image.new("RGB", (9, 9)).save(work / "janus-4o" / "other.jpg")
    (work / "janus-4o" / "notes.txt").touch()
    with pytest.raises(UserError) as error:
        build(work)
    for said in (
        "5 pictures are unusable",
        "prompt p0, janus-pro: is missing",
        "prompt p1, rival: p1.png is damaged or no picture",
        "prompt p2, rival: is there more than once: p2.png, p2.webp",
        "prompt p3, source picture: is missing: no 3.png",
        "prompt p4, janus-4o: p4.png has 900 x 10 pixels",
        "--skip-missing",
    ):
        assert said in str(error.value)
    assert not (work / "study").exists()
    summary = build(work, skip_missing=True)
    assert summary["prompts"] == 2
    assert summary["extra"] == {"janus-4o": ["other.jpg"]}
    assert [fault["prompt_id"] for fault in study_of(work)[1]["left_out"]] == ["p0", "p1", "p2", "p3", "p4"]
    assert {entry["prompt_id"] for entry in study_of(work)[1]["pairs"].values()} == {"p5", "p6"}


# ------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_id": "../x", "prompt": "a"}, "line 1: prompt_id '../x' cannot name a file"),
        ({"prompt_id": "/etc/x", "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": "a\\b", "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": "..", "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": "a\0b", "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": "n" * 300, "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": "NaN", "prompt": "a"}, "cannot name a file"),
        ({"prompt_id": float("nan"), "prompt": "a"}, "prompt_id is nan"),
        ({"prompt_id": "1", "prompt": " "}, "prompt is empty"),
        ({"prompt_id": "1"}, "prompt is empty"),
        ({"prompt_id": "1", "prompt": ["a"]}, "prompt is ['a']"),
        ({"prompt_id": "1", "prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt_id": "1", "prompt": "a", "source": "../../x.png"}, "source ../../x.png is outside of"),
        ({"prompt_id": "1", "prompt": "a", "source": "/etc/x.png"}, "source /etc/x.png is outside of"),
        ([1], "no JSON object"),
    ],
)
def test_faults_of_prompts_are_named(tmp_path, row, message):
    write_rows(tmp_path / "prompts.jsonl", [row])
    with pytest.raises(UserError) as error:
        read_prompts(tmp_path / "prompts.jsonl")
    assert message in str(error.value)
    assert "line 1" in str(error.value)


def test_csv_txt_and_jsonl_are_read_and_ids_are_there_once(tmp_path):
    table = tmp_path / "p.csv"
    table.write_bytes('\ufeffprompt_id,prompt,source\n1,"a, b",\n2,c,s.png\n'.encode())
    first, second = read_prompts(table, tmp_path / "photos")
    assert (first.prompt_id, first.text, first.source) == ("1", "a, b", None)
    assert second.source == tmp_path / "photos" / "s.png"
    (tmp_path / "p.txt").write_text("a red circle\n\n a blue one \n")
    assert [(p.prompt_id, p.text) for p in read_prompts(tmp_path / "p.txt")] == [
        ("0000", "a red circle"),
        ("0001", "a blue one"),
    ]
    write_rows(tmp_path / "p.jsonl", [{"prompt_id": 1, "prompt": "a"}, {"prompt_id": "1", "prompt": "b"}])
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: prompt_id 1 was there before"):
        read_prompts(tmp_path / "p.jsonl")
    table.write_text("id,prompt\n1,a\n")
    with pytest.raises(UserError, match="no column prompt_id"):
        read_prompts(table)
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UserError, match="has no prompts"):
        read_prompts(tmp_path / "p.txt")


def test_faults_of_models_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    folder = tmp_path / "a"
    for values, message in (
        ([f"x={folder}", f"x={folder}"], "two models are named x"),
        ([f"x={folder}"], "1 model given"),
        (["x"], "--model x is not NAME=DIR"),
        ([f"x={tmp_path / 'none'}"], "there is no folder"),
        ([f"x,y={folder}"], "without a comma"),
    ):
        with pytest.raises(UserError, match=message):
            parse_models(values)
    with pytest.raises(UserError, match="--pairs x,z is not A,B with two of the models x, y"):
        model_pairs(["x", "y"], ["x,z"])
    with pytest.raises(UserError, match="--pairs y,x is given twice"):
        model_pairs(["x", "y"], ["x,y", "y,x"])


# ------------------------------------------------------------------ pictures


def test_pictures_are_upright_opaque_and_bare(tmp_path):
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what is left comes to the top
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = bare_picture(read_upright(tmp_path / "turned.png"), 80)
    assert upright.size == (40, 80)
    assert (upright.getpixel((20, 5)), upright.getpixel((20, 75))) == ((255, 0, 0), (0, 0, 255))
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_upright(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (20, 20), 65535).save(tmp_path / "deep.png")
    assert read_upright(tmp_path / "deep.png").getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="has 2 frames"):
        read_upright(tmp_path / "film.webp")


def test_a_colour_profile_is_applied_before_it_is_taken_off(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (20, 20), (200, 50, 30)).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.abs(np.array(read_upright(tmp_path / "srgb.png").getpixel((0, 0))) - (200, 50, 30)).max() <= 1
    turned = srgb.replace(b"rXYZ", b"none").replace(b"bXYZ", b"rXYZ").replace(b"none", b"bXYZ")  # red means blue
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "turned.png", icc_profile=turned)
    red, green, blue = read_upright(tmp_path / "turned.png").getpixel((0, 0))
    assert (red < 10, green < 10, blue > 245) == (True, True, True)
    Image.new("RGB", (20, 20), (200, 50, 30)).save(tmp_path / "bad.png", icc_profile=b"nonsense")
    assert read_upright(tmp_path / "bad.png").getpixel((0, 0)) == (200, 50, 30)


def test_a_check_is_plain_to_see_and_keeps_the_size():
    picture = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(picture).ellipse((100, 100, 400, 400), "red")
    bad = degraded(picture, random.Random(0))
    assert bad.size == picture.size
    assert np.abs(np.asarray(bad, dtype=int) - np.asarray(picture, dtype=int)).mean() > 20


# ------------------------------------------------------------------ unseal


def vote(row, winner, rater="ann", shown_left="first", is_repeat=False):
    at = "2026-12-01T10:00:00+00:00"
    told = {"winner": winner, "shown_left": shown_left, "is_repeat": is_repeat, "seconds": 2.5, "at": at}
    return {"pair": row["pair"], "rater": rater, **told}


def test_unsealed_votes_name_the_models_that_were_chosen(work, run):
    build(work, num_checks=3)
    pairs, key = study_of(work)
    rng = random.Random(0)
    expected, votes = [], []
    for row in pairs:
        entry = key["pairs"][row["pair"]]
        winner = rng.choice(["first", "second", "tie", "both_bad"])
        shown_left = rng.choice(["first", "second"])
        votes.append(vote(row, winner, shown_left=shown_left))
        if "degraded" not in entry:
            expected.append((entry["prompt_id"], entry.get(f"{winner}_model", winner), entry[f"{shown_left}_model"]))
    write_rows(work / "study" / "votes.jsonl", votes)
    code, out, _ = run("preference", "unseal", work / "study", "-o", work / "votes.csv")
    assert code == 0
    assert "21 votes of 1 raters" in out
    read = read_votes(work / "votes.csv")
    names = {"model_a": lambda v: v.model_a, "model_b": lambda v: v.model_b}
    found = [(v.prompt_id, names.get(v.winner, lambda v: v.winner)(v), v.model_a) for v in read]
    assert found == expected
    with (work / "votes.csv").open() as file:
        assert next(csv.DictReader(file))["seconds"] == "2.5"
    code, out, _ = run("preference", "report", work / "votes.csv", "--json")
    assert code == 0
    assert json.loads(out)["votes"]["total"] == 21


def test_checks_are_counted_by_rater_and_left_out(work):
    build(work, num_checks=4)
    pairs, key = study_of(work)
    votes = [vote(pairs[0], "first"), vote(pairs[1], "tie"), vote(pairs[2], "tie")]
    checks = [row for row in pairs if "degraded" in key["pairs"][row["pair"]]]
    for number, row in enumerate(checks):
        bad = key["pairs"][row["pair"]]["degraded"]
        good = "second" if bad == "first" else "first"
        votes.append(vote(row, good, "careful"))
        votes.append(vote(row, (bad, good, "tie", "both_bad")[number], "careless"))
    write_rows(work / "study" / "votes.jsonl", votes)
    unsealed = unseal(work / "study")
    assert unsealed.checks["careful"] == (4, 4)
    assert unsealed.checks["careless"] == (1, 4)
    assert {row["rater"] for row in unsealed.rows} == {"ann"}
    assert "Checks: careless preferred the good picture in 1 of 4." in unsealed.to_text()


def test_what_does_not_count_is_named_by_line(work):
    build(work)
    pairs, _ = study_of(work)
    votes = [
        vote(pairs[0], "first"),
        vote(pairs[0], "second", shown_left="second", is_repeat=True),
        vote(pairs[0] | {"pair": "0" * 16}, "first"),
        vote(pairs[0], "tie"),
        vote(pairs[1], "first", is_repeat=True),
        vote(pairs[0], "first", "bob"),
    ]
    write_rows(work / "study" / "votes.jsonl", votes)
    with (work / "study" / "votes.jsonl").open("a") as file:
        file.write('{"pair": "12')  # the server was killed
    unsealed = unseal(work / "study")
    assert unsealed.to_json() == {
        "votes": 3,
        "raters": 2,
        "checks": {},
        "left_out": {
            "unknown_pair": [3],
            "replaced_by_a_later_vote": [1],
            "repeat_without_first_vote": [5],
            "torn_last_line": [7],
        },
    }
    assert [row["winner"] for row in unsealed.rows] == ["model_a", "tie", "model_a"]
    assert "Left out, replaced by a later vote: 1 (lines 1 of votes.jsonl)." in unsealed.to_text()


def test_faults_of_votes_and_keys_are_named(work, run):
    build(work)
    study = work / "study"
    code, _, err = run("preference", "unseal", study, "-o", "votes.csv")
    assert (code, "no vote that counts" in err) == (2, True)
    pairs, _ = study_of(work)
    good = vote(pairs[0], "first")
    for fault, message in (
        ({"winner": "left"}, "line 2, is no vote (winner is 'left'"),
        ({"shown_left": None}, "shown_left is None"),
        ({"is_repeat": {}}, "is_repeat is {}"),
        ({"rater": " "}, "rater is ' '"),
        ({"pair": 3}, "pair is 3"),
    ):
        write_rows(study / "votes.jsonl", [good, good | fault])
        with pytest.raises(UserError) as error:
            unseal(study)
        assert message in str(error.value)
    (study / "key.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*key\.json"):
        unseal(study)
    (study / "key.json").unlink()
    with pytest.raises(UserError, match=r"key\.json is missing"):
        unseal(study)


# ------------------------------------------------------------------ the command line


def test_build_from_the_command_line(work, run):
    models = [part for model in MODELS for part in ("--model", f"{model}={work / model}")]
    options = (
        "--prompts",
        work / "prompts.jsonl",
        "-o",
        work / "study",
        "--checks",
        2,
        "--height",
        64,
        "--repeats",
        0.2,
    )
    code, out, _ = run("preference", "build", *models, *options, "--title", "<b>Which?</b>", "--both-bad", "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 23
    shown = json.loads((work / "study" / "study.json").read_text())
    assert shown.pop("created_at") == study_of(work)[1]["created_at"]
    assert "follows the text better" in shown.pop("criteria")
    assert shown == {
        "format": 1,
        "title": "<b>Which?</b>",
        "num_pairs": 23,
        "has_sources": True,
        "allows_both_bad": True,
        "repeats": 0.2,
    }
    code, out, _ = run("preference", "build", *models, *options)
    assert "study: 23 pairs on 7 prompts, 2 checks among them" in out
    code, _, err = run("preference", "build", *models[:2], *options)
    assert (code, "a comparison needs two" in err) == (2, True)


def test_the_key_is_private_whatever_the_umask(work):
    script = (
        "import os, sys; os.umask(0); from sharegpt4o_image.cli import main; "
        "sys.argv = ['sharegpt4o-image', *sys.argv[1:]]; main()"
    )
    models = [part for model in MODELS for part in ("--model", f"{model}={work / model}")]
    command = [sys.executable, "-c", script, "preference", "build", *models]
    command += ["--prompts", str(work / "prompts.jsonl"), "-o", str(work / "study")]
    subprocess.run(command, check=True, cwd=work, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert stat.S_IMODE((work / "study" / "key.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((work / "study" / "pairs.jsonl").stat().st_mode) == 0o666
