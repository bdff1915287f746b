# SPDX-License-Identifier: Apache-2.0
"""A folder that appears whole or not at all: it is built beside its place and renamed into it."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharegpt4o_image.errors import UserError


def require_empty(target: Path) -> None:
    """Refuse to write where something lies already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty; choose another output folder, or delete it first.")


def require_place(out_dir: Path) -> bool:
    """Refuse what cannot be a folder of ours; returns whether something is there, which the caller has to look at."""
    if not out_dir.exists():
        return False
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; choose another folder with --output")
    if out_dir == Path.cwd() or out_dir.is_mount():
        raise UserError(f"{out_dir} cannot be replaced as a whole; name a folder inside it with --output")
    return True


@contextmanager
def staged_folder(target: Path, keeps_unfinished: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends, and vanishes when it raises.

    What lies at `target` stays untouched until then; whether it may be replaced is for the caller to decide before.
    The folder is called `.<name>.partial`; one that a killed process left behind is cleared first, while one that
    another live process holds is refused.

    With `keeps_unfinished`, what an earlier block left is still there, and what this one leaves stays when it raises.
    """
    staging = target.with_name(f".{target.name}.partial")
    replaced = target.with_name(f".{target.name}.replaced")
    handle = _lock(staging, target)
    try:
        if not keeps_unfinished:
            _clear(staging)
        _finish_interrupted_swap(target, replaced)
        yield staging
        _swap(staging, target, replaced)
    except BaseException as error:
        if not keeps_unfinished or not any(staging.iterdir()):
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left for {target}; free some, or choose a folder on another disk with --output"
            ) from error
        raise
    finally:
        os.close(handle)


def _lock(staging: Path, target: Path) -> int:
    """Make the staging folder ours until the process ends, however it ends."""
    try:
        staging.mkdir(parents=True, exist_ok=True)
        handle = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write beside {target} ({error.strerror}); choose another folder with --output"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(staging)):
            return handle
    except OSError:  # held by another process, or just renamed by it
        pass
    os.close(handle)
    raise UserError(f"another process is writing {target}; wait for it, or choose another folder with --output")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _finish_interrupted_swap(target: Path, replaced: Path) -> None:
    """After a kill between the two renames of `_swap`, put the old folder back; after the second, delete it."""
    if not replaced.exists():
        return
    if target.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(target)


def _swap(staging: Path, target: Path, replaced: Path) -> None:
    """Rename `staging` to `target`; what was there is deleted only once the new folder stands in its place."""
    if not target.exists():
        staging.rename(target)
        return
    target.rename(replaced)
    try:
        staging.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    shutil.rmtree(replaced)
