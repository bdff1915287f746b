# SPDX-License-Identifier: Apache-2.0
"""The scene benchmarks of an endpoint, over real HTTP: the offline teacher draws and edits what it is asked for."""

import json
from pathlib import Path

import pytest
from starlette.responses import JSONResponse
from synthesis.loopback_teacher import LoopbackTeacher

from sharegpt4o_image.evaluation.score_record import read_scores

MODEL = "offline-painter-1"
BLOCKED = JSONResponse({"error": {"message": "not allowed", "code": "moderation_blocked"}}, 400)


@pytest.mark.parametrize(
    ("name", "others"), [("scenes", []), ("scene-edits", []), ("scene-geneval", ["--images-per-prompt", 1])]
)
def test_the_teacher_draws_and_edits_right(run, monkeypatch, name, others):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with LoopbackTeacher() as teacher:
        command = ["evaluate", name, "--limit", 1, "--base-url", teacher.base_url, "-m", MODEL, *others]
        assert run(*command)[0] == 0
        num_requests = teacher.num_requests
        assert run(*command)[0] == 0
        assert teacher.num_requests == num_requests
    record = read_scores(Path("scores", name, "scores", f"{name}.json"))
    assert record.overall.value == 1
    assert (record.model, record.generator["endpoint"]) == (MODEL, "127.0.0.1")
    assert record.command.startswith(f"sharegpt4o-image evaluate {name} --limit 1 --base-url URL -m {MODEL}")


def test_a_refused_picture_is_missing_with_its_reason(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with LoopbackTeacher(fault=lambda number, path: BLOCKED if number == 1 else None) as teacher:
        code, out, err = run("evaluate", "scenes", "--limit", 2, "--base-url", teacher.base_url, "-m", MODEL, "--json")
    assert code == 0
    assert sum(row["images"] for row in json.loads(out).values()) == 5
    record = read_scores(Path("scores/scenes/scores/scenes.json"))
    [missing] = record.missing
    assert missing.reason == "refused by moderation: 400 moderation_blocked: not allowed"
    assert f"{missing.item}: {missing.reason}" in err
