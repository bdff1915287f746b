# SPDX-License-Identifier: Apache-2.0
"""A run that was killed or stopped goes on as if nothing had happened: the same bits."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched_training import (
    EXIT_INTERRUPTED,
    described,
    differences,
    finish,
    launch_command,
    logged,
    result_of,
    run,
    start,
    write_inputs,
)

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training import stopping
from sharegpt4o_image.training.checkpoints_of_run import is_complete, last_complete_checkpoint
from sharegpt4o_image.training.stopping import StopOnSigterm

# Nine rows one by one, two to a step: an epoch has five steps, the last of them with one row.
ACCUMULATING = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 20}
ACCUMULATING |= {"learning_rate": 1e-3, "save_strategy": "steps"}
# moment of the kill and its step, what the run has besides, the checkpoint that is left
KILLS = {
    "in the middle of an epoch": (("training", 14), {"save_steps": 4, "dataloader_num_workers": 2}, 12),
    "while saving": (("saving the optimizer", 10), {"save_steps": 5}, 5),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def killed(inputs, tmp_path_factory):
    """The folders of runs that killed themselves, each in a process of its own."""
    folder = tmp_path_factory.mktemp("killed")
    processes = []
    for name, (kills, config, _) in KILLS.items():
        description = described(inputs, folder / name, kills=kills, **ACCUMULATING, **config)
        processes.append(start(launch_command(folder / f"launch {name}", [description])))
    for process in processes:
        finish(process, expected=-signal.SIGKILL)
    return folder


def assert_goes_on_alike(whole, resumed, first_step):
    assert not differences(whole["weights"], resumed["weights"])
    assert not differences(whole["optimizer"], resumed["optimizer"])
    assert not differences(whole["schedule"], resumed["schedule"])
    assert logged(whole) == logged(resumed)
    assert [one for one in whole["seen"] if one["step"] >= first_step] == resumed["seen"]


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_goes_on_bit_by_bit(inputs, killed, tmp_path, name):
    _, config, checkpoint = KILLS[name]
    assert last_complete_checkpoint(killed / name).name == f"checkpoint-{checkpoint}"
    run(described(inputs, tmp_path / "whole", **ACCUMULATING, **config))
    run(described(inputs, killed / name, resumes=True, **ACCUMULATING, **config))
    assert_goes_on_alike(result_of(tmp_path / "whole"), result_of(killed / name), checkpoint)
    assert is_complete(killed / name / "checkpoint-20")


def test_only_complete_checkpoints_count(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for number in (2, 10, 9):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text('{"global_step": 1}')
        (folder / "rng_state.pth").touch()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-9"
    (tmp_path / "checkpoint-9" / "rng_state.pth").unlink()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-2"


def test_a_checkpoint_that_cannot_be_resumed_is_refused(inputs, tmp_path):
    config = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(UserError, match="no complete checkpoint; start the run without resuming"):
        run(described(inputs, tmp_path, resumes=True, **config))
    run(described(inputs, tmp_path, **config))
    with pytest.raises(UserError, match=r"was saved after 0.4 epochs, but its 2 steps are 0.2222 epochs of this run"):
        run(described(inputs, tmp_path, resumes=True, **config | {"per_device_train_batch_size": 1}))
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match=r"checkpoint-3 is not a complete checkpoint; resume from .*checkpoint-2"):
        run(described(inputs, tmp_path, resumes=str(tmp_path / "checkpoint-3"), **config))


def test_sigterm_saves_after_the_step_and_the_run_goes_on_alike(inputs, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    config = ACCUMULATING | {"save_strategy": "epoch", "dataloader_num_workers": 2}
    trainer = run(described(inputs, tmp_path / "stopped", kills=("SIGTERM", 6), **config))
    assert trainer.was_interrupted
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_complete_checkpoint(tmp_path / "stopped").name == "checkpoint-7"
    assert logged(result_of(tmp_path / "stopped"))[-1]["step"] == 7
    assert not run(described(inputs, tmp_path / "whole", **config)).was_interrupted
    assert not run(described(inputs, tmp_path / "stopped", resumes=True, **config)).was_interrupted
    assert_goes_on_alike(result_of(tmp_path / "whole"), result_of(tmp_path / "stopped"), 7)


def test_sigterm_in_the_last_step_is_no_interruption(inputs, tmp_path):
    config = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    assert not run(described(inputs, tmp_path, kills=("SIGTERM", 2), **config)).was_interrupted


def test_a_second_sigterm_kills_unless_a_launcher_passed_it_on(monkeypatch):
    def terminate_twice():
        with StopOnSigterm().listening():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    terminate_twice()
    monkeypatch.setattr(stopping, "_SAME_SIGNAL_SECONDS", -1)
    child = os.fork()
    if child == 0:
        terminate_twice()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


FAILING = """
import json, sys
import launched_training

class Failing(launched_training.RecordingTrainer):
    def compute_loss(self, *args, **kwargs):
        raise RuntimeError("this step fails")

