# SPDX-License-Identifier: Apache-2.0
"""Records with small true pictures; even indices are text-to-image, odd ones edits."""

import hashlib
import io
import random
from collections.abc import Iterable, Iterator

from PIL import Image

from sharegpt4o_image.builders.row_source import RowPlan, SourceFacts
from sharegpt4o_image.schema import TASKS, ImageFile, Record, RejectedRecord, content_id

SIDE = 16


def png(seed: int) -> bytes:
    """A picture of noise that follows from `seed`."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (SIDE, SIDE), random.Random(seed).randbytes(3 * SIDE * SIDE)).save(buffer, "PNG")
    return buffer.getvalue()


def make_record(index: int) -> Record:
    """The record number `index`; the same number gives the same record."""
    is_edit = index % 2 == 1
    picture = png(index)
    return Record(
        id=content_id(index=index),
        task=TASKS[index % 2],
        input_prompt=f"prompt number {index}",
        input_image=[ImageFile(bytes=png(1000 + index), path=f"source-{index}.png")] if is_edit else [],
        output_image=ImageFile(bytes=picture, path=f"{index}.png"),
        output_image_resolution=[SIDE, SIDE],
        input_image_resolution=[SIDE, SIDE] if is_edit else None,
        pipeline="editing" if is_edit else "prompt_first",
        objects=["circle", "square"],
        edit_category="Object-level" if is_edit else None,
        prompt_model="offline-writer",
        image_model="offline-painter",
        image_params={"size": f"{SIDE}x{SIDE}"},
        output_sha256=hashlib.sha256(picture).hexdigest(),
        usage={"input_tokens": 3, "details": {"text": 3}},
        cost_usd=0.25,
        created_at=f"2026-11-{1 + index % 28:02d}T00:00:00Z",
        origin="synthesized",
    )


class ListSource:
    """Records in memory as a source of rows.

    Args:
        records (iterable): the rows.
        negatives (iterable): rows that a gate refused.
        row (type): what the rows are.
    """

    def __init__(
        self, records: Iterable[Record], negatives: Iterable[RejectedRecord] = (), row: type[Record] = Record
    ) -> None:
        self.row = row
        self.folder = None
        self.has_looked = False
        self.loaded: list[str] = []  # ids, in the order in which they were asked for
        self._positives = [*records]
        self._records = [*self._positives, *negatives]

    def plan(self) -> Iterator[RowPlan]:
        for index, record in enumerate(self._records):
            pictures = [*(image.bytes for image in record.input_image), record.output_image.bytes]
            yield RowPlan(
                id=record.id,
                task=record.task,
                digest=hashlib.sha256(
                    record.model_dump_json(exclude={"input_image", "output_image"}).encode()
                ).hexdigest(),
                num_bytes=sum(map(len, pictures)),
                location=f"record {index}",
                locator=(index,),
                pictures=tuple(hashlib.sha256(picture).hexdigest() for picture in pictures),
                is_negative=index >= len(self._positives),
            )

    def load(self, plan: RowPlan) -> Record:
        record = self._records[plan.locator[0]]
        self.loaded.append(record.id)
        return record

    def facts(self) -> SourceFacts:
        return SourceFacts(kind="run", name="a list")

    def close(self) -> None:
        """Nothing to let go of."""
