# SPDX-License-Identifier: Apache-2.0
"""The average is the one that was promised, survives a killed run to the last bit, and ends as a folder to load."""

import signal
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from datasets import concatenate_datasets
from launched_training import described, finish, launch_command, run, start, write_inputs
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows
from sharegpt4o_image.training.weight_average import WeightAverage, decay_at

WATCHED = "model.generation_head.vision_head.bias"


def tiny():
    return load_checkpoint("tiny-janus-pro", "float32")


@pytest.fixture(scope="module")
def rows():
    model, processor = tiny()
    return concatenate_datasets(
        [edit_rows(model, processor, 4, seed=1), text_to_image_rows(model, processor, 4, seed=2)]
    )


def trainer_of(folder, rows, callbacks=(), **overrides):
    model, processor = tiny()
    defaults = {"max_steps": 4, "save_steps": 2, "ema_decay": 0.9}
    arguments = Janus4oSFTConfig(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", per_device_train_batch_size=2,
        learning_rate=1e-3, **(defaults | overrides),
    )  # fmt: skip
    return Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows, callbacks=list(callbacks)
    )


# ------------------------------------------------------------------ the average itself


class Scalar(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)


def averaged(weights, decay, dtype=torch.float32):
    """The average after a run in which a parameter that begins at 0 took these values."""
    model = Scalar(dtype)
    average = WeightAverage(
        SimpleNamespace(model=model, is_deepspeed_enabled=False, args=SimpleNamespace(ema_decay=decay))
    )
    average.on_train_begin(None, None, None)
    for step, weight in enumerate(weights):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.on_optimizer_step(None, SimpleNamespace(global_step=step), None)
    assert set(average.averages) == {"weight"}
    return average.averages["weight"]


def test_an_image_tokenizer_that_deepspeed_rounded_is_put_back(tmp_path, rows):
    name = "model.vqmodel.quant_conv.weight"

    class Round(TrainerCallback):  # as DeepSpeed does
        def on_train_end(self, args, state, control, **kwargs):
            trainer.is_deepspeed_enabled = True
            trainer._unrounded = {name: trainer.model.state_dict()[name].clone()}
            trainer.model.get_parameter(name).data.zero_()

    trainer = trainer_of(tmp_path, rows, max_steps=1, save_strategy="no")
    trainer.callback_handler.callbacks.insert(0, Round())
    trainer.train()
    trainer.is_deepspeed_enabled = False
    assert load_file(tmp_path / "ema" / "model.safetensors")[name].abs().sum() > 0


def test_scalar_sequence():
    # decays (1 + n) / (10 + n) of steps 1 to 3, then 0.3
    decays = [Fraction(2, 11), Fraction(3, 12), Fraction(3, 10), Fraction(3, 10)]
    expected = Fraction(0)
    for decay, weight in zip(decays, (1, 2, 5, 3), strict=True):
        expected = decay * expected + (1 - decay) * weight
    assert averaged((1, 2, 5, 3), decay=0.3).item() == pytest.approx(float(expected), rel=1e-6)


def test_the_decay_grows_to_the_one_that_was_asked_for():
    assert [decay_at(step, 0.999) for step in (1, 8, 8990)] == [2 / 11, 9 / 18, 0.999]
    assert decay_at(10**6, 0.5) == 0.5


def test_bf16_weights_are_averaged_in_fp32():
    average = averaged([1.0] * 40 + [1.0078125], decay=0.999, dtype=torch.bfloat16)  # the next number of bf16
    assert average.dtype == torch.float32
    assert 1.0 < average < 1.0078125


# ------------------------------------------------------------------ in a run


