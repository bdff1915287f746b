# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one does: the same samples, draws, losses and weights."""

import importlib.util
import os

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import load_from_disk
from launched_training import (
    ACCELERATE_CONFIGS,
    described,
    finish,
    launch_command,
    logged,
    result_of,
    run,
    start,
    write_inputs,
)
from safetensors.torch import load_file
from torch.distributed.fsdp import MixedPrecisionPolicy

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.training.sharding import check_rows, keep_sums_in_full_precision

WEIGHTS = "model.safetensors"
STRATEGIES = {"ddp": None, "fsdp2": "fsdp"}
# Nine rows, four to a step: an epoch has three steps, and the last has one row, for one process only. With SGD a
# weight shows its gradient; Adam makes steps of full size from rounding errors where a gradient is 0 (key biases).
SGD = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 2}


def runs(inputs, folder, num_processes, strategy=None):
    """The run that most tests look at, and one for each way to make batches."""
    share = 2 // num_processes
    config = SGD | {"per_device_train_batch_size": 2 * share, "per_device_eval_batch_size": share}
    evaluating = config | {"eval_strategy": "epoch"}
    budget = SGD | {"max_tokens_per_batch": 500, "gradient_accumulation_steps": share}
    return [
        described(inputs, folder / "rows", strategy=strategy, **evaluating),
        described(inputs, folder / "pictures", rows="pictures", strategy=strategy, **config | {"max_steps": 2}),
        described(inputs, folder / "tokens", strategy=strategy, **budget),
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def results(inputs, tmp_path_factory):
    """The folders `one`, `ddp` and `fsdp2`, with the runs of [`runs`] in each."""
    folder = tmp_path_factory.mktemp("runs")
    processes = []
    for name, strategy in STRATEGIES.items():
        command = launch_command(folder / name, runs(inputs, folder / name, 2, strategy), name)
        processes.append(start(command))
    for description in runs(inputs, folder / "one", 1):
        run(description)
    for process in processes:
        finish(process)
    return folder


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() <= 1e-6, name


@pytest.mark.parametrize("batches", ["rows", "pictures", "tokens"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_train_the_weights_and_log_the_losses_of_one(results, name, batches):
    one, two = result_of(results / "one" / batches), result_of(results / name / batches)
    assert_same_weights(two["weights"], one["weights"])
    for found, expected in zip(logged(two), logged(one), strict=True):
        if batches == "tokens":  # an epoch of three batches: one process takes two and one, two take two and one
            assert found.pop("epoch") <= expected.pop("epoch")  # but count the blank that fills up
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_see_the_samples_and_draws_of_one(results, name):
    one = result_of(results / "one" / "rows")["seen"]
    shares = [result_of(results / name / "rows", i)["seen"] for i in range(2)]
    for whole, *parts in zip(one, *shares, strict=True):
        ids = [sample for part in parts for sample in part["ids"] if sample != "blank"]
        assert ids == whole["ids"]
        assert {part["items"] for part in parts} == {whole["items"]} == {len(ids) * 64}
    assert any(first["has_edit"] != second["has_edit"] for first, second in zip(*shares, strict=True))
    assert shares[1][2]["ids"] == shares[1][5]["ids"] == ["blank"]
    assert not any(first["drawn"] == second["drawn"] for first, second in zip(*shares, strict=True))


def test_both_strategies_draw_alike(results):
    seen = [[result_of(results / name / "rows", i)["seen"] for i in range(2)] for name in STRATEGIES]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_folder_of_a_distributed_run_is_that_of_a_single_one(results, name):
    one, two = (results / folder / "rows" / "final" for folder in ("one", name))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.glob("*.py"):
        assert (two / path.name).read_bytes() == path.read_bytes()
    model = Janus4oForImageGeneration.from_pretrained(two)
    assert_same_weights(dict(model.state_dict()), result_of(results / "one" / "rows")["weights"])


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_launcher_understands_the_configuration(path, monkeypatch):
    load_config_from_file(str(path))  # refuses unknown keys
    parser = launch_command_parser()
    given, config, _ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "train.py"]))
    assert (given.num_processes, given.mixed_precision) == (8, "bf16")
    assert given.use_deepspeed == path.stem.startswith("deepspeed")
    assert given.use_fsdp == (path.stem == "fsdp2")
    if given.use_deepspeed:
        assert config.deepspeed_config["zero_stage"] == 2


