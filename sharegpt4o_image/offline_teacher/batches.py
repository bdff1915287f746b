# SPDX-License-Identifier: Apache-2.0
"""`/v1/batches`: a file of requests -> a file of answers and a file of errors, worked off in a thread.

A batch goes from `validating` to `in_progress`, `finalizing` and `completed`; `failed`, `cancelled` and `expired` are
its other ends.
"""

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sharegpt4o_image.offline_teacher.files import FileStore
from sharegpt4o_image.offline_teacher.protocol import (
    SERVER_ERROR,
    ApiError,
    as_refusal,
    check_fields,
    dice_for,
    now,
    parse_json,
    read_choice,
    read_integer,
    read_text,
)

BATCH_ENDPOINTS = ("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits")
MAX_LINES = 50_000
MAX_BATCH_BYTES = 200 * 10**6

_WINDOW_SECONDS = 24 * 3600
_MAX_ID_LENGTH = 1000
_MAX_METADATA = 16
_MAX_PAGE = 100
_ENDS = ("failed", "completed", "expired", "cancelled")
_UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}

# (endpoint, body of the request) -> body of the answer; raises `ApiError`.
Answering = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class _Line:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


class _Fault(Exception):
    """Why a line of the input file is no request."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass
class _Batch:
    """What is told of a batch, and the flag by which it is stopped."""

    card: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)

    def enter(self, status: str, **facts: Any) -> None:
        """Set the status, its time, and what else has changed, at once."""
        self.card.update(facts, status=status, **{f"{status}_at": now()})


class BatchQueue:
    """The batches of one app.

    Args:
        files ([`FileStore`]): where inputs are and outputs go.
        answer (`Callable`): answers one request.
        seconds_per_line (`float`): how long a line waits before it is answered.
        expires_after (`int`, *optional*): lines after which a batch is declared expired.
    """

    def __init__(self, files: FileStore, answer: Answering, seconds_per_line: float, expires_after: int | None):
        self._files = files
        self._answer = answer
        self._seconds_per_line = seconds_per_line
        self._expires_after = expires_after
        self._batches: dict[str, _Batch] = {}
        self._lock = threading.Lock()

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /v1/batches` and begin to work."""
        check_fields(body, {"input_file_id", "endpoint", "completion_window", "metadata"})
        read_choice(body, "completion_window", None, ("24h",))
        endpoint = read_choice(body, "endpoint", None, BATCH_ENDPOINTS)
        stored = self._files.find(read_text(body, "input_file_id", _MAX_ID_LENGTH), "input_file_id")
        if stored.purpose != "batch":
            message = f"The file {stored.id} was uploaded for '{stored.purpose}'; upload it with the purpose 'batch'."
            raise ApiError(message, param="input_file_id", code="invalid_purpose")
        batch = _Batch(_new_card(stored.id, endpoint, _read_metadata(body)))
        answer = dict(batch.card)
        self._batches[batch.card["id"]] = batch
        threading.Thread(target=self._work_off, args=(batch, stored.data), daemon=True).start()
        return answer

    def show(self, batch_id: str) -> dict[str, Any]:
        """Answer `GET /v1/batches/{id}`."""
        return dict(self._find(batch_id).card)

    def list_newest(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/batches`."""
        limit = read_integer(query, "limit", 20, 1, _MAX_PAGE)
        ids = list(self._batches)[::-1]
        if query.get("after"):
            ids = ids[ids.index(self._find(query["after"]).card["id"]) + 1 :]
        page = ids[:limit]
        return {
            "object": "list",
            "data": [self.show(batch_id) for batch_id in page],
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
            "has_more": len(ids) > limit,
        }

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Answer `POST /v1/batches/{id}/cancel`."""
        batch = self._find(batch_id)
        with self._lock:
            if batch.card["status"] in (*_ENDS, "finalizing"):
                message = f"Cannot cancel a batch with status '{batch.card['status']}'."
                raise ApiError(message, code="invalid_status", status=409)
            batch.enter("cancelling")
            batch.stop.set()
        return dict(batch.card)

    def _find(self, batch_id: str) -> _Batch:
        if batch_id not in self._batches:
            raise ApiError(f"No batch found with id '{batch_id}'.", code="batch_not_found", status=404)
        return self._batches[batch_id]

    # ----------------------------------------------------------------------- the work

    def _work_off(self, batch: _Batch, data: bytes) -> None:
        lines, faults = read_lines(data, batch.card["endpoint"])
        with self._lock:
            if faults and not batch.stop.is_set():
                batch.enter("failed", errors={"object": "list", "data": faults})
                return
            if not batch.stop.is_set():
                batch.enter("in_progress", **_counts(len(lines), []), model=lines[0].body.get("model"))
        answers: list[dict[str, Any]] = []
        for line in lines[: self._expires_after]:
            if batch.stop.wait(self._seconds_per_line):
                break
            answers.append(self._answer_line(line, batch.card["endpoint"]))
            batch.card.update(_counts(len(lines), answers))
        with self._lock:
            end = "cancelled" if batch.stop.is_set() else "completed" if len(answers) == len(lines) else "expired"
            if end != "cancelled":
                batch.enter("finalizing")
        undone = [_output_line(line, None, _UNDONE[end]) for line in lines[len(answers) :]]
        batch.enter(end, **self._write_files(batch.card["id"], answers, undone))

    def _answer_line(self, line: _Line, endpoint: str) -> dict[str, Any]:
        try:
            status, body = 200, self._answer(endpoint, line.body)
        except Exception as error:  # a fault of the teacher must not end the batch
            refusal = as_refusal(error) or SERVER_ERROR
            status, body = refusal.status, refusal.body
        response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
        return _output_line(line, response, None)

    def _write_files(
        self, batch_id: str, answers: list[dict[str, Any]], undone: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The output and the error file; OpenAI promises no order, so there is none."""
        parts = {
            "output": [line for line in answers if _is_good(line)],
            "error": [line for line in answers if not _is_good(line)] + undone,
        }
        ids: dict[str, Any] = {}
        for name, lines in parts.items():
            dice_for("order of lines", batch_id, name).shuffle(lines)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            stored = self._files.add(text.encode(), f"{batch_id}_{name}.jsonl", "batch_output") if lines else None
            ids[f"{name}_file_id"] = stored.id if stored else None
        return ids


# --------------------------------------------------------------------------- lines


def read_lines(data: bytes, endpoint: str) -> tuple[list[_Line], list[dict[str, Any]]]:
    """The requests in an input file, and what is wrong with it."""
    if len(data) > MAX_BATCH_BYTES:
        return [], [_fault_card(_Fault("file_too_large", f"The file is larger than {MAX_BATCH_BYTES:,} bytes."), None)]
    texts = [(number, text) for number, text in enumerate(data.split(b"\n"), start=1) if text.strip()]
    if not texts or len(texts) > MAX_LINES:
        code = "too_many_requests" if texts else "empty_file"
        message = f"The file holds {len(texts):,} requests; 1 to {MAX_LINES:,} are allowed."
        return [], [_fault_card(_Fault(code, message), None)]
    lines: list[_Line] = []
    faults: list[dict[str, Any]] = []
    known: set[str] = set()
    for number, text in texts:
        try:
            lines.append(_read_line(text, endpoint, known))
        except _Fault as fault:
            faults.append(_fault_card(fault, number))
    return lines, faults


def _read_line(text: bytes, endpoint: str, known: set[str]) -> _Line:
    """The request in one line, whose id joins `known`."""
    try:
        line = parse_json(text)
    except ApiError as error:
        raise _Fault("invalid_json_line", "This line is not parseable as valid JSON.") from error
    if not isinstance(line, dict) or not isinstance(line.get("body"), dict):
        raise _Fault("invalid_request", "A line is an object with custom_id, method, url and body.", "body")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_LENGTH:
        raise _Fault("missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id")
    if custom_id in known:
        message = f"The custom_id '{custom_id}' is that of another request; it must be unique in a batch."
        raise _Fault("duplicate_custom_id", message, "custom_id")
    if line.get("method") != "POST":
        raise _Fault("invalid_method", "The method of a request must be 'POST'.", "method")
    if line.get("url") != endpoint:
        raise _Fault("invalid_url", f"The url of a request must be that of the batch, '{endpoint}'.", "url")
    known.add(custom_id)
    return _Line(custom_id, line["body"])


def _fault_card(fault: _Fault, line: int | None) -> dict[str, Any]:
    return {"code": fault.code, "line": line, "message": fault.message, "param": fault.param}


def _output_line(line: _Line, response: dict[str, Any] | None, undone: tuple[str, str] | None) -> dict[str, Any]:
    error = {"code": undone[0], "message": undone[1]} if undone else None
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }


def _is_good(line: dict[str, Any]) -> bool:
    return bool(line["response"]["status_code"] == 200)


# --------------------------------------------------------------------------- cards


def _new_card(input_file_id: str, endpoint: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    created_at = now()
    times = dict.fromkeys(f"{status}_at" for status in ("in_progress", "finalizing", "cancelling", *_ENDS))
    return {
        "id": f"batch_{uuid.uuid4().hex}",
        "object": "batch",
        "endpoint": endpoint,
        "model": None,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created_at,
        "expires_at": created_at + _WINDOW_SECONDS,
        **times,
        **_counts(0, []),
        "metadata": metadata,
    }


def _counts(total: int, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """`request_counts` and `usage` after some lines."""
    good = [line["response"]["body"]["usage"] for line in answers if _is_good(line)]
    tokens_in = sum(usage.get("input_tokens", usage.get("prompt_tokens")) for usage in good)
    tokens_out = sum(usage.get("output_tokens", usage.get("completion_tokens")) for usage in good)
    return {
        "request_counts": {"total": total, "completed": len(good), "failed": len(answers) - len(good)},
        "usage": {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _read_metadata(body: Mapping[str, Any]) -> dict[str, str] | None:
    metadata = body.get("metadata")
    if metadata is None:
        return None
    is_fit = (
        isinstance(metadata, dict)
        and len(metadata) <= _MAX_METADATA
        and all(isinstance(value, str) and len(key) <= 64 and len(value) <= 512 for key, value in metadata.items())
    )
    if not is_fit:
        message = f"Invalid 'metadata': at most {_MAX_METADATA} pairs of short strings are allowed."
        raise ApiError(message, param="metadata", code="invalid_value")
    return metadata
