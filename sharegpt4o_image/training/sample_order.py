# SPDX-License-Identifier: Apache-2.0
"""Which samples come in which batch: mixed by task, shuffled by (seed, epoch), the same on any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.training_rows import SampleKey

Batch = list[SampleKey]


def mix_tasks(num_sources: Sequence[int], edit_share: float | None, seed: int) -> list[tuple[int, int]]:
    """The (row, repetition) pairs of an epoch, as many as there are rows.

    Without `edit_share` every row once. With it that share of them are edits: the rows of a task come all equally
    often, but for the remainder, which the seed draws.
    """
    if edit_share is None:
        return [(row, 0) for row in range(len(num_sources))]
    is_edit = np.array(num_sources) > 0
    num_edits = round(edit_share * len(is_edit))
    rng = np.random.default_rng([seed, 0])
    pairs: list[tuple[int, int]] = []
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
        pairs: what [`mix_tasks`] gives.
        seed: of the order.
        batch_size: samples of a process's batch; ignored with `max_tokens`.
        process_index, num_processes: the process, and how many there are. The batches of one step, over all
            processes, are what one process with a batch as large would take.
        max_tokens: fill batches up to so many tokens instead. Which samples go together is then drawn once; an epoch
            shuffles the batches.
        lengths: tokens of each row, needed for `max_tokens`.
        pads: whether batches are padded, for `max_tokens`.
        shuffles: without it the samples come as they are in `pairs`, for evaluation.
    """

    pairs: list[tuple[int, int]]
    seed: int
    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    max_tokens: int | None = None
    lengths: Sequence[int] | None = None
    pads: bool = False
    shuffles: bool = True
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
        order = (rng.permutation(len(self.pairs)) if self.shuffles else np.arange(len(self.pairs))).tolist()
        for step in range(len(self)):
            start = (step * self.num_processes + self.process_index) * self.batch_size
            yield self._keys([self.pairs[i] for i in order[start : start + self.batch_size]])

    def _keys(self, pairs: list[tuple[int, int]]) -> Batch:
        keys = [SampleKey(self.epoch, row, repetition) for row, repetition in pairs]
        return keys or [SampleKey(self.epoch, None)]

    def _fill(self, max_tokens: int) -> list[list[tuple[int, int]]]:
        assert self.lengths is not None
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.pairs))
        if self.pads:  # samples of about the same length together, those of equal length in random order
            order = order[np.argsort([self.lengths[self.pairs[i][0]] for i in order], kind="stable")]
        in_order = [self.pairs[i] for i in order]
        batches = fill_batches([self.lengths[row] for row, _ in in_order], max_tokens, self.pads)
        return [[in_order[i] for i in batch] for batch in batches]
