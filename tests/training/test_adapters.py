# SPDX-License-Identifier: Apache-2.0
"""LoRA reaches what it should, trains alone, resumes exactly, draws, and merges into the same model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from plain_drawing import greedy, oracle, picture
from safetensors.torch import load_file, save_file
from small_checkpoints import save_ours
from typer.testing import CliRunner

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.cli import app
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.adapters import TARGETS, lora_config, merge_adapter
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows

NUM_LAYERS = 2  # of the small language model
NUM_CODES = 64  # of a picture
PROMPT = "a red circle on a gray background"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of the small checkpoint that adapters are put on."""
    return save_ours(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture
def model(base):
    return load_checkpoint(str(base), "float32")[0]


@pytest.fixture(scope="module")
def processor(base):
    return load_checkpoint(str(base), "float32")[1]


@pytest.fixture(scope="module")
def edits(base, processor):
    return edit_rows(load_checkpoint(str(base))[0], processor, 4, seed=1)


@pytest.fixture(scope="module")
def prompts(base, processor):
    return text_to_image_rows(load_checkpoint(str(base))[0], processor, 4, seed=2)


@pytest.fixture(scope="module")
def rows(edits, prompts):
    return concatenate_datasets([edits, prompts])


def make_trainer(folder, model, processor, rows, peft_config=None, **overrides):
    defaults = {
        "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no",
        "learning_rate": 1e-2, "warmup_steps": 0, "logging_steps": 1,
    }  # fmt: skip
    config = Janus4oSFTConfig(str(folder), use_cpu=True, disable_tqdm=True, **(defaults | overrides))
    return Janus4oSFTTrainer(model, config, processing_class=processor, train_dataset=rows, peft_config=peft_config)


def with_adapters(model, peft_config=None):
    """Adapters with weights that change what is drawn; they begin as zeros otherwise."""
    adapted = get_peft_model(model, peft_config or lora_config(r=4, alpha=8)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adapted


def save_adapter(folder, model, processor, peft_config=None):
    """A folder as a training checkpoint is."""
    adapted = with_adapters(model, peft_config)
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    return adapted


# ------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["attention"], 4 * NUM_LAYERS),
        (["mlp"], 3 * NUM_LAYERS),
        (["generation_head"], 2),
        (list(TARGETS), 7 * NUM_LAYERS + 2),
    ],
)
def test_targets_are_linears_of_the_language_model_and_the_generation_head(model, targets, expected):
    adapted = get_peft_model(model, lora_config(targets, r=2))
    reached = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(reached) == 2 * expected  # A and B
    part = "base_model.model.model."
    assert all(name.startswith((f"{part}language_model.layers.", f"{part}generation_head.")) for name in reached)


def test_unknown_targets_are_named():
    with pytest.raises(UserError, match=r"LoRA targets are q_proj; choose from attention, mlp, generation_head\."):
        lora_config(["attention", "q_proj"])
    with pytest.raises(UserError, match="LoRA targets are empty"):
        lora_config([])


@pytest.mark.parametrize(
    ("peft_config", "reason"),
    [
        (LoraConfig(target_modules=["q_proj"]), "vision tower would not be trained.*take `lora_config\\(\\)`"),
        (LoraConfig(target_modules="all-linear"), "vision tower would not be trained"),
        (LoraConfig(target_modules=r".*vqmodel.*\.q"), "image tokenizer would not be trained"),
        (lora_config(modules_to_save=["lm_head"]), "vocabulary head would not be trained"),
        (LoraConfig(target_modules=["q_proj", "lm_head"]), "`lm_head` is not supported"),  # TRL's own words
        (PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "PROMPT_TUNING learns tokens before"),
    ],
)
def test_adapters_that_would_not_be_trained_are_refused(tmp_path, model, processor, prompts, peft_config, reason):
    with pytest.raises((UserError, ValueError), match=reason):
        make_trainer(tmp_path, model, processor, prompts, peft_config)


def test_adapters_on_the_vision_tower_are_named_where_edits_use_it(tmp_path, model, processor, edits, caplog):
    make_trainer(tmp_path, model, processor, edits, LoraConfig(target_modules=["q_proj"]))
    assert "4 of 8 adapter tensors are on the vision tower" in caplog.text


