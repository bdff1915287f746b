# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of the loopback Hub: bodies, answers that are counted, and faults in place of answers."""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback_repository import Claim, Content, size_of

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of its answer.

    Args:
        status (`int`, *optional*): the Hub answers with this error; without it, the connection breaks.
        headers (`dict`): of that answer, such as `Retry-After`.
        message (`str`): what it says.
        is_carried_out (`bool`): the request takes effect first, and only its answer is lost.
        keep_bytes (`int`, *optional*): the true answer, broken off after so many bytes of its body.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "a fault of the test"
    is_carried_out: bool = False
    keep_bytes: int | None = None


class Refused(Exception):
    """An error answer: status, code for the client, text."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


class HttpHandler(BaseHTTPRequestHandler):
    """Reads a request, asks the Hub for a fault, and lets `answer` carry it out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two writes
    server: Any

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def answer(self, method: str, path: str) -> None:
        """Send the answer; the path is still quoted."""
        raise NotImplementedError

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.path_only, self.query = parts.path, parse_qs(parts.query)
        self.body = self._read_body()
        self._fault = self.server.fault_at(self.command, unquote(parts.path))
        if self._fault is None or self._fault.is_carried_out or self._fault.keep_bytes is not None:
            try:
                self.answer("GET" if self.command == "HEAD" else self.command, parts.path)
            except Refused as refusal:
                self.refuse(refusal.status, refusal.code, str(refusal))
        if self._fault is not None and self._fault.keep_bytes is None:
            self._fail(self._fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        else:
            chunks = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        with self.server.lock:
            self.server.bytes_received += len(body)
        return body

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        text = message or code
        named = {"X-Error-Message": quote(text, safe=" '.,"), **({"X-Error-Code": code} if code else {})}
        self.send_json({"error": text}, status, named | dict(headers or {}))

    def _fail(self, fault: Fault) -> None:
        """The fault's own answer, or none."""
        if fault.status is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._fault = None
        self.refuse(fault.status, "", fault.message, fault.headers)

    def send(
        self,
        status: int,
        content: Content,
        headers: Mapping[str, str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        if self._fault is not None and self._fault.keep_bytes is None:
            return  # carried out; the answer is lost
        stop = size_of(content) if stop is None else stop
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault is not None and self._fault.keep_bytes is not None:
            stop = min(stop, start + self._fault.keep_bytes)
            self.close_connection = True
        self._write(content, start, stop)

    def _write(self, content: Content, start: int, stop: int) -> None:
        """Count first: who has read an answer finds it counted."""
        assert not isinstance(content, Claim)
        path = unquote(self.path_only)
        if isinstance(content, bytes):
            self.server.count_sent(path, stop - start)
            self.wfile.write(content[start:stop])
            return
        with content.open("rb") as file:
            file.seek(start)
            while chunk := file.read(min(CHUNK_BYTES, stop - file.tell())):
                self.server.count_sent(path, len(chunk))
                self.wfile.write(chunk)
