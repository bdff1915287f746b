# SPDX-License-Identifier: Apache-2.0
"""Runs through the Batch API: the same records at half the price, whatever becomes of the jobs."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from loopback_teacher import LoopbackTeacher
from starlette.responses import JSONResponse, Response

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.run_folder import FILE_NAME

PRICES = {"offline-painter-1": Price(text_input=5, image_input=8, output=30)}
CONFIG = SynthesisConfig(num_topics=6, num_edits=6, prices=PRICES, batch_size=4, batch_gather_seconds=0.1)
REPOSITORY = Path(__file__).parents[2]


def identity(run_dir: Path) -> list[tuple[str, str | None]]:
    return [(record.id, record.output_sha256) for record in iter_records(run_dir)]


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without batches."""
    run_dir = tmp_path_factory.mktemp("direct") / "run"
    synthesize(run_dir, CONFIG)
    return run_dir


def query(run_dir: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(run_dir / FILE_NAME)) as connection:
        return connection.execute(text).fetchall()


def test_batches_give_the_same_records_at_half_the_price(tmp_path: Path, direct: Path) -> None:
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        summary = synthesize(tmp_path / "run", config, uses_batches=True)
    assert summary.unfinished == {}
    assert identity(tmp_path / "run") == identity(direct)
    [(spent,)] = query(direct, "SELECT sum(cost_usd) FROM attempts")
    assert spent > 0  # type: ignore[operator]
    assert summary.status.spent_usd == pytest.approx(spent / 2)  # type: ignore[operator]
    assert summary.status.by_status == {"ok": 6 + 6 + summary.status.attempts - 12}
    jobs = query(tmp_path / "run", "SELECT route, status FROM submissions ORDER BY created_at")
    assert jobs == [("/images/generations", "done")] * 2 + [("/images/edits", "done")] * 2
    # Each source was uploaded once, and no picture travels in a request.
    [(uploads,)] = query(tmp_path / "run", "SELECT count(*) FROM uploads")
    assert uploads == 6


def test_an_expired_job_is_harvested_and_the_rest_ordered_again(tmp_path: Path, direct: Path) -> None:
    with LoopbackTeacher(batch_expires_after=3) as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        summary = synthesize(tmp_path / "run", config, uses_batches=True)
    assert summary.unfinished == {}
    assert identity(tmp_path / "run") == identity(direct)
    assert summary.status.by_status["retry"] >= 2  # the fourth line of the full jobs
    [(twice,)] = query(tmp_path / "run", "SELECT count(*) - count(DISTINCT key) FROM attempts WHERE status = 'ok'")
    assert twice == 0


def batch_command(run_dir: Path, config: Path) -> list[str]:
    verb = [sys.executable, "-m", "sharegpt4o_image.cli", "synthesize", "-c", str(config), "-o", str(run_dir)]
    return [*verb, "--batch", "--json"]


