# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark -> what other evaluation tools read: lmms-eval, torch-fidelity, evalscope and t2v_metrics.

    torch-fidelity   OUT/<id>.png, flat, nothing else; clean-fid reads it, too
    evalscope        OUT/pictures.jsonl of {id, prompt, image_path}; t2v_metrics can be fed from the same lines
    lmms-eval        OUT/imgedit.json, a log that its model `from_log` answers from

The folder appears whole or not at all.
"""

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.layout_pictures import LayoutFolder, LayoutPicture
from sharegpt4o_image.evaluation.score_record import MissingItem

KID_SUBSET_SIZE = 1000  # torch-fidelity's default of `kid_subset_size`
LMMS_EVAL_TASK = "imgedit"
LMMS_EVAL_ORDER = (
    "from datasets import load_dataset; import json; "
    "print(json.dumps(list(load_dataset('kcz358/imgedit', split='test')['key'])))"
)
_NUM_NAMED = 5


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path (`Path`): folder.
        num_pictures (`int`): of the pictures exported.
        left_out (`tuple`): what could not be used, each with its reason.
        missing (`tuple`): items without a picture.
        notes (`tuple`): what to type, and what to know.
    """

    path: Path
    num_pictures: int
    left_out: tuple[MissingItem, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self) | {"path": str(self.path)}

    def to_text(self) -> str:
        """For people."""
        lines = [f"Wrote {self.path}: {self.num_pictures:,} pictures"]
        if self.left_out:
            lines.append(f"{len(self.left_out):,} left out")
            lines += [f"  {one.item}: {one.reason}" for one in self.left_out[:_NUM_NAMED]]
            lines += ["  ..."] if len(self.left_out) > _NUM_NAMED else []
        if self.missing:
            more = ", ..." if len(self.missing) > _NUM_NAMED else ""
            lines.append(f"{len(self.missing):,} items have no picture: {', '.join(self.missing[:_NUM_NAMED])}{more}")
        return "\n".join([*lines, *self.notes])


def _exported(source: LayoutFolder, target: Path, notes: Sequence[str]) -> Exported:
    return Exported(target, len(source.pictures), source.left_out, source.missing, tuple(notes))


# ------------------------------------------------------------------ torch-fidelity


def to_torch_fidelity(source: LayoutFolder, target: Path) -> Exported:
    """Write one PNG for each picture into a flat folder; never JPEG, whose losses change the numbers."""
    names = Counter(picture.id for picture in source.pictures)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"two pictures would be called {twice[0]}.png; give them different names first")
    others = 0
    with _whole_folder(target) as folder:
        for picture in source.pictures:
            others += _write_png(picture, folder / f"{picture.id}.png")
    notes = [f"calculate_metrics(input1={str(target)!r}, input2=..., fid=True, kid=True)"]
    if len(source.pictures) < KID_SUBSET_SIZE:
        notes.append(
            f"Warning: {len(source.pictures):,} pictures are fewer than kid_subset_size {KID_SUBSET_SIZE}; give "
            "kid_subset_size=N with N at most the pictures of either side."
        )
    if others:
        notes.append(
            f"Warning: {others:,} pictures are of files called .png that hold another format; its losses stay."
        )
    return _exported(source, target, notes)


def _write_png(picture: LayoutPicture, path: Path) -> bool:
    """Copy or write a PNG; true for a file that was no PNG inside."""
    is_png = picture.is_png()
    if is_png and picture.box is None:
        shutil.copyfile(picture.path, path)
    else:
        picture.open().convert("RGB").save(path, "PNG")  # PNG has no CMYK
    return not is_png


# ------------------------------------------------------------------ evalscope, t2v_metrics