launched_training.RecordingTrainer = Failing
launched_training.run(json.loads(sys.argv[1]))
"""


def test_an_error_ends_the_process_though_it_has_workers(inputs, tmp_path):
    """They ignore SIGTERM, which is how Python would end them before it waits for them."""
    description = described(inputs, tmp_path, max_steps=2, dataloader_num_workers=2)
    failed = subprocess.run(
        [sys.executable, "-c", FAILING, json.dumps(description)],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("RuntimeError: this step fails")


# ------------------------------------------------------------------ several processes


ENDLESS = {"max_steps": 100_000, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 100_000}


def wait_for_step(output_dir, step, num_processes):
    """The process ids, once all of them have done so many steps."""
    deadline = time.monotonic() + 120
    paths = [Path(output_dir, f"process-{i}.json") for i in range(num_processes)]
    while time.monotonic() < deadline:
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        if len(found) == num_processes and all(one["step"] >= step for one in found):
            return [one["pid"] for one in found]
        time.sleep(0.05)
    raise TimeoutError(f"{output_dir} did not reach step {step}")


@pytest.mark.slow
def test_sigterm_to_the_group_leaves_the_workers_at_work(inputs, tmp_path):
    description = described(inputs, tmp_path / "run", **ENDLESS, dataloader_num_workers=2)
    process = start(launch_command(tmp_path, [description]), start_new_session=True)
    wait_for_step(tmp_path / "run", 5, 1)
    os.killpg(process.pid, signal.SIGTERM)
    finish(process, expected=EXIT_INTERRUPTED)
    assert last_complete_checkpoint(tmp_path / "run") is not None


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["one process", "launcher", "all"])
@pytest.mark.parametrize(("strategy", "config_name"), [(None, "ddp"), ("fsdp", "fsdp2")])
def test_processes_stop_at_the_same_step_whoever_has_the_signal(inputs, tmp_path, whom, strategy, config_name):
    description = described(inputs, tmp_path / "run", strategy=strategy, **ENDLESS)
    process = start(launch_command(tmp_path, [description], config_name))
    workers = wait_for_step(tmp_path / "run", 5, 2)
    for pid in {"one process": workers[1:], "launcher": [process.pid], "all": [process.pid, *workers]}[whom]:
        os.kill(pid, signal.SIGTERM)
    finish(process, expected=1)  # what the launcher makes of it
    reached = {json.loads((tmp_path / "run" / f"process-{i}.json").read_text())["step"] for i in range(2)}
    assert len(reached) == 1
    assert last_complete_checkpoint(tmp_path / "run").name == f"checkpoint-{reached.pop()}"
    assert len(result_of(tmp_path / "run")["weights"])


NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "config_name"),
    [(None, "ddp"), ("fsdp", "fsdp2"), pytest.param("deepspeed", "deepspeed_zero2", marks=NEEDS_DEEPSPEED)],
)
def test_killed_processes_go_on_bit_by_bit(inputs, tmp_path, strategy, config_name):
    def train(folder, runs, expected):
        command = launch_command(tmp_path / folder, runs, config_name, use_cpu=strategy != "deepspeed")
        finish(start(command), expected)

    config = ACCUMULATING | {"save_steps": 4}
    for name, kills in (("a", ("training", 10)), ("b", ("saving the generators", 12))):
        train(f"kill {name}", [described(inputs, tmp_path / name, strategy=strategy, kills=kills, **config)], 1)
        assert last_complete_checkpoint(tmp_path / name).name == "checkpoint-8"
    going_on = [described(inputs, tmp_path / name, strategy=strategy, resumes=True, **config) for name in "ab"]
    train("go on", [described(inputs, tmp_path / "whole", strategy=strategy, **config), *going_on], 0)
    for name in "ab":
        for process_index in range(2):
            results = [result_of(tmp_path / folder, process_index) for folder in ("whole", name)]
            assert_goes_on_alike(*results, first_step=8)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_bit_by_bit(inputs, tmp_path):
    config = ACCUMULATING | {"save_steps": 1, "save_total_limit": 2, "max_steps": 60}
    command = launch_command(tmp_path, [described(inputs, tmp_path / "run", **config)])
    again = launch_command(tmp_path / "again", [described(inputs, tmp_path / "run", resumes=True, **config)])
    for delay in (0.0, 0.013, 0.029, 0.047):
        process = start(again if last_complete_checkpoint(tmp_path / "run") else command)
        reached = last_complete_checkpoint(tmp_path / "run")
        next_step = int(reached.name.rpartition("-")[2]) + 3 if reached else 3
        (tmp_path / "run" / "process-0.json").unlink(missing_ok=True)
        wait_for_step(tmp_path / "run", next_step, 1)
        time.sleep(delay)
        process.kill()
        finish(process, expected=-signal.SIGKILL)
    finish(start(again))
    run(described(inputs, tmp_path / "whole", **config))
    whole, resumed = result_of(tmp_path / "whole"), result_of(tmp_path / "run")
    assert_goes_on_alike(whole, resumed, resumed["seen"][0]["step"])