def write_config(path: Path, base_url: str) -> Path:
    path.write_text(CONFIG.model_copy(update={"base_url": base_url}).model_dump_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_job_outlives_the_run_that_ordered_it(tmp_path: Path, direct: Path, how: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    with LoopbackTeacher(batch_seconds_per_line=0.3) as teacher:
        command = batch_command(run_dir, write_config(tmp_path / "config.yaml", teacher.base_url))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while teacher.num_batches < 1:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(0.3)
            process.send_signal(how)
            process.communicate(timeout=30)
        assert process.returncode == (130 if how == signal.SIGINT else -9)
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        with pytest.raises(UserError, match=r"jobs of the Batch API are open in this run; go on with --batch"):
            synthesize(run_dir, config)
        synthesize(run_dir, config, uses_batches=True)
        assert teacher.num_batches == 4  # none was ordered again
    assert identity(run_dir) == identity(direct)


def test_a_job_whose_name_was_never_learned_is_found_again(tmp_path: Path, direct: Path) -> None:
    """As after a kill between the creation of the job and the note of its name."""
    run_dir = tmp_path / "run"
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        synthesize(run_dir, config, uses_batches=True)
        with closing(sqlite3.connect(run_dir / FILE_NAME)) as connection:
            connection.execute("UPDATE submissions SET status = 'sending', batch_id = NULL")
            connection.execute(
                "UPDATE attempts SET status = 'lost', answer = NULL, blob = NULL, usage = NULL"
                " WHERE submission IS NOT NULL"
            )
            connection.execute("INSERT INTO submissions VALUES ('never', '/images/edits', 'sending', NULL, '2026')")
            connection.execute("DELETE FROM items")
            connection.commit()
        synthesize(run_dir, config, uses_batches=True)
        assert teacher.num_batches == 4
    assert identity(run_dir) == identity(direct)


def test_a_refused_job_stops_the_run_and_loses_nothing(tmp_path: Path, direct: Path) -> None:
    def fault(number: int, path: str) -> Response | None:
        spent = {"error": {"message": "no money", "code": "billing_hard_limit_reached"}}
        return JSONResponse(spent, 400) if path.endswith("/batches") else None

    with LoopbackTeacher(fault) as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        with pytest.raises(UserError, match="no money"):
            synthesize(tmp_path / "run", config, uses_batches=True)
        teacher.fault = None
        synthesize(tmp_path / "run", config, uses_batches=True)
    assert identity(tmp_path / "run") == identity(direct)


def test_a_job_that_was_created_behind_an_error_is_found_and_not_ordered_again(tmp_path: Path, direct: Path) -> None:
    """A gateway gives up waiting, the teacher goes on."""
    run_dir = tmp_path / "run"
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        teacher.hides_first_batch = True
        with pytest.raises(UserError, match="not known whether a job was created"):
            synthesize(run_dir, config, uses_batches=True)
        synthesize(run_dir, config, uses_batches=True)
        assert sorted(teacher.delivered.values()) == [1] * len(teacher.delivered)  # chat
    [(jobs,)] = query(run_dir, "SELECT count(*) FROM submissions")
    [(ordered,)] = query(run_dir, "SELECT count(*) FROM attempts WHERE submission IS NOT NULL")
    assert (jobs, ordered) == (teacher.num_batches, 12)
    assert identity(run_dir) == identity(direct)


def test_sources_that_the_teacher_forgot_are_uploaded_again(tmp_path: Path, direct: Path) -> None:
    run_dir = tmp_path / "run"
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        synthesize(run_dir, config.model_copy(update={"num_edits": 3}), uses_batches=True)
        with closing(sqlite3.connect(run_dir / FILE_NAME)) as connection:
            connection.execute("UPDATE uploads SET file_id = 'file-gone'")
            connection.execute(
                "INSERT OR IGNORE INTO uploads SELECT ?, json_extract(image, '$.sha256'), 'file-gone' FROM items"
                " WHERE task = 'text_to_image'",
                (f"{teacher.base_url}/",),
            )
            connection.commit()
        summary = synthesize(run_dir, config, uses_batches=True)
    assert summary.unfinished == {}
    assert summary.status.by_status["retry"] == 3
    assert identity(run_dir) == identity(direct)


def test_a_job_that_the_teacher_forgot_counts_as_lost(tmp_path: Path, direct: Path) -> None:
    run_dir = tmp_path / "run"
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        synthesize(run_dir, config, uses_batches=True)
        with closing(sqlite3.connect(run_dir / FILE_NAME)) as connection:
            connection.execute("UPDATE submissions SET status = 'open', batch_id = 'batch_gone' WHERE rowid = 1")
            connection.execute(
                "UPDATE attempts SET status = 'lost', answer = NULL, blob = NULL, usage = NULL"
                " WHERE submission = (SELECT name FROM submissions WHERE rowid = 1)"
            )
            connection.execute("DELETE FROM items")
            connection.commit()
        status = synthesize(run_dir, config, uses_batches=True).status
    assert status.by_status["lost"] == 4
    assert identity(run_dir) == identity(direct)


def test_answers_longer_than_any_single_one_may_be_are_fetched(
    tmp_path: Path, direct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharegpt4o_image.synthesis.client.MAX_ANSWER_BYTES", 4000)
    with LoopbackTeacher() as teacher:
        config = CONFIG.model_copy(update={"base_url": teacher.base_url})
        synthesize(tmp_path / "run", config, uses_batches=True)
    assert identity(tmp_path / "run") == identity(direct)


def test_a_budget_needs_a_pilot_and_is_kept(tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"prices": {**PRICES, "offline-writer-1": Price()}, "num_edits": 0, "num_topics": 9}
    )
    with pytest.raises(UserError, match=r"--limit 5 and without --batch first"):
        synthesize(tmp_path / "run", config, budget_usd=1.0, uses_batches=True)
    pilot = synthesize(tmp_path / "run", config, limit=1).status.spent_usd
    summary = synthesize(tmp_path / "run", config, budget_usd=4.0 * pilot, uses_batches=True)
    assert summary.end_of_budget is not None
    assert 2.5 * pilot < summary.status.spent_usd <= 4.0 * pilot
    with closing(Journal.open(tmp_path / "run")) as journal:
        assert journal.pending_submissions() == []
