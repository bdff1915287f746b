# SPDX-License-Identifier: Apache-2.0
"""YAML file -> checked model; a fault becomes one sentence that names the file, the line and the place.

A file is kept as nodes, which know where they were written, until the model has accepted it.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sharegpt4o_image.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

_MAP_TAG, _NULL_TAG, _MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("map", "null", "merge"))
_KINDS = {SequenceNode: "list", ScalarNode: "single value"}
_NAMING_KEY = "task"  # what a mapping in a list goes by


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Read `path` as a `model`; unknown keys, wrong types and broken YAML raise [`UserError`]."""
    return check_node(read_node(path), model)


def read_node(path: Path) -> MappingNode:
    """The keys and values of a file; an empty file has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        text = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = error.strerror if isinstance(error, OSError) else text
        raise UserError(f"cannot read {path}: {reason}; give the path of a YAML file") from error
    try:
        loader = yaml.SafeLoader(text)
        loader.name = str(path)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_fault(str(path), error) from error
    except RecursionError as error:
        raise UserError(f"{path}: too deeply nested; write it flatter") from error
    if node is None or node.tag == _NULL_TAG:
        start = yaml.Mark(str(path), 0, 0, 0, None, 0)
        return MappingNode(_MAP_TAG, [], start, start)
    if not isinstance(node, MappingNode):
        raise UserError(f"{path}: expected keys and values at the top level, found a {_KINDS[type(node)]}")
    _check_keys(node, ())
    return node


def check_node(node: MappingNode, model: type[Model]) -> Model:
    """The nodes as a `model`."""
    try:
        loaded = SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-99-99 looks like a date and is none
        raise _syntax_fault(node.start_mark.name, error) from error
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        raise fault_at(_find_node(node, _first_fault(error)[1]), describe_fault(error)) from error


def fault_at(node: Node, message: str) -> UserError:
    """The error that a user is shown for what is written at `node`."""
    return UserError(f"{node.start_mark.name}, line {node.start_mark.line + 1}: {message}")


def fault_in(place: tuple[str | int, ...], message: str) -> PydanticCustomError:
    """What a model's validator raises about a part of it: the line is that of `place`, not that of the whole model."""
    return PydanticCustomError("value_error", "{message}", {"message": message, "place": place})


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: "; did you mean 'zebra'?", or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe_fault(error: ValidationError) -> str:
    """The first fault that a model found, in words: `num_topics: Input should be a valid integer, found 'many'`."""
    fault, parts = _first_fault(error)
    place = ".".join(str(part) for part in parts)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {place!r}; the files in configs/ and the package's taxonomies show the known ones"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault["input"]
    is_ours = fault["type"] == "value_error"  # our own validators say what they found, where it is fit to be shown
    shown = f", found {found!r}" if not is_ours and isinstance(found, str | int | float | bool | None) else ""
    return f"{place}: {message}{shown}" if place else message


def _first_fault(error: ValidationError) -> tuple[Any, tuple[str | int, ...]]:
    """The fault, and its place in the model."""
    fault = error.errors(include_url=False)[0]
    return fault, fault["loc"] + fault.get("ctx", {}).get("place", ())


def _syntax_fault(name: str, error: Exception) -> UserError:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else name
    return UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or 'it cannot be parsed'})")


def _check_keys(node: Node, parents: tuple[Node, ...]) -> None:
    """Keys are words, none is written twice (YAML would keep the last), and no alias holds itself."""
    if node in parents:
        raise fault_at(node, "an alias stands inside of what it names; write the value out")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(item, (*parents, node))
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise fault_at(key, "a key must be a single value")
            if key.value in seen and key.tag != _MERGE_TAG:
                raise fault_at(key, f"the key {key.value!r} is written twice; keep one of them")
            seen.add(key.value)
            _check_keys(value, (*parents, node))


def _find_node(node: Node, place: tuple[str | int, ...]) -> Node:
    """The node at `place`, or the nearest one around it; of a key and its value, the key."""
    shown = node
    for part in place:
        shown, node = _child(node, part) or (shown, node)
    return shown


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    """Where `part` of a node is written, and its value."""
    if isinstance(node, MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


# --------------------------------------------------------------------------- one file laid over another


def merge_nodes(base: Node, change: Node) -> Node:
    """`change` laid over `base`: what a file is when it extends another one.

    Mappings are merged key by key, and a key that `change` sets to null is left out. A list takes the place of the
    list in `base`, unless it is written as `{add: [...], remove: [...]}`. Anything else takes the place of what was
    there.
    """
    if isinstance(base, SequenceNode) and isinstance(change, MappingNode):
        return _change_list(base, change)
    if not isinstance(base, MappingNode) or not isinstance(change, MappingNode):
        return change
    merged = {key.value: (key, value) for key, value in base.value}
    for key, value in change.value:
        if value.tag == _NULL_TAG:
            if key.value not in merged:
                raise fault_at(key, f"no key {key.value!r} to leave out{did_you_mean(key.value, merged)}")
            del merged[key.value]
        else:
            is_new = key.value not in merged
            merged[key.value] = (key, value if is_new else merge_nodes(merged[key.value][1], value))
    return MappingNode(change.tag, list(merged.values()), change.start_mark, change.end_mark)


def _change_list(base: SequenceNode, change: MappingNode) -> SequenceNode:
    """The entries of `base` without the removed and with the added ones."""
    lists: dict[str, list[Node]] = {"add": [], "remove": []}
    for key, value in change.value:
        if key.value not in lists or not isinstance(value, SequenceNode):
            raise fault_at(key, f"{key.value!r} cannot change a list; write a list, or {{add: [...], remove: [...]}}")
        lists[key.value] = value.value
    entries = list(base.value)
    for unwanted in lists["remove"]:
        names = [_name_of(entry) for entry in entries]
        name = _name_of(unwanted)
        if name not in names:
            raise fault_at(unwanted, f"unknown leaf {name!r}{did_you_mean(name, names)}")
        del entries[names.index(name)]
    return SequenceNode(base.tag, entries + lists["add"], change.start_mark, change.end_mark)


def _name_of(entry: Node) -> str:
    """What an entry of a list is known by."""
    if isinstance(entry, MappingNode):
        found = _child(entry, _NAMING_KEY)
        return _name_of(found[1]) if found else ""
    return str(entry.value) if isinstance(entry, ScalarNode) else ""
