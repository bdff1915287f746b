# SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they leave behind, that they go on where they stopped, and that nothing is paid twice."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_teacher import LoopbackTeacher
from PIL import Image
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.offline_teacher.language import parse_request
from sharegpt4o_image.offline_teacher.perception import perceive
from sharegpt4o_image.schema import Record, published_features
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig, load_config
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.pictures import difference_hash
from sharegpt4o_image.synthesis.prompts import render_template
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.status import read_status

REPOSITORY = Path(__file__).parents[2]
SMALL = SynthesisConfig(num_topics=12, num_edits=12)
KEY = "sk-test-0123456789"


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def identity(records: list[Record]) -> list[tuple[str, str | None]]:
    return [(record.id, record.output_sha256) for record in records]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    synthesize(path, SMALL)
    return path


@pytest.fixture(scope="module")
def records(run_dir: Path) -> list[Record]:
    return list(iter_records(run_dir))


# --------------------------------------------------------------------------- records


def test_every_sample_once_text_to_image_first(records: list[Record]) -> None:
    assert [record.task for record in records] == ["text_to_image"] * 12 + ["text_and_image_to_image"] * 12
    assert len({record.id for record in records}) == 24


def test_known_columns_are_filled(records: list[Record]) -> None:
    always = set(published_features()) - {
        *("objects", "background", "style", "lighting", "camera", "composition", "document_type"),
        *("edit_category", "edit_task", "source_id", "source_origin", "source_license", "input_image_resolution"),
    }
    for record in records:
        empty = {name for name in always if getattr(record, name) in (None, "")}
        assert not empty, record.id
        assert record.output_sha256 == hashlib.sha256(record.output_image.bytes).hexdigest()
        assert record.output_phash == difference_hash(opened(record.output_image.bytes))
        assert record.output_image_resolution == list(opened(record.output_image.bytes).size) == [256, 256]
        assert record.license == "cc-by-nc-4.0"
        assert record.usage is not None
        assert set(record.usage) == {"prompt", "image"}
    assert all(record.objects and record.background for record in records[:12])


def test_edits_name_their_source(records: list[Record]) -> None:
    pictures = {record.id: record for record in records[:12]}
    for edit in records[12:]:
        assert edit.source_id is not None
        source = pictures[edit.source_id]
        assert edit.input_image[0].bytes == source.output_image.bytes
        assert edit.output_image.bytes != source.output_image.bytes
        assert edit.input_image_resolution == source.output_image_resolution
        assert (edit.source_origin, edit.source_license) == ("synthesized", "cc-by-nc-4.0")
        assert edit.edit_category
        assert edit.edit_task
    assert {edit.source_id for edit in records[12:]} == set(pictures)


def test_pictures_show_what_the_prompts_say(records: list[Record]) -> None:
    for record in records[:12]:
        asked = parse_request(record.input_prompt)
        seen = perceive(opened(record.output_image.bytes)).scene
        wanted = Counter({(item.color, item.shape): item.count for item in asked.objects})
        assert Counter((item.color, item.shape) for item in seen.objects) == wanted
        assert seen.background == asked.background


def test_difference_hash_closed_form() -> None:
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == "f" * 16
    assert difference_hash(Image.fromarray(ramp[:, ::-1].copy())) == "0" * 16
    step = np.tile(np.array([0, 9, 9, 9, 9, 9, 9, 9, 9], dtype=np.uint8), (8, 1))
    assert difference_hash(Image.fromarray(step)) == "80" * 8


def test_runs_are_reproducible(run_dir: Path, records: list[Record], tmp_path: Path) -> None:
    synthesize(tmp_path / "again", SMALL)
    assert identity(list(iter_records(tmp_path / "again"))) == identity(records)


# --------------------------------------------------------------------------- resuming


def test_rerun_asks_nothing_and_a_longer_run_asks_for_the_rest(tmp_path: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url})
        first = synthesize(tmp_path / "run", config, limit=5)
        asked = teacher.num_requests
        assert first.new_attempts == asked == read_status(tmp_path / "run").attempts
        assert synthesize(tmp_path / "run", config, limit=5).new_attempts == 0
        assert teacher.num_requests == asked
        short = list(iter_records(tmp_path / "run"))
        synthesize(tmp_path / "run", config, limit=8)
        assert set(teacher.served.values()) == {1}
    longer = list(iter_records(tmp_path / "run"))
    assert identity(longer[:5]) == identity(short[:5])
    assert identity(longer[8:13]) == identity(short[5:])
    assert len(longer) == 16


