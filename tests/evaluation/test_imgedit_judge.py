# SPDX-License-Identifier: Apache-2.0
"""The judge over real HTTP, with the faults that endpoints have: complete, counted, resumable."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from imgedit_world import TYPES, World
from loopback_judge import MODEL, LoopbackJudge, chat, three_scores
from PIL import Image
from starlette.responses import JSONResponse

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import imgedit_run
from sharegpt4o_image.evaluation.imgedit_items import BASIC, load_benchmark
from sharegpt4o_image.evaluation.imgedit_judgement import JudgeSettings
from sharegpt4o_image.evaluation.imgedit_parsers import LABELS
from sharegpt4o_image.evaluation.imgedit_pictures import PictureSource
from sharegpt4o_image.evaluation.imgedit_run import run_imgedit


def fair(asked):
    return three_scores(asked.edit_type, 4, 3, 3)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_message_is_that_of_the_official_scripts(run, world):
    entries = dict(world.entries)
    key = world.keys[1]
    entries[key]["prompt"] = r"write \g<0> <edit_prompt> {x} on it"
    world.items.write_text(json.dumps(entries))
    with LoopbackJudge(fair) as judge:
        code, out, _ = run(*world.command(judge.base_url))
    assert code == 0, out
    assert "6 of 6 scored, 0 missing" in out
    asked = next(asked for asked in judge.asked if asked.edit_type == TYPES[1])
    assert asked.text == r"Rate this edit. |remove| editing instruction is : write \g<0> <edit_prompt> {x} on it."
    assert asked.body.keys() == {"model", "messages"}
    files = (world.origins / entries[key]["id"], world.images / f"{key}.png")
    for url, file, mime in zip(asked.pictures, files, ("jpeg", "png"), strict=True):
        head, data = url.split(",")
        assert head == f"data:image/{mime};base64"
        assert base64.b64decode(data) == file.read_bytes()
    assert world.result() == {key: fair_text(world, key) for key in world.keys}
    row = world.judgements()[key, 0]
    assert row["served_model"] == f"{MODEL}-2026"
    assert row["system_fingerprint"] == "fp_test"
    assert row["answered_at"].startswith("20")
    assert row["edited_sha256"] == hashlib.sha256(files[1].read_bytes()).hexdigest()


def fair_text(world, key):
    return three_scores(world.entries[key]["edit_type"], 4, 3, 3)


def test_a_temperature_is_sent_when_it_is_given(run, world):
    with LoopbackJudge(fair) as judge:
        assert run(*world.command(judge.base_url, "--judge-temperature", 0.5))[0] == 0
    assert {asked.body["temperature"] for asked in judge.asked} == {0.5}


def test_every_fault_is_ridden_out_or_named(run, tmp_path):
    world = World(tmp_path, num_items=18)
    faulty = dict(zip(("slow", "oops", "late", "malformed", "refused", "filtered", "hanging"), TYPES, strict=False))
    by_type = {edit_type: fault for fault, edit_type in faulty.items()}
    seen = Counter()

    def says(asked):
        fault = by_type.get(asked.edit_type)
        seen[fault] += 1
        if fault == "slow" and asked.times_before == 0:
            error = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
            return JSONResponse(error, 429, {"retry-after": "0.2"})
        if fault == "oops" and asked.times_before == 0:
            return JSONResponse({"error": {"message": "oops"}}, 500)
        if fault == "late" and asked.times_before == 0:
            return "I would give it **four** out of five."
        if fault == "malformed":
            return f"Prompt Compliance: {3 + asked.times_before}\nno more to say"
        if fault == "refused":
            return chat(None, refusal="I cannot judge people.")
        if fault == "filtered":
            return JSONResponse({"error": {"message": "filtered", "code": "content_filter"}}, 400)
        return fair(asked)

    with LoopbackJudge(says) as judge:
        code, out, err = run(*world.command(judge.base_url))
        num_asked = len(judge.asked)
        assert code == 0, err
        rows = world.judgements()
        statuses = Counter(row["status"] for row in rows.values())
        assert statuses == {"read": 12, "unreadable": 2, "refused": 4}
        malformed = [key for key in world.keys if world.entries[key]["edit_type"] == faulty["malformed"]]
        for key in malformed:  # the last text stays, for the official parser to read
            assert world.result()[key] == "Prompt Compliance: 5\nno more to say"
            assert "(3 answers)" in rows[key, 0]["reason"]
        record = world.record()
        assert (record["num_expected"], record["num_scored"], len(record["missing"])) == (18, 14, 4)
        reasons = {missing["item"]: missing["reason"] for missing in record["missing"]}
        assert sum("I cannot judge people" in reason for reason in reasons.values()) == 2
        assert sum("filtered" in reason for reason in reasons.values()) == 2
        assert {row["key"] for row in record["details"]["strict"]["failures"]} == set(malformed)
        assert "14 of 18 scored, 4 missing" in out
        assert run(*world.command(judge.base_url))[0] == 0
        assert len(judge.asked) == num_asked  # all of it is settled, the refusals and the unreadable ones too


def test_a_judge_that_does_not_answer_in_time_leaves_its_items_to_the_next_run(run, world):
    with LoopbackJudge(fair, hangs=lambda asked: asked.edit_type in ("add", "style")) as judge:
        benchmark = load_benchmark(BASIC, world.items, world.templates, world.origins, None)
        settings = JudgeSettings(MODEL, judge.base_url, timeout_seconds=0.3, max_attempts=2)
        outcome = run_imgedit(benchmark, PictureSource(world.images), settings, world.output)
        assert outcome.record.num_scored == 4
        assert [missing.item for missing in outcome.record.missing] == [world.keys[0], world.keys[4]]
        assert "the teacher did not answer in time; run the same command again" in outcome.record.missing[0].reason
        assert "2 judgements are left: run the same command again" in outcome.notes
        judge.hangs = lambda asked: False
        code, out, _ = run(*world.command(judge.base_url))
    assert code == 0
    assert "6 of 6 scored, 0 missing" in out


def test_a_judge_in_another_language_stops_the_run_early(run, tmp_path):
    world = World(tmp_path, num_items=40)
    with LoopbackJudge(lambda asked: "提示遵循度：4\n视觉自然度：3\n物理一致性：3") as judge:
        code, out, err = run(*world.command(judge.base_url))
    assert (code, out) == (2, "")
    assert f"{MODEL} does not answer in the form, or the language" in err
    assert "提示遵循度" in err
    assert "name another judge" in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert len(judge.asked) < 30
    assert not (world.output / "imgedit" / "result.json").exists()


def test_unreadable_texts_that_are_all_that_is_left_are_settled_by_the_next_run(run, world):
    prose = set(TYPES[1:5])

    def says(asked):
        return "Four of five." if asked.edit_type in prose else fair(asked)

    with LoopbackJudge(says) as judge:
        command = world.command(judge.base_url, "--workers", 1)
        code, _, err = run(*command)
        assert code == 2
        assert "run the same command again to go on, or name another judge" in err
        for _ in range(5):
            code, out, err = run(*command)
            if code == 0:
                break
        assert code == 0, err
        assert "2 of 6 scored, 4 missing" in out
        assert {kept.get("text") for kept in world.judgements().values()} >= {"Four of five."}
        assert Counter(row["status"] for row in world.judgements().values()) == {"read": 2, "unreadable": 4}
        num_asked = len(judge.asked)
        assert run(*command)[0] == 0
        assert len(judge.asked) == num_asked


def test_bold_labels_are_read_by_the_strict_parser_alone(run, world):
    def says(asked):
        return "\n".join(f"**{label}:** 4" for label in LABELS[asked.edit_type])

    with LoopbackJudge(says) as judge:
        assert run(*world.command(judge.base_url))[0] == 2
        code, out, err = run(*world.command(judge.base_url, "--parser", "strict"))
    assert code == 0, err
    assert f"imgedit[judge={MODEL}" in out
    assert "parser=strict]" in out
    record = world.record()
    assert record["scores"][0]["value"] == 4.0
    assert record["details"]["official"]["macro"] is None


def test_what_official_accepts_is_asked_again_when_both_must_read_it(run, world):
    def says(asked):
        return fair(asked) if asked.number > 6 else "Score: 4"

    with LoopbackJudge(says) as judge:
        assert run(*world.command(judge.base_url, "--parser", "official"))[0] == 0
        assert len(judge.asked) == 6
        assert run(*world.command(judge.base_url))[0] == 0
    assert len(judge.asked) == 12
    assert world.result() == {key: fair_text(world, key) for key in world.keys}


def test_a_changed_picture_is_judged_anew(run, world):
    with LoopbackJudge(fair) as judge:
        run(*world.command(judge.base_url))
        Image.new("RGB", (64, 64), "red").save(world.images / f"{world.keys[2]}.png")
        run(*world.command(judge.base_url))
    assert len(judge.asked) == 7


def test_repeats_and_their_spread(run, world):
    def says(asked):
        return three_scores(asked.edit_type, 3 + asked.times_before, 3, 3)

    with LoopbackJudge(says) as judge:
        code, out, err = run(*world.command(judge.base_url, "--repeats", 3, "--workers", 1))
    assert code == 0, err
    assert len(judge.asked) == 18
    assert set(world.result("result_repeat2.json")) == set(world.keys)
    record = world.record()
    repeats = record["details"]["repeats"]
    assert repeats["macro"]["values"] == pytest.approx([3.0, 3.33, 3.67])
    assert record["scores"][0]["value"] == pytest.approx(repeats["macro"]["mean"], abs=1e-3)
    assert "mean of 3 judgements of each edit" in out


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(run, world):
    prices = ["--price-in", 100, "--price-out", 0]  # 0.2 USD a judgement
    with LoopbackJudge(fair) as judge:
        code, _, err = run(*world.command(judge.base_url, "--budget", 0.9, *prices))
        assert code == 2
        assert "the budget of 0.90 USD does not cover another request" in err
        assert "of 6 judgements are there" in err
        num_paid = len(judge.asked)
        assert 0.2 * num_paid <= 0.9
        code, out, err = run(*world.command(judge.base_url, "--budget", 5, *prices))
        assert code == 0, err
    assert len(judge.asked) == 6
    assert "1.2000 USD spent on judging" in out


def test_drawing_may_not_spend_what_judging_spent(run, world, monkeypatch):
    budgets = []

    def make_generator(model, base_url, recipe, run_dir, budget_usd):
        budgets.append(budget_usd)
        raise UserError("nothing is drawn here")

    monkeypatch.setattr(imgedit_run, "make_generator", make_generator)
    more = ["--budget", 5, "--price-in", 100, "--price-out", 0]  # 0.2 USD a judgement
    with LoopbackJudge(fair) as judge:
        assert run(*world.command(judge.base_url, *more))[0] == 0
        endpoint = ["--base-url", judge.base_url, "--model", "editor"]
        assert run(*world.command(judge.base_url, *endpoint, *more, images=False))[0] == 2
    assert budgets == [pytest.approx(5 - 6 * 0.2)]


def test_a_budget_needs_a_price(run, world):
    with LoopbackJudge(fair) as judge:
        code, _, err = run(*world.command(judge.base_url, "--budget", 1))
    assert (code, judge.asked) == (2, [])
    assert "add --price-in and --price-out" in err


def test_a_wrong_key_is_one_sentence(run, world, monkeypatch):
    with LoopbackJudge(fair, key="the right one".replace(" ", "-")) as judge:
        code, _, err = run(*world.command(judge.base_url))
        assert code == 2
        assert "does not accept the key; set OPENAI_API_KEY" in err
        monkeypatch.setenv("OPENAI_API_KEY", "sk-for-drawing")
        monkeypatch.setenv("PROMPT_API_KEY", "the-right-one")
        code, _, err = run(*world.command(judge.base_url))
        assert code == 0, err
    written = b"".join(path.read_bytes() for path in world.output.rglob("*") if path.is_file())
    assert b"the-right-one" not in written
    assert b"sk-for-drawing" not in written


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_paid_twice(run, tmp_path):
    world = World(tmp_path, num_items=60)
    with LoopbackJudge(fair, delay_seconds=0.05) as judge:
        command = [sys.executable, "-m", "sharegpt4o_image.cli", *world.command(judge.base_url, "--workers", 2)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while len(judge.asked) < 20 and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
        num_before = len(judge.asked)
        assert 20 <= num_before < 60
        code, out, err = run(*world.command(judge.base_url))
    assert code == 0, err
    assert "60 of 60 scored, 0 missing" in out
    twice = sum(count - 1 for count in judge.paid.values() if count > 1)
    assert len(judge.paid) == 60
    assert twice <= 2  # only what was in flight, whose answers nobody received