def test_an_adapter_that_was_loaded_to_draw_is_not_trained(tmp_path, model, processor, rows):
    adapted = with_adapters(model)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(adapted.unload(), tmp_path / "adapter")
    with pytest.raises(UserError, match="is_trainable=True"):
        make_trainer(tmp_path, loaded, processor, rows)


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_steps_change_every_adapter_tensor_and_nothing_of_the_base(tmp_path, model, processor, rows, is_checkpointed):
    trainer = make_trainer(
        tmp_path, model, processor, rows, lora_config(r=4), activation_checkpointing=is_checkpointed
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_checkpointing_and_accumulation_leave_the_gradients_as_they_are(tmp_path, processor, rows, base):
    norms = []
    for overrides in (
        {},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"row_layout": "padded"},
    ):
        adapted = with_adapters(load_checkpoint(str(base), "float32")[0])
        options = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.0}
        dropouts = dict.fromkeys(("prompt_dropout", "source_code_dropout", "null_dropout", "instruction_dropout"), 0.0)
        trainer = make_trainer(tmp_path, adapted, processor, rows, **(options | dropouts | overrides))
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-4)
    assert norms[0] > 0


def test_a_resumed_run_ends_with_the_same_adapter(tmp_path, base, processor, rows):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}

    def run(folder, resume=None):
        model = load_checkpoint(str(base), "float32")[0]
        trainer = make_trainer(folder, model, processor, rows, lora_config(r=4, dropout=0.1), **options)
        trainer.train(resume_from_checkpoint=resume)
        return load_file(folder / "checkpoint-4" / "adapter_model.safetensors")

    whole = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    half = load_file(tmp_path / "whole" / "checkpoint-2" / "adapter_model.safetensors")
    assert not any(torch.equal(half[name], tensor) for name, tensor in whole.items())


# ------------------------------------------------------------------ drawing and merging

METHODS = {
    "LoRA": lora_config(r=4, alpha=8),
    "the generation head alone": lora_config(["generation_head"], r=4, alpha=8),
    "DoRA": lora_config(r=4, alpha=8, use_dora=True),
    "a saved module": lora_config(["attention"], r=4, alpha=8, modules_to_save=["generation_head"]),
}