def test_changed_parameter_asks_again_only_for_what_it_touches(tmp_path: Path) -> None:
    synthesize(tmp_path / "run", SMALL, limit=3)
    larger = SMALL.model_validate({**SMALL.model_dump(), "edit_params": {"size": "128x128"}})
    status = synthesize(tmp_path / "run", larger, limit=3).status
    assert status.by_task == {"text_to_image": 3, "text_and_image_to_image": 6}
    assert {tuple(record.output_image_resolution) for record in iter_records(tmp_path / "run")} == {
        (256, 256),
        (128, 128),
    }


def test_more_edits_than_pictures_give_every_picture_another_turn(tmp_path: Path) -> None:
    synthesize(tmp_path / "run", SynthesisConfig(num_topics=3, num_edits=8))
    edits = [record for record in iter_records(tmp_path / "run") if record.source_id]
    assert len({edit.id for edit in edits}) == 8
    assert sorted(Counter(edit.source_id for edit in edits).values()) == [2, 3, 3]


def test_faulty_teacher_loses_nothing(tmp_path: Path, records: list[Record]) -> None:
    now = {"retry-after-ms": "1"}

    def fault(number: int, path: str) -> Response | None:
        if number % 7 == 0:
            return JSONResponse({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, now)
        if number % 11 == 0:
            return JSONResponse({"error": {"message": "oops"}}, 500, now)
        if number % 13 == 0:
            return PlainTextResponse("<html>hello</html>")
        return None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url})
        summary = synthesize(tmp_path / "run", config)
        assert set(teacher.served.values()) == {1}
    assert (summary.unfinished, summary.status.rejected) == ({}, {})
    assert set(summary.status.by_status) == {"ok", "retry", "invalid"}
    assert identity(list(iter_records(tmp_path / "run"))) == identity(records)


def test_an_announced_limit_is_kept(tmp_path: Path) -> None:
    """The teacher refuses what goes beyond; only the first requests cannot know it yet."""
    with LoopbackTeacher(requests_per_minute=1200) as teacher:
        config = SynthesisConfig(num_topics=50, num_edits=0, base_url=teacher.base_url, num_workers=16)
        by_status = synthesize(tmp_path / "run", config).status.by_status
    assert by_status["ok"] == 100
    assert by_status.get("retry", 0) <= 16


def test_moderation_and_missing_sources_leave_a_reason(tmp_path: Path) -> None:
    def fault(number: int, path: str) -> Response | None:
        if path.endswith("/generations") and number % 4 == 2:  # every other picture
            return JSONResponse({"error": {"message": "no", "code": "moderation_blocked"}}, 400)
        return None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url, "num_workers": 1})
        status = synthesize(tmp_path / "run", config).status
    count = status.by_status["blocked"]
    assert status.rejected == {"400 moderation_blocked": count, "the source was rejected": count}
    assert status.by_task == {"text_to_image": 12 - count, "text_and_image_to_image": 12 - count}


def test_quota_stops_the_run_and_the_next_one_ends_it(tmp_path: Path, records: list[Record]) -> None:
    def fault(number: int, path: str) -> Response | None:
        spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
        return JSONResponse(spent, 429) if 20 <= number < 40 else None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url})
        with pytest.raises(UserError, match="insufficient_quota"):
            synthesize(tmp_path / "run", config)
        assert teacher.num_requests < 40
        teacher.fault = None
        synthesize(tmp_path / "run", config)
        assert set(teacher.served.values()) == {1}
    assert identity(list(iter_records(tmp_path / "run"))) == identity(records)


# --------------------------------------------------------------------------- bad input


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sharegpt4o_image.cli", *map(str, arguments)]


