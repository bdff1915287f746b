# SPDX-License-Identifier: Apache-2.0
"""SIGTERM -> a checkpoint after the step at hand, and the end of the run, on all processes at the same step.

`enable_jit_checkpoint` of transformers 5.23 saves on whichever process has the signal, at its own time: several
processes then wait for each other for ever.
"""

import atexit
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_SAME_SIGNAL_SECONDS = 10  # a launcher passes on what its group got already; later ones are meant (our choice)


class StopOnSigterm(TrainerCallback):
    """Ends a run that [`listening`] surrounds, at the end of a step.

    A second SIGTERM ends the process at once, as Ctrl-C does all along.
    """

    def __init__(self) -> None:
        self.was_interrupted = False
        self._asked_at: float | None = None
        self._group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Wait for SIGTERM; only the main thread can."""
        self.was_interrupted, self._asked_at = False, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)

    def _on_sigterm(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > _SAME_SIGNAL_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1 and self._group is None:
            self._group = distributed.new_group(backend="gloo")  # on the CPU: nothing waits for the GPU's step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._is_asked(args.world_size) or state.global_step >= state.max_steps:
            return
        logger.warning("SIGTERM: saving a checkpoint after step %d, then ending the run.", state.global_step)
        self.was_interrupted = True
        control.should_log = control.should_save = control.should_training_stop = True
        control.should_evaluate = False  # the time until SIGKILL is short

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.was_interrupted:  # the parent calls it when an epoch breaks off, too
            control.should_save = control.should_evaluate = False

    def _is_asked(self, num_processes: int) -> bool:
        """Whether any process was asked to stop; each gets the same answer."""
        is_asked = torch.tensor(self._asked_at is not None, dtype=torch.uint8)
        if num_processes > 1:
            distributed.all_reduce(is_asked, distributed.ReduceOp.MAX, self._group)
        return bool(is_asked)


def ignore_sigterm(worker_id: int) -> None:
    """`worker_init_fn` of a `DataLoader`: a SIGTERM to the group must not take the workers from the last steps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@cache
def kill_workers_at_exit() -> None:
    """For such workers: at the end of a process that an error ends, Python sends them SIGTERM and waits for ever."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes a killed worker for an error
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
