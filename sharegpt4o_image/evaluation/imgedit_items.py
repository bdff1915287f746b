# SPDX-License-Identifier: Apache-2.0
"""The files of an ImgEdit suite -> what is to be edited and judged: items, judge templates, source pictures.

None of them is shipped. `basic_edit.json`, `prompts.json` and `UGE_edit.json` lie below `Benchmark/` of
https://github.com/PKU-YuanGroup/ImgEdit; the source pictures are those of `Benchmark.tar` of the Hub's data set
`sysuyy/ImgEdit`, below `Benchmark/singleturn/`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.imgedit_scores import NUM_UGE_ITEMS, ImgEditItem, read_items, read_object
from sharegpt4o_image.synthesis.journal import printable

PLACEHOLDER = "<edit_prompt>"  # of the instruction, in a template
UGE_TYPE = "uge"  # stands for the type of the UGE suite's items, which have none

_KEY = re.compile(r"[A-Za-z0-9_-]+")  # a key is also the name of the edited picture's file
_LONGEST_NAME = 255  # bytes of a file's name on common file systems


@dataclass(frozen=True)
class Suite:
    """A part of the benchmark.

    Args:
        name (`str`): of the benchmark, which is also the folder of its results.
        num_items (`int`): entries of the official file.
        items_sha256 (`str`): of the official file at PKU-YuanGroup/ImgEdit@547185d.
        templates_sha256 (`str`, *optional*): of the official file of templates; UGE has its template in a script.
    """

    name: str
    num_items: int
    items_sha256: str
    templates_sha256: str | None


BASIC = Suite(
    "imgedit",
    737,
    "5ee9b7d61e918692416f79896300f738598c83adff8de737b25be4aaff72dc69",
    "f9468dc848776ee0a6c2e2c31e678c7224e9cb61b013747c8c52d4a05627b5a0",
)
UGE = Suite("imgedit-uge", NUM_UGE_ITEMS, "807817d8765f8fc45397be9afbf638b00fad91e37c1d44fabd5103df73074d16", None)
SUITES = {"basic": BASIC, "uge": UGE}


@dataclass(frozen=True)
class Benchmark:
    """What is asked for.

    Args:
        suite ([`Suite`]): that it is of.
        all_items (`dict`): key -> item, of the whole file.
        items (`dict`): those of them that are edited and judged.
        templates (`dict`): type -> template.
        templates_sha256 (`str`): of their file.
        origins (`Path`): folder of the source pictures.
        is_official (`bool`): the file of items is the official one.
    """

    suite: Suite
    all_items: Mapping[str, ImgEditItem]
    items: Mapping[str, ImgEditItem]
    templates: Mapping[str, str]
    templates_sha256: str
    origins: Path
    is_official: bool

    def origin_of(self, key: str) -> Path:
        """Where the source picture of an item lies."""
        return self.origins / self.items[key].source


def load_benchmark(suite: Suite, items: Path, templates: Path, origins: Path, limit: int | None) -> Benchmark:
    """Read and check the files of a suite; `limit` items of each type are taken."""
    if not origins.is_dir():
        raise UserError(f"there is no folder {origins}; give the root of the source pictures with --origins")
    found = read_uge_items(items) if suite is UGE else read_items(items)
    _check_names(items, found)
    chosen = first_of_each_type(found, limit)
    texts = read_templates(templates, suite, list(dict.fromkeys(item.edit_type for item in chosen.values())))
    is_official = _digest(items) == suite.items_sha256
    return Benchmark(suite, found, chosen, texts, _digest(templates), origins, is_official)


def read_uge_items(path: Path) -> dict[str, ImgEditItem]:
    """`UGE_edit.json`: key -> item; none has a type."""
    items: dict[str, ImgEditItem] = {}
    for key, entry in read_object(path).items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("id", "prompt")):
            raise UserError(f"{path}: item {key!r} has no texts `id` and `prompt`; give ImgEdit's UGE_edit.json")
        items[key] = ImgEditItem(UGE_TYPE, entry["prompt"], entry["id"])
    if not items:
        raise UserError(f"{path} has no items; give ImgEdit's UGE_edit.json")
    return items


def first_of_each_type(items: Mapping[str, ImgEditItem], limit: int | None) -> dict[str, ImgEditItem]:
    """The first `limit` items of each type, in the order of the file; all without a limit."""
    chosen: dict[str, ImgEditItem] = {}
    counts: Counter[str] = Counter()
    for key, item in items.items():
        counts[item.edit_type] += 1
        if limit is None or counts[item.edit_type] <= limit:
            chosen[key] = item
    return chosen


def read_templates(path: Path, suite: Suite, types: Sequence[str]) -> dict[str, str]:
    """Type -> template, of `prompts.json`; for UGE, the text of the file is the one template."""
    if suite is UGE:
        found: dict[str, object] = {UGE_TYPE: _read_text(path)}
    else:
        found = read_object(path)
    missing = [name for name in types if not isinstance(found.get(name), str)]
    if missing:
        raise UserError(
            f"{path} has no template for {', '.join(missing)}; give ImgEdit's Benchmark/Basic/prompts.json"
        )
    templates = {name: str(found[name]) for name in types}
    for name, text in templates.items():
        _check_characters(path, f"template for {name}", text)
    without = [name for name, text in templates.items() if PLACEHOLDER not in text]
    if without:
        raise UserError(f"{path}: the template for {', '.join(without)} has no {PLACEHOLDER}; put it where it belongs")
    return templates


def fill_template(template: str, instruction: str) -> str:
    """The judge's question; what the instruction holds is taken literally."""
    return template.replace(PLACEHOLDER, instruction)


def _check_names(path: Path, items: Mapping[str, ImgEditItem]) -> None:
    """Keys become names of files, and `id` a path below the folder of source pictures: neither may lead elsewhere."""
    for key, item in items.items():
        if not _KEY.fullmatch(key):
            raise UserError(f"{path}: the key {key!r} is no name of a file; use letters, digits, '-' and '_'")
        source = PurePosixPath(item.source)
        if source.is_absolute() or ".." in source.parts:
            raise UserError(f"{path}: the `id` {item.source!r} of item {key!r} leads out of the folder; correct it")
        if not item.source.isprintable() or any(len(part.encode()) > _LONGEST_NAME for part in source.parts):
            named = printable(item.source[:_LONGEST_NAME])
            raise UserError(f"{path}: the `id` '{named}' of item {key!r} is no name of a file; correct it")
        _check_characters(path, f"prompt of item {key!r}", item.prompt)


def _check_characters(path: Path, what: str, text: str) -> None:
    """JSON can hold half a character (`\\ud800`), which no file and no request can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: the {what} holds half a character; write it again") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a text file with the template") from error
    except ValueError as error:
        raise UserError(f"{path} is not a UTF-8 text; give a text file with the template") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
