# SPDX-License-Identifier: Apache-2.0
"""Samples, tokens and operations are counted once each, over the time that was spent on training."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from datasets import concatenate_datasets
from transformers import TrainerCallback

from sharegpt4o_image.training import throughput
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.throughput import Throughput
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows, training_texts
from sharegpt4o_image.training.tiny_model import tiny_config, tiny_processor, untrained_model

P = 64
STEP_SECONDS, OTHER_SECONDS = 2, 1000  # on the clock of these tests


class Clock:
    def __init__(self):
        self.seconds = 500.0

    def __call__(self):
        return self.seconds


class TenFlopsForEachToken:
    def of(self, lengths, num_sources):
        return 10 * sum(lengths) + 1_000 * num_sources


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "_now", clock)
    return clock


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return untrained_model(tiny_config(processor))


@pytest.fixture(scope="module")
def rows(model, processor):
    """Four edits, then four text-to-image rows."""
    return concatenate_datasets(
        [edit_rows(model, processor, 4, seed=1), text_to_image_rows(model, processor, 4, seed=2)]
    )


def counter(device="cpu", dtype=torch.bfloat16):
    return Throughput(TenFlopsForEachToken(), torch.device(device), dtype)


def packed_batch(prompts, num_sources=0, blank=None):
    labels = torch.zeros(len(prompts), P, dtype=torch.long)
    if blank is not None:
        labels[blank] = -100
    sources = {"source_pixel_values": torch.zeros(num_sources, 3, 32, 32)} if num_sources else {}
    return {"labels": labels, "prompt_lengths": torch.tensor(prompts), **sources}


def test_rates_are_counts_over_seconds(clock):
    counted = counter()
    assert counted.add(packed_batch([10, 30], num_sources=1)) == 10 * (73 + 93) + 1_000
    counted.add(packed_batch([20]))
    clock.seconds += 4
    report = counted.report(Accelerator(cpu=True))
    tokens = 73 + 93 + 83
    assert report == {
        "samples_per_second": 3 / 4,
        "tokens_per_second": tokens / 4,
        "tflops_per_second": pytest.approx((10 * tokens + 1_000) / 4 / 1e12),
        "padding_share": 0.0,
    }
    clock.seconds += 4
    assert counted.report(Accelerator(cpu=True)) == {}  # nothing since


def test_blank_samples_and_padding_are_no_throughput(clock):
    counted = counter()
    padded = {"labels": torch.zeros(3, P, dtype=torch.long), "attention_mask": torch.zeros(3, 40, dtype=torch.long)}
    padded["labels"][2] = -100
    for row, length in enumerate((40, 10, 5)):
        padded["attention_mask"][row, 40 - length :] = 1
    counted.add(padded)
    clock.seconds += 1
    report = counted.report(Accelerator(cpu=True))
    assert (report["samples_per_second"], report["tokens_per_second"]) == (2, 103 + 73)
    assert report["padding_share"] == pytest.approx(1 - (103 + 73) / (3 * 103))
    counted.add(packed_batch([3], blank=0))
    clock.seconds += 1
    report = counted.report(Accelerator(cpu=True))
    assert (report["samples_per_second"], report["padding_share"]) == (0, 1)


def test_pauses_do_not_count_even_when_they_fail(clock):
    counted = counter()
    counted.add(packed_batch([10]))
    clock.seconds += 1
    with contextlib.suppress(RuntimeError), counted.paused():
        clock.seconds += 100
        raise RuntimeError
    clock.seconds += 1
    assert counted.report(Accelerator(cpu=True))["samples_per_second"] == 1 / 2


def test_mfu_is_told_where_the_peak_is_known(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    on_gpu = counter("cuda")
    on_gpu.add(packed_batch([10]))
    clock.seconds += 1e-9
    assert on_gpu.report(Accelerator(cpu=True))["mfu"] == pytest.approx(730 / (1e-9 * 989e12), rel=1e-3)
    in_fp32 = counter("cuda", torch.float32)
    in_fp32.add(packed_batch([10]))
    clock.seconds += 1
    assert "mfu" not in in_fp32.report(Accelerator(cpu=True))


@pytest.mark.parametrize("row_layout", ["packed", "padded"])
def test_tokens_of_real_batches(row_layout, processor, rows, clock):
    collate = DataCollatorForImageGeneration(processor, row_layout=row_layout)
    counted = counter()
    counted.add(collate([rows[0], rows[4], rows[5]]))
    clock.seconds += 1
    lengths = [
        len(processor.image_generation_ids(rows[i]["input_prompt"], num_sources)) + P - 1
        for i, num_sources in ((0, 1), (4, 0), (5, 0))
    ]
    report = counted.report(Accelerator(cpu=True))
    assert report["tokens_per_second"] == sum(lengths)
    computed = sum(lengths) if row_layout == "packed" else 3 * max(lengths)
    assert report["padding_share"] == pytest.approx(1 - sum(lengths) / computed)


# ------------------------------------------------------------------ in a run


class Passing(TrainerCallback):
    """Lets time pass: a little in each step, much in what is not training."""

    def __init__(self, clock):
        self._clock = clock

    def on_step_begin(self, args, state, control, **kwargs):
        self._clock.seconds += STEP_SECONDS

    def on_evaluate(self, args, state, control, **kwargs):
        self._clock.seconds += OTHER_SECONDS


class SlowlySaved(Janus4oSFTTrainer):
    """Saving takes long, too."""

    def save_model(self, *args, **kwargs):
        throughput._now.seconds += OTHER_SECONDS
        super().save_model(*args, **kwargs)


def run(folder, model, processor, rows, clock, resume=None, **overrides):
    arguments = Janus4oSFTConfig(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", per_device_train_batch_size=2,
        gradient_accumulation_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, save_steps=1,
        learning_rate=0.0, **overrides,
    )  # fmt: skip
    trainer = SlowlySaved(
        model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=rows.select([4]),
        callbacks=[Passing(clock)],
    )  # fmt: skip
    clock.seconds += OTHER_SECONDS  # until training begins
    trainer.train(resume_from_checkpoint=resume)
    return trainer, [entry for entry in trainer.state.log_history if "samples_per_second" in entry]


def test_a_run_reports_the_rates_of_training_alone(tmp_path, model, processor, rows, clock):
    trainer, logs = run(tmp_path, model, processor, rows, clock, max_steps=3)
    assert [entry["samples_per_second"] for entry in logs] == [4 / STEP_SECONDS] * 3
    assert all("mfu" not in entry for entry in logs)
    sources = [1] * 4 + [0] * 4
    epoch = [
        len(processor.image_generation_ids(prompt, num_sources)) + P - 1
        for prompt, num_sources in zip(rows["input_prompt"], sources, strict=True)
    ]
    assert sum(entry["tokens_per_second"] for entry in logs[:2]) == sum(epoch) / STEP_SECONDS
    operations = sum(entry["tflops_per_second"] for entry in logs) * STEP_SECONDS * 1e12
    assert trainer.state.total_flos == pytest.approx(operations)


def test_the_first_log_of_a_resumed_run_is_right(tmp_path, model, processor, rows, clock):
    run(tmp_path, model, processor, rows, clock, max_steps=3)
    clock.seconds += OTHER_SECONDS
    checkpoint = str(tmp_path / "checkpoint-2")
    _, logs = run(tmp_path, model, processor, rows, clock, resume=checkpoint, max_steps=3)
    assert logs[-1]["step"] == 3
    assert logs[-1]["samples_per_second"] == 4 / STEP_SECONDS
