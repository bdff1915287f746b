# SPDX-License-Identifier: Apache-2.0
"""A training run and its folder: what it leaves, how it goes on, what it refuses."""

import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers.utils.hub
import trl
import yaml
from encoded_set import NUM_ROWS, encoded_set, run_dir
from loopback_hub import Account, Fault, LoopbackHub
from safetensors.torch import load_file

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.checkpoints import TINY_JANUS_PRO, load_checkpoint
from sharegpt4o_image.cli_datasets import EXIT_INTERRUPTED as EXIT_OF_OTHER_VERBS
from sharegpt4o_image.cli_training import FIELDS
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.encode_run import encode_dataset
from sharegpt4o_image.training.encoding import load_training_rows
from sharegpt4o_image.training.row_checks import number_of_sources
from sharegpt4o_image.training.run import hold_out
from sharegpt4o_image.training.run_arguments import RunArguments, parse_arguments
from sharegpt4o_image.training.run_record import check_folder, describe, without_nan
from sharegpt4o_image.training.sft import EXIT_INTERRUPTED, run
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

ACCELERATE_CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


@pytest.fixture(scope="module")
def dataset():
    return encoded_set()


def arguments_of(data, output_dir, **fields):
    defaults = {
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 1,
        "save_total_limit": 2,
    }  # fmt: skip
    named = {"dataset": data, "output_dir": output_dir} | defaults | fields
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def weights(folder):
    return load_file(Path(folder, "model.safetensors"))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run of four steps that nothing disturbed, and how it ended."""
    folder = tmp_path_factory.mktemp("finished") / "tuned"
    return folder, run(arguments_of(dataset, folder))


def test_a_run_leaves_a_hub_folder_with_its_log(finished):
    folder, summary = finished
    log = json.loads((folder / "training_log.json").read_text())
    assert summary.log == log
    assert (log["steps"], log["rows"], log["held_out_rows"]) == (4, NUM_ROWS - 4, 4)
    assert (log["effective_batch_size"], log["skipped_rows"], log["resumed_from_step"]) == (2, {}, None)
    assert [entry["step"] for entry in log["curve"]] == [1, 2, 3, 4]
    assert log["train_loss"] == pytest.approx(sum(entry["loss"] for entry in log["curve"]) / 4, rel=1e-6)
    assert log["held_out_loss_before"] != log["held_out_loss_after"]
    model, processor = load_checkpoint(str(folder))
    assert processor.geometry == "center_crop"
    assert model.generate_image("a red circle", processor=processor)[0].size == (32, 32)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    left = {path.name for path in folder.iterdir()}
    assert left >= {"run.json", "README.md", "config.json", "processor_config.json", "modeling_janus4o.py"}
    assert not [name for name in left if name.startswith(("_", ".")) or name.endswith((".bin", ".tmp"))]


def test_the_run_says_what_was_asked(finished, dataset):
    record = json.loads((finished[0] / "run.json").read_text())
    assert record["arguments"]["dataset"] == str(dataset)
    assert record["config"]["learning_rate"] == 1e-3
    assert record["config"]["source_code_dropout"] == 0.5  # as the preset decides
    assert record["data"]["train_rows"] == NUM_ROWS - 4
    assert record["versions"]["torch"] == torch.__version__


def test_the_card_says_recipe_data_and_losses(finished):
    folder, summary = finished
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{summary.log['held_out_loss_after']:.4f} at last" in card
    assert "Training began with the checkpoint tiny-janus-pro." in card
    assert "| `learning_rate` | `0.001` |" in card
    assert "| `effective batch` | `2` |" in card
    assert "| steps | `4` |" in card
    assert str(folder.parent) not in card
    assert "base_model" not in card  # it is no repository


def test_the_same_run_again_does_nothing(finished, dataset):
    folder, first = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run(arguments_of(dataset, folder))
    assert again.was_finished
    assert again.log == first.log
    assert "nothing was left to do" in again.to_text()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused_by_name(finished, dataset):
    folder, _ = finished
    fields = {"learning_rate": 2e-3, "prompt_dropout": 0.2, "logging_steps": 3, "dataloader_num_workers": 1}
    with pytest.raises(UserError) as error:
        run(arguments_of(dataset, folder, **fields))
    assert "(learning_rate was 0.001, now 0.002; prompt_dropout was 0.1, now 0.2)" in str(error.value)


def test_what_only_watches_may_change(finished, dataset):
    folder, _ = finished
    fields = {"logging_steps": 3, "save_steps": 7, "dataloader_num_workers": 1, "eval_strategy": "epoch"}
    assert run(arguments_of(dataset, folder, **fields)).was_finished


class Stop(Exception):
    """Stands for what ends a process between two steps."""


def test_a_run_that_died_goes_on_to_the_same_weights(finished, dataset, tmp_path):
    def die(done, total):
        if done == 3:  # its checkpoint is not written yet
            raise Stop

    with pytest.raises(Stop):
        run(arguments_of(dataset, tmp_path / "tuned"), die)
    assert not (tmp_path / "tuned" / "training_log.json").exists()
    summary = run(arguments_of(dataset, tmp_path / "tuned"))
    assert summary.log["resumed_from_step"] == 2
    assert [entry["step"] for entry in summary.log["curve"]] == [1, 2, 3, 4]
    assert summary.log["held_out_loss_before"] == finished[1].log["held_out_loss_before"]
    assert summary.log["held_out_loss_after"] == finished[1].log["held_out_loss_after"]
    expected, got = weights(finished[0]), weights(tmp_path / "tuned")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_sigterm_saves_and_the_same_run_goes_on(finished, dataset, tmp_path):
    argv = arguments_of(dataset, tmp_path / "tuned", save_strategy="no")
    summary = run(argv, lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None)
    assert summary.is_interrupted
    assert "the same command goes on" in summary.to_text()
    assert [path.name for path in (tmp_path / "tuned").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(argv).log["resumed_from_step"] == 2
    expected, got = weights(finished[0]), weights(tmp_path / "tuned")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_that_died_before_its_log_takes_no_step_too_many(finished, dataset, tmp_path):
    died = shutil.copytree(finished[0], tmp_path / "tuned")
    for name in ("training_log.json", "model.safetensors", "README.md"):
        (died / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in died.glob("checkpoint-*/*")}
    log = run(arguments_of(dataset, died)).log
    assert (log["steps"], log["resumed_from_step"], log["train_loss"]) == (4, 4, None)
    assert log["held_out_loss_after"] == finished[1].log["held_out_loss_after"]
    assert {path: path.stat().st_mtime_ns for path in died.glob("checkpoint-*/*")} == before
    expected, got = weights(finished[0]), weights(died)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_average_of_a_run_that_died_before_its_log_is_its_last(dataset, tmp_path):
    argv = arguments_of(dataset, tmp_path / "tuned", max_steps=2, ema_decay=0.9, held_out_share=0)
    run(argv)
    expected = weights(tmp_path / "tuned" / "ema")
    shutil.rmtree(tmp_path / "tuned" / "ema")
    (tmp_path / "tuned" / "training_log.json").unlink()
    assert run(argv).log["steps"] == 2
    got = weights(tmp_path / "tuned" / "ema")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_finished_run_on_other_rows_is_another_run(finished, dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    [path] = other.glob("text_to_image/*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["input_prompt"] += " now"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    encode_dataset(other, TINY_JANUS_PRO)
    with pytest.raises(UserError, match="rows was"):
        run(arguments_of(other, finished[0]))
    with pytest.raises(UserError, match="nowhere"):
        run(arguments_of("nowhere", finished[0]))


def test_a_held_out_loss_that_is_no_number_is_no_success(dataset, tmp_path):
    argv = arguments_of(dataset, tmp_path / "tuned", max_steps=2, learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(UserError, match="The held-out loss is nan after 2 steps"):
        run(argv)
    assert not (tmp_path / "tuned" / "training_log.json").exists()
    assert without_nan({"a": [float("nan"), 1.0, float("inf")]}) == {"a": [None, 1.0, None]}


def damaged_copy(finished, folder, name):
    copy = shutil.copytree(finished[0], folder)
    (copy / "training_log.json").unlink()
    path = copy / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[:100])
    return copy


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(finished, dataset, tmp_path, name):
    copy = damaged_copy(finished, tmp_path / "tuned", name)
    with pytest.raises(UserError, match=r"checkpoint-4 is damaged .* goes on from .*checkpoint-3"):
        run(arguments_of(dataset, copy))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"arguments": 1}'])
def test_a_damaged_record_is_a_sentence(finished, dataset, tmp_path, text):
    copy = shutil.copytree(finished[0], tmp_path / "tuned")
    (copy / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run.json cannot be read"):
        run(arguments_of(dataset, copy))


def test_the_record_holds_no_token(tmp_path):
    options = {"token": "hf_secret", "nested": [{"api_key": "hf_secret", "hub_token": "hf_secret"}], "revision": "a"}
    described = describe(RunArguments(dataset="a"), Janus4oSFTConfig(str(tmp_path), model_init_kwargs=options))
    assert "hf_secret" not in json.dumps(described)
    assert described["config"]["model_init_kwargs"] == {"nested": [{}], "revision": "a"}


def test_a_lora_run_names_its_base_and_shows_how_to_use_it(dataset, tmp_path):
    run(arguments_of(dataset, tmp_path / "tuned", max_steps=1, use_peft=True, held_out_share=0, save_strategy="no"))
    assert (
        json.loads((tmp_path / "tuned/adapter_config.json").read_text())["base_model_name_or_path"] == TINY_JANUS_PRO
    )
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert 'model = PeftModel.from_pretrained(base, "tuned")' in card
    assert "sharegpt4o-image convert ADAPTER MERGED merges it into its base" in card
    assert "library_name: peft" in card
    assert "\\`" not in card


def test_the_caller_is_told_the_loss(dataset, tmp_path):
    told = []
    run(arguments_of(dataset, tmp_path / "tuned", max_steps=1, held_out_share=0), on_log=told.append)
    assert {"loss", "token_accuracy", "samples_per_second"} <= told[0].keys()


def test_a_folder_in_use_is_refused(dataset, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "run.json").write_text("{}")
    handle = os.open(tmp_path / "tuned", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training into"):
        run(arguments_of(dataset, tmp_path / "tuned"))
    os.close(handle)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        check_folder(tmp_path, {})


def test_changed_rows_are_another_run(tmp_path):
    asked = describe(RunArguments(dataset="a"), Janus4oSFTConfig(str(tmp_path)))
    rows = {"train_rows": 44, "held_out_rows": 4, "ids": "0a1b"}
    (tmp_path / "run.json").write_text(json.dumps(asked | {"data": rows}))
    (tmp_path / "training_log.json").write_text("{}")
    check_folder(tmp_path, asked | {"data": rows})
    with pytest.raises(UserError, match=r"rows was .*44.*, now .*45"):
        check_folder(tmp_path, asked | {"data": rows | {"train_rows": 45}})


def test_both_tasks_are_held_out(dataset):
    model, processor = load_checkpoint(TINY_JANUS_PRO)
    processor.geometry = "center_crop"
    tasks = ["text_to_image", "text_and_image_to_image"]
    rows = load_training_rows(dataset, tasks, "train", model, processor)
    kept, held_out = hold_out(rows, 0.1, seed=3)
    assert sorted(map(bool, number_of_sources(held_out))) == [False] * 3 + [True] * 3
    assert sorted([*kept["id"], *held_out["id"]]) == sorted(rows["id"])
    assert hold_out(rows, 0.1, seed=3)[1]["id"][:] == held_out["id"][:] != hold_out(rows, 0.1, seed=4)[1]["id"][:]
    assert hold_out(rows, 0, seed=3) == (rows, None)
    with pytest.raises(UserError, match=r"held_out_share is 0.99, which leaves none of the \d+ rows of text_to_image"):
        hold_out(rows, 0.99, seed=3)


def test_a_validation_split_is_what_the_loss_is_measured_on(tmp_path):
    pack(RunSource(run_dir()), tmp_path / "data", splits={"validation": 0.25})
    encode_dataset(tmp_path / "data", TINY_JANUS_PRO)
    log = run(arguments_of(tmp_path / "data", tmp_path / "tuned", max_steps=1)).log
    assert log["rows"] + log["held_out_rows"] == NUM_ROWS
    assert log["held_out_rows"] > 4


def test_rows_that_cannot_be_used_are_named_in_the_log_and_the_card(tmp_path):
    folder = shutil.copytree(encoded_set(), tmp_path / "data")
    [path] = folder.glob("text_and_image_to_image/*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[5]["input_image"][0]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    encode_dataset(folder, TINY_JANUS_PRO)
    log = run(
        arguments_of(folder, tmp_path / "tuned", max_steps=6, per_device_train_batch_size=8, held_out_share=0)
    ).log
    assert list(log["skipped_rows"]) == [rows[5]["id"]]
    assert (log["rows"], log["held_out_loss_before"], log["held_out_loss_after"]) == (NUM_ROWS, None, None)
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert "Rows left out, since they could not be used: 1." in card


REPO = "tester/janus-4o-mine"


@pytest.fixture
def hub(monkeypatch):
    """What transformers takes for the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub() as hub:
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", huggingface_hub.HfApi(endpoint=hub.endpoint))
        yield hub


