# SPDX-License-Identifier: Apache-2.0
"""Which samples come when: every row once, the same on any number of processes, resumed where it stopped."""

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from accelerate import skip_first_batches
from torch.utils.data import DataLoader

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.sample_order import SampleOrder, fill_batches, mix_tasks
from sharegpt4o_image.training.training_rows import SampleKey

SHORT, LONG = 650, 1850  # tokens of a text-to-image and of an edit sample at 384 px (performance reference, 6.2)


def every_row(num_rows):
    return [(row, 0) for row in range(num_rows)]


def lengths_of(num_rows, seed=0):
    return np.random.default_rng(seed).choice([SHORT, LONG], num_rows).tolist()


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [None, 8192])
def test_every_row_comes_once_in_an_epoch_over_all_processes(num_processes, max_tokens):
    orders = [
        SampleOrder(
            every_row(50), 7, 4, process_index=i, num_processes=num_processes, max_tokens=max_tokens,
            lengths=lengths_of(50), epoch=1,
        )
        for i in range(num_processes)
    ]  # fmt: skip
    batches = [list(order) for order in orders]
    assert {len(one) for one in batches} == {len(order) for order in orders}  # as many on each
    assert len({len(order) for order in orders}) == 1
    rows = [key.row for one in batches for batch in one for key in batch if key.row is not None]
    assert sorted(rows) == list(range(50))
    assert all(batch for one in batches for batch in one)  # a blank fills up


def test_the_processes_of_a_step_share_what_one_process_would_take():
    one = list(SampleOrder(every_row(50), 7, 8))
    two = [list(SampleOrder(every_row(50), 7, 4, process_index=i, num_processes=2)) for i in (0, 1)]
    for whole, first, second in zip(one, *two, strict=True):
        assert [key for key in first + second if key.row is not None] == whole


def test_the_last_batch_is_filled_with_blanks_where_a_process_has_none():
    first, second = (list(SampleOrder(every_row(5), 0, 4, process_index=i, num_processes=2)) for i in (0, 1))
    assert [len(first[0]), len(second[0])] == [4, 1]
    second = list(SampleOrder(every_row(3), 0, 4, process_index=1, num_processes=2))
    assert second == [[SampleKey(0, None)]]


@pytest.mark.parametrize("max_tokens", [None, 8192])
def test_epochs_and_seeds_differ_and_come_again(max_tokens):
    def batches(seed, epoch):
        return list(SampleOrder(every_row(50), seed, 4, max_tokens=max_tokens, lengths=lengths_of(50), epoch=epoch))

    def rows(of):
        return [key.row for batch in of for key in batch]

    assert batches(0, 0) == batches(0, 0)
    assert rows(batches(0, 0)) != rows(batches(0, 1))
    assert rows(batches(0, 0)) != rows(batches(1, 0))


def test_without_shuffling_rows_come_in_their_order():
    batches = list(SampleOrder(every_row(5), 0, 2, shuffles=False))
    assert [[key.row for key in batch] for batch in batches] == [[0, 1], [2, 3], [4]]


# ------------------------------------------------------------------ tasks


def test_without_edit_share_every_row_comes_once():
    assert mix_tasks([1, 0, 2], None, seed=0) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("edit_share", "num_edits"), [(0.0, 0), (0.25, 5), (0.5, 10), (0.8, 16), (1.0, 20)])
def test_edit_share_gives_exact_counts_and_even_repetitions(edit_share, num_edits):
    num_sources = [1] * 7 + [0] * 13
    pairs = mix_tasks(num_sources, edit_share, seed=0)
    assert len(pairs) == len(set(pairs)) == 20
    assert sum(num_sources[row] for row, _ in pairs) == num_edits
    for task in (range(7), range(7, 20)):
        counts = Counter(row for row, _ in pairs if row in task)
        times = [counts[row] for row in task]
        assert max(times) - min(times) <= 1
        assert all(sorted(n for row, n in pairs if row == one) == list(range(counts[one])) for one in task)


