# SPDX-License-Identifier: Apache-2.0
"""The `encode` verb: a packed data set -> the codes of all its pictures beside it, made by one or more processes.

A file of the data set is the unit of work: its codes file appears whole or not at all, and a run that goes on, or
another one at the same time, skips or copies what is there.
"""

import errno
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from sharegpt4o_image.checkpoints import load_image_tokenizer
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.processing_janus4o import GEOMETRIES
from sharegpt4o_image.training.code_store import CodeStore, DataFile, check_columns, count_rows, find_data_files
from sharegpt4o_image.training.encoding import tokenizer_fingerprint
from sharegpt4o_image.training.file_encoder import FileEncoder, FileNote

DEFAULT_GEOMETRY = "center_crop"  # of the default preset
DEFAULT_BATCH_SIZE = 16  # our choice: the first layers hold 75 MB for each picture of 384 pixels
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Encoding:
    """What `encode` did, and what is there now.

    Args:
        codes_dir: the folder of the codes.
        geometry: how pictures became square.
        num_files: files of the data set.
        num_files_encoded: files that were done now; the others were done before.
        num_rows: rows with codes.
        num_pictures_encoded: pictures that went through the encoder now.
        num_pictures_copied: pictures of the files done now whose codes were there already.
        skipped: rows without codes: `file`, `id`, `reason`.
    """

    codes_dir: str
    geometry: str
    num_files: int
    num_files_encoded: int
    num_rows: int
    num_pictures_encoded: int
    num_pictures_copied: int
    skipped: list[dict[str, str]]

    def to_text(self) -> str:
        """What was done, and what training will leave out."""
        files = f"{self.num_files_encoded} of {self.num_files} files, geometry {self.geometry}"
        pictures = f"{self.num_pictures_encoded} pictures encoded, {self.num_pictures_copied} copied"
        done = f"{files}: {pictures}" if self.num_files_encoded else f"already encoded ({self.geometry})"
        skipped = f", {len(self.skipped)} without, which training skips" if self.skipped else ""
        return f"{done}; {self.num_rows} rows have codes{skipped}, in {self.codes_dir}"


def encode_dataset(
    dataset_dir: Path,
    model_name: str,
    *,
    geometry: str = DEFAULT_GEOMETRY,
    num_processes: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Encoding:
    """Store the codes of every picture of a data set, except of those that are there and fit.

    Reads: `id`, `input_image`, `output_image`, `output_sha256` of the two configurations, in every split.
    Writes: `codes/<fingerprint>/<config>/<data file>`, see `code_store.py`.

    Args:
        dataset_dir: a folder that `pack` wrote.
        model_name: the checkpoint whose image tokenizer is used.
        geometry: how pictures become square; the recipe's `geometry`.
        num_processes: each takes a data file at a time, on a GPU of its own where there are several.
        batch_size: pictures that a process encodes at once.
        on_progress: called with the number of rows read, and of all that are to be.
    """
    if geometry not in GEOMETRIES:
        raise UserError(f"there is no geometry {geometry!r}; choose {' or '.join(GEOMETRIES)}")
    files = find_data_files(dataset_dir)
    check_columns(files)
    model, processor = load_image_tokenizer(model_name)
    processor.geometry = geometry
    store = CodeStore(dataset_dir, tokenizer_fingerprint(model, processor))
    pending = [file for file in files if store.find_fault(file)]
    total = sum(map(count_rows, pending))
    job = _Job(store, model_name, batch_size, min(num_processes, len(pending)))
    report = on_progress or (lambda done, total: None)
    try:
        if job.num_processes > 1:
            del model  # each process has its own
            notes = _encode_in_processes(job, pending, lambda done: report(done, total))
        else:
            done = itertools.count(1)
            encoder = _open_encoder(job, model, processor, lambda: report(next(done), total))
            notes = [encoder.encode(file) for file in pending]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"no space left for {store.folder}; free some and run the same command again") from error
    return _summarize(store, files, notes)


def _summarize(store: CodeStore, files: list[DataFile], notes: list[FileNote]) -> Encoding:
    num_rows, skipped = 0, []
    for file in files:
        rows = store.read(file, ["id", "fault"]).to_pylist()
        faulty = [row for row in rows if row["fault"] is not None]
        num_rows += len(rows) - len(faulty)
        skipped += [{"file": file.name, "id": row["id"], "reason": row["fault"]} for row in faulty]
    return Encoding(
        codes_dir=str(store.folder),
        geometry=store.fingerprint.geometry,
        num_files=len(files),
        num_files_encoded=len(notes),
        num_rows=num_rows,
        num_pictures_encoded=sum(note.num_encoded for note in notes),
        num_pictures_copied=sum(note.num_copied for note in notes),
        skipped=skipped,
    )


# ------------------------------------------------------------------ processes


@dataclass(frozen=True)
class _Job:
    """What every process needs to know."""

    store: CodeStore
    model_name: str
    batch_size: int
    num_processes: int


def _open_encoder(
    job: _Job, model: Janus4oForImageGeneration, processor: Janus4oProcessor, on_row: Callable[[], None]
) -> FileEncoder:
    num_threads = max(1, (os.cpu_count() or 1) // max(1, job.num_processes))
    return FileEncoder(job.store, model, processor, job.batch_size, num_threads, on_row)


def _encode_in_processes(job: _Job, files: list[DataFile], on_rows: Callable[[int], None]) -> list[FileNote]:
    """Deal the files to processes, each the next one when it has finished one."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    num_started, num_rows = context.Value("i"), context.Value("q")
    with ProcessPoolExecutor(job.num_processes, context, _start_worker, (job, num_started, num_rows)) as pool:
        futures = [pool.submit(_encode_file, file) for file in files]
        try:
            is_done = False
            while not is_done:
                finished, unfinished = wait(futures, _POLL_SECONDS, FIRST_EXCEPTION)
                on_rows(num_rows.value)
                is_done = not unfinished or any(future.exception() for future in finished)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a process that encoded was killed, perhaps for want of memory; what it finished is kept: run the "
                "same command again with a smaller --batch-size or fewer --num-processes"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_encoder: FileEncoder  # of this process


def _start_worker(job: _Job, num_started: "Synchronized[int]", num_rows: "Synchronized[int]") -> None:
    """Load the model in a worker process, on the next GPU where there are any."""
    global _encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with num_started.get_lock():
        rank = num_started.value
        num_started.value += 1
    torch.set_num_threads(max(1, torch.get_num_threads() // job.num_processes))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    model, processor = load_image_tokenizer(job.model_name)
    processor.geometry = job.store.fingerprint.geometry

    def count_row() -> None:
        with num_rows.get_lock():
            num_rows.value += 1

    _encoder = _open_encoder(job, model, processor, count_row)


def _end_with_parent() -> None:
    """Without this, the workers of a run that was killed would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_file(file: DataFile) -> FileNote:
    return _encoder.encode(file)
