# SPDX-License-Identifier: Apache-2.0
"""Sample pictures show the weights of their step, and training does not notice that they are drawn."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Image as ImageFeature
from datasets import concatenate_datasets
from launched_training import described, differences, finish, launch_command, result_of, run, start, write_inputs
from PIL import Image
from transformers import TrainerCallback

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o.batching_janus4o import check_memory
from sharegpt4o_image.training.sample_images import Sample, SampleImages, contact_sheet
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows

STEPS, EVERY = 5, 2


@pytest.fixture(scope="module")
def rows():
    """Three edits, then three text-to-image rows."""
    model, processor = load_checkpoint("tiny-janus-4o", "float32")
    return concatenate_datasets(
        [edit_rows(model, processor, 3, seed=1), text_to_image_rows(model, processor, 3, seed=2)]
    )


def trainer_of(folder, rows, held_out=None, callbacks=(), peft_config=None, **overrides):
    model, processor = load_checkpoint("tiny-janus-4o", "float32")
    defaults = {
        "max_steps": STEPS, "save_steps": EVERY, "report_to": "none", "sample_seed": 7, "learning_rate": 1e-3,
    }  # fmt: skip
    arguments = Janus4oSFTConfig(
        str(folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2, logging_steps=1, geometry="pad",
        **(defaults | overrides),
    )  # fmt: skip
    return Janus4oSFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=held_out,
        callbacks=list(callbacks), peft_config=peft_config,
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory, rows):
    """A run that draws a held-out edit and a held-out prompt; its folder, trainer and the random state after it."""
    folder = tmp_path_factory.mktemp("drawn")
    trainer = trainer_of(folder, rows, held_out=rows.select([0, 3]), sample_steps=EVERY)
    trainer.train()
    return folder, trainer, torch.get_rng_state()


def pictures(folder, step):
    return [Image.open(path) for path in sorted((folder / "samples" / f"step-{step:06}").glob("[0-9]*.png"))]


def is_same(left, right):
    return np.array_equal(np.asarray(left), np.asarray(right))


# ------------------------------------------------------------------ what is drawn


def test_every_n_steps_and_at_the_end_both_tasks_are_drawn(drawn_run):
    folder, _, _ = drawn_run
    steps = sorted(path.name for path in (folder / "samples").iterdir())
    assert steps == ["step-000002", "step-000004", "step-000005"]
    for step in (2, 4, 5):
        assert len(pictures(folder, step)) == 2
        assert Image.open(folder / "samples" / f"step-{step:06}" / "sheet.png").width > 2 * 256


def test_a_picture_is_that_of_the_checkpoint_of_its_step(drawn_run, rows):
    folder, trainer, _ = drawn_run
    for step in (2, 4):
        model, processor = load_checkpoint(str(folder / f"checkpoint-{step}"), "float32")
        source = Image.open(io.BytesIO(trainer.train_dataset[0]["input_image"][0]["bytes"]))
        requests = ((rows[3]["input_prompt"], None), (rows[0]["input_prompt"], [[source]]))
        for number, (prompt, image) in enumerate(requests):
            generator = torch.Generator().manual_seed(7 + number)
            alone = model.generate_image(prompt, image, generator=generator, processor=processor)[0]
            assert is_same(alone, pictures(folder, step)[number])


def test_pictures_change_with_the_weights(drawn_run):
    folder, _, _ = drawn_run
    assert not all(is_same(*pair) for pair in zip(pictures(folder, 2), pictures(folder, 5), strict=True))


def test_training_does_not_notice(tmp_path, rows, drawn_run):
    _, drawing, random_state = drawn_run
    plain = trainer_of(tmp_path, rows, held_out=rows.select([0, 3]))
    plain.train()
    assert torch.equal(torch.get_rng_state(), random_state)
    for (name, ours), theirs in zip(drawing.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (drawing, plain)]
    assert losses[0] == losses[1]


def test_prompts_that_are_given_are_drawn_instead(tmp_path, rows):
    trainer = trainer_of(tmp_path, rows, rows, max_steps=1, sample_steps=9, sample_prompts=["a red circle"])
    trainer.train()
    assert len(pictures(tmp_path, 1)) == 1


class Ends(TrainerCallback):
    """Ends a run after a step's callbacks, as early stopping does."""

    def on_log(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 1


def test_a_run_that_stops_early_is_drawn_as_it_ended(tmp_path, rows):
    trainer = trainer_of(tmp_path, rows, callbacks=[Ends()], sample_steps=3, sample_prompts=["a red circle"])
    trainer.train()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000001"]


def test_adapters_and_checkpointing_draw_what_the_adapters_learn(tmp_path, rows):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q|k|v|o)_proj")
    trainer = trainer_of(
        tmp_path, rows, peft_config=lora, max_steps=2, sample_steps=1, sample_prompts=["a red circle"],
        gradient_checkpointing=True, save_strategy="no", warmup_steps=0, learning_rate=0.1,
    )  # fmt: skip
    trainer.train()
    first, second = (pictures(tmp_path, step)[0] for step in (1, 2))
    assert not is_same(first, second)
    assert trainer.model.training


def test_a_picture_that_does_not_fit_does_not_end_the_run(tmp_path, rows, caplog, monkeypatch):
    trainer = trainer_of(tmp_path, rows, max_steps=1, sample_steps=1, sample_prompts=["a red circle"])
    batching = sys.modules[check_memory.__module__]
    monkeypatch.setattr(batching, "free_bytes", lambda device: 0)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "sample pictures of step 1 could not be drawn: Drawing 1 pictures at once takes" in caplog.text
    assert trainer.model.uses_cuda_graph is None


