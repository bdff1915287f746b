# SPDX-License-Identifier: Apache-2.0
"""What journal and scheduler cost, how much memory a long run takes, and whether a rate limit is used to the full.

    python benchmarks/synthesis.py [--records 5000] [--workers 16] [--json out/synthesis.json]

The offline teacher serves from a process of its own. A run makes text-to-image records; then a bare client sends the
same requests, out of that run's journal, with the same number at a time, and drops the answers. The two arms alternate
in two rounds; wall time is compared. Memory is the peak of a run of a tenth of the records against that of all.
For the limit, the teacher announces so many requests a minute on each route and refuses what goes beyond.
"""

import argparse
import asyncio
import json
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai

NUM_ROUNDS = 2
RATE_PER_MINUTE = 1800  # announced for each route; far below what the teacher can do here
RATE_RECORDS = 600


@contextmanager
def teacher(*options: str) -> Iterator[str]:
    """The offline teacher in a process of its own; gives its base URL."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sharegpt4o_image.offline_teacher", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/v1"
        try:
            _wait_for(url)
            yield url
        finally:
            process.kill()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx2.get(f"{url}/models")
            return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise TimeoutError(url)


# --------------------------------------------------------------------------- the arms, each in a process of its own


def run_arm(url: str, run_dir: str, records: int, workers: int) -> dict[str, float]:
    """A run of `records` text-to-image samples."""
    from sharegpt4o_image.synthesis.config import SynthesisConfig
    from sharegpt4o_image.synthesis.run import synthesize

    config = SynthesisConfig(base_url=url, num_topics=records, num_edits=0, num_workers=workers)
    started = time.monotonic()
    summary = synthesize(Path(run_dir), config)
    assert summary.status.records == records, summary
    return {"seconds": time.monotonic() - started, **_usage()}


def bare_arm(url: str, run_dir: str, records: int, workers: int) -> dict[str, float]:
    """The requests of a run, sent by the client alone."""
    with closing(sqlite3.connect(Path(run_dir) / "journal.sqlite")) as connection:
        requests = [json.loads(text) for [text] in connection.execute("SELECT request FROM attempts ORDER BY number")]
    started = time.monotonic()
    asyncio.run(_send_all(url, requests, workers))
    return {"seconds": time.monotonic() - started, **_usage()}


async def _send_all(url: str, requests: list[dict[str, Any]], workers: int) -> None:
    left = iter(requests)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def work() -> None:
            for request in left:
                await client.post(request["route"], cast_to=httpx2.Response, body=request["body"])

        await asyncio.gather(*(work() for _ in range(workers)))


def _usage() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def in_process(arm: str, *arguments: object) -> dict[str, float]:
    """Run an arm in a new process, so that its memory is its own."""
    command = [sys.executable, __file__, "--arm", arm, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# --------------------------------------------------------------------------- measurements


def measure_overhead(folder: Path, records: int, workers: int) -> dict[str, float]:
    """Wall time of runs over that of the bare client, and the peaks of memory."""
    arms: dict[str, list[dict[str, float]]] = {"run": [], "bare": []}
    with teacher() as url:
        small = in_process("run", url, folder / "small", max(1, records // 10), workers)
        for round_number in range(NUM_ROUNDS):
            run_dir = folder / f"run {round_number}"
            arms["run"].append(in_process("run", url, run_dir, records, workers))
            arms["bare"].append(in_process("bare", url, run_dir, records, workers))
    run, bare = (min(arm["seconds"] for arm in arms[name]) for name in ("run", "bare"))
    peak = max(arm["peak_mib"] for arm in arms["run"])
    return {
        "run_seconds": run,
        "bare_seconds": bare,
        "overhead": run / bare - 1,
        "run_cpu_seconds": min(arm["cpu_seconds"] for arm in arms["run"]),
        "bare_cpu_seconds": min(arm["cpu_seconds"] for arm in arms["bare"]),
        "peak_mib_tenth": small["peak_mib"],
        "peak_mib": peak,
        "memory_growth": peak / small["peak_mib"] - 1,
    }


def measure_rate(folder: Path, workers: int) -> dict[str, float]:
    """Requests a minute on the slower route over what the teacher announces."""
    with teacher("--requests-per-minute", str(RATE_PER_MINUTE)) as url:
        in_process("run", url, folder / "limited", RATE_RECORDS, workers)
    query = (
        "SELECT count(*), min(julianday(started_at)), max(julianday(started_at)) FROM attempts"
        " WHERE status = 'ok' AND stage = 'image'"
    )
    with closing(sqlite3.connect(folder / "limited" / "journal.sqlite")) as connection:
        count, first, last = connection.execute(query).fetchone()
        [refusals] = connection.execute("SELECT count(*) FROM attempts WHERE status = 'retry'").fetchone()
    per_minute = (count - 1) / ((last - first) * 24 * 60)
    return {
        "announced_per_minute": RATE_PER_MINUTE,
        "share_of_limit": per_minute / RATE_PER_MINUTE,
        "refusals": refusals,
    }


def main() -> None:
    """Print one table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--arm", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        name, url, run_dir, records, workers = options.arm
        arm = {"run": run_arm, "bare": bare_arm}[name]
        print(json.dumps(arm(url, run_dir, int(records), int(workers))))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_overhead(Path(folder), options.records, options.workers)
        figures |= measure_rate(Path(folder), options.workers)
    for name, value in figures.items():
        print(f"{name:22} {value:10.3f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
