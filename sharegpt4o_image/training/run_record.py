# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: `run.json` says what was asked for, so that only the same run goes on in it.

run.json             first: the arguments, the data, versions
checkpoint-500/ ...  to go on from
model.safetensors, config.json, README.md ...   at the end: a Hub folder
training_log.json    last: the run is done
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from sharegpt4o_image.builders.staging import require_empty
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.checkpoints_of_run import last_complete_checkpoint
from sharegpt4o_image.training.run_arguments import RunArguments
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

RECORD_NAME = "run.json"
LOG_NAME = "training_log.json"

# Fields that a run may change when it goes on: they begin like this, and change what is shown and kept, not what is
# trained. The data set may move, since its rows are compared.
_FREE = (
    "dataset", "output_dir", "log_", "logging_", "report_to", "run_name", "project", "trackio_", "disable_tqdm",
    "save_", "hub_", "push_to_hub", "do_eval", "eval_steps", "eval_strategy", "eval_on_start", "eval_delay",
    "per_device_eval_batch_size", "sample_", "max_skipped_rows", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "dataloader_persistent_workers",
)  # fmt: skip
# Tokens and keys of accounts, in any dictionary of the arguments.
_SECRET = re.compile(r"(.*_)?token|.*key", re.IGNORECASE)
_PACKAGES = ("sharegpt4o-image", "torch", "transformers", "trl", "accelerate", "datasets")


def describe(arguments: RunArguments, config: Janus4oSFTConfig) -> dict[str, Any]:
    """What is asked for, as `run.json` keeps it: without tokens and keys."""
    described = {
        "arguments": asdict(arguments),
        "config": config.to_dict(),
        "num_processes": config.world_size,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    plain: dict[str, Any] = _without_secrets(json.loads(json.dumps(described, default=str), parse_constant=str))
    return plain


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(one) for name, one in value.items() if not _SECRET.fullmatch(name)}
    return [_without_secrets(one) for one in value] if isinstance(value, list) else value


def describe_rows(rows: Dataset, held_out: Dataset | None) -> dict[str, Any]:
    """How many rows are trained on and held out, and a hash of which: of their names and prompts."""
    parts = [part for part in (rows, held_out) if part is not None]
    named = [[*pair] for part in parts for pair in zip(part["id"], part["input_prompt"], strict=True)]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    return {"train_rows": len(rows), "held_out_rows": len(held_out or []), "ids": digest}


def check_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder with something else in it, and one where another run has got somewhere."""
    if not (folder / RECORD_NAME).is_file():
        require_empty(folder)
        return
    if not (folder / LOG_NAME).is_file() and last_complete_checkpoint(folder) is None:
        return
    changed = _differences(_read_record(folder), asked)
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); choose another output folder, give the "
            "settings it was begun with, or delete it first."
        )


def _read_record(folder: Path) -> dict[str, Any]:
    """The settings in `run.json` of a folder."""
    try:
        return _settings(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / RECORD_NAME} cannot be read ({error}); choose another output folder.") from error


def read_log(folder: Path) -> dict[str, Any]:
    """`training_log.json` of a finished run."""
    try:
        log = json.loads((folder / LOG_NAME).read_text(encoding="utf-8"))
        return {name: log[name] for name in log}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / LOG_NAME} cannot be read ({error}); delete it, and the same command writes it again."
        ) from error


def _differences(first: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each setting that is not as it was; what one of them does not have is left out."""
    second = _settings(now)
    return [
        f"{name} was {json.dumps(first[name])}, now {json.dumps(second[name])}"
        for name in first
        if name in second and first[name] != second[name] and not name.startswith(_FREE)
    ]


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    rows = {"rows": record["data"]} if "data" in record else {}
    return {**record["arguments"], **record["config"], "num_processes": record["num_processes"], **rows}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole or not there; what is no number in JSON must be `None` by then."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def without_nan(content: dict[str, Any]) -> dict[str, Any]:
    """The same with `None` for NaN and infinities, which JSON does not have."""
    plain: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return plain


@contextmanager
def claimed(folder: Path, asked: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for this process, however it ends, with `run.json` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is training into {folder}; wait for it, or choose another output folder."
            ) from error
        check_folder(folder, asked)
        if last_complete_checkpoint(folder) is None:
            write_json(folder / RECORD_NAME, asked)
        yield
    finally:
        os.close(handle)