def refused(tmp_path: Path, *arguments: str | Path, **environment: str) -> str:
    """The sentence with which `synthesize -o tmp_path/run` ends, having left nothing behind."""
    done = subprocess.run(
        command("synthesize", "-o", tmp_path / "run", *arguments),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr.strip()


def test_unreachable_endpoint(tmp_path: Path) -> None:
    assert "cannot reach the teacher" in refused(tmp_path, "--base-url", "http://127.0.0.1:9/v1")


def test_address_that_is_none(tmp_path: Path) -> None:
    assert "not an http(s) address" in refused(tmp_path, "--base-url", "localhost:8000")


def test_bad_configurations(tmp_path: Path) -> None:
    assert "cannot read" in refused(tmp_path, "-c", tmp_path / "none.yaml")
    path = tmp_path / "config.yaml"
    for text, message in (
        ("num_topics: many\n", "num_topics"),
        ("num_topic: 3\n", "unknown key 'num_topic'"),
        ("num_workers: 0\n", "num_workers"),
        ("a: [\n", "line 2"),
        ("taxonomy: nowhere.yaml\n", "nowhere.yaml"),
        ("base_url: https://user:pass@example.com/v1\n", "OPENAI_API_KEY"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            synthesize(tmp_path / "run", load_config(path))
        assert message in str(caught.value)
        assert "pass@" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_endpoint_that_speaks_something_else(tmp_path: Path) -> None:
    class Website(LoopbackTeacher):
        async def _app(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("<html>hello</html>")(scope, receive, send)

    with Website() as website:
        with pytest.raises(UserError, match="does not speak OpenAI's API"):
            synthesize(tmp_path / "run", SMALL.model_copy(update={"base_url": website.base_url}))
        assert not (tmp_path / "run").exists()


def test_model_that_the_teacher_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no model 'painter-9'"):
        synthesize(tmp_path / "run", SMALL.model_copy(update={"image_model": "painter-9"}))
    assert not (tmp_path / "run").exists()


def test_directory_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        synthesize(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --------------------------------------------------------------------------- command line


def test_verb_and_status(tmp_path: Path) -> None:
    run = command("synthesize", "--limit", "3", "-o", tmp_path / "run", "--json")
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["by_task"] == {"text_to_image": 3, "text_and_image_to_image": 3}
    assert "prompt_first" in done.stderr  # the progress bars
    shown = subprocess.run(command("status", tmp_path / "run", "--json"), capture_output=True, text=True, check=True)
    status = json.loads(shown.stdout)
    assert {"records", "attempts", "spent_usd", "by_status"} <= set(status)
    assert status == {name: result[name] for name in status}
    assert status["by_status"] == {"ok": status["attempts"]}
    assert status["decided"] == status["planned"] == {"prompt_first": 3, "editing": 3}
    table = subprocess.run(command("status", tmp_path / "run"), capture_output=True, text=True, check=True).stdout
    assert "6 records (3 text_to_image, 3 text_and_image_to_image)" in table
    assert "not running" in table


def test_interrupt_drains_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with LoopbackTeacher(delay_seconds=0.02) as teacher:
        verb = command("synthesize", "--limit", "40", "-o", tmp_path / "run", "--base-url", teacher.base_url, "--json")
        with subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while teacher.num_requests < 20:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        stopped = json.loads(output)
        assert stopped["is_interrupted"]
        assert stopped["by_status"] == {"ok": teacher.num_requests}  # nothing was cut off
        subprocess.run(verb, capture_output=True, check=True)
        assert set(teacher.served.values()) == {1}
    assert read_status(tmp_path / "run").records == 80


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with LoopbackTeacher(delay_seconds=2.0) as teacher:
        verb = command("synthesize", "--limit", "9", "-o", tmp_path / "run", "--base-url", teacher.base_url)
        with subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while teacher.num_requests < 8:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=1.5)
        assert process.returncode != 0
        assert "Traceback" not in errors
    assert read_status(tmp_path / "run").by_status == {"lost": 8}


def test_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(store: BlobStore, data: bytes) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "write", fail)
        with pytest.raises(UserError, match="No space left on device"):
            synthesize(tmp_path / "run", SMALL)
    assert synthesize(tmp_path / "run", SMALL).status.records == 24


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, records: list[Record]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(small, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small disk")
    try:
        with pytest.raises(UserError, match=r"(No space left|disk is full).*run the same command"):
            synthesize(disk / "run", SMALL)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        synthesize(disk / "run", SMALL)
        assert identity(list(iter_records(disk / "run"))) == identity(records)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_pictures_that_got_lost_cost_their_own_rows_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthesize(tmp_path / "run", SMALL.model_copy(update={"num_edits": 0}))
    lost = next((tmp_path / "run" / "blobs").glob("*/*"))
    kept = lost.read_bytes()
    lost.unlink()
    summary = synthesize(tmp_path / "run", SMALL)
    [(reason, count)] = summary.unfinished.items()
    assert "the run lost the picture" in reason
    assert count == 1
    assert len(list(iter_records(tmp_path / "run"))) == 22
    assert "left out the row" in caplog.text
    lost.write_bytes(kept)
    assert synthesize(tmp_path / "run", SMALL).unfinished == {}
    assert len(list(iter_records(tmp_path / "run"))) == 24


def test_rows_keep_the_licence_that_they_were_made_under(tmp_path: Path) -> None:
    synthesize(tmp_path / "run", SMALL, limit=2)
    synthesize(tmp_path / "run", SMALL.model_copy(update={"license": "cc0-1.0"}), limit=3)
    licenses = [record.license for record in iter_records(tmp_path / "run")]
    assert licenses == ["cc-by-nc-4.0"] * 2 + ["cc0-1.0"] + ["cc-by-nc-4.0"] * 2 + ["cc0-1.0"]


def test_an_endpoint_with_a_wrong_parameter_rejects_nothing(tmp_path: Path, records: list[Record]) -> None:
    def fault(number: int, path: str) -> Response | None:
        wrong = {"error": {"message": "Unknown parameter: 'n'.", "code": "unknown_parameter"}}
        return JSONResponse(wrong, 400) if path.endswith("/generations") else None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url})
        with pytest.raises(UserError, match=r"answers nothing on /images/generations but: 400 unknown_parameter"):
            synthesize(tmp_path / "run", config)
        assert read_status(tmp_path / "run").rejected == {}
        teacher.fault = None
        synthesize(tmp_path / "run", config)
    assert identity(list(iter_records(tmp_path / "run"))) == identity(records)


def test_an_endpoint_that_breaks_in_the_middle_rejects_nothing(tmp_path: Path) -> None:
    def fault(number: int, path: str) -> Response | None:
        wrong = {"error": {"message": "Unknown parameter: 'n'.", "code": "unknown_parameter"}}
        return JSONResponse(wrong, 400) if path.endswith("/generations") and number > 16 else None

    with LoopbackTeacher(fault) as teacher:
        config = SynthesisConfig(num_topics=30, num_edits=0, num_workers=2, base_url=teacher.base_url)
        with pytest.raises(UserError, match=r"answers in a row were of no use.*unknown_parameter"):
            synthesize(tmp_path / "run", config)
        assert 0 < read_status(tmp_path / "run").records < 12
        assert read_status(tmp_path / "run").rejected == {}
        teacher.fault = None
        assert synthesize(tmp_path / "run", config).status.records == 30


def test_a_missing_source_neither_hangs_nor_costs(tmp_path: Path) -> None:
    priced = SMALL.model_copy(update={"prices": {"offline-painter-1": Price(output=10)}})
    synthesize(tmp_path / "run", priced.model_copy(update={"num_edits": 0}))
    for blob in list((tmp_path / "run" / "blobs").glob("*/*"))[:6]:
        blob.unlink()
    summary = synthesize(tmp_path / "run", priced, budget_usd=1.0)
    assert sum(summary.unfinished.values()) == 6
    assert (summary.status.possibly_spent_usd, summary.end_of_budget) == (0, None)
    assert "lost" not in summary.status.by_status


def test_a_damaged_journal_is_a_sentence(tmp_path: Path) -> None:
    synthesize(tmp_path / "run", SMALL, limit=2)
    path = tmp_path / "run" / "journal.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 60_000)
    for verb in (("synthesize", "--limit", "2", "-o", tmp_path / "run"), ("status", tmp_path / "run")):
        done = subprocess.run(command(*verb), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "journal" in done.stderr or "malformed" in done.stderr


def test_an_answer_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharegpt4o_image.synthesis.client.MAX_ANSWER_BYTES", 1000)

    def fault(number: int, path: str) -> Response | None:
        return Response(b"{" + b" " * 100_000, media_type="application/json") if number == 3 else None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url, "num_edits": 0, "num_topics": 1})
        with pytest.raises(UserError, match="longer than"):
            synthesize(tmp_path / "run", config.model_copy(update={"num_topics": 12}))


def test_the_clock_may_be_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "run", SMALL, limit=3)
    monkeypatch.setattr("sharegpt4o_image.synthesis.run.utc_now", lambda: "1999-01-01T00:00:00+00:00")
    monkeypatch.setattr("sharegpt4o_image.synthesis.journal.utc_now", lambda: "1999-01-01T00:00:00+00:00")
    assert synthesize(tmp_path / "run", SMALL, limit=5).status.records == 10
    assert len(list(iter_records(tmp_path / "run"))) == 10


