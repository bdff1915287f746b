# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds, at the offline teacher, at one that misbehaves, and on the disk."""

import asyncio
import email.utils
import json
import time
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from loopback_teacher import LoopbackTeacher
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.doctor import Check, examine, to_json, to_text
from sharegpt4o_image.synthesis.journal import Journal

TODAY = date(2026, 11, 25)
KEY = "sk-test-0123456789"


class ModelDesk(LoopbackTeacher):
    """Answers every request alike, and counts those that cost money."""

    def __init__(self, answer: Response):
        super().__init__()
        self.answer = answer
        self.num_posts = 0
        self._server.config.date_header = "date" not in answer.headers

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_posts += scope["method"] == "POST"
        await self.answer(scope, receive, send)


def card(shutdown: object = None) -> Response:
    return JSONResponse({"id": "m", "object": "model", "created": 0, "owned_by": "x", "shutdown_date": shutdown})


def refusal(status: int, code: str | None = None) -> Response:
    return JSONResponse({"error": {"message": f"no, {KEY}", "code": code, "type": "error"}}, status)


def diagnose(run_dir: Path | None = None, **keys: Any) -> list[Check]:
    return asyncio.run(examine(SynthesisConfig.model_validate(keys), run_dir, TODAY))


def named(checks: list[Check], name: str) -> Check:
    [check] = [check for check in checks if check.name == name]
    return check


def asked(answer: Response, **keys: Any) -> Check:
    """What is said of an image model whose endpoint answers so."""
    with ModelDesk(answer) as desk:
        models = {"image_model": "gpt-image-2", "base_url": desk.base_url, **keys}
        checks = diagnose(**models)
        assert desk.num_posts == 0
    assert KEY not in to_text(checks)
    return named(checks, f"model {models['image_model']}")


def test_the_offline_run_is_well(tmp_path: Path) -> None:
    checks = diagnose(tmp_path / "deep" / "run")
    assert [(check.name, check.verdict) for check in checks] == [
        ("configuration", "ok"),
        ("model offline-writer-1", "ok"),
        ("model offline-painter-1", "ok"),
        ("run directory", "ok"),
        ("disk", "ok"),
    ]
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_text_and_json() -> None:
    checks = [Check("key", "ok", "set"), Check("run directory", "failure", "held")]
    assert to_text(checks) == "ok       key            set\nfailure  run directory  held"
    assert json.loads(to_json(checks))[1] == {"name": "run directory", "verdict": "failure", "message": "held"}


# --------------------------------------------------------------------------- configuration and keys


def test_registry_has_its_say() -> None:
    check = named(diagnose(image_params={"size": "17x19"}), "configuration")
    assert (check.verdict, check.message.split(":")[0]) == ("failure", "image_params.size")
    assert named(diagnose(taxonomy="nowhere.yaml"), "configuration").verdict == "failure"
    assert named(diagnose(teachers="nowhere.yaml"), "configuration").verdict == "failure"
    warned = [check for check in diagnose(prompt_model="gemini-2.5-pro") if check.name == "configuration"]
    assert [check.verdict for check in warned] == ["warning", "warning"]


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    with LoopbackTeacher() as teacher:
        checks = diagnose(base_url=teacher.base_url, prompt_base_url=teacher.base_url)
        assert teacher.keys_seen == {f"Bearer {KEY}", "Bearer no-key"}
    keys = [(check.verdict, check.message.split()[0]) for check in checks if check.name == "key"]
    assert keys == [("ok", "OPENAI_API_KEY"), ("warning", "PROMPT_API_KEY")]
    assert KEY not in to_text(checks)


@pytest.mark.parametrize("bad", ["sk one two", "sk-\u0142", "sk\x01"])
def test_key_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    checks = diagnose(base_url="http://127.0.0.1:9/v1")
    assert named(checks, "key").verdict == "failure"
    assert not [check for check in checks if check.name.startswith("model")]
    assert bad not in to_text(checks)


