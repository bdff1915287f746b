# SPDX-License-Identifier: Apache-2.0
"""Every training configuration parses; its twin for the CPU has the same keys and a tiny model, and runs."""

from pathlib import Path

import pytest
import yaml
from encoded_set import encoded_set

from sharegpt4o_image.training.run_arguments import parse_arguments
from sharegpt4o_image.training.sft import run

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "cpu").glob("*.yaml"))

# What a twin has smaller; everything else is the recipe, and the same.
SIZES = {
    "model", "held_out_share", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "dtype", "bf16", "dataloader_num_workers", "logging_steps", "eval_steps",
    "save_steps", "sample_steps",
}  # fmt: skip


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_is_a_twin_for_each():
    assert NAMES == ["janus4o_1b", "janus4o_7b", "janus4o_7b_lora", "tiny"]
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_differs_in_sizes_alone(name):
    real, twin = load(CONFIGS / f"{name}.yaml"), load(CONFIGS / "cpu" / f"{name}.yaml")
    length = {"max_steps", "num_train_epochs"}
    assert set(real) - length == set(twin) - length
    assert {key for key in set(real) & set(twin) if real[key] != twin[key]} <= SIZES


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_command_hardware_time_and_loss(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = lines[: lines.index("")]
    assert all(line.startswith("#") for line in header)
    for word in ("# Hardware: ", "# Time: ", "# Loss: "):
        assert any(line.startswith(word) for line in header), word
    assert any(f"--config configs/{name}.yaml" in line for line in header)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_ones_parse(name, tmp_path):
    argv = ["--config", str(CONFIGS / f"{name}.yaml"), "--output_dir", str(tmp_path), "--bf16", "false"]
    arguments, config = parse_arguments(argv)
    is_paper_size = name != "tiny"
    num_processes = 8 if name == "janus4o_7b" else 1
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_processes
    assert batch == (128 if is_paper_size else 16)
    assert arguments.use_peft == name.endswith("_lora")


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_runs(name, tmp_path):
    fields = {"dataset": encoded_set(), "output_dir": tmp_path / "tuned"}
    argv = [part for field, value in fields.items() for part in (f"--{field}", str(value))]
    summary = run(["--config", str(CONFIGS / "cpu" / f"{name}.yaml"), *argv])
    assert summary.log["steps"] == 3
    files = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert ("adapter_config.json" in files) == name.endswith("_lora")
    assert ("model.safetensors" in files) != name.endswith("_lora")
