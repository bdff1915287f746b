# SPDX-License-Identifier: Apache-2.0
"""Finished samples of a run -> published rows."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sharegpt4o_image.schema import TASKS, GeneratedImage, ImageFile, Record, Task
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.journal import Journal

LICENSE_FACT = "license"  # the name under which the journal remembers the licence of the run's rows


def iter_records(run_dir: Path) -> Iterator[Record]:
    """Every finished sample once: text-to-image rows first, then edits, each in the order of the run's plan.

    Reads: the journal and the blobs of `run_dir`, one row at a time; a run that is still going on may be read.
    """
    with closing(Journal.open(run_dir)) as journal:
        row_license = journal.read_fact(LICENSE_FACT)
        for task in TASKS:
            for item in journal.iter_finished(task):
                assert item.image is not None
                yield record_of(item.image, task, journal.blobs, row_license)


def record_of(image: GeneratedImage, task: Task, blobs: BlobStore, row_license: str | None) -> Record:
    """The published row of a picture; its bytes are those that the teacher sent."""
    prompt, topic, source = image.prompt, image.prompt.topic, image.source
    return Record(
        id=image.id,
        task=task,
        input_prompt=prompt.text,
        input_image=[_file(source, blobs)] if source else [],
        output_image=_file(image, blobs),
        output_image_resolution=[image.width, image.height],
        input_image_resolution=[source.width, source.height] if source else None,
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
        image_params=image.image_params,
        source_id=source.id if source else None,
        source_origin="synthesized" if source else None,
        source_license=row_license if source else None,
        output_sha256=image.sha256,
        output_phash=image.phash,
        usage={"prompt": prompt.usage, "image": image.usage},
        cost_usd=prompt.cost_usd + image.cost_usd,
        created_at=image.created_at,
        origin="synthesized",
        license=row_license,
    )


def _file(image: GeneratedImage, blobs: BlobStore) -> ImageFile:
    return ImageFile(bytes=blobs.read(image.sha256), path=f"{image.id}.{image.format}")
