# SPDX-License-Identifier: Apache-2.0
"""Score records of one model -> `.eval_results/*.yaml`, which the Hub shows on the model's page, and `model-index`.

A file holds one overall score. The Hub takes it when the data set named in it is registered there as a benchmark and
has a task of that id.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.score_files import (
    ScoreFile,
    drawn_by,
    is_variant,
    judged_by,
    model_name,
    num_missing,
)
from sharegpt4o_image.evaluation.score_record import ScoreRecord

# Where the items of a benchmark are published (our choice). GenEval and DPG-Bench are published on GitHub: their data
# sets on the Hub are copies, of which the user names one.
DATASET_IDS = {"imgedit": "sysuyy/ImgEdit"}
EDIT_BENCHMARKS = ("imgedit", "imgedit-uge", "scene-edits")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Source:
    """Where the evaluation can be looked at.

    Args:
        url (`str`, *optional*): needed where another field is given.
        name (`str`, *optional*): shown for it.
    """

    url: str | None = None
    name: str | None = None


def entries_of(
    files: Sequence[ScoreFile],
    dataset_ids: Mapping[str, str],
    task_ids: Mapping[str, str],
    source: Source = Source(),
) -> dict[str, EvalResultEntry]:
    """File name -> entry, for records of one model.

    Args:
        files: what was measured; each name once.
        dataset_ids: benchmark -> its data set on the Hub, `owner/name`; those of `DATASET_IDS` need not be named.
        task_ids: name of a record -> task in that data set; by default the name, in letters that an id may have.
        source: where the evaluation can be looked at.
    """
    records = one_model(files)
    _refuse_unused("--dataset-id", dataset_ids, {record.benchmark for record in records})
    _refuse_unused("--task-id", task_ids, {record.name for record in records})
    entries: dict[str, EvalResultEntry] = {}
    for record in records:
        task_id = _task_id(record, task_ids.get(record.name))
        if f"{task_id}.yaml" in entries:
            raise UserError(
                f"two scores would have the task id {task_id}; give {record.name!r} another with --task-id"
            )
        entries[f"{task_id}.yaml"] = _entry(record, _dataset_id(record, dataset_ids), task_id, source)
    return entries


def write_entries(entries: Mapping[str, EvalResultEntry], folder: Path) -> list[Path]:
    """Write the files into `MODEL_DIR/.eval_results`; others there stay."""
    if folder.name != ".eval_results":
        raise UserError(f"{folder} is not called .eval_results, so the Hub would not read it; end --output with that")
    paths = []
    for name, entry in entries.items():
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        write_whole(folder / name, text.encode())
        paths.append(folder / name)
    return paths


def one_model(files: Sequence[ScoreFile]) -> list[ScoreRecord]:
    """The records, which must be of one model and have different names."""
    models = sorted({model_name(file.record) for file in files})
    if len(models) > 1:
        raise UserError(f"the scores are of {len(models)} models ({', '.join(models)}); give those of one")
    weights = sorted(
        {str(file.record.generator["revision"]) for file in files if file.record.generator.get("revision")}
    )
    if len(weights) > 1:
        raise UserError(
            f"the scores are of {len(weights)} models called {models[0]} (revisions {', '.join(weights)}); give those "
            "of one"
        )
    paths: dict[str, Path] = {}
    for file in files:
        name = file.record.name
        if name in paths:
            raise UserError(f"{paths[name]} and {file.path} both hold {name} of {models[0]}; give one of them")
        paths[name] = file.path
    return [file.record for file in files]


def _refuse_unused(option: str, given: Mapping[str, str], known: set[str]) -> None:
    unused = sorted(given.keys() - known)
    if unused:
        raise UserError(f"{option} names {unused[0]!r}, of which there is no score; name {', '.join(sorted(known))}")


def _dataset_id(record: ScoreRecord, given: Mapping[str, str]) -> str:
    dataset_id = given.get(record.benchmark) or DATASET_IDS.get(record.benchmark)
    if dataset_id is None:
        raise UserError(
            f"which data set on the Hub is {record.benchmark}? name it with "
            f"--dataset-id {record.benchmark}=owner/name; it has to be registered there as a benchmark"
        )
    try:
        validate_repo_id(dataset_id)
    except HFValidationError as error:
        raise UserError(f"{dataset_id!r} is no data set on the Hub ({error}); give owner/name") from error
    if "/" not in dataset_id:
        raise UserError(f"{dataset_id!r} is no data set on the Hub; give owner/name")
    return dataset_id


def _task_id(record: ScoreRecord, given: str | None) -> str:
    task_id = task_id_of(record) if given is None else given
    if not _ID.fullmatch(task_id):
        raise UserError(f"{task_id!r} cannot be a task id; give letters, digits, dots, dashes and underscores")
    if is_variant(record) and task_id == record.benchmark:
        raise UserError(
            f"{record.name} is a variant, which may not stand under {task_id} itself; give --task-id another name"
        )
    return task_id


def task_id_of(record: ScoreRecord) -> str:
    """The name of a record in the letters of an id; that of a variant is never the benchmark's own.

    `geneval[detector=a/b]` -> `geneval_detector_a_b`
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", record.name).strip("_.-")
    return f"{plain}_variant" if is_variant(record) and plain == record.benchmark else plain


def _entry(record: ScoreRecord, dataset_id: str, task_id: str, source: Source) -> EvalResultEntry:
    if source.url is not None and not re.match(r"https?://[^/?#@\s]+([/?#]|\Z)", source.url):
        raise UserError("--source-url is no public address; give one that begins with https:// and has no password")
    try:
        return EvalResultEntry(
            dataset_id=dataset_id,
            task_id=task_id,
            value=round(record.overall.value, 6),
            date=record.created_at or None,
            source_url=source.url,
            source_name=source.name,
            notes=notes_of(record),
        )
    except ValueError as error:
        raise UserError("--source-name needs --source-url besides; give both") from error


def notes_of(record: ScoreRecord) -> str:
    """Name, interval, what is missing and the judge, in one line."""
    line = record.overall
    interval = "no interval" if line.low is None or line.high is None else f"{line.low:.4g} to {line.high:.4g}"
    parts = [
        record.name,
        f"{line.name} of {record.unit:g}",
        f"95 % interval {interval}",
        f"{record.num_scored:,} of {record.num_expected:,} scored, {num_missing(record):,} missing",
        f"judged by {judged_by(record)}",
        f"drawn by {drawn_by(record)}",
    ]
    return "; ".join(parts)


# ------------------------------------------------------------------ model-index


def model_index_of(records: Sequence[ScoreRecord]) -> tuple[EvalResult, ...]:
    """All scores for the older `model-index` in the card; variants are data sets of their own there."""
    return tuple(
        EvalResult(
            task_type="image-to-image" if record.benchmark in EDIT_BENCHMARKS else "text-to-image",
            dataset_type=task_id_of(record),
            dataset_name=record.name,
            metric_type=line.name,
            metric_name=f"{record.name}, {line.name}",
            metric_value=round(line.value, 6),
            metric_args={"low": line.low, "high": line.high, "count": line.count, "missing": num_missing(record)},
        )
        for record in records
        for line in record.scores
    )
