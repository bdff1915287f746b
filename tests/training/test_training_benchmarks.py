# SPDX-License-Identifier: Apache-2.0
"""The training benchmarks compare the same computation, and the experiment's arms differ in what they say."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of `benchmarks/` by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def tiny(benchmark, tmp_path):
    """Makes arms of the tiny shape, by name."""
    train, shapes = benchmark("train"), benchmark("training_shapes")
    shape = shapes.SHAPES["tiny"]
    processor = shapes.make_processor(shape)
    rows = shapes.make_rows(shapes.make_model(shape, processor, "cpu"), processor, 4)
    return lambda *names: {name: train.make_arm(name, shape, processor, rows, str(tmp_path), "cpu") for name in names}


# ------------------------------------------------------------------ train.py


def test_every_arm_has_our_losses_and_gradients_but_for_the_first_code(benchmark, tiny):
    train = benchmark("train")
    found = train.differences(tiny(*train.CPU_ARMS))
    assert list(found) == train.CPU_ARMS[1:]
    for name, row in found.items():
        assert ("gradients" in row) == (name in train.OURS)
        assert all(value < 1e-5 for value in row.values()), (name, row)


def test_arms_that_let_samples_see_each_other_are_told_apart(benchmark, tiny):
    arms = tiny("ours", "ours, padded")
    arms["ours, padded"].batches[0]["attention_mask"].fill_(1)  # padding is attended to
    [row] = benchmark("train").differences(arms).values()
    assert row["losses"] > 1e-3
    assert row["gradients"] > 1e-3


def test_padding_is_what_the_arms_compute_beyond_the_samples(tiny):
    packed, one_by_one, padded, upstream = tiny(
        "ours", "ours, one by one", "ours, padded", "upstream, padded"
    ).values()
    needed = packed.computed_tokens
    assert one_by_one.computed_tokens == needed
    lengths = [batch["input_ids"].shape[1] + 15 for batch in one_by_one.batches]  # 16 codes, the last not an input
    assert sum(lengths) == needed
    assert padded.computed_tokens == 4 * max(lengths)
    assert upstream.computed_tokens == 4 * (max(lengths) + 1)


def test_upstreams_optimizer_shrinks_what_has_no_gradient(benchmark, tiny):
    [arm] = tiny("upstream, padded").values()
    arm.optimizer = benchmark("upstream_step").FullPrecisionAdamW(arm.model, learning_rate=0.1)
    names = ("model.vqmodel.encoder.conv_in.weight", "lm_head.weight")
    before = {name: arm.model.get_parameter(name).clone() for name in names}
    arm.update()
    for name, value in before.items():
        torch.testing.assert_close(arm.model.get_parameter(name), value * (1 - 0.1 * 0.1))


@pytest.mark.slow
def test_the_benchmark_runs_as_on_a_gpu(benchmark, monkeypatch, tmp_path, capsys):
    path = tmp_path / "train.json"
    command = f"train --shape tiny --apart --rounds 1 --samples 2 --json {path}"
    monkeypatch.setattr("sys.argv", command.split())
    benchmark("train").main()
    report = json.loads(path.read_text())
    assert list(report["arms"]) == benchmark("train").GPU_ARMS
    assert max(arm["difference"] for arm in report["arms"].values()) < 1e-4
    assert "ours, compiled" in capsys.readouterr().out


def test_arms_that_compute_something_else_are_left_out_of_runs_apart(benchmark, tiny, capsys):
    arms = tiny("ours", "ours, padded")
    for batch in arms["ours, padded"].batches:
        batch["target_codes"] = batch["target_codes"].roll(1, 1)
    found = benchmark("train").time_apart(list(arms), arms.get, 1, "cpu")
    assert list(found) == ["ours"]
    assert "ours, padded: left out, it computes something else" in capsys.readouterr().out


# ------------------------------------------------------------------ loader.py


def test_our_loader_gives_the_pixels_that_pillow_gives(benchmark):
    loader = benchmark("loader")
    rows = loader.make_rows(2, 80)
    loader.check(rows, loader.make_arms(rows))
    wrong = rows.map(lambda row: {"target_codes": [code + 1 for code in row["target_codes"]]})
    with pytest.raises(SystemExit, match="nothing was timed"):
        loader.check(rows, loader.make_arms(wrong))


# ------------------------------------------------------------------ recipes.py


def test_arms_differ_in_the_named_fields_alone(benchmark):
    base = Janus4oSFTConfig("x", use_cpu=True, geometry="pad")
    changed = {
        "default": set(),
        "paper": {"preset", "instruction_dropout", "null_dropout", "decay_norms_and_embeddings"},
        "no-code-dropout": {"source_code_dropout"},
        "no-null": {"instruction_dropout", "null_dropout"},
    }
    arms = benchmark("recipes").ARMS
    assert set(arms) == set(changed)
    for name, fields in arms.items():
        config = Janus4oSFTConfig("x", use_cpu=True, geometry="pad", **fields)
        differing = {
            field.name
            for field in dataclasses.fields(base)
            if getattr(config, field.name) != getattr(base, field.name)
        }
        assert differing - {"logging_dir", "run_name"} == changed[name]


def test_preservation_counts_pixels_that_the_edit_leaves_alone(benchmark):
    recipes = benchmark("recipes")
    source = torch.full((2, 3, 2, 2), -1.0)
    target = source.clone()
    target[:, :, 0, 0] = 1.0  # the edit
    is_object = torch.zeros(2, 2, 2, dtype=torch.bool)
    is_object[0, 1] = True  # the lower row of the first picture; the second has no object
    items = [SimpleNamespace(kind=kind) for kind in ("recolor", "remove")]
    codes = torch.zeros(2, 4)
    held_out = recipes.HeldOut(items, codes, codes, codes, target, (source == target).all(1), is_object)
    whole = held_out.preservation(source)
    assert whole == held_out.preservation(target)
    assert (whole["kept"], whole["kept objects"]) == (1, 1)
    drawn = target.clone()
    drawn[0, 0, 1, 1] = -0.4  # one channel of one of three pixels, by 0.3 of the range from 0 to 1
    found = held_out.preservation(drawn)
    assert found["kept"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["kept objects"] == pytest.approx(1 / 2)
    assert found["kept by kind"] == {"recolor": pytest.approx(2 / 3), "remove": 1, "background": None}
    assert found["kept objects by kind"] == {"recolor": 0.5, "remove": None, "background": None}


def test_the_guided_loss_follows_from_the_three_passes(benchmark):
    recipes = benchmark("recipes")
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(1, 2, 5, generator=generator) for name in ("cond", "null", "part")}
    known = {name: values.log_softmax(-1) for name, values in logits.items()}
    targets = torch.tensor([[3, 1]])
    held_out = recipes.HeldOut([], targets, torch.tensor([[3, 0]]), targets, *[torch.zeros(1)] * 3)
    found = recipes.losses(known, held_out)
    mixed = (logits["cond"] + 5 * logits["part"]) / 6
    guided = logits["null"] + 1.5 * (mixed - logits["null"])
    expected = torch.nn.functional.cross_entropy(guided[0], targets[0])
    assert found["guided s=1.5, s'=5"] == pytest.approx(expected.item())
    assert found["guided s=1, s'=0"] == pytest.approx(found["cond"])
    assert found["cond_kept"] == pytest.approx(-known["cond"][0, 0, 3].item())
    assert found["cond_edited"] == pytest.approx(-known["cond"][0, 1, 1].item())


def test_a_finished_run_is_not_made_again(benchmark, tmp_path):
    recipes = benchmark("recipes")
    result = {"arm": "paper", "seed": 1, "steps": 7, "num_per_kind": 1}
    (tmp_path / "paper-1").mkdir()
    (tmp_path / "paper-1" / "result.json").write_text(json.dumps(result))
    assert recipes.run(tmp_path, "paper", 1, 7, 1) == result
    with pytest.raises(SystemExit, match="has steps 7, not 8"):
        recipes.run(tmp_path, "paper", 1, 8, 1)
    with pytest.raises(SystemExit, match="has num_per_kind 1, not 2"):
        recipes.run(tmp_path, "paper", 1, 7, 2)


@pytest.mark.slow
def test_an_experiment_ends_with_a_table(benchmark, monkeypatch, tmp_path, capsys):
    recipes = benchmark("recipes")
    monkeypatch.setattr(recipes, "NUM_EDITS", 40)
    monkeypatch.setattr(recipes, "NUM_TEXT_TO_IMAGE", 8)
    command = f"recipes --work-dir {tmp_path} --arms default no-null --seeds 0 --steps 2 --limit 1"
    monkeypatch.setattr("sys.argv", command.split())
    recipes.main()
    first = capsys.readouterr().out
    (tmp_path / "no-null-0" / "result.json").unlink()  # as if it was stopped after training
    recipes.main()
    again = json.loads((tmp_path / "recipes.json").read_text())["runs"]
    assert [(run["arm"], run["steps"]) for run in again] == [("default", 2), ("no-null", 2)]
    assert "| measured | default (1 seeds) | no-null (1 seeds) |" in first
    assert set(again[0]["losses"]) >= {"cond", "cond_kept", "cond_edited", "null", "part", "guided s=2, s'=0"}


# ------------------------------------------------------------------ batches.py


def test_waiting_counts_every_device_as_the_longest(benchmark):
    measure = benchmark("batches").measure
    lengths = [10, 30]
    assert measure(lengths, 2, pads=False)["computed"] == 1
    assert measure(lengths, 2, pads=False)["with_waiting"] == 60 / 40
    assert measure(lengths, 1, pads=True, batch_size=2)["computed"] == 60 / 40
    assert measure(lengths, 1, pads=False, budget=40)["with_waiting"] == 1