def pushing(dataset, folder):
    return arguments_of(dataset, folder, max_steps=1, push_to_hub=True, hub_model_id=REPO)


def test_push_to_hub_uploads_the_model_and_its_card(hub, dataset, tmp_path):
    run(pushing(dataset, tmp_path / "tuned"))
    files = hub.repositories[f"models/{REPO}"].at("main")[1]
    assert {"README.md", "config.json", "model.safetensors", "modeling_janus4o.py"} <= set(files)
    assert not [
        name for name in files if name.startswith(("checkpoint-", "runs")) or name.endswith((".bin", ".json.tmp"))
    ]
    assert not {"run.json", "training_log.json"} & set(files)
    assert not [name for name, content in files.items() if str(tmp_path).encode() in bytes(content)]
    assert f'from_pretrained("{REPO}"' in bytes(files["README.md"]).decode()
    kept = [path for path in (tmp_path / "tuned").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hf_fake" in path.read_bytes()]


def test_a_token_that_may_not_write_is_refused_before_training(hub, dataset, tmp_path):
    hub.accounts["hf_fake"] = Account(role="read")
    with pytest.raises(UserError, match=r"the Hub cannot be written to .*403"):
        run(pushing(dataset, tmp_path / "tuned"))
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_uploaded_is_uploaded_by_the_same_command(hub, dataset, tmp_path):
    hub.faults.append(lambda method, path, index: Fault(status=403) if "/commit/" in path else None)
    with pytest.raises(UserError, match="run the same command again"):
        run(pushing(dataset, tmp_path / "tuned"))
    hub.faults.clear()
    log = run(pushing(dataset, tmp_path / "tuned")).log
    assert (log["resumed_from_step"], log["steps"]) == (1, 1)
    assert "model.safetensors" in hub.repositories[f"models/{REPO}"].at("main")[1]


def test_a_finished_run_is_uploaded_when_that_is_asked_for_later(hub, dataset, tmp_path):
    run(arguments_of(dataset, tmp_path / "tuned", max_steps=1))
    again = run(pushing(dataset, tmp_path / "tuned"))
    assert again.was_finished
    assert f"uploaded it to {REPO}" in again.to_text()
    files = set(hub.repositories[f"models/{REPO}"].at("main")[1])
    assert {"README.md", "model.safetensors"} <= files
    assert not {"run.json", "training_log.json"} & files


def test_pickled_arguments_hold_no_token(tmp_path):
    kept = pickle.dumps(Janus4oSFTConfig(str(tmp_path), hub_token="hf_secret"))
    assert b"hf_secret" not in kept
    assert pickle.loads(kept).output_dir == str(tmp_path)


# ------------------------------------------------------------------ arguments


def test_the_command_line_goes_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: rows\nlearning_rate: 1e-4\nmax_steps: 7\nsample_prompts: [a red circle, a blue star]\n")
    arguments, config = parse_arguments(
        ["--config", str(path), "--max-steps", "9", "--lora_target_modules", "mlp", "--use_peft"]
    )
    assert (arguments.dataset, arguments.lora_target_modules) == ("rows", ["mlp"])
    assert (config.learning_rate, config.max_steps) == (1e-4, 9)
    assert config.sample_prompts == ["a red circle", "a blue star"]
    assert parse_arguments([f"--config={path}"])[1].max_steps == 7


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert not end.value.code
    assert all(f"--{name} " in shown for name in FIELDS)
    assert "(default: 0.05)" in shown


def test_the_verb_lists_exactly_our_own_fields():
    inherited = set(trl.SFTConfig.__dataclass_fields__)
    own = {name for name in Janus4oSFTConfig.__annotations__ if name not in inherited}
    options = {"dataset", "model", "preset"}  # of the verb
    assert sorted(FIELDS) == sorted((own | set(RunArguments.__annotations__)) - options)


YAML = {
    "learning_rte: 1": "the configuration has an unknown key learning_rte; did you mean learning_rate?",
    "max-steps: 1": "the configuration has an unknown key max-steps; did you mean max_steps?",
    "max_steps: 2.5": "max_steps is 2.5 in the configuration; it should be a valid integer",
    "bf16: maybe": "bf16 is 'maybe' in the configuration; it should be a valid boolean",
    "sample_prompts: a": "sample_prompts is 'a' in the configuration; it should be a valid list",
    "max_steps: [": "the configuration is no valid YAML",
    "- max_steps": "must contain a YAML mapping",
    "hub_token: hf_secret": "a token among the arguments would be kept in files",
}


@pytest.mark.parametrize("text", YAML)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse_arguments(["--config", str(tmp_path / "bad.yaml"), "--dataset", "rows"])
    assert YAML[text] in str(error.value)
    assert "hf_secret" not in str(error.value)
    assert "\n" not in str(error.value)


ARGUMENTS = {
    ("--learning_rte", "1"): "there is no option --learning_rte; did you mean learning_rate?",
    ("--max_step", "1"): "there is no option --max_step; did you mean max_steps",
    ("--max_steps", "ten"): "invalid int value: 'ten'",
    ("--preset", "papr"): "preset is 'papr'; choose paper or default",
    ("--geometry", "stretch"): "geometry is 'stretch'; choose pad or center_crop",
    ("--dtype", "int8"): "dtype is 'int8'; choose float32 or bfloat16",
    ("--held_out_share", "1"): "held_out_share is 1.0",
    ("--lora_r", "8"): "lora_r is given, but no adapter is trained; add use_peft",
    ("--lora_target_modules", "vision"): "LoRA targets are vision; choose from",
    ("--eval_split", "train"): "eval_split and train_split are both train",
    ("--save_only_model", "true"): "save_only_model leaves nothing that a run can go on from",
    ("--push_to_hub", "true", "--hub_strategy", "every_save"): "hub_strategy is every_save, which would upload",
    ("--max_length", "1024"): "max_length is 1024; leave it unset",
    ("--report_to", "nothing_known"): "report_to names nothing_known, which is not installed",
    ("--resume_from_checkpoint", "x"): "the same command goes on by itself",
    ("--config", "nowhere.yaml"): "nowhere.yaml cannot be read (No such file or directory)",
    ("--config",): "--config names no file",
}


@pytest.mark.parametrize("argv", ARGUMENTS)
def test_a_mistake_on_the_command_line_is_one_sentence(argv):
    with pytest.raises(UserError) as error:
        parse_arguments(["--dataset", "rows", *argv])
    assert ARGUMENTS[argv] in str(error.value)
    assert "\n" not in str(error.value)


def test_no_data_set_is_a_sentence():
    with pytest.raises(UserError, match="no data set is named; give --dataset"):
        parse_arguments([])


RUNS = {
    ("lora_target_modules", "vision"): "LoRA targets are vision; choose from attention, mlp, generation_head",
    ("model", "nothing"): "There is no checkpoint 'nothing'",
    ("dataset", "nowhere"): "nowhere",
    ("geometry", "pad"): "has codes for the geometry center_crop, and pad is asked for",
    ("eval_split", "test"): "has no split test",
    ("edit_share", "2"): "edit_share is 2.0",
    ("attn_implementation", "flash_attention_2"): "[fF]lash",
    ("optim", "adafactor"): "optim_bf16_stochastic_rounding rounds for",
}


@pytest.mark.parametrize("field", RUNS)
def test_what_cannot_be_trained_leaves_no_folder(dataset, tmp_path, field):
    name, value = field
    switches = {"lora_target_modules": "use_peft", "optim": "optim_bf16_stochastic_rounding"}
    fields = {name: value} | ({switches[name]: True} if name in switches else {})
    with pytest.raises(UserError, match=RUNS[field]):
        run(arguments_of(dataset, tmp_path / "tuned", **fields))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (("lr_scheduler_kwargs", '{"nothing": 1}'), "The schedule .* cannot be made; see .*lr_scheduler_kwargs"),
        (("optim", "grokadamw"), "The optimizer .* cannot be made; see optim"),
    ],
)
def test_what_cannot_be_made_is_a_sentence_and_the_folder_is_free(dataset, tmp_path, field, reason):
    with pytest.raises(UserError, match=reason):
        run(arguments_of(dataset, tmp_path / "tuned", held_out_share=0, max_steps=1, **dict([field])))
    assert run(arguments_of(dataset, tmp_path / "tuned", held_out_share=0, max_steps=1)).log["steps"] == 1


