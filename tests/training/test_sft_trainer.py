# SPDX-License-Identifier: Apache-2.0
"""The trainer trains what it should and nothing else, is used like any TRL trainer, and refuses what does not fit."""

import copy
import logging
import math
import pickle
import random
import re
import warnings

import pytest
import torch
import trl
from accelerate import ParallelismConfig
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets, load_dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from sharegpt4o_image.checkpoints import resolve_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration, make_collator
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows, training_texts
from sharegpt4o_image.training.tiny_model import NUM_CODES, tiny_config, tiny_processor, untrained_model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


def new_model(processor, tie_word_embeddings=True):
    """The tiny model with two layers of five."""
    config = tiny_config(processor)
    config.text_config.num_hidden_layers = 2
    config.tie_word_embeddings = tie_word_embeddings
    torch.manual_seed(0)
    return untrained_model(config).eval()


@pytest.fixture
def model(processor):
    return new_model(processor)


def mixed_rows(model, processor, num_rows, seed):
    """Edits, then as many text-to-image rows."""
    parts = [edit_rows(model, processor, num_rows, seed), text_to_image_rows(model, processor, num_rows, seed + 1)]
    return concatenate_datasets(parts)


@pytest.fixture(scope="module")
def rows(processor):
    made = mixed_rows(new_model(processor), processor, 4, seed=1)
    return made.add_column("id", [f"row-{i}" for i in range(8)])


def config(tmp_path, **overrides):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no"}
    return Janus4oSFTConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, **(defaults | overrides))


def parameters(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------ what is trained

VQ = "model.vqmodel."
TOWER = "model.vision_model."
ALIGNERS = ("model.aligner.", "model.generation_aligner.")


@pytest.mark.parametrize(
    ("overrides", "chosen", "frozen"),
    [
        ({}, range(8), (VQ, "lm_head.")),
        ({"preset": "paper"}, range(8), (VQ, "lm_head.")),
        ({}, range(4, 8), (VQ, "lm_head.", TOWER, "model.aligner.")),  # text to image alone
        ({"edit_share": 0.0}, range(8), (VQ, "lm_head.", TOWER, "model.aligner.")),
        ({}, range(4), (VQ, "lm_head.")),
        ({"freeze_vision_tower": True}, range(8), (VQ, "lm_head.", TOWER)),
        ({"freeze_aligners": True}, range(8), (VQ, "lm_head.", *ALIGNERS)),
    ],
)
def test_a_step_changes_every_trainable_parameter_and_no_frozen_one(
    tmp_path, processor, rows, overrides, chosen, frozen
):
    model = new_model(processor, tie_word_embeddings=False)
    before = parameters(model)
    options = {"learning_rate": 1e-2, "warmup_steps": 0, "max_steps": 3, "per_device_train_batch_size": 8, **overrides}
    trainer = Janus4oSFTTrainer(
        model, config(tmp_path, **options), processing_class=processor, train_dataset=rows.select(chosen)
    )
    trainer.train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(frozen), name
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    trained = {id(p) for name, p in model.named_parameters() if not name.startswith(frozen)}
    assert in_optimizer == trained


def test_the_tied_vocabulary_head_is_trained_as_the_embeddings(tmp_path, model, processor, rows):
    trainer = Janus4oSFTTrainer(model, config(tmp_path), processing_class=processor, train_dataset=rows)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert trainer.model.lm_head.weight.requires_grad


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_what_decays(tmp_path, model, processor, rows, preset):
    arguments = config(tmp_path, preset=preset, weight_decay=0.1)
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    used = [group for group in trainer.create_optimizer().param_groups if group["params"]]
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in used}
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if preset == "paper":
        assert groups == {0.1: set(names)}
        return
    modules = dict(model.named_modules())
    linear = (nn.Linear, nn.Conv2d)
    decaying = {
        parameter
        for parameter, name in names.items()
        if name.endswith(".weight") and isinstance(modules[name.removesuffix(".weight")], linear)
    }
    assert groups[0.1] == decaying
    assert groups[0.0] == set(names) - decaying
    kept = {names[parameter].split(".")[-2] for parameter in groups[0.0]}
    assert {"embed_tokens", "generation_embeddings", "input_layernorm", "norm", "position_embedding"} <= kept


