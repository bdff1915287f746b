# SPDX-License-Identifier: Apache-2.0
"""What `pack` was given -> a source of rows: a run, an upstream release, or a packed set."""

from collections.abc import Callable
from pathlib import Path

from sharegpt4o_image.builders.packed_set import PackedSet, is_packed_set
from sharegpt4o_image.builders.row_source import RowSource
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.builders.upstream_release import UpstreamRelease, is_upstream_release
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.run_folder import FILE_NAME


def open_source(name: str, is_rejected: bool = False, on_member: Callable[[], None] = lambda: None) -> RowSource:
    """Open a source by what lies in the folder; a name that is no folder is a repository with the upstream release.

    Args:
        name (`str`): a folder, or `owner/name` on the Hub.
        is_rejected (`bool`, *optional*, defaults to `False`): of a run, the pictures that quality gates refused.
        on_member (`Callable`, *optional*): called for each picture that is found in the tar parts of a release.
    """
    folder = Path(name)
    if (folder / FILE_NAME).exists():
        return RunSource(folder, is_rejected)
    if is_rejected:
        raise UserError(f"--rejected needs a run directory, which {name} is not; leave it out")
    if is_upstream_release(folder):
        return UpstreamRelease.open(folder, on_member=on_member)
    if is_packed_set(folder):
        return PackedSet(folder)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(
            f"{name} is not a run directory, nor an upstream release, nor a packed set; "
            "name one of them, or a repository as owner/name"
        )
    try:
        return UpstreamRelease.open(name, on_member=on_member)
    except UserError as error:
        raise UserError(f"there is no folder {name}, and as a repository: {error}") from error