class ByHand(TrainerCallback):
    """The same average of one parameter, computed apart."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.average = model.get_parameter(WATCHED).detach().double()

    def on_step_end(self, args, state, control, model, **kwargs):
        decay = min(0.9, (1 + state.global_step) / (10 + state.global_step))
        self.average = decay * self.average + (1 - decay) * model.get_parameter(WATCHED).detach().double()


class StopsAt(TrainerCallback):
    def __init__(self, step):
        self._step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            raise InterruptedError


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, rows):
    """A run of four steps that nothing disturbed, with an average by hand."""
    folder, by_hand = tmp_path_factory.mktemp("whole"), ByHand()
    trainer = trainer_of(folder, rows, [by_hand])
    trainer.train()
    return trainer, folder, by_hand


def test_a_run_ends_with_a_folder_of_averaged_weights(whole_run):
    trainer, folder, by_hand = whole_run
    model = Janus4oForImageGeneration.from_pretrained(folder / "ema")
    torch.testing.assert_close(model.get_parameter(WATCHED).double(), by_hand.average, atol=1e-6, rtol=1e-5)
    assert Janus4oProcessor.from_pretrained(folder / "ema").geometry == trainer.args.geometry
    assert {path.name for path in (folder / "ema").iterdir()} >= {"config.json", "modeling_janus4o.py"}
    assert not (folder / "ema" / "training_args.bin").exists()
    last = load_file(folder / "checkpoint-4" / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():  # the run's own weights are what they were
        assert torch.equal(parameter, last[name]), name
    assert not torch.equal(model.get_parameter(WATCHED), trainer.model.get_parameter(WATCHED))


def test_it_moves_once_for_each_update_when_gradients_are_accumulated(tmp_path, rows):
    by_hand = ByHand()
    trainer_of(tmp_path, rows, [by_hand], max_steps=2, gradient_accumulation_steps=2).train()
    model = Janus4oForImageGeneration.from_pretrained(tmp_path / "ema")
    torch.testing.assert_close(model.get_parameter(WATCHED).double(), by_hand.average, atol=1e-6, rtol=1e-5)


def test_a_resumed_run_has_the_same_average(tmp_path, rows, whole_run):
    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, rows, [StopsAt(3)]).train()
    trainer_of(tmp_path, rows).train(resume_from_checkpoint=True)
    _, folder, _ = whole_run
    same_files(tmp_path, folder)


def same_files(left, right):
    for name in ("checkpoint-4/ema.safetensors", "checkpoint-4/model.safetensors", "ema/model.safetensors"):
        ours, theirs = load_file(left / name), load_file(right / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


# A constant rate, so that a run of two steps begins one of four; Adam would blow up rounding where a gradient is 0.
AVERAGING = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "ema_decay": 0.9, "learning_rate": 0.1, "optim": "sgd",
    "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {},
}  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_has_the_same_average(tmp_path, inputs):
    killed = described(inputs, tmp_path / "run", kills=("training", 3), **AVERAGING)
    finish(start(launch_command(tmp_path / "launch", [killed])), expected=-signal.SIGKILL)
    assert not (tmp_path / "run" / "ema").exists()
    run(described(inputs, tmp_path / "run", resumes=True, **AVERAGING))
    run(described(inputs, tmp_path / "whole", **AVERAGING))
    same_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "config_name"), [(None, "ddp"), ("fsdp", "fsdp2")])
def test_processes_average_as_one_does(tmp_path, inputs, strategy, config_name):
    run(described(inputs, tmp_path / "one", **AVERAGING, per_device_train_batch_size=4))
    half = described(inputs, tmp_path / "halves", strategy=strategy, **(AVERAGING | {"max_steps": 2}))
    whole, rest = (
        described(inputs, tmp_path / name, strategy=strategy, resumes=name == "halves", **AVERAGING)
        for name in ("two", "halves")
    )
    finish(start(launch_command(tmp_path / "launch", [whole, half, rest], config_name)))
    one, two, halves = (load_file(tmp_path / name / "ema" / "model.safetensors") for name in ("one", "two", "halves"))
    assert one.keys() == two.keys() == halves.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(two[name], halves[name])
    files = sorted(path.name for path in (tmp_path / "two" / "checkpoint-4").glob("ema*"))
    shards = ["ema-1-of-2.safetensors", "ema-2-of-2.safetensors"]
    assert files == (["ema.safetensors"] if strategy is None else shards)


def test_a_checkpoint_without_the_average_is_refused(tmp_path, rows):
    trainer_of(tmp_path, rows, max_steps=2, ema_decay=None).train()
    assert not (tmp_path / "ema").exists()
    with pytest.raises(UserError, match=r"ema\.safetensors is not there"):
        trainer_of(tmp_path, rows).train(resume_from_checkpoint=True)


def test_of_an_adapter_only_the_adapter_is_averaged(tmp_path, rows):
    peft = pytest.importorskip("peft")
    model, processor = tiny()
    arguments = Janus4oSFTConfig(
        str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", per_device_train_batch_size=2,
        max_steps=2, save_strategy="no", learning_rate=1e-2, ema_decay=0.9,
    )  # fmt: skip
    lora = peft.LoraConfig(r=2, target_modules=r".*language_model.*(q|v)_proj")
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows, peft_config=lora)
    trainer.train()
    saved = load_file(tmp_path / "ema" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)
    assert not (tmp_path / "ema" / "model.safetensors").exists()
    averages = {name.replace(".default", ""): average for name, average in trainer._average.averages.items()}
    assert saved.keys() == averages.keys()
    assert all(torch.equal(saved[name], averages[name]) for name in saved)


def test_zero_3_is_refused():
    plugin = SimpleNamespace(zero_stage=3)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    with pytest.raises(UserError, match="ema_decay does not work with DeepSpeed ZeRO-3"):
        WeightAverage(SimpleNamespace(is_deepspeed_enabled=True, accelerator=accelerator))