def test_the_held_out_loss_begins_at_the_entropy_of_the_codes_and_falls(tmp_path, model, processor):
    seen, held_out = mixed_rows(model, processor, 32, seed=1), mixed_rows(model, processor, 4, seed=3)
    arguments = config(tmp_path, max_steps=16, learning_rate=2e-3)
    trainer = Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=seen, eval_dataset=held_out
    )
    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(math.log(NUM_CODES), abs=0.35)
    assert trainer.evaluate()["eval_loss"] == before  # nothing is dropped at random
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.2


def test_evaluation_drops_no_condition(tmp_path, model, processor, rows):
    losses = []
    for rate in (0.0, 0.5):
        rates = {
            "prompt_dropout": rate,
            "source_code_dropout": rate,
            "null_dropout": rate,
            "instruction_dropout": rate,
        }
        trainer = Janus4oSFTTrainer(
            model, config(tmp_path, **rates), processing_class=processor, train_dataset=rows, eval_dataset=rows
        )
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


RATES = ("prompt_dropout", "source_code_dropout", "null_dropout", "instruction_dropout")


class Recording(DataCollatorForImageGeneration):
    """Keeps which sample of which epoch came."""

    def __call__(self, rows):
        seen.extend((row["epoch"], row["id"]) for row in rows)
        return super().__call__(rows)


seen = []


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(tmp_path, model, processor, rows):
    seen.clear()
    no_dropout = dict.fromkeys(RATES, 0.0)
    arguments = config(tmp_path, max_steps=-1, num_train_epochs=2, **no_dropout)
    collator = Recording(make_collator(arguments, processor).processor, seed=arguments.seed)
    trainer = Janus4oSFTTrainer(model, arguments, collator, rows, processing_class=processor)  # as TRL orders them
    trainer.train()
    epochs = [[row for epoch, row in seen if epoch == number] for number in (0, 1)]
    assert [epoch for epoch, _ in seen] == [0] * 8 + [1] * 8
    assert set(epochs[0]) == set(epochs[1]) == set(rows["id"])
    assert epochs[0] != epochs[1]


# ------------------------------------------------------------------ used like any TRL trainer