# ------------------------------------------------------------------ the program


def program(*argv):
    command = [sys.executable, "-m", "sharegpt4o_image.training.sft", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.slow
def test_the_program_killed_and_terminated_ends_with_the_same_weights(dataset, tmp_path):
    assert EXIT_INTERRUPTED == EXIT_OF_OTHER_VERBS
    argv = arguments_of(dataset, tmp_path / "tuned", max_steps=60, save_steps=5)
    killed = program(*argv)
    wait_for(tmp_path / "tuned" / "checkpoint-10" / "trainer_state.json", killed)
    killed.kill()
    killed.communicate()
    terminated = program(*argv)
    wait_for(tmp_path / "tuned" / "checkpoint-20" / "trainer_state.json", terminated)
    terminated.terminate()
    out, err = terminated.communicate()
    assert terminated.returncode == EXIT_INTERRUPTED, err
    assert "the same command goes on" in out
    finished = program(*argv)
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert "Trained 60 steps" in out
    run(arguments_of(dataset, tmp_path / "straight", max_steps=60, save_steps=5))
    expected, got = weights(tmp_path / "straight"), weights(tmp_path / "tuned")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_the_program_says_what_is_wrong_in_one_line(tmp_path):
    process = program("--dataset", "rows", "--learning_rte", "1", "--output_dir", str(tmp_path / "tuned"))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1] == "Error: there is no option --learning_rte; did you mean learning_rate?"
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_leave_what_one_leaves(dataset, tmp_path, name):
    config = yaml.safe_load((ACCELERATE_CONFIGS / f"{name}.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    argv = arguments_of(dataset, tmp_path / "both", per_device_train_batch_size=1)
    command = [*launcher, "--config_file", tmp_path / "accelerate.yaml", "-m", "sharegpt4o_image.training.sft", *argv]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Trained 4 steps") == 1
    run(arguments_of(dataset, tmp_path / "one"))
    expected, got = weights(tmp_path / "one"), weights(tmp_path / "both")
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-5, rtol=1e-4)
    card = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert "| `effective batch` | `2` |" in card
