# SPDX-License-Identifier: Apache-2.0
"""Reported means equal a count by hand."""

import pytest
import torch
from accelerate import Accelerator

from sharegpt4o_image.janus4o.modeling_janus4o import Janus4oOutput
from sharegpt4o_image.training.training_metrics import CodeMetrics

# Two text-to-image samples and an edit, of eight codes each: two in every quarter. Code 1 is guessed throughout.
TARGETS = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0], [-100] * 8, [1, 1, 1, 1, 0, 0, 0, 0]])
LOSSES = torch.tensor([[1.0, 3, 1, 3, 1, 3, 1, 3], [0.0] * 8, [2.0, 2, 2, 2, 6, 6, 6, 6]])
BY_HAND = {
    "loss": (16 + 32) / 16,
    "token_accuracy": 8 / 16,
    "loss_text_to_image": 2.0,
    "token_accuracy_text_to_image": 0.5,
    "loss_text_and_image_to_image": 4.0,
    "token_accuracy_text_and_image_to_image": 0.5,
    "loss_quarter_1": 2.0,
    "token_accuracy_quarter_1": 3 / 4,
    "loss_quarter_2": 2.0,
    "token_accuracy_quarter_2": 3 / 4,
    "loss_quarter_3": 4.0,
    "token_accuracy_quarter_3": 1 / 4,
    "loss_quarter_4": 4.0,
    "token_accuracy_quarter_4": 1 / 4,
}


def output(rows=slice(None), losses=LOSSES):
    targets = TARGETS[rows]
    logits = torch.tensor([0.0, 1.0]).expand(*targets.shape, 2)
    return Janus4oOutput(logits=logits, target_codes=targets, token_losses=losses[rows])


IS_EDIT = torch.tensor([False, False, True])


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_the_means_of_one_batch(accelerator):
    metrics = CodeMetrics()
    metrics.add(output(), IS_EDIT)
    assert metrics.report(accelerator) == pytest.approx(BY_HAND)
    assert metrics.report(accelerator) == {}  # it starts anew


def test_several_batches_count_by_their_codes(accelerator):
    metrics = CodeMetrics()
    for sample in range(3):
        metrics.add(output([sample]), IS_EDIT[[sample]])
    assert metrics.report(accelerator) == pytest.approx(BY_HAND)


def test_a_task_that_was_not_seen_is_left_out(accelerator):
    metrics = CodeMetrics()
    metrics.add(output(slice(2)), IS_EDIT[:2])
    report = metrics.report(accelerator)
    assert report["loss"] == report["loss_text_to_image"] == 2
    assert not any("text_and_image" in name for name in report)
    metrics.add(output([1]), IS_EDIT[[1]])
    assert metrics.report(accelerator) == {}


def test_a_loss_that_is_not_finite_shows_in_its_own_task_only(accelerator):
    losses = LOSSES.clone()
    losses[2, 7] = torch.nan
    metrics = CodeMetrics()
    metrics.add(output(losses=losses), IS_EDIT)
    report = metrics.report(accelerator)
    assert report["loss_text_to_image"] == 2
    assert report["loss_quarter_1"] == 2
    assert report["loss_text_and_image_to_image"] != report["loss_text_and_image_to_image"]
