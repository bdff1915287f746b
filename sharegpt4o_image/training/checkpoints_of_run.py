# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run -> the checkpoint from which it goes on."""

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sharegpt4o_image.errors import UserError


def last_complete_checkpoint(run_dir: str | Path, before: int | None = None) -> Path | None:
    """The `checkpoint-N` with the largest N that was written to its end; `None` if there is none.

    `transformers.trainer_utils.get_last_checkpoint` takes half-written ones, too.

    Args:
        run_dir: folder of the run.
        before: look only at smaller N.
    """
    numbered = {}
    for folder in Path(run_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdecimal() and is_complete(folder):
            numbered[int(number)] = folder
    last = max((number for number in numbered if before is None or number < before), default=None)
    return None if last is None else numbered[last]


def step_of(checkpoint_dir: str | Path) -> int:
    """The N of `checkpoint-N`."""
    return int(Path(checkpoint_dir).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def is_complete(checkpoint_dir: str | Path) -> bool:
    """Whether a run can go on from a checkpoint: it has the state of the run and of its random generators.

    The state is the last file that [`Janus4oSFTTrainer`] writes, after every process has written its own.
    Checkpoints of `save_only_model` have no generators: weights alone do not continue a run.
    """
    folder = Path(checkpoint_dir)
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(folder.glob("rng_state*.pth"))


def mark_incomplete(checkpoint_dir: str | Path) -> None:
    """Say that a checkpoint's files are about to be written over."""
    (Path(checkpoint_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)


def checkpoint_to_resume(run_dir: str | Path, wanted: str | bool | None) -> str | None:
    """What `resume_from_checkpoint` of [`~transformers.Trainer.train`] stands for: a complete checkpoint, or none."""
    if not wanted:
        return None
    last = last_complete_checkpoint(run_dir if wanted is True else Path(wanted).parent)
    if wanted is True:
        if last is None:
            raise UserError(f"{run_dir} has no complete checkpoint; start the run without resuming.")
        return str(last)
    if not is_complete(wanted):
        remedy = "start the run without resuming" if last is None else f"resume from {last}"
        raise UserError(f"{wanted} is not a complete checkpoint; {remedy}.")
    return wanted
