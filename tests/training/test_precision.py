# SPDX-License-Identifier: Apache-2.0
"""bf16, optimizers with few bits and torch.compile train what plain fp32 training trains."""

import importlib.util
import shutil

import pytest
import torch
from datasets import concatenate_datasets
from safetensors.torch import load_file
from small_checkpoints import save_ours
from torch._dynamo.utils import counters

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training import optimizers
from sharegpt4o_image.training.adapters import lora_config
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra `quantize`")
EIGHT_BITS = {"optim": "adamw_torch_8bit"}
RATE = 5e-6  # of the recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a small checkpoint with random weights."""
    return str(save_ours(tmp_path_factory.mktemp("precision") / "base"))


@pytest.fixture(scope="module")
def rows(base):
    """Four edits, then four text-to-image rows."""
    model, processor = load_checkpoint(base)
    return concatenate_datasets(
        [edit_rows(model, processor, 4, seed=1), text_to_image_rows(model, processor, 4, seed=2)]
    )


@pytest.fixture
def eager():
    """torchao compiles its update for every shape, which takes a CPU a minute; it computes the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make_trainer(folder, model, rows, **overrides):
    defaults = {
        "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no",
        "warmup_steps": 0, "logging_steps": 1, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {},
    }  # fmt: skip
    options = dict(defaults | overrides)
    peft_config = options.pop("peft_config", None)
    config = Janus4oSFTConfig(str(folder), use_cpu=True, disable_tqdm=True, **options)
    return Janus4oSFTTrainer(model, config, train_dataset=rows, peft_config=peft_config)


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ------------------------------------------------------------------ bf16


def test_autocast_leaves_weights_tokenizer_and_loss_in_full_precision(tmp_path, base, rows):
    expected = losses(make_trainer(tmp_path, base, rows, learning_rate=1e-3))
    trainer = make_trainer(tmp_path, base, rows.remove_columns("source_codes"), learning_rate=1e-3, bf16=True)
    seen = {}
    model = trainer.model
    model.model.vqmodel.encoder.register_forward_hook(lambda *call: seen.update(tokenizer=call[2].dtype))
    model.model.language_model.layers[0].mlp.register_forward_hook(lambda *call: seen.update(mlp=call[2].dtype))
    model.register_forward_hook(lambda *call: seen.update(loss=call[2].loss.dtype))
    assert losses(trainer) == pytest.approx(expected, rel=0.01)
    assert seen == {"tokenizer": torch.float32, "mlp": torch.bfloat16, "loss": torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_whole_weights_in_bf16_keep_the_image_tokenizer_in_full_precision(tmp_path, base, rows):
    expected = losses(make_trainer(tmp_path, base, rows, learning_rate=1e-3))
    trainer = make_trainer(tmp_path, base, rows, learning_rate=1e-3, model_init_kwargs={"dtype": "bfloat16"})
    assert losses(trainer) == pytest.approx(expected, rel=0.02)
    dtypes = {name: parameter.dtype for name, parameter in trainer.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "vqmodel" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "vqmodel" not in name} == {torch.bfloat16}
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(saved[name].dtype == dtype for name, dtype in dtypes.items() if name in saved)


# ------------------------------------------------------------------ optimizers


@needs_torchao
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "adamw_torch_fused"])
def test_stochastic_rounding_keeps_the_updates_that_bf16_loses(tmp_path, base, rows, optim):
    moved = {}
    for is_rounded in (False, True):
        trainer = make_trainer(
            tmp_path, base, rows, optim=optim, optim_bf16_stochastic_rounding=is_rounded, learning_rate=RATE,
            weight_decay=0.0, max_steps=8, per_device_train_batch_size=8, model_init_kwargs={"dtype": "bfloat16"},
            **dict.fromkeys(("prompt_dropout", "source_code_dropout", "null_dropout", "instruction_dropout"), 0.0),
        )  # fmt: skip
        trainer.model.requires_grad_(False)
        weight = trainer.model.model.language_model.layers[0].self_attn.q_proj.weight.requires_grad_()
        before = weight.detach().clone().float()
        trainer.train()
        moved[is_rounded] = (weight.detach().float() - before)[
            before.abs() > 0.01
        ]  # near 0, bf16 has steps small enough
    assert moved[False].abs().max() == 0
    # the same batch 8 times: Adam moves each weight by about the learning rate, 8 times, up or down
    assert moved[True].abs().mean() == pytest.approx(8 * RATE, rel=0.5)


def test_updates_that_are_lost_are_warned_about(tmp_path, base, rows, caplog):
    bf16 = {"model_init_kwargs": {"dtype": "bfloat16"}}
    make_trainer(tmp_path, base, rows, **bf16, peft_config=lora_config(r=4))  # adapters are fp32
    make_trainer(tmp_path, base, rows, bf16=True)
    assert "loses most updates" not in caplog.text
    make_trainer(tmp_path, base, rows, model_init_kwargs={"dtype": "bfloat16"})
    assert "bf16, which loses most updates of a learning rate such as 5e-06" in caplog.text


@needs_torchao
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("overrides", [{}, {"optim_bf16_stochastic_rounding": True}])
def test_states_of_8_bits_train_alike_and_resume_exactly(tmp_path, base, rows, overrides):
    options = {"max_steps": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    expected = losses(make_trainer(tmp_path / "plain", base, rows, **options))
    dtype = {"model_init_kwargs": {"dtype": "bfloat16"}} if overrides else {}

    def run(resume=None):
        return make_trainer(tmp_path / "run", base, rows, **options, **EIGHT_BITS, **overrides, **dtype)

    trainer = run()
    assert losses(trainer) == pytest.approx(expected, rel=0.02)
    states = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert {type(state).__name__ for state in states if is_quantized(state)} == {"OptimState8bit"}
    whole = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = run()
    resumed.train(resume_from_checkpoint=True)
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in whole.items())


def is_quantized(tensor):
    """Whether torchao keeps few bits of a state of this size."""
    return tensor.numel() >= 4096 and tensor.numel() % 256 == 0


def state_bytes(optimizer):
    """Bytes of Adam's two moments, those inside torchao's tensors counted."""
    total = 0
    for state in optimizer.state.values():
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            parts = [moment.codes, moment.scale] if hasattr(moment, "codes") else [moment]
            total += sum(part.nbytes for part in parts)
    return total


@needs_torchao
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, 8.0),
        ({"optim_bf16_stochastic_rounding": True, "model_init_kwargs": {"dtype": "bfloat16"}}, 4.0),
        (EIGHT_BITS, 2 * (1 + 4 / 256)),  # a scale in fp32 for every 256 values
    ],
)
def test_bytes_of_the_optimizer_for_each_parameter(tmp_path, base, rows, overrides, expected):
    trainer = make_trainer(tmp_path, base, rows, max_steps=1, learning_rate=RATE, **overrides)
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(parameter.requires_grad and is_quantized(parameter))
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert state_bytes(trainer.optimizer) / trained == pytest.approx(expected)


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_a_second_moment_of_8_bits_follows_the_gradient_and_one_of_bf16_stays_behind():
    """Gradients of 1, then of 0.1: the mean of the moment is known."""
    from torchao.optim import AdamW8bit, _AdamW

    beta, num_large, num_small = 0.999, 200, 800
    exact = (1 - beta**num_large) * beta**num_small + (1 - beta**num_small) * 0.01
    found = {}
    for optimizer_class in (AdamW8bit, _AdamW):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(16, 256, dtype=torch.bfloat16))
        optimizer = optimizer_class([weight], lr=0.0, betas=(0.9, beta))
        for step in range(num_large + num_small):
            weight.grad = torch.randn_like(weight) * (1.0 if step < num_large else 0.1)
            optimizer.step()
        moment = optimizer.state[weight]["exp_avg_sq"]
        found[optimizer_class] = float(
            (moment.dequantize() if optimizer_class is AdamW8bit else moment).float().mean()
        )
    assert found[AdamW8bit] == pytest.approx(exact, rel=0.05)
    assert found[_AdamW] > 1.5 * exact


def test_moments_in_bf16_are_warned_about(tmp_path, base, rows, caplog):
    pytest.importorskip("torchao", reason="needs the extra `quantize`")

    def make(**overrides):
        bf16 = {"model_init_kwargs": {"dtype": "bfloat16"}, "optim_bf16_stochastic_rounding": True}
        make_trainer(tmp_path, base, rows, **bf16, **overrides)

    make()
    assert "does not follow the gradient at adam_beta2=0.999" in caplog.text
    caplog.clear()
    make(adam_beta2=0.95)
    make(**EIGHT_BITS)
    assert "adam_beta2" not in caplog.text


def test_rounding_is_refused_where_it_would_do_nothing(tmp_path, base, rows):
    with pytest.raises(UserError, match=r"optim_bf16_stochastic_rounding rounds for .*adamw_torch_8bit.*is adafactor"):
        make_trainer(tmp_path, base, rows, optim="adafactor", optim_bf16_stochastic_rounding=True)


@needs_torchao
def test_rounding_is_refused_where_no_weight_is_bf16(tmp_path, base, rows):
    with pytest.raises(UserError, match="no trained weight is bf16; load the model in bfloat16"):
        make_trainer(tmp_path, base, rows, **EIGHT_BITS, optim_bf16_stochastic_rounding=True)


@pytest.mark.parametrize("overrides", [EIGHT_BITS, {"optim_bf16_stochastic_rounding": True}])
def test_a_missing_torchao_is_named_with_the_command(tmp_path, monkeypatch, base, rows, overrides):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs torchao; type: pip install "sharegpt4o-image\[quantize\]"'):
        make_trainer(tmp_path, base, rows, **overrides)


# ------------------------------------------------------------------ torch.compile and checkpointing


@pytest.mark.parametrize("overrides", [{}, {"activation_checkpointing": True, "peft_config": lora_config(r=4)}])
def test_a_compiled_model_trains_alike_and_saves_the_same_names(tmp_path, base, rows, overrides):
    """Rows of other lengths and numbers of samples are not compiled anew."""
    options = {"learning_rate": 1e-3, "max_steps": 6, "max_tokens_per_batch": 900} | overrides
    plain = make_trainer(tmp_path, base, rows, **options)
    expected = losses(plain)
    torch.compiler.reset()
    counters.clear()
    compiled = make_trainer(tmp_path, base, rows, torch_compile_backend="eager", **options)
    assert losses(compiled) == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 3  # the feed-forward, and the norms of embeddings and of layers
    for name, trainer in (("plain", plain), ("compiled", compiled)):
        trainer.save_model(str(tmp_path / name))
    file = "adapter_model.safetensors" if "peft_config" in overrides else "model.safetensors"
    saved = [load_file(tmp_path / name / file).keys() for name in ("plain", "compiled")]
    assert saved[0] == saved[1]


def test_checkpointing_recomputes_the_same(tmp_path, base, rows):
    """Both layouts; the packed row's positions and borders are recomputed with it."""
    for layout in ("packed", "padded"):
        gradients = []
        for is_checkpointed in (False, True):
            trainer = make_trainer(tmp_path, base, rows, row_layout=layout, activation_checkpointing=is_checkpointed)
            batch = trainer.data_collator([rows[i] for i in (0, 4, 1, 5)])
            trainer.model.train()
            if is_checkpointed:
                trainer.model.activation_checkpointing_enable()
            trainer.compute_loss(trainer.model, batch).backward()
            gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
