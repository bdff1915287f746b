# SPDX-License-Identifier: Apache-2.0
"""A study -> files for Argilla 2.8 or Label Studio 1.23, as blind as the study itself.

    argilla        records.json, .argilla/settings.json, .argilla/dataset.json: what `rg.Dataset.from_disk` reads
    label-studio   tasks.json, labeling_config.xml (the template "Pairwise", with a choice for ties)

`first` of each pair is shown on the left; the repeats stand at the end with sides swapped. Items are known by random
digits, which `preference_imports` finds again in the study.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.preference_pairs import PAIRS_FILE, PICTURES_DIR, STUDY_FILE

QUESTION = "preference"  # of Argilla, and the control of Label Studio
ANSWERS = {"left": "Left better", "tie": "Tie", "right": "Right better"}
BOTH_BAD = {"both_bad": "Both bad"}
MIN_RATERS = 3  # Otani et al., CVPR 2023: at least three raters an item
# One white pixel: what Label Studio shows as the source where a prompt has none.
_NO_PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)


@dataclass(frozen=True)
class Item:
    """A pair as it is shown: `left` and `right` are names of pictures; `shown_left` is "first", or "second" again."""

    item_id: str
    pair: str
    prompt: str
    source: str | None
    left: str
    right: str
    is_repeat: bool = False

    @property
    def shown_left(self) -> str:
        """The side of the pair that stands on the left."""
        return "second" if self.is_repeat else "first"


def read_study(study: Path) -> tuple[dict[str, Any], list[Item]]:
    """What raters may know of a study, and its items in order; never opens the key."""
    try:
        shown = json.loads((study / STUDY_FILE).read_text(encoding="utf-8"))
        lines = (study / PAIRS_FILE).read_text(encoding="utf-8").split("\n")
        pairs = [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{study} is no finished study ({error}); make it by `preference build`") from error
    once = [Item(row["pair"], row["pair"], row["prompt"], row["source"], row["first"], row["second"]) for row in pairs]
    return shown, once + list(_repeats(once, shown["repeats"]))


def _repeats(items: list[Item], share: float) -> Iterator[Item]:
    """A share of the items again, with sides swapped, under ids that do not tell of it."""
    again = sorted((hashlib.sha256(f"again {item.pair}".encode()).hexdigest()[:16], item) for item in items)
    for item_id, item in again[: round(share * len(items))]:
        yield Item(item_id, item.pair, item.prompt, item.source, item.right, item.left, is_repeat=True)


def answers_of(shown: Mapping[str, Any]) -> dict[str, str]:
    """The answers that a study offers."""
    return ANSWERS | (BOTH_BAD if shown["allows_both_bad"] else {})


# ------------------------------------------------------------------ Argilla


def export_argilla(study: Path, folder: Path) -> int:
    """Write a folder for `rg.Dataset.from_disk`; returns the number of records. Pictures are data URIs."""
    shown, items = read_study(study)
    _claim(folder)
    fields = [_argilla_field("prompt", "Text", {"type": "text", "use_markdown": False})]
    if shown["has_sources"]:
        fields.append(_argilla_field("source", "Before", {"type": "image"}, is_required=False))
    fields += [_argilla_field(side, side.capitalize(), {"type": "image"}) for side in ("left", "right")]
    options = [{"value": value, "text": text} for value, text in answers_of(shown).items()]
    question = {
        "name": QUESTION,
        "title": shown["title"],
        "required": True,
        "settings": {"type": "label_selection", "options": options, "visible_options": len(options)},
    }
    common = {
        "guidelines": shown["criteria"],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": MIN_RATERS},
    }
    settings = {**common, "fields": fields, "questions": [question], "vectors": [], "metadata": []}
    _write_json(folder / ".argilla" / "settings.json", settings)
    _write_json(folder / ".argilla" / "dataset.json", {"name": "preference-study", **common})
    picture = _data_uri(study)
    _write_list(folder / "records.json", (_argilla_record(item, picture) for item in items))
    return len(items)


def _argilla_field(name: str, title: str, settings: dict[str, Any], is_required: bool = True) -> dict[str, Any]:
    return {"name": name, "title": title, "required": is_required, "settings": settings}


def _argilla_record(item: Item, picture: Callable[[str], str]) -> dict[str, Any]:
    fields = {"prompt": item.prompt, "left": picture(item.left), "right": picture(item.right)}
    if item.source is not None:
        fields["source"] = picture(item.source)
    empty: dict[str, Any] = {name: {} for name in ("metadata", "suggestions", "responses", "vectors")}
    return {"id": item.item_id, "fields": fields, **empty}


# ------------------------------------------------------------------ Label Studio


def export_label_studio(study: Path, folder: Path, picture_url: str | None = None) -> int:
    """Write tasks and the labeling configuration; returns the number of tasks.

    Pictures are data URIs, or, with `picture_url`, the names of the files behind it.
    """
    shown, items = read_study(study)
    _claim(folder)
    write_whole(folder / "labeling_config.xml", _labeling_config(shown))
    picture = _data_uri(study) if picture_url is None else picture_url.__add__
    tasks = ({"data": _label_studio_data(item, shown, picture)} for item in items)
    _write_list(folder / "tasks.json", tasks)
    return len(items)


def _label_studio_data(item: Item, shown: Mapping[str, Any], picture: Callable[[str], str]) -> dict[str, str]:
    data = {"item": item.item_id, "criteria": shown["criteria"], "prompt": item.prompt}
    if shown["has_sources"]:
        data["source"] = _NO_PICTURE if item.source is None else picture(item.source)
    return data | {"left": picture(item.left), "right": picture(item.right)}


def _labeling_config(shown: Mapping[str, Any]) -> bytes:
    """Texts stand in the tasks: here they would be read as XML, and `$` as the name of a field."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value="$criteria")
    # valueType: a prompt that begins like an address is not fetched.
    ElementTree.SubElement(view, "Text", name="prompt", value="$prompt", valueType="text")
    if shown["has_sources"]:
        ElementTree.SubElement(view, "Image", name="source", value="$source", maxWidth="384px")
    ElementTree.SubElement(view, "Pairwise", name=QUESTION, toName="left,right")
    columns = ElementTree.SubElement(view, "View", style="display: grid; grid-template-columns: 1fr 1fr; gap: 8px")
    for side in ("left", "right"):
        ElementTree.SubElement(columns, "Image", name=side, value=f"${side}")
    choices = ElementTree.SubElement(view, "Choices", name="neither", toName="prompt", choice="single-radio")
    for value in answers_of(shown):
        if value not in ("left", "right"):
            ElementTree.SubElement(choices, "Choice", value=value, hotkey=value[0])
    ElementTree.indent(view)
    return ElementTree.tostring(view) + b"\n"


# ------------------------------------------------------------------ files


def _claim(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another folder with --output")


def _data_uri(study: Path) -> Callable[[str], str]:
    def picture(name: str) -> str:
        try:
            data = (study / PICTURES_DIR / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read {study / PICTURES_DIR / name}: {error.strerror}; build the study again"
            ) from error
        return "data:image/png;base64," + base64.b64encode(data).decode()

    return picture


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def _write_list(path: Path, rows: Iterable[Any]) -> None:
    """A JSON list, written row by row: with pictures in it, it may be larger than the memory."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    with unfinished.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            file.write(("[\n" if index == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")
    unfinished.replace(path)
