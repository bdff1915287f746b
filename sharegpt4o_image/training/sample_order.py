# SPDX-License-Identifier: Apache-2.0
"""Which samples come in which batch: mixed by task, shuffled by (seed, epoch), the same on any number of processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.training_rows import SampleKey

Batch = list[SampleKey]
Pairs = list[tuple[int, int]]  # rows, and how often each came before in the epoch


def mix_tasks(num_sources: Sequence[int], edit_share: float | None, seed: int, epoch: int = 0) -> Pairs:
    """The (row, repetition) pairs of an epoch, as many as there are rows.

    Without `edit_share` every row once. With it that share of them are edits: the rows of a task come all equally
    often, but for the remainder, which the seed draws for each epoch.
    """
    if edit_share is None:
        return [(row, 0) for row in range(len(num_sources))]
    is_edit = np.array(num_sources) > 0
    num_edits = round(edit_share * len(is_edit))
    rng = np.random.default_rng([seed, 0, epoch])
    pairs: Pairs = []
    for rows, count in ((np.flatnonzero(is_edit), num_edits), (np.flatnonzero(~is_edit), len(is_edit) - num_edits)):
        if count and not len(rows):
            raise UserError(f"edit_share is {edit_share}, but the rows are all of one task; leave it out.")
        for repetition in range(-(-count // max(1, len(rows)))):
            left = count - repetition * len(rows)
            chosen = rows if left >= len(rows) else rng.permutation(rows)[:left]
            pairs += [(int(row), repetition) for row in chosen]
    return pairs


def fill_batches(lengths: Sequence[int], max_tokens: int, pads: bool) -> list[list[int]]:
    """Cut samples, in their order, into batches of at most `max_tokens` tokens.

    Args:
        lengths: tokens of each sample with its codes.
        max_tokens: of a batch; a longer sample is an error.
        pads: count every sample of a batch as long as its longest, for padded batches.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    used = longest = 0
    for index, length in enumerate(lengths):
        if length > max_tokens:
            raise UserError(
                f"max_tokens_per_batch is {max_tokens}, but a sample has {length} tokens; allow at least that many."
            )
        longest_now = max(longest, length)
        used_now = longest_now * (len(current) + 1) if pads else used + length
        if used_now > max_tokens:
            batches.append(current)
            current, used_now, longest_now = [], length, length
        current.append(index)
        used, longest = used_now, longest_now
    return [*batches, current] if current else batches


@dataclass
class SampleOrder(Sampler[Batch]):
    """The batches of one process, epoch by epoch; set `epoch` before iterating.

    Args:
        pairs: what [`mix_tasks`] gives for the first epoch.
        seed: of the order.
        batch_size: samples of a process's batch; ignored with `max_tokens`.
        process_index, num_processes: the process, and how many there are. The batches of one step, over all
            processes, are what one process with a batch as large would take.
        max_tokens: fill batches up to so many tokens instead. Which samples go together is then drawn once; an epoch
            shuffles the batches.
        lengths: tokens of each row, needed for `max_tokens`.
        pads: whether batches are padded, for `max_tokens`.
        shuffles: without it the samples come as they are in `pairs`, for evaluation.
        pairs_of: the pairs of any epoch, as many as `pairs`, which stay by default; not with `max_tokens`, where
            other lengths would fill another number of batches.
    """

    pairs: Pairs
    seed: int
    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    max_tokens: int | None = None
    lengths: Sequence[int] | None = None
    pads: bool = False
    shuffles: bool = True
    pairs_of: Callable[[int], Pairs] | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        self._filled = None if self.max_tokens is None else self._fill(self.max_tokens)

    def __len__(self) -> int:
        per_step = self.num_processes if self._filled is not None else self.num_processes * self.batch_size
        count = len(self.pairs) if self._filled is None else len(self._filled)
        return -(-count // per_step)

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, 1, self.epoch])
        if self._filled is not None:
            shuffled = [self._filled[i] for i in rng.permutation(len(self._filled))]
            for step in range(len(self)):
                place = step * self.num_processes + self.process_index
                yield self._keys(shuffled[place] if place < len(shuffled) else [])
            return
        pairs = self.pairs if self.pairs_of is None else self.pairs_of(self.epoch)
        order = (rng.permutation(len(pairs)) if self.shuffles else np.arange(len(pairs))).tolist()
        for step in range(len(self)):
            start = (step * self.num_processes + self.process_index) * self.batch_size
            yield self._keys([pairs[i] for i in order[start : start + self.batch_size]])

    def _keys(self, pairs: Pairs) -> Batch:
        keys = [SampleKey(self.epoch, row, repetition) for row, repetition in pairs]
        return keys or [SampleKey(self.epoch, None)]

    def _fill(self, max_tokens: int) -> list[Pairs]:
        assert self.lengths is not None
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.pairs))
        if self.pads:  # samples of about the same length together, those of equal length in random order
            order = order[np.argsort([self.lengths[self.pairs[i][0]] for i in order], kind="stable")]
        in_order = [self.pairs[i] for i in order]
        batches = fill_batches([self.lengths[row] for row, _ in in_order], max_tokens, self.pads)
        return [[in_order[i] for i in batch] for batch in batches]


class EpochTeller(TrainerCallback):
    """Tells a [`SampleOrder`] which epoch begins: the Trainer tells only samplers that accelerate wrapped."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed epoch has the number that it began with: `state.epoch` counts its steps as a fraction."""
        self._next = math.floor(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Set the number of this one."""
        train_dataloader.batch_sampler.epoch = self._next
        self._next += 1
