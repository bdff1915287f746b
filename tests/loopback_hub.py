# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine: repositories in memory, behind the routes that huggingface_hub calls (no Xet).

What it answers was logged against huggingface_hub 2.4; uploads go the LFS way, commits are a list of file trees.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"


def environment(endpoint: str, home: str) -> dict[str, str]:
    """Variables under which a process talks to this Hub and to nothing else."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": home,
        "HF_TOKEN": "hf_fake",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
    }


class Repository:
    """Commits, oldest first: each a mapping of paths to contents."""

    def __init__(self) -> None:
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LoopbackHub(ThreadingHTTPServer):
    """Start with `with LoopbackHub() as hub`; `hub.endpoint` is its address, `hub.repositories` what it holds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}  # "models/owner/name"
        self.blobs: dict[str, bytes] = {}  # by sha256
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            token = {"accessToken": {"role": "write"}}
            return self._json({"type": "user", "name": USER, "orgs": [], "auth": token})
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._info(*match.groups())
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            return self._tree(*match.groups())
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*match.groups())
        return self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        body = self._body()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/(.+)", path):
            return self._preupload(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(match[1], match[2], body)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/(.+)", path):
            return self._paths_info(match[1], match[2], match[3], parse_qs(body.decode()).get("paths", []))
        if path == "/verify":
            return self._json({})
        return self._missing("EntryNotFound")

    def do_PUT(self) -> None:
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/upload/")
        self.server.blobs[self.path.removeprefix("/upload/")] = data
        self._send(200, b"")

    # -------------------------------------------------------------- answers

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or USER
        kind = f"{wanted.get('type') or 'model'}s"
        key = f"{kind}/{owner}/{wanted['name']}"
        url = f"{self.server.endpoint}/{'datasets/' if kind == 'datasets' else ''}{owner}/{wanted['name']}"
        is_new = key not in self.server.repositories
        self.server.repositories.setdefault(key, Repository())
        self._json({"url": url}, 200 if is_new else 409)

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        commit = self._find(kind, name, revision or "main")
        if commit is not None:
            siblings = [{"rfilename": path} for path in commit[1]]
            self._json({"id": name, "sha": commit[0], "private": False, "tags": [], "siblings": siblings})

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        commit = self._find(kind, name, revision)
        if commit is None:
            return
        prefix = f"{folder}/" if folder else ""
        files = {path: data for path, data in commit[1].items() if path.startswith(prefix)}
        if folder and not files:
            return self._missing("EntryNotFound")
        self._json([_entry(path, data) for path, data in files.items()])

    def _paths_info(self, kind: str, name: str, revision: str, paths: list[str]) -> None:
        commit = self._find(kind, name, revision)
        if commit is not None:
            self._json([_entry(path, commit[1][path]) for path in paths if path in commit[1]])

    def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        commit = self._find("datasets" if kind else "models", name, revision)
        if commit is None:
            return
        sha, files = commit
        if path not in files:
            return self._missing("EntryNotFound", {"X-Repo-Commit": sha})
        data, status = files[path], 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            start = int(match[1]) if match[1] else len(data) - int(match[2])
            stop = min(int(match[2]) + 1, len(data)) if match[1] and match[2] else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._send(status, data, headers)

    def _preupload(self, wanted: dict[str, Any]) -> None:
        large = (".safetensors", ".parquet", ".png", ".jpg", ".bin")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
            }
            for file in wanted["files"]
        ]
        self._json({"files": files})

    def _lfs_batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            actions = {
                "upload": {"href": f"{self.server.endpoint}/upload/{item['oid']}"},
                "verify": {"href": f"{self.server.endpoint}/verify"},
            }
            known = item["oid"] in self.server.blobs
            objects.append({**item, **({} if known else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, name: str, body: bytes) -> None:
        repository = self.server.repositories[f"{kind}/{name}"]
        files = dict(repository.commits[-1][1])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(files)
        self._json({"commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    # -------------------------------------------------------------- parts

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            self._missing("RepoNotFound")
            return None
        commit = repository.at(revision)
        if commit is None:
            self._missing("RevisionNotFound")
        return commit

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"}
        self._send(404, json.dumps({"error": code}).encode(), named | (headers or {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