class Recorder(TrainerCallback):
    """A tracker: keeps what is logged."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_several_held_out_sets_metrics_and_the_best_checkpoint(tmp_path, model, processor, rows):
    recorder = Recorder()
    arguments = config(
        tmp_path, max_steps=3, learning_rate=0.02, warmup_steps=0, eval_strategy="steps", eval_steps=1,
        logging_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_edits_loss",
        lr_scheduler_type="constant",
    )  # fmt: skip
    held_out = {"edits": rows.select([0, 1, 2]), "drawings": rows.select([4, 5])}
    trainer = Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=held_out, callbacks=[recorder]
    )
    trainer.train()
    losses = [log["eval_edits_loss"] for log in recorder.logs if "eval_edits_loss" in log]
    assert len(losses) == 3
    best = tmp_path / f"checkpoint-{losses.index(min(losses)) + 1}"
    assert trainer.state.best_model_checkpoint == str(best)
    assert trainer.evaluate()["eval_edits_loss"] == pytest.approx(min(losses), abs=1e-5)  # it was loaded

    edits = next(log for log in recorder.logs if "eval_edits_loss" in log)
    assert edits["eval_edits_loss"] == pytest.approx(edits["eval_edits_loss_text_and_image_to_image"])
    assert "eval_edits_token_accuracy_quarter_4" in edits
    assert "eval_edits_loss_text_to_image" not in edits
    assert any("eval_drawings_loss_text_to_image" in log for log in recorder.logs)
    trained = [log for log in recorder.logs if "loss" in log]
    assert [set(log) for log in trained] == [set(trained[0])] * 3
    assert {"loss_text_to_image", "token_accuracy", "loss_quarter_1", "grad_norm", "learning_rate"} <= set(trained[0])


def test_the_logged_loss_is_the_weighted_mean_of_its_parts(tmp_path, model, processor, rows):
    arguments = config(tmp_path, max_steps=1, per_device_train_batch_size=6, logging_steps=1)
    trainer = Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows.select([0, 1, 4, 5, 6, 7])
    )
    trainer.train()
    log = trainer.state.log_history[0]
    by_task = (4 * log["loss_text_to_image"] + 2 * log["loss_text_and_image_to_image"]) / 6
    by_quarter = sum(log[f"loss_quarter_{i}"] for i in range(1, 5)) / 4
    assert log["loss"] == pytest.approx(by_task) == pytest.approx(by_quarter)


def test_a_shipped_checkpoint_by_name(tmp_path, rows):
    trainer = Janus4oSFTTrainer("tiny-janus-pro", config(tmp_path), train_dataset=rows, eval_dataset=rows.select([0]))
    assert trainer.model.dtype == torch.float32
    assert trainer.processing_class.geometry == "center_crop"  # the recipe's, and kept with what is saved
    assert trainer.model.config._name_or_path.endswith("tiny-janus-pro")
    assert trainer.evaluate(rows.select([4]), metric_key_prefix="other")["other_loss"] > 0
    assert trainer.predict(rows.select([4, 5, 6])).metrics["test_loss_text_to_image"] > 0


def test_the_configuration_is_quiet_and_knows_the_new_name_of_checkpointing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config(tmp_path).activation_checkpointing is False
        assert config(tmp_path, activation_checkpointing=True).gradient_checkpointing is True
    with pytest.warns(FutureWarning, match="Use `activation_checkpointing` instead"):
        assert config(tmp_path, gradient_checkpointing=True).activation_checkpointing is True


def test_no_token_is_pickled_or_recorded(tmp_path):
    arguments = config(tmp_path, hub_token="hf_one", model_init_kwargs={"token": "hf_two", "dtype": "float32"})
    for kept in (pickle.dumps(arguments), arguments.to_json_string().encode()):
        assert b"hf_one" not in kept
        assert b"hf_two" not in kept
        assert b"float32" in kept
    assert arguments.model_init_kwargs["token"] == "hf_two"


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "constant", "linear", "cosine"])
def test_schedules(tmp_path, model, processor, rows, schedule):
    arguments = config(tmp_path, max_steps=4, lr_scheduler_type=schedule, logging_steps=1, warmup_steps=0)
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    trainer.create_optimizer_and_scheduler(100)
    for _ in range(100):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    floor = {"cosine_with_min_lr": 0.15, "constant": 1.0, "linear": 0.0, "cosine": 0.0}[schedule]
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(floor * arguments.learning_rate, abs=1e-12)


# ------------------------------------------------------------------ what cannot be used

NOISE = random.Random(0).randbytes(5000)


def with_broken_pictures(rows, broken):
    """The rows with the source pictures of those numbers cut or replaced."""
    columns = rows.to_dict()
    for number, damage in broken.items():
        picture = columns["input_image"][number][0]
        picture["bytes"] = damage(picture["bytes"])
    return Dataset.from_dict(columns, features=rows.features)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_with_broken_pictures_are_skipped_named_and_counted(
    tmp_path, model, processor, rows, num_workers, caplog
):
    broken = with_broken_pictures(rows, {0: lambda data: data[: len(data) // 2], 2: lambda data: NOISE})
    held_out = with_broken_pictures(rows.select([1, 4]), {0: lambda data: b""})
    arguments = config(
        tmp_path, num_train_epochs=2, max_steps=-1, per_device_train_batch_size=1, gradient_accumulation_steps=4,
        per_device_eval_batch_size=1, dataloader_num_workers=num_workers, logging_steps=1,
    )  # fmt: skip
    trainer = Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=broken, eval_dataset=held_out
    )
    with caplog.at_level(logging.WARNING, "sharegpt4o_image"):
        trainer.train()
        metrics = trainer.evaluate()
    assert set(trainer.skipped_rows) == {"row-0", "row-1", "row-2"}
    assert trainer.skipped_rows["row-2"].startswith("cannot identify image file")
    skipped = [record.getMessage() for record in caplog.records if "Skipped the row" in record.getMessage()]
    assert len(skipped) == 3  # each once, though each came twice
    alone = trainer.evaluate(rows.select([4]))
    assert metrics["eval_loss"] == pytest.approx(alone["eval_loss"])  # a batch of nothing does not count as 0
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses == pytest.approx([math.log(NUM_CODES)] * len(losses), abs=0.5)


def test_rows_of_which_none_can_be_used_stop_the_run(tmp_path, model, processor, rows):
    broken = with_broken_pictures(rows, {number: lambda data: NOISE for number in range(4)}).select(range(4))
    before = parameters(model)
    trainer = Janus4oSFTTrainer(model, config(tmp_path), processing_class=processor, train_dataset=broken)
    with pytest.raises(UserError, match=r"No sample of step 1 can be used: row-\d \(cannot identify image file"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    arguments = config(tmp_path, max_steps=1, max_skipped_rows=3)  # judged first
    with pytest.raises(UserError, match=r"4 rows cannot be used, more than max_skipped_rows \(3\) allows: row-"):
        Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=broken).train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_sample(
    tmp_path, model, processor, rows, accumulation
):
    """One code has no embedding: only the sample that has it is spoilt, though it shares a packed row with others."""
    columns = rows.to_dict()
    spoilt = 1023
    columns["target_codes"] = [[code % 1000 for code in codes] for codes in columns["target_codes"]]
    columns["target_codes"][6][20] = spoilt
    with torch.no_grad():
        model.model.generation_embeddings.weight[spoilt] = torch.nan
    before = parameters(model)
    arguments = config(
        tmp_path, max_steps=3, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
        save_strategy="steps", save_steps=1, source_code_dropout=1.0,
    )  # fmt: skip
    dataset = Dataset.from_dict(columns, features=rows.features)
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=dataset)
    with pytest.raises(UserError, match=r"^The loss of row-6 is not finite in step 1; the step was not made"):
        trainer.train()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=0, rtol=0, equal_nan=True)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_too_and_the_last_checkpoint_is_fine(tmp_path, model, processor, rows):
    calls = []

    def spoil_the_second(gradient):
        calls.append(None)
        return gradient * torch.inf if len(calls) == 2 else gradient

    model.model.generation_head.vision_head.weight.register_hook(spoil_the_second)
    arguments = config(tmp_path, max_steps=3, per_device_train_batch_size=8, save_strategy="steps", save_steps=1)
    trainer = Janus4oSFTTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    with pytest.raises(UserError, match=r"The gradient of a step on row-.*, row-.* is not finite in step 2"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_cut_row_and_a_rate_above_1_are_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length is 1024"):
        config(tmp_path, max_length=1024)
    with pytest.raises(ValueError, match="null_dropout is 2"):
        config(tmp_path, null_dropout=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"null_dropout": "0.7"}, "null_dropout is '0.7'; it is a share, a number between 0 and 1"),
        ({"edit_share": 1.5}, "edit_share is 1.5"),
        ({"max_skipped_rows": -1}, "max_skipped_rows is -1; it is at least 0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1; leave it unset: the loss is"),
        ({"loss_type": "dft"}, "loss_type is 'dft'"),
        ({"completion_only_loss": True}, "completion_only_loss is True"),
        ({"assistant_only_loss": True}, "assistant_only_loss is True"),
        ({"shuffle_dataset": True}, "shuffle_dataset is True"),
        ({"packing": True}, "row_layout='packed' packs image samples"),
        ({"eval_packing": True}, "eval_packing is True"),
        ({"dataset_kwargs": {"add_special_tokens": False}}, "dataset_kwargs is {'add_special_tokens': False}"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is True"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'"),
        ({"include_num_input_tokens_seen": "all"}, "it would count prompts without codes"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config sets split_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config sets dispatch_batches"),
    ],
)
def test_values_that_would_act_in_vain_or_wrongly_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, **fields)


@pytest.mark.parametrize("name", ["compute_loss_func", "formatting_func", "quantization_config"])
def test_arguments_that_would_act_in_vain_are_refused(tmp_path, rows, processor, name):
    with pytest.raises(UserError, match=f"{name} is of no use here"):
        make(tmp_path, rows, processor, **{name: print})


def test_parallelism_that_cuts_samples_apart_is_refused(tmp_path, rows, processor):
    with pytest.raises(UserError, match=r"parallelism_config sets tp_size, cp_size or sp_size; leave them at 1"):
        make(tmp_path, rows, processor, args=config(tmp_path, parallelism_config=ParallelismConfig(cp_size=2)))


def test_a_processor_that_does_not_fit_is_refused(tmp_path, rows, processor):
    with pytest.raises(UserError, match=r"processing_class is a .*; give the checkpoint's Janus4oProcessor"):
        make(tmp_path, rows, processor.tokenizer, model=new_model(processor))
    fewer = copy.copy(processor)
    fewer.num_image_tokens = 16
    with pytest.raises(UserError, match="makes 16 image tokens of pictures of 32 pixels, the model has 64 of 32"):
        make(tmp_path, rows, fewer, model=new_model(processor))


def test_the_geometry_is_set_in_a_copy_of_the_processor(tmp_path, rows, processor):
    given = copy.copy(processor)
    given.geometry = "center_crop"
    first = make(tmp_path, rows, given, args=config(tmp_path, preset="paper"))
    second = make(tmp_path, rows, given)
    assert given.geometry == "center_crop"
    for trainer, geometry in ((first, "pad"), (second, "center_crop")):
        assert trainer.processing_class.geometry == trainer.data_collator.processor.geometry == geometry


def test_a_collator_must_do_what_the_arguments_say(tmp_path, rows, processor):
    arguments = config(tmp_path, preset="paper", seed=3)
    fitting = make_collator(arguments, processor)
    assert make(tmp_path, rows, processor, args=arguments, data_collator=fitting).data_collator is fitting
    other = DataCollatorForImageGeneration(fitting.processor, row_layout="padded")
    with pytest.raises(UserError, match="The data_collator's dropout and seed and row_layout are not those of args"):
        make(tmp_path, rows, processor, args=arguments, data_collator=other)


def test_a_part_that_an_earlier_run_froze_is_trained_again(tmp_path, rows, processor):
    model = new_model(processor)
    make(tmp_path, rows.select(range(4, 8)), processor, model=model)  # without edits
    assert not any(parameter.requires_grad for parameter in model.model.vision_model.parameters())
    make(tmp_path, rows, processor, model=model)
    assert all(parameter.requires_grad for parameter in model.model.vision_model.parameters())


def test_a_trainer_goes_on_after_a_loss_that_was_not_finite(tmp_path, rows, processor):
    trainer = make(tmp_path, rows, processor, args=config(tmp_path, max_steps=1, logging_steps=1))
    weight = trainer.model.model.generation_embeddings.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        trainer.train()
    with torch.no_grad():
        weight.copy_(kept)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["token_accuracy"])
    assert math.isfinite(trainer.state.log_history[0]["loss_quarter_1"])


def without_codes(rows):
    """The same rows, their pictures to be encoded on the fly; the sources stand in for the targets."""
    pictures = [rows[i]["input_image"][0] for i in range(4)] * 2
    features = Features({"input_prompt": Value("string"), "input_image": List(Image()), "output_image": Image()})
    columns = {
        "input_prompt": rows["input_prompt"][:],
        "input_image": [[one] if i < 4 else [] for i, one in enumerate(pictures)],
        "output_image": pictures,
    }
    return Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("has_codes", [True, False])
def test_metrics_and_predictions_see_the_codes_as_labels(tmp_path, rows, processor, has_codes):
    seen = []

    def accuracy(prediction):
        seen.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    data = rows if has_codes else without_codes(rows)
    trainer = make(tmp_path, data, processor, eval_dataset=data, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(metrics["eval_token_accuracy"])
    predicted = trainer.predict(data)
    assert predicted.predictions.shape == (8, 64, NUM_CODES)
    codes = torch.from_numpy(predicted.label_ids)
    if has_codes:
        assert codes.tolist() == rows["target_codes"][:]
    else:
        pixels = trainer.processing_class.source_pixels([data[i]["output_image"] for i in range(8)])
        assert torch.equal(codes, trainer.model.encode_image(pixels))


def test_the_data_set_is_not_copied(tmp_path, rows, processor):
    """The cache of `datasets` has the file of the rows, and nothing more after training and evaluation."""
    rows.to_parquet(tmp_path / "train.parquet")
    cache = tmp_path / "cache"
    stored = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(cache), split="train")

    def files():
        return {(str(path), path.stat().st_size) for path in cache.rglob("*") if path.is_file()}

    before = files()
    arguments = config(tmp_path / "run")
    trainer = make(tmp_path, stored, processor, eval_dataset=stored.select([1, 5]), args=arguments)
    trainer.train()
    trainer.evaluate()
    assert files() == before


def make(tmp_path, rows, processor, **given):
    arguments = {"args": config(tmp_path), "processing_class": processor, "train_dataset": rows}
    return Janus4oSFTTrainer(given.pop("model", None) or new_model(processor), **(arguments | given))


def test_arguments_of_another_class_are_refused(tmp_path, rows, processor):
    text = trl.SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False)
    with pytest.raises(UserError, match="args is a SFTConfig; give a Janus4oSFTConfig"):
        make(tmp_path, rows, processor, args=text)


def test_models_of_another_architecture_are_refused(tmp_path, rows, processor):
    tiny = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    llama = LlamaForCausalLM(tiny)
    with pytest.raises(UserError, match="The model is a LlamaForCausalLM; Janus4oSFTTrainer trains a Janus4oFor"):
        make(tmp_path, rows, processor, model=llama)
    llama.save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="describes a 'llama' model; expected 'janus4o'"):
        make(tmp_path, rows, processor, model=str(tmp_path / "llama"))
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text('{"model_type": "multi_modality"}')
    with pytest.raises(UserError, match="checkpoint in the original Janus format; convert it first"):
        make(tmp_path, rows, processor, model=str(tmp_path / "original"))
    with pytest.raises(UserError, match="There is no checkpoint"):
        make(tmp_path, rows, processor, model="nowhere")
    with pytest.raises(UserError, match="comes from no checkpoint, so its processor is not known"):
        make(tmp_path, rows, None, model=new_model(processor))


def test_rows_that_do_not_fit_are_refused_in_both_sets(tmp_path, rows, processor):
    for number, given in enumerate(({"train_dataset": rows.select([])}, {"eval_dataset": {"a": rows.select([])}})):
        name = ("train_dataset", r"eval_dataset\['a'\]")[number]
        with pytest.raises(UserError, match=f"^{name} has no rows"):
            make(tmp_path, rows, processor, **given)
    trainer = make(tmp_path, rows.select(range(4)), processor, args=config(tmp_path, edit_share=0.5))
    with pytest.raises(UserError, match="the rows are all of one task"):
        trainer.train()
    with pytest.raises(UserError, match="eval_dataset has no rows"):
        trainer.evaluate(rows.select([]))


def test_rows_of_the_wrong_task_are_refused(tmp_path, rows, processor):
    wrong = rows.add_column("task", ["text_to_image"] * 8)
    with pytest.raises(UserError, match=r"The row row-0 is a text_to_image row with 1 input images \(and 3 more\)"):
        make(tmp_path, wrong, processor)


def test_without_a_folder_the_run_is_named_by_the_checkpoint(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = resolve_checkpoint("tiny-janus-pro")
    trainer = Janus4oSFTTrainer(f"{shipped}/", train_dataset=rows)
    assert trainer.args.output_dir == "tiny-janus-pro-SFT"
