# SPDX-License-Identifier: Apache-2.0
"""What `datasets` fetches of a packed set on the Hub, counted in bytes: the first row, and a filter on metadata."""

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, environment
from picture_records import ListSource, make_record
from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.row_source import RowPlan
from sharegpt4o_image.schema import TASKS, ImageFile, Record, content_id

REPO = "owner/large"
SIDE = 800  # as PNG noise without compression: 1.9 MB, the mean of the released pictures


def noise(seed: int) -> ImageFile:
    buffer = io.BytesIO()
    pixels = random.Random(seed).randbytes(3 * SIDE * SIDE)
    Image.frombytes("RGB", (SIDE, SIDE), pixels).save(buffer, "PNG", compress_level=0)
    return ImageFile(bytes=buffer.getvalue(), path="noise.png")


class NoiseSource(ListSource):
    """As many rows as wanted, of both tasks; every third edit is of category B, which the last file holds alone."""

    def __init__(self, num_rows: int) -> None:
        super().__init__([])
        self._num_rows = num_rows
        self._pictures = [noise(seed) for seed in range(3)]

    def plan(self) -> Iterator[RowPlan]:
        for index in range(self._num_rows):
            size = len(self._pictures[0].bytes) * (1 + index % 2)
            yield RowPlan(content_id(index=index), TASKS[index % 2], "", size, "", (index,))

    def load(self, plan: RowPlan) -> Record:
        [index] = plan.locator
        is_edit = index % 2 == 1
        return make_record(index).model_copy(
            update={
                "output_image": self._pictures[index % 3],
                "output_image_resolution": [SIDE, SIDE],
                "output_sha256": None,
                "input_image": [self._pictures[(index + 1) % 3]] if is_edit else [],
                "input_image_resolution": [SIDE, SIDE] if is_edit else None,
                "edit_category": "AAB"[index % 3] if is_edit else None,
            }
        )


@pytest.fixture(params=[30, pytest.param(360, marks=pytest.mark.slow)])
def num_rows(request: pytest.FixtureRequest) -> int:
    """87 MB, or 1 GB."""
    return int(request.param)


@pytest.fixture
def hub(tmp_path: Path, num_rows: int) -> Iterator[LoopbackHub]:
    pack(NoiseSource(num_rows), tmp_path / "set")
    with LoopbackHub() as hub:
        hub.serve_folder(REPO, tmp_path / "set")
        yield hub


def run(hub: LoopbackHub, home: Path, code: str) -> str:
    """What a process without our package prints."""
    script = f"import sys; sys.modules['sharegpt4o_image'] = None\nfrom datasets import load_dataset\n{code}"
    variables = os.environ | environment(hub.endpoint, str(home))
    result = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("task", TASKS)
def test_the_first_row_costs_at_most_five_megabytes(hub: LoopbackHub, tmp_path: Path, task: str) -> None:
    code = f"row = next(iter(load_dataset('{REPO}', '{task}', split='train', streaming=True)))\nprint(row['id'])"
    assert run(hub, tmp_path / "home", code) == make_record(TASKS.index(task)).id
    assert hub.bytes_sent <= 5_000_000


def test_a_filter_on_metadata_reads_no_picture(hub: LoopbackHub, tmp_path: Path, num_rows: int) -> None:
    code = f"""rows = load_dataset(
        '{REPO}', 'text_and_image_to_image', split='train', streaming=True,
        columns=['id', 'edit_category'], filters=[('edit_category', '==', 'B')],
        storage_options={{'hf': {{'block_size': 1}}}},
    )
print(sum(1 for _ in rows))"""
    edits = range(1, num_rows, 2)
    assert int(run(hub, tmp_path / "home", code)) == sum(index % 3 == 2 for index in edits)
    assert hub.bytes_sent < 500_000  # a third of one picture