def test_fsdp2_shards_each_layer(inputs, monkeypatch):
    path = ACCELERATE_CONFIGS / "fsdp2.yaml"
    given, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "train.py"]))
    given.gpu_ids = None
    for key, value in prepare_multi_gpu_env(given).items():
        if key.startswith("FSDP"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert "SHARDED" in str(plugin.state_dict_type)
    model = Janus4oForImageGeneration.from_pretrained(inputs / "model")
    plugin.set_auto_wrap_policy(model)  # finds the classes in the model, or raises
    names = {type(module).__name__ for module in model.modules()}
    assert set(os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")) <= names
    plugin.set_mixed_precision("bf16")
    keep_sums_in_full_precision(plugin)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32, None)


# ------------------------------------------------------------------ half precision, DeepSpeed


@pytest.mark.slow
def test_fsdp2_in_half_precision_keeps_fp32_losses_and_weights(inputs, tmp_path):
    config = SGD | {"bf16": True}
    command = launch_command(
        tmp_path, [described(inputs, tmp_path / "half", strategy="fsdp", **config)], "fsdp2", mixed_precision="bf16"
    )
    finish(start(command))
    run(described(inputs, tmp_path / "one", **SGD | {"per_device_train_batch_size": 4}))
    one, half = result_of(tmp_path / "one"), result_of(tmp_path / "half")
    for found, expected in zip(logged(half), logged(one), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=0.02)
    losses = torch.tensor([line["loss"] for line in logged(half)])
    assert (losses != losses.bfloat16()).all()
    assert {weight.dtype for weight in half["weights"].values()} == {torch.float32}


@pytest.mark.slow
def test_rows_without_codes_are_refused_where_the_image_tokenizer_would_be_rounded(inputs, tmp_path):
    description = described(inputs, tmp_path / "run", rows="pictures", strategy="fsdp", bf16=True, **SGD)
    output = finish(start(launch_command(tmp_path, [description], "fsdp2", mixed_precision="bf16")), expected=1)
    assert UserError.__name__ in output
    assert "The rows have no source_codes and no target_codes" in output


def test_zero3_is_refused(inputs):
    rows = load_from_disk(inputs / "rows")
    with pytest.raises(UserError, match=r"ZeRO-3 cannot train this model; configs/accelerate/fsdp2.yaml"):
        check_rows(rows, has_edits=True, is_half_precision=True, zero_stage=3)
    check_rows(rows, has_edits=True, is_half_precision=True, zero_stage=2)


HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NEEDS_DEEPSPEED = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed")


@pytest.mark.slow
@NEEDS_DEEPSPEED
def test_deepspeed_trains_the_weights_of_one_process(inputs, tmp_path):
    description = described(inputs, tmp_path / "two", strategy="deepspeed", **SGD | {"eval_strategy": "epoch"})
    finish(start(launch_command(tmp_path, [description], "deepspeed_zero2", use_cpu=False)))
    run(described(inputs, tmp_path / "one", **SGD | {"per_device_train_batch_size": 4}))
    one, two = (load_file(tmp_path / name / "final" / WEIGHTS) for name in ("one", "two"))
    assert_same_weights(two, one)


@pytest.mark.slow
@NEEDS_DEEPSPEED
def test_deepspeed_in_half_precision_leaves_the_image_tokenizer_as_it_was(inputs, tmp_path):
    description = described(inputs, tmp_path / "two", strategy="deepspeed", **SGD | {"bf16": True})
    command = launch_command(tmp_path, [description], "deepspeed_zero2", use_cpu=False, mixed_precision="bf16")
    finish(start(command))
    before, after = load_file(inputs / "model" / WEIGHTS), load_file(tmp_path / "two" / "final" / WEIGHTS)
    assert after["lm_head.weight"].dtype == torch.bfloat16
    for name in before:
        if name.startswith("model.vqmodel."):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
