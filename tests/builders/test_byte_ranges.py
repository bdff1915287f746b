# SPDX-License-Identifier: Apache-2.0
"""A release on a Hub over real HTTP: what is asked for, how much is sent, and what happens when it fails."""

import hashlib
import io
import json
import random
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import close_session, constants
from loopback_hub import LoopbackHub, Repository
from PIL import Image
from upstream_double import Expected, check_import, write_release

from sharegpt4o_image.builders.byte_ranges import HubFile, LocalFile
from sharegpt4o_image.builders.upstream_release import UpstreamRelease
from sharegpt4o_image.errors import UserError

COMMIT = "c" * 40
URL_TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


class Storage(ThreadingHTTPServer):
    """A Hub with one data set, which sends tar parts from a storage server at signed addresses, as the real one does.

    It serves both under two names: 127.0.0.1 is the Hub, localhost the storage. What was asked for is written down.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _StorageHandler)
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.signature = 0  # of the addresses that are good now
        self.uses_left = 10**9  # of each address
        self.ignores_ranges = False
        self.num_dropped = 0  # answers to break off
        self.addresses: list[str] = []  # that were given out
        self.sent: dict[str, list[int]] = {}  # name -> sizes of the answers of the storage
        self.refuses = False
        self.tokens: list[str | None] = []  # that the storage was sent
        self.hub_tokens: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client may hang up."""

    def num_bytes(self) -> int:
        return sum(map(sum, self.sent.values()))

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _StorageHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Storage

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not url.path.startswith("/storage/"):
            self.server.hub_tokens.append(self.headers.get("Authorization"))
        folder = self.server.folder
        if url.path in ("/api/datasets/org/release", f"/api/datasets/org/release/revision/{COMMIT}"):
            return self._json({"id": "org/release", "sha": COMMIT, "private": False, "tags": [], "siblings": []})
        if url.path == f"/api/datasets/org/release/tree/{COMMIT}":
            return self._json([self._entry(path) for path in sorted(folder.iterdir())])
        if match := re.fullmatch(rf"/datasets/org/release/resolve/{COMMIT}/(.+)", url.path):
            return self._resolve(folder / match[1])
        if url.path.startswith("/storage/"):
            return self._send_range(folder / url.path.split("/")[-1], url.query)
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _entry(self, path: Path) -> dict[str, Any]:
        size, oid = path.stat().st_size, hashlib.sha1(path.name.encode()).hexdigest()
        lfs = {"oid": hashlib.sha256(path.read_bytes()).hexdigest(), "size": size, "pointerSize": 130}
        return {"type": "file", "path": path.name, "size": size, "oid": oid, "lfs": lfs}

    def _resolve(self, path: Path) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{path.name}"'}
        if path.suffix == ".json":
            return self._send(200, path.read_bytes(), headers)
        self.server.addresses.append(path.name)
        storage = self.server.endpoint.replace("127.0.0.1", "localhost")
        location = f"{storage}/storage/{path.name}?signature={self.server.signature}"
        return self._send(302, b"", headers | {"Location": location, "X-Linked-Size": str(path.stat().st_size)})

    def _send_range(self, path: Path, query: str) -> None:
        server = self.server
        server.tokens.append(self.headers.get("Authorization"))
        if server.refuses or query != f"signature={server.signature}":
            return self._send(403, b"expired")
        server.uses_left -= 1
        if server.uses_left == 0:
            server.signature, server.uses_left = server.signature + 1, 10**9
        data = path.read_bytes()
        if server.ignores_ranges:
            return self._send(200, data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        part = data[int(match[1]) : int(match[2]) + 1]
        server.sent.setdefault(path.name, []).append(len(part))
        headers = {"Content-Range": f"bytes {match[1]}-{match[2]}/{len(data)}"}
        if server.num_dropped:
            server.num_dropped -= 1
            self.close_connection = True
            return self._send(206, part[: len(part) // 2], headers | {"Content-Length": str(len(part))})
        return self._send(206, part, headers)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path) -> None:
    """Let `huggingface_hub` talk to another Hub; it reads these when it is called."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + URL_TEMPLATE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def expected(tmp_path: Path) -> Expected:
    return write_release(tmp_path / "release", num_rows=60, breaks=True)


@pytest.fixture
def hub(tmp_path: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with Storage(tmp_path / "release") as server:
        use_hub(monkeypatch, server.endpoint, tmp_path)
        yield server
        close_session()


def open_release(tmp_path: Path) -> UpstreamRelease:
    return UpstreamRelease.open("org/release", tmp_path / "cache")


def test_rows_by_range_requests(hub: Storage, tmp_path: Path, expected: Expected) -> None:
    """The same rows as from the folder; the token goes to the Hub alone, which gives one address for each tar part."""
    release = open_release(tmp_path)
    check_import(release, expected)
    assert sorted(hub.addresses) == sorted(path.name for path in hub.folder.glob("*.tar"))
    assert set(hub.tokens) == {None}
    assert set(hub.hub_tokens) == {"Bearer hf_secret"}
    assert release.facts().name == "org/release"


def test_index_costs_headers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan sends about one header of 2 KiB for each member, the next one nothing; a row sends its picture."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "text_to_image.json").write_text(
        json.dumps([{"input_prompt": "a", "output_image": f"image/{number}.png"} for number in range(30)])
    )
    picture = png_of_noise(200)
    with tarfile.open(folder / "text_to_image_part_0.tar", "w") as archive:
        for number in range(30):
            info = tarfile.TarInfo(f"image/{number}.png")
            info.size = len(picture)
            archive.addfile(info, io.BytesIO(picture))
    with Storage(folder) as server:
        use_hub(monkeypatch, server.endpoint, tmp_path)
        plans = [*open_release(tmp_path).plan()]
        requests, num_bytes = len(server.sent["text_to_image_part_0.tar"]), server.num_bytes()
        assert requests <= 30 + 2
        assert num_bytes <= 2048 * requests < (folder / "text_to_image_part_0.tar").stat().st_size / 50
        again = open_release(tmp_path)
        assert [*again.plan()] == plans
        assert server.num_bytes() == num_bytes
        assert again.load(plans[7]).output_image.bytes == picture
        assert server.num_bytes() == num_bytes + len(picture)
        close_session()


def png_of_noise(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_plain_hub(tmp_path: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that sends files itself, under the address that was asked for."""
    with LoopbackHub() as server:
        repository = server.repositories["datasets/org/release"] = Repository()
        repository.commit({path.name: path.read_bytes() for path in (tmp_path / "release").iterdir()})
        use_hub(monkeypatch, server.endpoint, tmp_path)
        check_import(open_release(tmp_path), expected)
        close_session()


def test_addresses_run_out(hub: Storage, tmp_path: Path, expected: Expected) -> None:
    """A new address is asked for, and the rows are the same."""
    hub.uses_left = 20
    check_import(open_release(tmp_path), expected)
    assert len(hub.addresses) > len([*hub.folder.glob("*.tar")])


def test_answers_that_break_off(hub: Storage, tmp_path: Path, expected: Expected) -> None:
    hub.num_dropped = 3
    check_import(open_release(tmp_path), expected)


def test_answers_that_always_break_off(hub: Storage, tmp_path: Path) -> None:
    """The rows are not kept out, the command ends: it can be run again."""
    hub.num_dropped = 10**9
    with pytest.raises(UserError, match=r"does not send text_.*tar whole; run the command again later"):
        list(open_release(tmp_path).plan())


def test_storage_that_ignores_ranges(hub: Storage, tmp_path: Path) -> None:
    """Whole tar parts would be sent: not one is read."""
    hub.ignores_ranges = True
    with pytest.raises(UserError, match="does not send parts of files; download the release"):
        list(open_release(tmp_path).plan())


def test_storage_that_refuses(hub: Storage, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(UserError, match=r"does not send text_.*tar whole|status 403"):
        list(open_release(tmp_path).plan())


def test_part_of_another_size(hub: Storage) -> None:
    name = "text_to_image_part_0.tar"
    file = HubFile("org/release", COMMIT, name, LocalFile(hub.folder / name).size + 1, "oid")
    with pytest.raises(UserError, match="has another size than the Hub lists; run the command again"):
        file.read(0, 10)


def test_reads_end_with_the_file(hub: Storage) -> None:
    """As with a file on this machine."""
    name = "text_to_image_part_0.tar"
    local = LocalFile(hub.folder / name)
    remote = HubFile("org/release", COMMIT, name, local.size, "oid")
    for offset, length in ((0, 7), (513, 2000), (local.size - 3, 10), (local.size, 10), (local.size + 9, 10)):
        assert remote.read(offset, length) == local.read(offset, length)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", "there is no data set org/other on the Hub, or it is private; check the name"),
        ("org/a/b", "org/a/b is no name of a repository; give it as owner/name"),
    ],
)
def test_wrong_names(hub: Storage, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UpstreamRelease.open(name)


def test_repository_with_something_else(hub: Storage, tmp_path: Path) -> None:
    for path in hub.folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match="org/release has no tar part"):
        open_release(tmp_path)
    for path in hub.folder.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"org/release has neither text_to_image.json nor"):
        open_release(tmp_path)


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it, or give a folder"):
        open_release(tmp_path)


def test_hub_that_cannot_be_reached(hub: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(UserError, match="the Hub cannot be reached for org/release") as error:
        open_release(tmp_path)
    assert "hf_secret" not in str(error.value)
