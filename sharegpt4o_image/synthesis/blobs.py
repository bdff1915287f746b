# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, each stored once under its sha256: `RUN/blobs/<first two digits>/<sha256>`."""

import hashlib
import os
import uuid
from pathlib import Path

from sharegpt4o_image.errors import UserError

_UNFINISHED = ".unfinished-"


class MissingBlob(UserError):
    """A picture of the run is gone, or cannot be read."""


class BlobStore:
    """A folder of files that are named by their content; a file appears whole or not at all.

    Args:
        folder (`Path`): `RUN/blobs`; made when the first blob is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path_of(self, sha256: str) -> Path:
        """Where the blob lies, or would lie."""
        return self.folder / sha256[:2] / sha256

    def write(self, data: bytes) -> str:
        """Store `data` and return its sha256; when this returns, the file survives a power cut."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path_of(sha256)
        if path.exists():
            return sha256
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.folder)
        unfinished = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
        return sha256

    def require(self, sha256: str) -> None:
        """Raise [`MissingBlob`] where [`read`] would find nothing."""
        if not self.path_of(sha256).exists():
            self.read(sha256)

    def size_of(self, sha256: str) -> int:
        """How many bytes a blob has; 0 when it is gone."""
        try:
            return self.path_of(sha256).stat().st_size
        except OSError:
            return 0

    def read(self, sha256: str) -> bytes:
        """The bytes of a blob."""
        path = self.path_of(sha256)
        try:
            return path.read_bytes()
        except OSError as error:
            raise MissingBlob(
                f"the run lost the picture {path} ({error.strerror}); restore the file, or synthesize into a new run"
            ) from error

    def remove_unfinished(self) -> None:
        """Delete what a killed process was writing; only for the process that holds the run."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
