# SPDX-License-Identifier: Apache-2.0
"""What spoils a step on one process stops all of them, with the same sentence."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.sample_watch import SampleWatch

FINE, BAD = torch.ones(2, 4), torch.tensor([[1.0] * 4, [1.0, 1.0, torch.inf, 1.0]])
TARGETS = torch.zeros(2, 4, dtype=torch.long)
NO_TARGETS = TARGETS - 100
STATE = SimpleNamespace(global_step=6)


def watch(max_skipped_rows=1):
    made = SampleWatch(max_skipped_rows)
    made.accelerator = Accelerator(cpu=True)
    return made


def look(made, fp16=False):
    made.on_pre_optimizer_step(SimpleNamespace(fp16=fp16), STATE, None)


def test_each_step_is_judged_by_its_own_batches():
    made = watch()
    for _ in range(2):
        made.note_losses(["a", "b"], FINE, TARGETS)
        made.note_losses(["c", "d"], FINE, TARGETS)
        made.note_gradient_norm(torch.tensor(3.0))
        look(made)
    made.note_losses(["a", "b"], FINE, TARGETS)
    made.note_losses(["c", "d"], BAD, TARGETS)
    with pytest.raises(UserError, match=r"^The loss of d is not finite in step 7; the step was not made\."):
        look(made)


def test_an_overflow_of_fp16_is_left_to_its_scaler():
    made = watch()
    made.note_losses(["a", "b"], FINE, TARGETS)
    made.note_gradient_norm(float("inf"))
    look(made, fp16=True)
    made.note_losses(["a", "b"], FINE, TARGETS)
    with pytest.raises(UserError, match=r"^The gradient of a step on a, b is not finite in step 7"):
        look(made)


def test_a_row_counts_once_however_often_it_comes():
    made = watch(max_skipped_rows=1)
    made.note_skipped([("a", "it is broken"), ("a", "it is broken")])
    made.check()
    made.note_skipped([("b", "it is gone")])
    with pytest.raises(UserError, match=r"2 rows cannot be used.*: a \(it is broken\), b \(it is gone\)\. "):
        made.check()


def test_a_long_list_is_shortened():
    made = watch(max_skipped_rows=0)
    made.note_skipped([(f"row-{i}", "broken") for i in range(25)])
    with pytest.raises(UserError, match=r"row-19 \(broken\) and 5 more\."):
        made.check()


def test_a_step_without_a_usable_sample_stops_but_not_for_one_broken_picture():
    made = watch()
    made.note_skipped([("a", "it is broken")])
    for target in (NO_TARGETS, TARGETS, NO_TARGETS):  # steps of one sample
        made.note_losses(["a"], FINE[:1], target[:1])
        look(made)
    made.note_losses(["b"], FINE[:1], NO_TARGETS[:1])
    with pytest.raises(UserError, match=r"^No sample of step 7 can be used: a \(it is broken\)\."):
        look(made)
    made = watch()
    made.note_losses(["a", "b"], FINE, torch.cat([NO_TARGETS[:1], TARGETS[:1]]))
    look(made)
    made.note_losses(["a", "b"], FINE, NO_TARGETS)
    with pytest.raises(UserError, match="No sample of step 7"):
        look(made)


def test_a_run_after_one_that_stopped_begins_anew():
    made = watch()
    made.note_losses(["a", "b"], BAD, TARGETS)
    with pytest.raises(UserError, match="not finite"):
        look(made)
    made.on_train_begin(None, STATE, None)
    made.note_losses(["a", "b"], FINE, TARGETS)
    look(made)


def one_of_two_is_spoilt(folder):
    AcceleratorState._reset_state(reset_partial_state=True)
    made = watch(max_skipped_rows=1)
    rank = made.accelerator.process_index
    made.note_losses([f"a{rank}", f"b{rank}"], BAD if rank == 1 else FINE, TARGETS)
    sentences = []
    for action in (lambda: look(made), lambda: (made.note_skipped([(f"r{rank}", "broken")]), made.check())):
        try:
            action()
        except UserError as error:
            sentences.append(str(error))
    (folder / f"{rank}.txt").write_text("\n".join(sentences))


def test_both_processes_stop_with_the_same_sentence(tmp_path):
    debug_launcher(one_of_two_is_spoilt, args=(tmp_path,), num_processes=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    bad, skipped = first.splitlines()
    assert bad.startswith("The loss of b1 is not finite in step 7")
    assert skipped.startswith("2 rows cannot be used, more than max_skipped_rows (1) allows: r0 (broken), r1 (broken)")
