# SPDX-License-Identifier: Apache-2.0
"""`register(source)` -> `load_dataset("sharegpt4o-image")` loads that folder or repository, from any directory.

On the Hub nobody can own a name without a namespace, and `datasets` has no place where a package could announce one.
So two private functions of `datasets` are wrapped, on request and for this process only.
"""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets

from sharegpt4o_image.errors import UserError

NAME = "sharegpt4o-image"

# The private function, and who must be calling it, under its own name, for a wrapper to have any effect.
_FACTORY = "dataset_module_factory"
_CALLERS: dict[ModuleType, tuple[str, ...]] = {
    datasets.load: ("load_dataset_builder",),
    datasets.inspect: ("get_dataset_config_names", "get_dataset_default_config_name"),
}
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

_originals: dict[ModuleType, Any] = {}


def register(source: str | Path) -> None:
    """Let the bare name `sharegpt4o-image` stand for a data set; registering again replaces what it stood for.

    `load_dataset`, `load_dataset_builder`, `get_dataset_config_names` and their like take the name from then on, and
    it goes before a folder of that name in the working directory. Other names are loaded as ever.

    Args:
        source (`str` or `Path`):
            A folder that `pack` wrote, or the id of a repository on the Hub, `owner/name`. A folder goes first.
    """
    path = _resolve(source)
    for module, callers in _CALLERS.items():
        _check_wrappable(module, callers)
    for module in _CALLERS:
        original = _originals.setdefault(module, getattr(module, _FACTORY))
        setattr(module, _FACTORY, _redirect(original, path))


def unregister() -> None:
    """Undo [`register`]; nothing happens where nothing was registered."""
    while _originals:
        module, original = _originals.popitem()
        setattr(module, _FACTORY, original)


def _redirect(original: Any, source: str) -> Any:
    def factory(path: str, *args: Any, **kwargs: Any) -> Any:
        return original(source if path == NAME else path, *args, **kwargs)

    return factory


def _resolve(source: str | Path) -> str:
    """An absolute path, which holds when the working directory changes, or the id of a repository."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "README.md").is_file():
            raise UserError(
                f"{source} has no README.md, so it is no finished data set; `sharegpt4o-image pack` writes one"
            )
        return str(folder.resolve())
    if isinstance(source, str) and _REPO_ID.fullmatch(source) and not source.startswith("."):
        return source
    raise UserError(f"there is no folder {source}; give a folder that `pack` wrote, or a repository as owner/name")


def _check_wrappable(module: ModuleType, callers: tuple[str, ...]) -> None:
    """Refuse to wrap a function that is gone, takes something else, or is no longer called."""
    factory = _originals.get(module) or getattr(module, _FACTORY, None)
    is_known = callable(factory) and next(iter(inspect.signature(factory).parameters), None) == "path"
    for caller in callers:
        code = getattr(getattr(module, caller, None), "__code__", None)
        if not is_known or code is None or _FACTORY not in code.co_names:
            raise UserError(
                f"datasets {datasets.__version__} no longer finds data sets by {module.__name__}.{_FACTORY}, so the "
                f"name {NAME} cannot be registered; load the folder or the repository by its own name"
            )
