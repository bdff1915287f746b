# SPDX-License-Identifier: Apache-2.0
"""How fast `pack` writes pictures, against copying the same bytes into one file, and how much memory it takes.

    python benchmarks/packing.py [--megabytes 500] [--json out/packing.json]

The pictures are PNG noise of 256 px: about 0.2 MB each, as hard to compress as photographs.
"""

import argparse
import io
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.schema import ImageFile, Record, content_id

SIDE = 256
NUM_PICTURES = 32  # different ones; the rows repeat them in fresh buffers


def make_pictures() -> list[bytes]:
    """The different pictures, as PNG files."""
    pictures = []
    for seed in range(NUM_PICTURES):
        buffer = io.BytesIO()
        noise = random.Random(seed).randbytes(3 * SIDE * SIDE)
        Image.frombytes("RGB", (SIDE, SIDE), noise).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def make_records(pictures: list[bytes], num_bytes: int) -> Iterator[Record]:
    """Text-to-image records until their pictures hold `num_bytes`."""
    made = 0
    for index in range(num_bytes):
        if made >= num_bytes:
            return
        picture = bytes(bytearray(pictures[index % len(pictures)]))
        made += len(picture)
        yield Record(
            id=content_id(index=index),
            task="text_to_image",
            input_prompt=f"noise number {index}",
            output_image=ImageFile(bytes=picture, path=f"{index}.png"),
            output_image_resolution=[SIDE, SIDE],
            origin="synthesized",
        )


def copy_bytes(records: Iterator[Record], path: Path) -> int:
    """The same pictures one after the other in a file, without waiting for the disk: the upper bound."""
    with path.open("wb") as file:
        return sum(file.write(record.output_image.bytes) for record in records)


def check_only(records: Iterator[Record]) -> int:
    """What the check of each picture takes without any writing."""
    checked = 0
    for record in records:
        assert find_fault(record) is None
        checked += len(record.output_image.bytes)
    return checked


def measure(num_bytes: int, folder: Path) -> dict[str, float]:
    """Megabytes a second of the three, and the memory that the process took at most."""
    pictures = make_pictures()
    rates = {}
    runs = {
        "copy": lambda records: copy_bytes(records, folder / "copy.bin"),
        "check": check_only,
        "pack": lambda records: pack(records, folder / "set").configs["text_to_image"].file_bytes,
    }
    for name, run in runs.items():
        start = time.perf_counter()
        written = run(make_records(pictures, num_bytes))
        rates[name] = written / 1e6 / (time.perf_counter() - start)
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**{f"{name}_mb_per_second": rate for name, rate in rates.items()}, "peak_memory_mb": peak_kilobytes / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="how much to pack")
    parser.add_argument("--json", type=Path, default=Path("out/packing.json"), help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures = measure(options.megabytes * 10**6, Path(folder))
    print(f"{'':<8}{'MB/s':>10}{'against copy':>16}")
    for name in ("copy", "check", "pack"):
        rate = figures[f"{name}_mb_per_second"]
        print(f"{name:<8}{rate:>10,.0f}{rate / figures['copy_mb_per_second']:>16.2f}")
    print(f"memory at most: {figures['peak_memory_mb']:,.0f} MB")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"megabytes": options.megabytes, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
