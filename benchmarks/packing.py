# SPDX-License-Identifier: Apache-2.0
"""How fast `pack` writes, against `cp`, against what `Dataset.push_to_hub` writes, and against upstream's layout.

    python benchmarks/packing.py [--records 20000] [--side 128] [--json out/packing.json]

All read the same picture files and write the same rows; each runs in a process of its own, whose memory is measured.
The pictures are PNG noise (about 49 kB at 128 px), as hard to compress as photographs. `pack` also decodes every
picture and compares it with its recorded size and checksum, which the others do not; `check` is that alone.
"""

import argparse
import hashlib
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.row_source import RowPlan, SourceFacts
from sharegpt4o_image.schema import ImageFile, Record, content_id, published_features

NUM_NOISES = 64  # different pictures; files repeat them


class FileSource:
    """Picture files as a source of rows."""

    row = Record
    has_looked = False

    def __init__(self, pictures: Path, side: int):
        self.folder = pictures
        self._paths = sorted(pictures.iterdir())
        self._side = side

    def plan(self) -> Iterator[RowPlan]:
        for path in self._paths:
            identity = content_id(name=path.name)
            yield RowPlan(identity, "text_to_image", identity, path.stat().st_size, path.name, (path,), (identity,))

    def load(self, plan: RowPlan) -> Record:
        [path] = plan.locator
        data = path.read_bytes()
        return Record(
            id=plan.id,
            task="text_to_image",
            input_prompt=f"noise number {path.stem}",
            output_image=ImageFile(bytes=data, path=path.name),
            output_image_resolution=[self._side, self._side],
            output_sha256=hashlib.sha256(data).hexdigest(),
            origin="synthesized",
        )

    def records(self) -> Iterator[Record]:
        return map(self.load, self.plan())

    def facts(self) -> SourceFacts:
        return SourceFacts("run", "noise")

    def close(self) -> None:
        """Nothing is open."""


def make_pictures(folder: Path, num_records: int, side: int) -> None:
    """The picture files that all read."""
    folder.mkdir(parents=True)
    noises = []
    for seed in range(NUM_NOISES):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, "PNG")
        noises.append(buffer.getvalue())
    for index in range(num_records):
        (folder / f"{index:06d}.png").write_bytes(noises[index % NUM_NOISES])


# --------------------------------------------------------------------------- what is compared


def run_cp(source: FileSource, pictures: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(pictures), str(out)], check=True)


def run_check(source: FileSource, pictures: Path, out: Path) -> None:
    assert all(find_fault(record) is None for record in source.records())


def run_pack(source: FileSource, pictures: Path, out: Path) -> None:
    pack(source, out)


def run_push_to_hub(source: FileSource, pictures: Path, out: Path) -> None:
    """As `Dataset.from_generator(...).push_to_hub()` does it, but for the upload: Arrow cache, then Parquet shards."""
    from datasets import Dataset

    def rows() -> Iterator[dict[str, Any]]:
        return (record.model_dump() for record in source.records())

    dataset = Dataset.from_generator(
        rows, features=published_features(), cache_dir=str(out / "cache"), writer_batch_size=100
    )
    num_shards = max(1, -(-dataset._estimate_nbytes() // (500 * 10**6)))  # as push_to_hub cuts it
    for index in range(num_shards):
        dataset.shard(num_shards, index, contiguous=True).to_parquet(str(out / f"train-{index:05d}.parquet"))


def run_upstream(source: FileSource, pictures: Path, out: Path) -> None:
    """Ten tar parts and one JSON array."""
    out.mkdir()
    rows = []
    paths = sorted(pictures.iterdir())
    for number in range(10):
        with tarfile.open(out / f"text_to_image_part_{number}.tar", "w") as part:
            for path in paths[number::10]:
                part.add(path, f"image/{path.name}")
                rows.append({"input_prompt": f"noise number {path.stem}", "output_image": f"image/{path.name}"})
    (out / "text_to_image.json").write_text(json.dumps(rows))


CONTENDERS: dict[str, Callable[[FileSource, Path, Path], None]] = {
    "cp": run_cp,
    "upstream's layout": run_upstream,
    "push_to_hub": run_push_to_hub,
    "check": run_check,
    "pack": run_pack,
}


# --------------------------------------------------------------------------- measuring


def measure_here(name: str, pictures: Path, side: int, out: Path) -> dict[str, float]:
    """Seconds and peak memory of one contender, in this process."""
    source = FileSource(pictures, side)
    start = time.perf_counter()
    CONTENDERS[name](source, pictures, out)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(name: str, folder: Path, side: int) -> dict[str, float]:
    """The same in a process of its own; what it wrote is deleted."""
    out = folder / "out"
    command = [sys.executable, __file__, "--only", name, "--folder", str(folder), "--side", str(side)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    shutil.rmtree(out, ignore_errors=True)
    return figures


def digest(folder: Path) -> str:
    """One checksum of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_deterministic(folder: Path, side: int) -> bool:
    """Whether two runs of `pack` write the same bytes."""
    digests = []
    for _ in range(2):
        run_pack(FileSource(folder / "pictures", side), folder / "pictures", folder / "again" / "set")
        digests.append(digest(folder / "again" / "set"))
        shutil.rmtree(folder / "again")
    return digests[0] == digests[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000, help="how many records")
    parser.add_argument("--side", type=int, default=128, help="pixels a side")
    parser.add_argument("--json", type=Path, default=Path("out/packing.json"), help="file for the figures")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(
            json.dumps(measure_here(options.only, options.folder / "pictures", options.side, options.folder / "out"))
        )
        return
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        make_pictures(folder / "pictures", options.records, options.side)
        megabytes = sum(path.stat().st_size for path in (folder / "pictures").iterdir()) / 1e6
        figures = {contender: measure(contender, folder, options.side) for contender in CONTENDERS}
        same = is_deterministic(folder, options.side)
    print(f"{options.records:,} records, {megabytes:,.0f} MB; pack twice, same bytes: {same}")
    print(f"{'':<20}{'seconds':>10}{'MB/s':>8}{'against cp':>12}{'memory, MB':>12}")
    for contender, figure in figures.items():
        rate, ratio = megabytes / figure["seconds"], figures["cp"]["seconds"] / figure["seconds"]
        print(
            f"{contender:<20}{figure['seconds']:>10.1f}{rate:>8,.0f}{ratio:>12.2f}{figure['peak_memory_mb']:>12,.0f}"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"records": options.records, "megabytes": megabytes, "is_deterministic": same, "figures": figures}
    options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
