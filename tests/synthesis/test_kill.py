# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments: the finished run has every record once, and nothing was paid twice unnoticed."""

import io
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from loopback_teacher import LoopbackTeacher
from PIL import Image

from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.run_folder import FILE_NAME
from sharegpt4o_image.synthesis.status import read_status

NUM_WORKERS = SynthesisConfig().num_workers


def run_until_killed(command: list[str], teacher: LoopbackTeacher, dice: random.Random) -> None:
    """Kill the command after a few more requests, at no particular point of its work."""
    last_request = teacher.num_requests + dice.randint(1, 14)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while teacher.num_requests < last_request:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.001)
        time.sleep(dice.random() * 0.03)
        process.kill()


@pytest.mark.parametrize(
    ("num_kills", "num_samples"), [(10, 40), pytest.param(50, 220, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_killed_runs_lose_nothing_and_pay_nothing_twice(tmp_path: Path, num_kills: int, num_samples: int) -> None:
    dice = random.Random(num_kills)
    run_dir = tmp_path / "run"
    with LoopbackTeacher(delay_seconds=0.005) as teacher:
        command = [sys.executable, "-m", "sharegpt4o_image.cli", "synthesize", "-o", str(run_dir)]
        command += ["--limit", str(num_samples), "--base-url", teacher.base_url]
        for _ in range(num_kills):
            run_until_killed(command, teacher, dice)
            list(iter_records(run_dir))  # readable in whatever state it was left
        subprocess.run(command, check=True, capture_output=True)
        served = teacher.served.copy()

    status = read_status(run_dir)
    records = list(iter_records(run_dir))
    synthesize(tmp_path / "whole", SynthesisConfig(), limit=num_samples)
    whole = list(iter_records(tmp_path / "whole"))
    assert [(r.id, r.output_sha256) for r in records] == [(r.id, r.output_sha256) for r in whole]
    for record in records:
        for file in (record.output_image, *record.input_image):
            Image.open(io.BytesIO(file.bytes)).load()

    with closing(sqlite3.connect(run_dir / FILE_NAME)) as connection:
        keys = Counter(key for [key] in connection.execute("SELECT key FROM attempts WHERE status = 'ok'"))
        ids = Counter(
            name for [name] in connection.execute("SELECT request_id FROM attempts WHERE request_id IS NOT NULL")
        )
    assert set(keys.values()) == {1}
    assert set(ids.values()) == {1}
    assert set(status.by_status) <= {"ok", "lost"}
    # What the teacher served beyond the answers is what the journal calls lost: cut off between request and answer.
    num_lost = status.by_status.get("lost", 0)
    assert status.by_status["ok"] <= served.total() <= status.by_status["ok"] + num_lost
    assert num_lost <= num_kills * NUM_WORKERS
    assert not list((run_dir / "blobs").glob(".unfinished-*"))
