# SPDX-License-Identifier: Apache-2.0
"""The loss in closed form: over exactly P positions, the first one, too; against the reference's stored values."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from safetensors.torch import load_file

from sharegpt4o_image.builders.converter import convert
from sharegpt4o_image.janus4o.modeling_janus4o import image_token_loss, image_token_losses
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import training_texts
from sharegpt4o_image.training.tiny_model import NUM_CODES, tiny_config, tiny_processor, untrained_model

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "tiny_deepseek"


def test_three_codes_by_hand():
    """Two codes to choose from: the logits (ln 3, 0) are the probabilities 3/4 and 1/4, (0, 0) are 1/2 and 1/2."""
    sure, even = [math.log(3), 0.0], [0.0, 0.0]
    logits = torch.tensor([[sure, sure, even]])
    targets = torch.tensor([[0, 1, 0]])
    by_hand = [math.log(4 / 3), math.log(4), math.log(2)]
    losses = image_token_losses(logits, targets)
    torch.testing.assert_close(losses, torch.tensor([by_hand]))
    assert image_token_loss(losses, targets).item() == pytest.approx(sum(by_hand) / 3)
    assert image_token_loss(losses, targets, num_items_in_batch=12).item() == pytest.approx(sum(by_hand) / 12)


def test_codes_that_are_not_trained_count_nowhere():
    logits = torch.zeros(2, 3, 4)
    targets = torch.tensor([[0, -100, 3], [-100, -100, -100]])
    losses = image_token_losses(logits, targets)
    torch.testing.assert_close(losses, math.log(4) * torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    assert image_token_loss(losses, targets).item() == pytest.approx(math.log(4))
    assert image_token_loss(losses[1:], targets[1:]).item() == 0  # and not nan


# ------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return untrained_model(tiny_config(processor))


def example(processor, num_samples=3):
    ids = processor.image_generation_ids("a red circle", 0)
    codes = torch.randint(NUM_CODES, (num_samples, 64), generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.tensor([ids] * num_samples), "target_codes": codes}


def test_all_positions_are_trained_and_each_from_the_one_before(model, processor):
    batch = example(processor, 1)
    out = model(**batch)
    assert out.logits.shape == (1, 64, NUM_CODES)
    by_hand = -out.logits.log_softmax(-1)[0, torch.arange(64), batch["target_codes"][0]]
    torch.testing.assert_close(out.loss, by_hand.mean())
    torch.testing.assert_close(out.token_losses, by_hand[None])
    for place in (0, 31, 63):
        changed = batch["target_codes"].clone()
        changed[0, place] = (changed[0, place] + 1) % NUM_CODES
        logits = model(input_ids=batch["input_ids"], target_codes=changed).logits
        assert torch.equal(logits[:, : place + 1], out.logits[:, : place + 1])  # it is not seen where it is predicted
        assert place == 63 or not torch.equal(logits[:, place + 1], out.logits[:, place + 1])


def test_labels_take_samples_out_and_num_items_scales(model, processor):
    batch = example(processor)
    labels = torch.zeros(3, 64, dtype=torch.long)
    labels[1] = -100
    labels[2, 10:] = -100
    out, plain = model(**batch, labels=labels), model(**batch)
    trained = torch.cat([plain.token_losses[0], plain.token_losses[2, :10]])
    torch.testing.assert_close(out.loss, trained.mean())
    torch.testing.assert_close(model(**batch, labels=labels, num_items_in_batch=500).loss, trained.sum() / 500)
    assert torch.equal(out.target_codes == -100, labels == -100)


def test_an_untrained_model_knows_nothing_and_the_vocabulary_head_is_not_used(processor):
    config = tiny_config(processor)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = untrained_model(config)
    loss = model(**example(processor, 8)).loss
    assert loss.item() == pytest.approx(math.log(NUM_CODES), abs=0.35)
    loss.backward()
    assert model.lm_head.weight.grad is None
    assert all(parameter.grad is None for parameter in model.model.vqmodel.parameters())
    assert model.model.generation_head.vision_head.weight.grad.abs().sum() > 0


class ShiftedOnceMore(Janus4oSFTTrainer):
    """Upstream's loss (defect T1): shifting aligned logits again trains codes 1 to P - 1 and code 0 never."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][:, 0] = -100
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch * 63 / 64
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def token_losses(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "prompt_lengths", "target_codes")}
    with torch.no_grad():
        return model.eval()(**inputs).token_losses.mean(0)