@pytest.mark.parametrize("peft_config", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("is_edit", [False, True])
def test_drawing_uses_the_adapter_and_merging_keeps_it(tmp_path, base, model, processor, peft_config, is_edit):
    images = [[picture(1)]] if is_edit else None
    plain = greedy(model, PROMPT, image=images)
    adapted = save_adapter(tmp_path / "adapter", model, processor, peft_config)
    drawn = greedy(adapted, PROMPT, image=images, processor=processor)
    assert torch.equal(drawn, oracle(adapted.get_base_model(), processor, [PROMPT], images))
    assert (drawn != plain).float().mean() > 0.5
    with adapted.disable_adapter():
        assert torch.equal(greedy(adapted, PROMPT, image=images), plain)

    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = load_checkpoint(str(tmp_path / "merged"))
    assert torch.equal(greedy(merged, PROMPT, image=images), drawn)


def test_a_merged_model_has_the_same_logits(tmp_path, base, model, processor, rows):
    adapted = save_adapter(tmp_path / "adapter", model, processor)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = load_checkpoint(str(tmp_path / "merged"))
    trainer = make_trainer(tmp_path, model, processor, rows)
    batch = trainer.data_collator([rows[i] for i in range(8)])
    inputs = {name: batch[name] for name in batch if name not in ("skipped", "sample_ids", "is_edit")}
    with torch.no_grad():
        expected, logits = adapted(**inputs).logits, merged(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


def test_the_processor_of_the_training_goes_along(tmp_path, base, model):
    trained_with = load_checkpoint(str(base))[1]
    own, trained_with.geometry = trained_with.geometry, "center_crop"
    assert own == "pad"
    save_adapter(tmp_path / "adapter", model, trained_with)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert load_checkpoint(str(tmp_path / "merged"))[1].geometry == "center_crop"
    (tmp_path / "adapter" / "processor_config.json").unlink()
    merge_adapter(tmp_path / "adapter", tmp_path / "merged-again", dtype="bfloat16")
    merged, taken = load_checkpoint(str(tmp_path / "merged-again"))
    assert taken.geometry == own
    assert merged.model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    assert merged.model.vqmodel.quant_conv.weight.dtype == torch.float32


def test_a_merge_is_rounded_once(tmp_path, base, model, processor):
    save_adapter(tmp_path / "adapter", model, processor)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    done = run_convert(tmp_path / "adapter", tmp_path / "half", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.exception
    whole, half = (load_checkpoint(str(tmp_path / name))[0] for name in ("merged", "half"))
    assert half.dtype == torch.bfloat16
    expected = dict(whole.named_parameters())
    assert all(torch.equal(weight, expected[name].to(weight.dtype)) for name, weight in half.named_parameters())
    half.save_pretrained(tmp_path / "half-base")
    processor.save_pretrained(tmp_path / "half-base")
    merge_adapter(tmp_path / "adapter", tmp_path / "again", base=str(tmp_path / "half-base"), dtype="float32")
    merge_adapter(tmp_path / "adapter", tmp_path / "again-half", base=str(tmp_path / "half-base"))
    whole, half = (load_checkpoint(str(tmp_path / name))[0] for name in ("again", "again-half"))
    expected = dict(whole.named_parameters())
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(weight, expected[name].to(weight.dtype)) for name, weight in half.named_parameters())


def test_a_dtype_is_refused_where_it_is_unknown_or_of_no_use(tmp_path, base, model, processor):
    save_adapter(tmp_path / "adapter", model, processor)
    assert "--dtype is 'int8'" in str(run_convert(tmp_path / "adapter", tmp_path / "m", "--dtype", "int8").exception)
    assert "--dtype is for adapters" in str(run_convert(base, tmp_path / "m", "--dtype", "float32").exception)


SCRIPT = """
import json, sys
sys.modules["sharegpt4o_image"] = None  # any import of it fails
from peft import PeftModel
from transformers import AutoModel, AutoProcessor
base, adapter, merged, prompt = sys.argv[1:]
def draw(model, folder):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return model.generate_image(prompt, do_sample=False, output_type="codes", processor=processor).tolist()
adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter)
print(json.dumps([draw(adapted, adapter), draw(AutoModel.from_pretrained(merged, trust_remote_code=True), merged)]))
"""


def test_a_clean_process_draws_the_same_with_the_adapter_and_merged(tmp_path, base, model, processor):
    expected = greedy(save_adapter(tmp_path / "adapter", model, processor), PROMPT, processor=processor).tolist()
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    folders = [str(folder) for folder in (base, tmp_path / "adapter", tmp_path / "merged")]
    command = [sys.executable, "-I", "-c", SCRIPT, *folders, PROMPT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [expected, expected]


# ------------------------------------------------------------------ command line and bad input


def run_convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_convert_merges_an_adapter(tmp_path, base, model, processor):
    save_adapter(tmp_path / "adapter", model, processor)
    done = run_convert(tmp_path / "adapter", tmp_path / "merged", "--json")
    assert json.loads(done.stdout) == {"base": str(base), "num_layers": 7 * NUM_LAYERS + 2}
    assert (tmp_path / "merged" / "modeling_janus4o.py").is_file()
    moved = base.rename(tmp_path / "moved")
    try:
        done = run_convert(tmp_path / "adapter", tmp_path / "again")
        assert isinstance(done.exception, UserError)
        assert f"The adapter's base {base} cannot be loaded; name its checkpoint with --base" in str(done.exception)
        done = run_convert(tmp_path / "adapter", tmp_path / "again", "--base", moved)
        assert done.stdout == f"Wrote {tmp_path / 'again'}: the adapter of 16 layers merged into {moved}\n"
    finally:
        moved.rename(base)


def test_a_base_is_refused_where_there_is_no_adapter(tmp_path, base):
    done = run_convert(base, tmp_path / "converted", "--base", base)
    assert "--base is for adapters" in str(done.exception)


def damage(adapter, kind):
    path = adapter / "adapter_config.json"
    if kind == "weights":
        (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 16)
    elif kind == "no weights":
        (adapter / "adapter_model.safetensors").unlink()
    elif kind == "half of the weights":
        tensors = load_file(adapter / "adapter_model.safetensors")
        save_file(dict(list(tensors.items())[::2]), adapter / "adapter_model.safetensors")
    elif kind == "tensors of another model":
        tensors = load_file(adapter / "adapter_model.safetensors")
        extra = {"base_model.model.model.nowhere.lora_A.weight": next(iter(tensors.values())).clone()}
        save_file(tensors | extra, adapter / "adapter_model.safetensors")
    elif kind == "no JSON":
        path.write_text("{")
    elif kind == "no base":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    elif kind == "rank":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 8}))
    elif kind == "other layers":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["nowhere"]}))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("weights", "cannot be put on .*base: "),
        ("no weights", "cannot be put on .*base: "),
        ("half of the weights", "cannot be put on .*base: Found missing adapter keys"),
        ("tensors of another model", "cannot be put on .*base: 1 of its tensors have no place .*nowhere"),
        ("no JSON", "adapter_config.json cannot be read; give a folder that peft saved"),
        ("no base", "does not name the adapter's base; name its checkpoint with --base"),
        ("rank", "cannot be put on .*base: .*size mismatch"),
        ("other layers", "cannot be put on .*base: .*nowhere"),
    ],
)
def test_a_damaged_adapter_is_refused_and_nothing_is_written(tmp_path, model, processor, kind, reason):
    save_adapter(tmp_path / "adapter", model, processor)
    damage(tmp_path / "adapter", kind)
    with pytest.raises(UserError, match=reason):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_missing_peft_is_named_with_the_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'peft is not installed; type: pip install "sharegpt4o-image\[train\]"'):
        lora_config()
