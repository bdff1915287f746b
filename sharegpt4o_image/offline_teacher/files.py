# SPDX-License-Identifier: Apache-2.0
"""`/v1/files`: uploads and what batches write, held in memory for as long as the app lives."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from sharegpt4o_image.offline_teacher.protocol import ApiError, now

# Longer than a batch may be, so that a batch that is too long is refused as such and not as an upload.
MAX_UPLOAD_BYTES = 256 * 10**6
UPLOAD_PURPOSES = ("batch", "vision", "user_data")

_BATCH_FILE_SECONDS = 30 * 24 * 3600  # OpenAI keeps batch files for 30 days


@dataclass(frozen=True)
class StoredFile:
    """One file and what is told of it."""

    data: bytes
    name: str
    purpose: str
    id: str = field(default_factory=lambda: f"file-{uuid.uuid4().hex}")
    created_at: int = field(default_factory=now)

    @property
    def card(self) -> dict[str, Any]:
        """What `GET /v1/files/{id}` answers."""
        is_batch_file = self.purpose.startswith("batch")
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created_at,
            "expires_at": self.created_at + _BATCH_FILE_SECONDS if is_batch_file else None,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """The files of one app."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}

    def add(self, data: bytes, name: str, purpose: str) -> StoredFile:
        """Keep a file under a new id."""
        stored = StoredFile(data, name, purpose)
        self._files[stored.id] = stored
        return stored

    def find(self, file_id: str, param: str = "id") -> StoredFile:
        """The file with that id; `param` names its field in the error.

        Raises [`ApiError`] 404 when there is none.
        """
        if file_id not in self._files:
            raise ApiError(f"No such File object: {file_id}", param=param, code="file_not_found", status=404)
        return self._files[file_id]

    def remove(self, file_id: str) -> dict[str, Any]:
        """Answer `DELETE /v1/files/{id}`."""
        self.find(file_id)
        del self._files[file_id]
        return {"id": file_id, "object": "file", "deleted": True}