# --------------------------------------------------------------------------- models


def test_each_model_is_asked_of_its_own_endpoint() -> None:
    with LoopbackTeacher() as teacher:
        checks = diagnose(base_url=teacher.base_url, prompt_base_url="http://127.0.0.1:9/v1")
    assert named(checks, "model offline-painter-1").verdict == "ok"
    writer = named(checks, "model offline-writer-1")
    assert writer.verdict == "failure"
    assert writer.message.startswith("cannot reach http://127.0.0.1:9/v1 (")
    assert named(checks, "clock").verdict == "ok"


@pytest.mark.parametrize(
    ("shutdown", "verdict", "words"),
    [
        (None, "ok", "has it"),
        ("2026-11-25", "failure", "was shut down on 2026-11-25"),
        ("2026-11-26", "warning", "in 1 days"),
        ("2026-12-25", "warning", "in 30 days"),
        ("2026-12-26", "warning", "on no known day according to the registry"),
        ("soon", "warning", "'soon'"),
        (20261225, "warning", "a shutdown date that is none"),
    ],
)
def test_shutdown_date_of_the_answer(shutdown: object, verdict: str, words: str) -> None:
    check = asked(card(shutdown))
    assert check.verdict == verdict
    assert words in check.message


def test_registry_and_teacher_disagree(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("teachers: [{id: m, endpoint: images, shutdown_date: 2027-12-24, evidence: x}]\n")
    keys = {"image_model": "m", "teachers": str(own)}
    check = asked(card(), **keys)
    assert check.verdict == "warning"
    assert "on no known day according to http" in check.message
    assert "2027-12-24 according to the registry" in check.message
    assert asked(card("2027-12-24"), **keys).message.endswith("has it, until 2027-12-24")


@pytest.mark.parametrize(
    ("answer", "verdict", "words"),
    [
        (refusal(401, "invalid_api_key"), "failure", "set OPENAI_API_KEY"),
        (refusal(403), "failure", "set OPENAI_API_KEY"),
        (refusal(404, "model_not_found"), "failure", "has no such model"),
        (PlainTextResponse("not here", 404), "warning", "no route"),
        (refusal(503), "failure", "answers 503"),
        (PlainTextResponse("<html>hello</html>"), "failure", "does not speak OpenAI's API"),
        (JSONResponse(["m"]), "ok", "has it"),
    ],
)
def test_answers_that_are_no_model(
    monkeypatch: pytest.MonkeyPatch, answer: Response, verdict: str, words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check = asked(answer)
    assert check.verdict == verdict
    assert words in check.message


@pytest.mark.parametrize(("minutes", "verdict", "word"), [(4, "ok", "within"), (-7, "warning", "ahead of")])
def test_clock(minutes: int, verdict: str, word: str) -> None:
    there = email.utils.formatdate(time.time() + 60 * minutes, usegmt=True)
    answer = card()
    answer.headers["date"] = there
    with ModelDesk(answer) as desk:
        check = named(diagnose(base_url=desk.base_url), "clock")  # one line for both models
    assert check.verdict == verdict
    assert word in check.message


# --------------------------------------------------------------------------- disk


def test_run_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for run_dir, words in (
        (tmp_path, "something else"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "cannot write to"),
    ):
        check = named(diagnose(run_dir), "run directory")
        assert check.verdict == "failure"
        assert words in check.message
    with closing(Journal.create_or_resume(tmp_path / "run")):
        assert "another process" in named(diagnose(tmp_path / "run"), "run directory").message
    assert named(diagnose(tmp_path / "run"), "run directory").verdict == "ok"


def test_disk(tmp_path: Path) -> None:
    check = named(diagnose(tmp_path, num_topics=10**10, num_edits=0), "disk")
    assert check.verdict == "failure"
    assert "choose another disk" in check.message
    (tmp_path / "journal.sqlite").write_text("mine")
    assert "the plan cannot be made" in named(diagnose(tmp_path), "disk").message