def test_what_the_untrained_first_code_costs(tmp_path, processor):
    """All pictures are alike. Upstream's loss at position 0 stays where it began while ours falls as elsewhere."""
    rows = Dataset.from_dict({"input_prompt": ["a red circle", "two"] * 4, "target_codes": [list(range(64))] * 8})
    loss = {}
    for trainer_class in (Janus4oSFTTrainer, ShiftedOnceMore):
        torch.manual_seed(0)
        model = untrained_model(tiny_config(processor))
        config = Janus4oSFTConfig(
            str(tmp_path), max_steps=12, per_device_train_batch_size=2, learning_rate=5e-3, prompt_dropout=0,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = trainer_class(model, config, processing_class=processor, train_dataset=rows)
        batch = trainer.data_collator(list(rows))
        before = token_losses(model, batch)
        assert before[0] == pytest.approx(math.log(NUM_CODES), abs=1)
        trainer.train()
        loss[trainer_class] = token_losses(model, batch)
    assert loss[Janus4oSFTTrainer][0] < 3
    assert loss[ShiftedOnceMore][0] > math.log(NUM_CODES) - 1
    for after in loss.values():
        assert after[1:].mean() < 4.5


# ------------------------------------------------------------------ the reference's values


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The reference's checkpoint, its source picture, prompts and stored values."""
    if not GOLDENS.is_dir():
        pytest.skip("the reference outputs are not beside this clone")
    target = tmp_path_factory.mktemp("converted")
    convert(GOLDENS, target)
    prompts = json.loads((GOLDENS / "expected.json").read_text(encoding="utf-8"))["prompts"]
    return target, prompts, load_file(GOLDENS / "expected.safetensors")


def golden_rows(prompts, expected, is_encoded):
    """One row of each task; as the target's picture is not stored, it always has codes."""
    codes = expected["target_codes"][0].tolist()
    picture = {"bytes": (GOLDENS / "source.png").read_bytes(), "path": None}
    columns = {
        "input_prompt": [prompts["t2i"]["prompt"], prompts["edit"]["prompt"]],
        "input_image": [[], [picture]],
        "target_codes": [codes, codes],
    }
    features = {"input_prompt": Value("string"), "input_image": List(Image()), "target_codes": List(Value("uint16"))}
    if is_encoded:
        columns["source_codes"] = [[], [expected["source_codes"][0].tolist()]]
        features["source_codes"] = List(List(Value("uint16")))
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize("row_layout", ["packed", "padded"])
@pytest.mark.parametrize("is_encoded", [True, False])
def test_the_trainers_loss_is_the_mean_of_the_references_values(tmp_path, golden, row_layout, is_encoded):
    """Through the data set, the collator and the trainer; codes stored or encoded on the fly; as one batch, too."""
    folder, prompts, expected = golden
    rows = golden_rows(prompts, expected, is_encoded)
    config = Janus4oSFTConfig(
        str(tmp_path), preset="paper", prompt_dropout=0, source_code_dropout=0, row_layout=row_layout, use_cpu=True,
        per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Janus4oSFTTrainer(str(folder), config, train_dataset=rows, eval_dataset=rows)
    model = trainer.model.eval()
    means = {name: expected[name].mean() for name in ("t2i_token_nll_cond", "edit_token_nll_full")}
    dataset = trainer.get_train_dataloader().dataset
    for row, mean in zip((dataset[0], dataset[1]), means.values(), strict=True):
        with torch.no_grad():
            loss = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator([row])))
        torch.testing.assert_close(loss, mean, atol=1e-4, rtol=0)
    (batch,) = trainer.get_train_dataloader()
    inputs = trainer._prepare_inputs(batch)
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(inputs))
        accumulated = trainer.compute_loss(model, dict(inputs), num_items_in_batch=torch.tensor(4 * 576))
    mean = torch.stack(list(means.values())).mean()
    torch.testing.assert_close(loss, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(accumulated, mean / 2, atol=1e-4, rtol=0)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(mean.item(), abs=1e-4)
    assert metrics["eval_loss_text_to_image"] == pytest.approx(means["t2i_token_nll_cond"].item(), abs=1e-4)
    in_edit = metrics["eval_loss_text_and_image_to_image"]
    assert in_edit == pytest.approx(means["edit_token_nll_full"].item(), abs=1e-4)