def test_key_goes_to_the_teacher_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def fault(number: int, path: str) -> Response | None:
        wrong = {"error": {"message": f"the key {KEY} is strange", "code": "strange"}}
        return JSONResponse(wrong, 400) if number == 3 else None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url})
        summary = synthesize(tmp_path / "run", config, limit=4)
        assert teacher.keys_seen == {f"Bearer {KEY}"}
    with closing(Journal.open(tmp_path / "run")) as journal:
        reasons = [*summary.unfinished, *(str(item.reason) for item in journal.iter_items(is_rejected=True))]
    assert any("[secret]" in reason for reason in reasons)
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())


def test_the_key_is_in_no_output_whatever_happens(tmp_path: Path) -> None:
    """Verbose logs of the client, progress, results, journal; a run that ends well and one that the teacher stops."""
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug", "PYTHONDEVMODE": "1"}

    def fault(number: int, path: str) -> Response | None:
        wrong = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
        return JSONResponse(wrong, 401) if number > 10 else None

    with LoopbackTeacher(fault) as teacher:
        verb = command("synthesize", "--limit", "9", "-o", tmp_path / "run", "--base-url", teacher.base_url)
        done = subprocess.run(verb, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 2
        assert teacher.keys_seen == {f"Bearer {KEY}"}
        teacher.fault = None
        again = subprocess.run(verb, capture_output=True, text=True, env=environment, check=True)
    subprocess.run(command("pack", tmp_path / "run", "-o", tmp_path / "set"), capture_output=True, check=True)
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_in_an_answer_of_use_is_cut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the name of the model, or as an error with the status 200."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def fault(number: int, path: str) -> Response | None:
        if number == 1:
            message = {"content": '{"prompt": "a red circle"}'}
            return JSONResponse({"model": f"writer of {KEY}", "choices": [{"message": message}]})
        return JSONResponse({"error": {"message": f"the key {KEY} may not"}}) if number > 4 else None

    with LoopbackTeacher(fault) as teacher:
        config = SMALL.model_copy(update={"base_url": teacher.base_url, "num_workers": 1})
        with pytest.raises(UserError) as caught:
            synthesize(tmp_path / "run", config)
    assert KEY not in str(caught.value)
    assert KEY not in "".join(str(record) for record in iter_records(tmp_path / "run"))
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())


