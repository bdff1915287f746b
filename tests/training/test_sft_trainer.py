# SPDX-License-Identifier: Apache-2.0
"""The trainer trains what it should, and nothing else; the collator's masks are exact."""

import math

import pytest
import torch
from datasets import concatenate_datasets

from sharegpt4o_image.training.conditions import Dropout
from sharegpt4o_image.training.data_collator import DataCollatorForImageGeneration
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows, training_texts
from sharegpt4o_image.training.tiny_model import NUM_CODES, tiny_config, tiny_processor, untrained_model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return untrained_model(tiny_config(processor)).eval()


@pytest.fixture
def rows(model, processor):
    """Four edits, then four text-to-image rows."""
    edits = edit_rows(model, processor, 4, seed=1)
    return concatenate_datasets([edits, text_to_image_rows(model, processor, 4, seed=2)])


def collator(processor, prompt=0.0, codes=0.0, null=0.0):
    dropout = Dropout(prompt=prompt, source_code=codes, null=null)
    return DataCollatorForImageGeneration(processor, dropout, row_layout="padded")


def config(tmp_path, **overrides):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no"}
    return Janus4oSFTConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, **(defaults | overrides))


def test_a_step_changes_every_trainable_parameter_and_no_frozen_one(tmp_path, model, processor, rows):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = config(tmp_path, learning_rate=1e-2, warmup_steps=0, max_steps=3, per_device_train_batch_size=8)
    Janus4oSFTTrainer(model, arguments, processor, train_dataset=rows).train()
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith("model.vqmodel")
        assert torch.equal(parameter, before[name]) == is_frozen, name


def mixed_rows(model, processor, num_rows, seed):
    parts = [edit_rows(model, processor, num_rows, seed), text_to_image_rows(model, processor, num_rows, seed + 1)]
    return concatenate_datasets(parts)


def test_the_held_out_loss_begins_at_the_entropy_of_the_codes_and_falls(tmp_path, model, processor):
    seen, held_out = mixed_rows(model, processor, 96, seed=1), mixed_rows(model, processor, 8, seed=3)
    arguments = config(tmp_path, max_steps=24, per_device_train_batch_size=8, learning_rate=1e-3)
    trainer = Janus4oSFTTrainer(model, arguments, processor, train_dataset=seen, eval_dataset=held_out)
    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(math.log(NUM_CODES), abs=0.35)
    assert trainer.evaluate()["eval_loss"] == before  # nothing is dropped at random
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3


def test_accumulation_does_not_change_the_loss_scale(tmp_path, model, processor, rows):
    norms = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model.zero_grad(set_to_none=True)
        arguments = config(
            tmp_path, max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            learning_rate=0.0, logging_steps=1, prompt_dropout=0.0, source_code_dropout=0.0, null_dropout=0.0,
        )  # fmt: skip
        trainer = Janus4oSFTTrainer(model, arguments, processor, train_dataset=rows)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_loss_is_the_mean_over_all_codes(model, processor, rows):
    batch = collator(processor)([rows[i] for i in range(4, 8)])
    with torch.no_grad():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        out = model(ids, attention_mask=mask, target_codes=batch["target_codes"])
    by_hand = -out.logits.log_softmax(-1).gather(-1, batch["target_codes"][..., None]).mean()
    torch.testing.assert_close(out.loss, by_hand)
    assert out.logits.shape == (4, processor.num_image_tokens, NUM_CODES)


def test_collator_lays_out_both_tasks(processor, rows):
    batch = collator(processor)([rows[0], rows[4]])
    num_codes = processor.num_image_tokens
    assert batch["source_pixel_values"].shape == (1, 3, 32, 32)
    assert batch["source_codes"].shape == batch["target_codes"][:1].shape == (1, num_codes)
    assert batch["labels"].shape == (2, num_codes)
    padded = batch["attention_mask"][1] == 0
    assert padded.any()
    assert not padded[int(padded.sum()) :].any()
    assert (batch["input_ids"][1][padded] == processor.tokenizer.pad_token_id).all()


def test_null_rows_keep_bos_and_boi_and_no_source(processor, rows):
    batch = collator(processor, prompt=1.0, null=1.0)([rows[0], rows[4]])
    tokenizer = processor.tokenizer
    pad, boi = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(processor.image_start_token)
    assert "source_pixel_values" not in batch
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        told = ids[mask.bool()].tolist()
        assert told == [tokenizer.bos_token_id, *[pad] * (len(told) - 2), boi]


def test_dropped_source_codes_stay_pads(model, processor, rows):
    batch = collator(processor, codes=1.0)([rows[0]])
    assert batch["dropped_source_codes"].all()
    embeds = model.embed_prompt(
        batch["input_ids"], batch["source_pixel_values"], batch["source_codes"], batch["dropped_source_codes"]
    )
    pad_embedding = model.get_input_embeddings()(torch.tensor(processor.tokenizer.pad_token_id))
    is_code = model._source_code_positions(batch["input_ids"])
    assert int(is_code.sum()) == processor.num_image_tokens
    torch.testing.assert_close(embeds[is_code], pad_embedding.expand(processor.num_image_tokens, -1))


def test_rates_of_the_masks(processor, rows):
    dropping = collator(processor, prompt=0.3, codes=0.5, null=0.2)
    batches = [dropping([rows[0] | {"epoch": i}, rows[4]]) for i in range(600)]
    kept = [b for b in batches if "dropped_source_codes" in b]
    assert len(kept) / 600 == pytest.approx(0.8, abs=0.06)
    assert sum(b["dropped_source_codes"][0, 0].item() for b in kept) / len(kept) == pytest.approx(0.5, abs=0.08)


def test_a_cut_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_length is 1024"):
        config(tmp_path, max_length=1024)
    with pytest.raises(ValueError, match="null_dropout is 2"):
        config(tmp_path, null_dropout=2)
