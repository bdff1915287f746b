# SPDX-License-Identifier: Apache-2.0
"""Pictures and questions -> answers of a worker process that reads and writes JSON lines.

To the worker: `{"item_id", "picture", "proposition_id", "image_path", "question"}`; from it: the same keys with
`answer` and `model`, one line for each, in order. So a model can have an environment of its own: `mplug_worker.py`.
"""

import hashlib
import io
import json
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.vqa import KeepAnswer, Unanswered, VqaAnswer, VqaQuestion

ANSWER_SECONDS = 600.0  # the first answer waits for the model to be loaded (our choice)
_TRIES = 2  # of a question: a worker that fails is started anew, once (our choice)
_STDERR_BYTES = 2_000  # shown of what it wrote to stderr (our choice)
_SHOWN_CHARACTERS = 120
_SECONDS_TO_END = 5.0


class WorkerFault(Exception):
    """The worker gave no answer of use; the message says what it did instead."""


class VqaWorker:
    """Answers by a process, which is started when the first question comes and kept until the last.

    Args:
        command (`str`): program and arguments, as a shell would split them; no shell runs.
        timeout_seconds (`float`): how long an answer may take.
    """

    asks_alone = True

    def __init__(self, command: str, timeout_seconds: float = ANSWER_SECONDS) -> None:
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--vqa-worker cannot be split into words ({error}); check its quotes") from None
        if not self._arguments:
            raise UserError("--vqa-worker is empty; give a command, such as 'python mplug_worker.py'")
        self._timeout_seconds = timeout_seconds

    @property
    def identity(self) -> dict[str, Any]:
        """The command, as a hash: it may hold paths and keys. Which model answers, its answers say."""
        digest = hashlib.sha256(json.dumps(self._arguments).encode()).hexdigest()
        return {"kind": "worker", "command_sha256": digest}

    def answer(self, questions: Iterable[VqaQuestion], keep: KeepAnswer) -> Unanswered:
        """Answer one by one; ends with a [`UserError`] where a worker that was started anew fails, too."""
        with TemporaryDirectory(prefix="vqa-") as folder, _Process(self._arguments, Path(folder)) as process:
            path, shown = Path(folder), None
            for number, question in enumerate(questions):
                if question.crop is not shown:
                    if shown is not None:
                        path.unlink()
                    shown, path = question.crop, Path(folder) / f"{number}.png"
                    shown.save(path, "PNG")
                keep(question, self._ask(process, question, path))
        return Unanswered()

    def _ask(self, process: "_Process", question: VqaQuestion, path: Path) -> VqaAnswer:
        asked = {
            "item_id": question.item,
            "picture": question.picture,
            "proposition_id": question.number,
            "image_path": str(path),
            "question": question.text,
        }
        for tries_left in reversed(range(_TRIES)):
            try:
                return _read(process.exchange(json.dumps(asked), self._timeout_seconds), asked)
            except WorkerFault as fault:
                process.kill()
                if not tries_left:
                    raise UserError(_sentence(fault, question, process.stderr_text())) from None
        raise AssertionError("a question is asked at least once")


class _Process:
    """The process, its pipes and the end of what it wrote to stderr."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._arguments = arguments
        self._stderr: IO[bytes] = (folder / "stderr.txt").open("w+b")
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        else:  # it may be in the middle of a question, which it would not stop to read the end of
            self.kill()
        self._stderr.close()

    def exchange(self, line: str, seconds: float) -> bytes:
        """Send a line and wait for the next one; raises [`WorkerFault`]."""
        process = self._process or self._start()
        assert process.stdin is not None
        # in a thread: what a worker does not read fills the pipe, and would keep us from the clock
        threading.Thread(target=_send, args=(process.stdin, line.encode() + b"\n"), daemon=True).start()
        try:
            answer = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise WorkerFault(f"gave no answer within {seconds:g} s") from None
        if not answer:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)
            raise WorkerFault(f"ended with exit code {process.poll()}")
        return answer

    def kill(self) -> None:
        """End it and what it started, at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):  # what it never read cannot be flushed
                self._process.stdin.close()
        self._process = None

    def stderr_text(self) -> str:
        """The end of what it wrote to stderr, without what would steer a terminal."""
        size = self._stderr.seek(0, io.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_BYTES))
        text = self._stderr.read().decode(errors="replace").strip()
        return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)

    def _start(self) -> subprocess.Popen[bytes]:
        self._lines = queue.SimpleQueue()
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # so that Ctrl-C reaches it through us, and its children end with it
            )
        except OSError as error:
            raise UserError(
                f"the worker {self._arguments[0]} cannot be started ({error.strerror}); check --vqa-worker"
            ) from None
        threading.Thread(target=_pass_on, args=(process.stdout, self._lines), daemon=True).start()
        self._process = process
        return process

    def _end(self) -> None:
        """Close its stdin, which tells it to end; kill it where it does not."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END)
        self.kill()


def _send(stdin: IO[bytes], line: bytes) -> None:
    with suppress(OSError, ValueError):  # a closed pipe: what comes next is its end
        stdin.write(line)
        stdin.flush()


def _pass_on(stdout: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    """Lines of the worker, then an empty one for its end."""
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(b"")


def _read(line: bytes, asked: dict[str, Any]) -> VqaAnswer:
    shown = line.decode(errors="backslashreplace").strip()[:_SHOWN_CHARACTERS]
    try:
        said = json.loads(line)
        text, model = said["answer"], said["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise WorkerFault(
            f"wrote {shown!r}, which is no JSON line with `answer` and `model` (all else belongs on its stderr)"
        ) from None
    if not isinstance(text, str) or not isinstance(model, str):
        raise WorkerFault(f"wrote {shown!r}, whose `answer` and `model` are not both texts")
    others = [name for name in ("item_id", "picture", "proposition_id") if said.get(name) != asked[name]]
    if others:
        raise WorkerFault(f"answered another question ({', '.join(others)}): {shown!r}")
    return VqaAnswer(text, text, model)


def _sentence(fault: WorkerFault, question: VqaQuestion, stderr: str) -> str:
    where = f"question {question.number} on picture {question.picture} of {question.item}"
    said = f"; its stderr ends with:\n{stderr}" if stderr else "; its stderr is empty"
    return (
        f"the worker {fault}, twice, at {where}; put that right and run the same command again, "
        f"answers so far are kept{said}"
    )