def test_which_rows_are_left_out_depends_on_the_seed():
    chosen = [mix_tasks([1] * 50 + [0] * 50, 0.25, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_each_epoch_leaves_other_rows_out_and_comes_again():
    pairs_of = partial(mix_tasks, [1] * 8 + [0] * 8, 0.25, 0)
    order = SampleOrder(pairs_of(0), 0, 4, pairs_of=pairs_of)
    edits = []
    for epoch in (0, 1, 2, 3, 1):
        order.epoch = epoch
        batches = list(order)
        assert len(batches) == len(order) == 4
        edits.append({key.row for batch in batches for key in batch if key.row < 8})
    assert [len(one) for one in edits] == [4] * 5
    assert edits[4] == edits[1] != edits[0]
    assert len(set().union(*edits)) > 6


def test_edit_share_of_one_task_is_an_error():
    with pytest.raises(UserError, match=r"edit_share is 0\.5, but the rows are all of one task; leave it out"):
        mix_tasks([1, 1], 0.5, seed=0)
    assert mix_tasks([1, 1], 1.0, seed=0) == [(0, 0), (1, 0)]


# ------------------------------------------------------------------ token budgets


def test_batches_of_tokens_literally():
    assert fill_batches([3, 3, 3, 5, 1], max_tokens=8, pads=False) == [[0, 1], [2, 3], [4]]
    assert fill_batches([3, 3, 3, 5, 1], max_tokens=8, pads=True) == [[0, 1], [2], [3], [4]]
    assert fill_batches([8], max_tokens=8, pads=True) == [[0]]
    assert fill_batches([], max_tokens=8, pads=False) == []
    with pytest.raises(UserError, match="max_tokens_per_batch is 8, but a sample has 9 tokens"):
        fill_batches([1, 9], max_tokens=8, pads=False)


@pytest.mark.parametrize("pads", [False, True])
def test_a_batch_never_has_more_tokens_than_allowed(pads):
    """Packed, every token computed is real; padded, samples of like length meet: at most 5 % is waste."""
    lengths = [length + offset % 40 for offset, length in enumerate(lengths_of(2000))]
    order = SampleOrder(every_row(2000), 0, 1, max_tokens=16_384, lengths=lengths, pads=pads)
    computed = real = 0
    for batch in order:
        of_batch = [lengths[key.row] for key in batch]
        tokens = max(of_batch) * len(of_batch) if pads else sum(of_batch)
        assert tokens <= 16_384
        computed, real = computed + tokens, real + sum(of_batch)
    assert computed / real <= 1.05
    assert real / (len(order) * 16_384) > 0.85  # the budget is used


def test_padded_batches_of_random_samples_waste_far_more():
    """What the two measures above save: a padded batch of 8 of both tasks computes 1.4 times the tokens."""
    lengths = lengths_of(2000)
    batches = [[lengths[key.row] for key in batch] for batch in SampleOrder(every_row(2000), 0, 8)]
    assert sum(max(one) * len(one) for one in batches) / sum(lengths) > 1.35


# ------------------------------------------------------------------ resumption


class Rows:
    """Samples that are their own keys."""

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("max_tokens", [None, 8192])
def test_a_resumed_epoch_goes_on_with_the_same_samples_and_epoch(num_workers, max_tokens):
    order = SampleOrder(every_row(60), 3, 4, max_tokens=max_tokens, lengths=lengths_of(60))
    loader = DataLoader(Rows(), batch_sampler=order, collate_fn=list, num_workers=num_workers)
    order.epoch = 2
    whole = list(loader)
    assert {key.epoch for batch in whole for key in batch} == {2}
    resumed = skip_first_batches(loader, 5)
    assert len(resumed) == len(whole) - 5
    assert list(resumed) == whole[5:]
    assert all(first != second for first, second in pairwise(whole))
