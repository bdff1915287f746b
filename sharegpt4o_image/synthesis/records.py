# SPDX-License-Identifier: Apache-2.0
"""Finished samples of a run -> published rows."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sharegpt4o_image.schema import TASKS, GeneratedImage, ImageFile, Record, RejectedRecord, SourceImage, Task
from sharegpt4o_image.synthesis.blobs import BlobStore, MissingBlob
from sharegpt4o_image.synthesis.journal import Journal

log = logging.getLogger(__name__)


def iter_records(run_dir: Path) -> Iterator[Record]:
    """Every finished sample once: text-to-image rows first, then edits, each in the order of the run's plan.

    Reads: the journal and the blobs of `run_dir`, one row at a time; a run that is still going on may be read. A row
    whose picture is gone is left out, with a warning.
    """
    for record, _ in _iter_rows(run_dir, is_rejected=False):
        yield record


def iter_rejected_records(run_dir: Path) -> Iterator[RejectedRecord]:
    """Every picture that a gate refused, in the order of [`iter_records`]."""
    for record, reason in _iter_rows(run_dir, is_rejected=True):
        yield RejectedRecord(**dict(record), reject_reason=reason or "")


def _iter_rows(run_dir: Path, is_rejected: bool) -> Iterator[tuple[Record, str | None]]:
    with closing(Journal.open(run_dir)) as journal:
        for task in TASKS:
            for item in journal.iter_items(task, is_rejected):
                if item.image is None:
                    continue
                try:
                    yield record_of(item.image, task, journal.blobs), item.reason
                except MissingBlob as fault:
                    log.warning("left out the row %s: %s", item.image.id, fault)


def record_of(image: GeneratedImage, task: Task, blobs: BlobStore) -> Record:
    """The published row of a picture; its bytes are those that the teacher sent."""
    prompt, topic = image.prompt, image.prompt.topic
    sources = image.sources or ((prompt.described,) if prompt.described else ())
    first = image.sources[0] if image.sources else None
    return Record(
        id=image.id,
        task=task,
        input_prompt=prompt.text,
        input_image=[_file(source, blobs) for source in image.sources],
        output_image=_file(image, blobs),
        output_image_resolution=[image.width, image.height],
        input_image_resolution=[first.width, first.height] if first else None,
        pipeline=topic.pipeline,
        objects=topic.objects or None,
        background=topic.background,
        style=topic.style,
        lighting=topic.lighting,
        camera=topic.camera,
        composition=topic.composition,
        document_type=topic.document_type,
        edit_category=topic.edit_category,
        edit_task=topic.edit_task,
        prompt_model=prompt.prompt_model,
        image_model=image.image_model,
        served_model=prompt.served_model,
        template_version=prompt.template_version,
        image_params=image.image_params | ({"served_model": image.served_model} if image.served_model else {}),
        source_id=_joined(source.id for source in sources),
        source_origin=_joined(source.origin for source in sources),
        source_license=_joined(source.license or "unknown" for source in sources),
        output_sha256=image.sha256,
        output_phash=image.phash,
        usage={"prompt": prompt.usage, "image": image.usage},
        cost_usd=prompt.cost_usd + image.cost_usd,
        created_at=image.created_at,
        origin="synthesized",
        license=image.license,
    )


def _joined(values: Iterator[str]) -> str | None:
    return "; ".join(values) or None


def _file(image: GeneratedImage | SourceImage, blobs: BlobStore) -> ImageFile:
    return ImageFile(bytes=blobs.read(image.sha256), path=f"{image.id}.{image.format}")