def to_evalscope(source: LayoutFolder, target: Path) -> Exported:
    """Write `pictures.jsonl`; pictures of grids are cut out into `OUT/images`, others stay where they are."""

    def lines(folder: Path) -> Iterator[str]:
        for picture in source.pictures:
            path = picture.path.resolve()
            if picture.box is not None:
                (folder / "images").mkdir(exist_ok=True)
                picture.open().save(folder / "images" / f"{picture.id}.png", "PNG")
                path = target.resolve() / "images" / f"{picture.id}.png"
            yield json.dumps({"id": picture.id, "prompt": picture.prompt, "image_path": str(path)}, ensure_ascii=False)

    with _whole_folder(target) as folder:
        text = "".join(f"{line}\n" for line in lines(folder))
        (folder / "pictures.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
    note = (
        f"evalscope: datasets=['general_t2i'], dataset_args={{'general_t2i': {{'dataset_id': "
        f"{str(target / 'pictures.jsonl')!r}}}}}, without a model."
    )
    return _exported(source, target, [note])


# ------------------------------------------------------------------ lmms-eval


def to_lmms_eval(source: LayoutFolder, target: Path, order: Path | None, model: str) -> Exported:
    """Write a log that `--model from_log` of lmms-eval answers its task `imgedit` from.

    That model knows items by their place in the data set alone, so their order has to be told.

    Args:
        source: edited pictures, in the layout of ImgEdit.
        target: folder to write.
        order: JSON list of the keys of lmms-eval's data set, in its order.
        model: name of what drew them.
    """
    if order is None:
        raise UserError(
            "lmms-eval knows items by their place in its data set; give the keys in their order with --order FILE, "
            f'which this prints: python -c "{LMMS_EVAL_ORDER}"'
        )
    if "," in str(target.resolve()):
        raise UserError(f"{target} has a comma in its path, where lmms-eval would cut it; choose another folder")
    keys = _read_order(order)
    paths = {picture.item: picture.path.resolve() for picture in source.pictures}
    absent = [key for key in keys if key not in paths]
    surplus = [MissingItem(key, f"not in {order.name}") for key in paths if key not in set(keys)]
    if len(absent) == len(keys):
        raise UserError(f"no picture has a key of {order}; check that both are of ImgEdit")
    log = {
        "args": {"model": model, "model_args": "", "limit": None},
        "model_configs": {"task": LMMS_EVAL_TASK},
        "time": datetime.now(UTC).strftime("%m%d_%H%M"),
        "logs": [
            {"doc_id": place, "resps": [[_answer(paths.get(key))]], "key": key} for place, key in enumerate(keys)
        ],
    }
    with _whole_folder(target) as folder:
        (folder / f"{LMMS_EVAL_TASK}.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    notes = [
        f"python -m lmms_eval --model from_log --model_args logs={target.resolve()} --tasks {LMMS_EVAL_TASK} "
        "--batch_size 1 --output_path lmms-eval --process_with_media",
        "It asks the judge IMGEDIT_MODEL_NAME at IMGEDIT_BASE_URL with IMGEDIT_API_KEY, rates what it cannot read as "
        "0 and takes the mean of all items: not comparable with `evaluate imgedit`.",
    ]
    if absent:
        notes.append(f"Warning: {len(absent):,} of {len(keys):,} items have no picture; lmms-eval rates them as 0.")
    return Exported(target, len(keys) - len(absent), (*source.left_out, *surplus), tuple(absent), tuple(notes))


def _answer(path: Path | None) -> str:
    """What a model that draws answers there: JSON as text; an empty text cannot be read and is rated as 0."""
    return "" if path is None else json.dumps({"text": "", "images": [str(path)]})


def _read_order(path: Path) -> list[str]:
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it with: {LMMS_EVAL_ORDER}") from error
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str | int) for key in keys):
        raise UserError(f"{path} is no list of keys; write it with: {LMMS_EVAL_ORDER}")
    names = [str(key) for key in keys]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has the key {twice[0]} twice; write it again")
    return names


# ------------------------------------------------------------------ folders


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which it becomes when all is written."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is there already; choose an empty or new folder with --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".unfinished-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
        if target.exists():
            target.rmdir()
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