@pytest.mark.slow
def test_of_several_processes_one_draws(tmp_path):
    write_inputs(tmp_path)
    drawn, plain = (
        described(tmp_path, tmp_path / name, max_steps=2, learning_rate=1e-3, **config)
        for name, config in (("drawn", {"sample_steps": 1, "sample_prompts": ["a circle"]}), ("plain", {}))
    )
    finish(start(launch_command(tmp_path / "launch", [drawn, plain], "ddp")))
    assert len(pictures(tmp_path / "drawn", 2)) == 1
    for process in range(2):
        one, other = (result_of(tmp_path / name, process) for name in ("drawn", "plain"))
        assert not differences(one["weights"], other["weights"])
    run(described(tmp_path, tmp_path / "alone", max_steps=2, learning_rate=1e-3, per_device_train_batch_size=4))
    operations = [result_of(tmp_path / name)["log"][-1]["total_flos"] for name in ("drawn", "alone")]
    assert operations[0] == operations[1]  # what two processes trained, counted together


# ------------------------------------------------------------------ which rows


def samples_of(trainer):
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, SampleImages))._samples


def test_the_first_readable_rows_of_each_task_are_taken(tmp_path, rows):
    stored = rows.cast_column("input_image", [ImageFeature(decode=False)])
    broken = stored.map(
        lambda row, i: {"input_image": [{"bytes": b"no picture"}]} if i == 0 else row, with_indices=True
    )
    sets = {"edits": broken.select([0, 1]), "all": broken}
    samples = samples_of(trainer_of(tmp_path, rows, held_out=sets, sample_steps=1))
    prompts = rows["input_prompt"]
    assert [sample.prompt for sample in samples] == [*prompts[3:], prompts[1], *prompts[1:3]]
    assert [len(sample.sources) for sample in samples] == [0, 0, 0, 1, 1, 1]


def test_nothing_to_draw_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match="give sample_prompts, or held-out rows"):
        trainer_of(tmp_path, rows, sample_steps=1)


def test_empty_prompts_are_refused(tmp_path, rows):
    with pytest.raises(UserError, match="One of sample_prompts is empty"):
        trainer_of(tmp_path, rows, sample_steps=1, sample_prompts=["a red circle", " "])


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_shards_cannot_draw(sharded):
    enabled = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False, sharded: True}
    with pytest.raises(UserError, match="sample_steps needs a process that holds all weights"):
        SampleImages(SimpleNamespace(**enabled))


# ------------------------------------------------------------------ where they are shown


def test_weights_and_biases_is_sent_the_sheet(monkeypatch):
    sent = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(log=sent.append, Image=lambda sheet: ("picture", sheet)))
    trainer = SimpleNamespace(
        is_fsdp_enabled=False, is_deepspeed_enabled=False, eval_dataset=None,
        args=SimpleNamespace(sample_prompts=["a red circle"], report_to=["wandb"]),
        callback_handler=SimpleNamespace(callbacks=[]),
    )  # fmt: skip
    SampleImages(trainer)._report("sheet", 3)
    assert sent == [{"samples": ("picture", "sheet"), "train/global_step": 3}]


def test_a_tracker_that_fails_is_a_warning(tmp_path, rows, monkeypatch, caplog):
    def fail(*args):
        raise KeyError("the tracker is gone")

    trainer = trainer_of(tmp_path, rows, max_steps=1, sample_steps=1, sample_prompts=["a red circle"])
    monkeypatch.setattr(SampleImages, "_report", fail)
    trainer.train()
    assert "The sample pictures of step 1 could not be drawn: 'the tracker is gone'" in caplog.text


def test_a_sheet_has_sources_left_and_drawings_in_the_last_column():
    red, green, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue"))
    samples = [Sample("one", []), Sample("two " * 40, [red])]
    sheet = contact_sheet(samples, [green, blue], "step 3")
    left, right = 8 + 128, 8 + 256 + 8 + 128  # middles of the columns
    column = [np.asarray(sheet)[:, x] for x in (left, right)]
    is_there = [{colour for colour in map(tuple, one.tolist()) if 255 in colour and 0 in colour} for one in column]
    assert is_there == [{(255, 0, 0)}, {(0, 255, 0), (0, 0, 255)}]
    alone = contact_sheet(samples[:1], [green], "step 3")
    assert alone.width == 256 + 2 * 8


def test_wide_pictures_keep_their_shape():
    wide = Image.new("RGB", (64, 16), "red")
    sheet = np.asarray(contact_sheet([Sample("one", [])], [wide], "step 3"))
    is_red = (sheet == (255, 0, 0)).all(-1)
    assert (is_red.any(0).sum(), is_red.any(1).sum()) == (256, 64)


def test_tensorboard_shows_the_sheet(tmp_path, rows):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(
        tmp_path, rows, max_steps=2, sample_steps=1, sample_prompts=["a red circle"], report_to="tensorboard",
        save_strategy="no",
    )  # fmt: skip
    trainer.train()
    events = EventAccumulator(str(next((tmp_path / "runs").iterdir()))).Reload()
    shown = events.Images("samples")
    assert [event.step for event in shown] == [1, 2]
    sheet = Image.open(tmp_path / "samples" / "step-000002" / "sheet.png")
    assert is_same(Image.open(io.BytesIO(shown[-1].encoded_image_string)), sheet)
