# SPDX-License-Identifier: Apache-2.0
"""Records with small true pictures; even indices are text-to-image, odd ones edits."""

import hashlib
import io
import random

from PIL import Image

from sharegpt4o_image.schema import TASKS, ImageFile, Record, content_id

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
