# SPDX-License-Identifier: Apache-2.0
"""The program that trains: a YAML file and `--field value` -> a run, on one device or, by `accelerate launch`, many.

    python -m sharegpt4o_image.training.sft --config configs/tiny.yaml --output_dir runs/tiny
    accelerate launch -m sharegpt4o_image.training.sft --config configs/janus4o_7b.yaml --output_dir runs/janus4o-7b

The same command again goes on where it stopped. `sharegpt4o-image train` is the same with short names.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.training.run import TrainingSummary

EXIT_INTERRUPTED = 130  # as of the other verbs that go on


def run(
    argv: Sequence[str],
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_log: Callable[[dict[str, float]], None] = lambda logs: None,
) -> "TrainingSummary":
    """Parse the arguments and train.

    Args:
        argv: `--config FILE` and `--field value`, of [`RunArguments`] and [`Janus4oSFTConfig`].
        on_step: called with the number of optimizer steps done, and of all.
        on_log: called with what is logged: loss, token accuracy, throughput.
    """
    from sharegpt4o_image.training.run import train
    from sharegpt4o_image.training.run_arguments import parse_arguments

    return train(*parse_arguments(argv), on_step, on_log)


def _show_log() -> None:
    """What the package logs, each logging step included, goes to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("sharegpt4o_image")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


def main() -> None:
    """Run the program; an expected error becomes one sentence on stderr and exit code 2."""
    _show_log()
    rank = os.environ.get("RANK", "0")  # as launchers set it
    try:
        summary = run(sys.argv[1:])
    except (UserError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in ("trl", "accelerate", "peft"):
            raise
        remedy = '; type: pip install "sharegpt4o-image[train]"' if isinstance(error, ModuleNotFoundError) else ""
        process = "" if rank == "0" else f" (process {rank})"
        print(f"Error{process}: {error}{remedy}", file=sys.stderr)
        sys.exit(2)
    if rank == "0":
        print(summary.to_text())
    if summary.is_interrupted:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