@pytest.mark.parametrize("is_html", [False, True])
def test_a_key_that_the_teacher_repeats_is_cut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_html: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")

    def fault(number: int, path: str) -> Response | None:
        if number <= 2:
            return None
        if is_html:
            return Response(f"<html>{KEY}</html>", 200)
        return JSONResponse({"error": {"message": f"the key {KEY} may not", "code": "forbidden"}}, 403)

    said = ""
    with LoopbackTeacher(fault) as teacher:
        try:
            synthesize(tmp_path / "run", SMALL.model_copy(update={"base_url": teacher.base_url}), limit=2)
        except UserError as error:
            said = str(error)
        assert teacher.keys_seen == {f"Bearer {KEY}"}
    assert KEY not in said
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())


# --------------------------------------------------------------------------- what ships with the package


def test_configuration_file_and_defaults_are_the_same() -> None:
    assert load_config(REPOSITORY / "configs" / "synthesis_offline.yaml") == load_config(None) == SynthesisConfig()


# A template that changes asks every question anew: give the new text a new version instead.
TEMPLATE_DIGESTS = {
    "document_content.v1": "e6eb01b321f94345",
    "document_layout.v1": "ca891f9f4d0b50ed",
    "edit_instruction.v1": "b3a34564cf49db25",
    "edit_two_sources.v1": "09239d99906909e2",
    "image_first.v1": "48d0d7a85e244c04",
    "judge.v1": "93f60793c2d5ce37",
    "label.v1": "81d3bc6770d286a2",
    "prompt_first.v1": "b5e8279a0b932a45",
}


def test_templates_do_not_change_under_their_version() -> None:
    folder = files("sharegpt4o_image.synthesis") / "templates"
    digests = {
        path.name.removesuffix(".txt"): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in folder.iterdir()
    }
    assert digests == TEMPLATE_DIGESTS


def test_templates_are_strict() -> None:
    assert '{"objects": ["cat"]}' in render_template("prompt_first.v1", topic='{"objects": ["cat"]}')
    for slots in ({}, {"topic": "x", "mood": "y"}, {"task": "x"}):
        with pytest.raises(ValueError, match="slots"):
            render_template("prompt_first.v1", **slots)
