# SPDX-License-Identifier: Apache-2.0
"""The weight files of a checkpoint folder, read and written one shard at a time.

Tensors are views of the mapped file, so a shard costs its own size while it is open and nothing afterwards.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharegpt4o_image.errors import UserError

# In the order of preference: the safetensors files, then torch's own.
_NAMES = ("model.safetensors", "pytorch_model.bin")


def find_shards(checkpoint_dir: Path) -> list[Path]:
    """The files that hold the weights: those that an index names, or the only one."""
    for name in _NAMES:
        index, single = checkpoint_dir / f"{name}.index.json", checkpoint_dir / name
        if index.is_file():
            return _indexed_shards(index)
        if single.is_file():
            return [single]
    raise UserError(f"{checkpoint_dir} holds no {' or '.join(_NAMES)}; give the folder of a downloaded checkpoint.")


def _indexed_shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} names no shards; download the checkpoint again.")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.name} names {len(names)} shards and {len(missing)} of them are missing ({missing[0]}); "
            "download the checkpoint again."
        )
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or one sentence about what is wrong with the file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; give the folder of a downloaded checkpoint.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} instead of an object; download it again.")
    return content


def read_meta(shards: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor's shape and dtype, as tensors on the meta device; no weights are read."""
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for name, tensor in _open_shard(shard, "meta"):
            if name in tensors:
                raise UserError(f"The tensor {name} stands in two shards, also in {shard.name}; keep one of them.")
            tensors[name] = tensor
    return tensors


def iter_tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in one shard, mapped, not copied."""
    return _open_shard(shard, "cpu")


def _open_shard(shard: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    reader = _read_safetensors if shard.suffix == ".safetensors" else _read_torch_file
    try:
        yield from reader(shard, device)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{shard} cannot be read ({first_line}); download it again.") from error


def _read_safetensors(shard: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(shard, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            if device == "meta":
                part = opened.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise UserError(
                        f"{shard.name} stores {name} as {part.get_dtype()}; known are {', '.join(_DTYPES)}."
                    )
                yield name, torch.empty(part.get_shape(), dtype=dtype, device="meta")
            else:
                yield name, opened.get_tensor(name)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_torch_file(shard: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    is_mapped = device == "cpu" and zipfile.is_zipfile(shard)  # older files cannot be mapped
    content = torch.load(shard, map_location=device, weights_only=True, mmap=is_mapped)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{shard} holds something other than tensors by name; give a model's weights.")
    yield from content.items()


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that can be stored: contiguous, and each with memory of its own."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        is_shared = tensor.untyped_storage().data_ptr() in seen
        result[name] = tensor.contiguous().clone() if is_shared else tensor.contiguous()
        seen.add(tensor.untyped_storage().data_ptr())
    return result


class ShardWriter:
    """Writes shards as they come and names them when it is known how many there are."""

    def __init__(self, target_dir: Path):
        self._target_dir = target_dir
        self._names: list[list[str]] = []  # of the tensors in each shard
        self._num_bytes = 0

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write one shard; an empty one is skipped."""
        if not tensors:
            return
        path = self._path(len(self._names))
        try:
            save_file(_independent(tensors), path, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be written ({error}); is the disk full?") from error
        self._names.append(list(tensors))
        self._num_bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> None:
        """Give the shards their names, and write the index if there are several."""
        count = len(self._names)
        if count == 1:
            self._path(0).rename(self._target_dir / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._names):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._target_dir / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        path = self._target_dir / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self._target_dir / f"shard-{number}.partial"
