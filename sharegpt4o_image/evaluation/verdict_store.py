# SPDX-License-Identifier: Apache-2.0
"""Verdicts and answers, each kept as soon as it is there: JSON lines that are appended to, known by their keys.

A key is the hash of all that decides the verdict (picture, question, judge), so a changed picture is judged anew.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sharegpt4o_image.errors import UserError


class VerdictStore:
    """What was judged so far: `FOLDER/<name>-<rank>.jsonl`, one file for each process that judges.

    Args:
        folder (`Path`): made when it is missing.
        name (`str`): beginning of the names of its files.
        rank (`int`, *optional*, defaults to 0): of this process; it writes its own file and reads all.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"{name}-{rank}.jsonl"
        self._file = own.open("a", encoding="utf-8", errors="backslashreplace")  # as JSON escapes
        self._lock(folder)
        for path in sorted(folder.glob(f"{name}-*.jsonl")):
            self._read(path)
        _end_last_line(own)

    def __enter__(self) -> "VerdictStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> dict[str, Any] | None:
        """What was kept under a key."""
        return self._known.get(key)

    def keep(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Keep a verdict; when this returns, it survives the end of the process."""
        self._known[key] = dict(verdict)
        self._file.write(json.dumps({"key": key, **verdict}, ensure_ascii=False) + "\n")
        self._file.flush()

    def _lock(self, folder: Path) -> None:
        """Until it is closed, no other process writes this file; of a killed one the system lets go."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"another process is judging into {folder}; wait for its end, or choose another folder with --output"
            ) from None

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                verdict = json.loads(line)
                self._known[verdict.pop("key")] = verdict
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                if number == len(lines):  # the process was killed while it wrote
                    return
                raise UserError(
                    f"{path}, line {number}, is not a verdict ({error}); delete the line to have it judged again"
                ) from error


def _end_last_line(path: Path) -> None:
    """Cut off what a killed process had begun to write."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
