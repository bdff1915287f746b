# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine, over real HTTP: the routes that huggingface_hub and datasets call.

What it answers was logged against huggingface_hub 2.4. Uploads go the LFS way, or, for `LoopbackHub(xet_dir=...)`, to
a folder that hf_xet itself writes. That storage is not read here: what went there is listed with its checksum and
size, and its bytes are served only once a test adds them with `hub.learn(folder)`.

    with LoopbackHub() as hub:
        hub.serve_folder("owner/name", folder)      # from disk, nothing is read ahead
        hub.faults.append(lambda method, path, index: Fault(status=503) if index == 3 else None)
        ...                                         # hub.endpoint, or a process under environment(hub.endpoint, home)
        assert hub.bytes_uploaded == 0
"""

import base64
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from loopback_http import Fault, HttpHandler, Refused
from loopback_repository import (
    DATE,
    Claim,
    Content,
    Repository,
    Tree,
    entry_of,
    is_lfs,
    list_tree,
    sha256_of,
    size_of,
)

__all__ = ["Account", "Fault", "LoopbackHub", "Repository", "environment"]

USER = "tester"


def environment(endpoint: str, home: str, uses_xet: bool = False) -> dict[str, str]:
    """Variables under which a process talks to this Hub and to nothing else."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": home,
        "HF_TOKEN": "hf_fake",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "0" if uses_xet else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass(frozen=True)
class Account:
    """Whose token it is, and what it may do; `hub.accounts["hf_..."] = None` is a token that the Hub does not know."""

    name: str = USER
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def may_write(self, owner: str) -> bool:
        return self.role == "write" and owner in (self.name, *self.organizations)


class LoopbackHub(ThreadingHTTPServer):
    """Start with `with LoopbackHub() as hub`; `hub.endpoint` is its address, `hub.repositories` what it holds.

    Args:
        page_size (`int`): entries of a tree listing that one answer holds.
        xet_dir (`Path`, *optional*): folder for contents that hf_xet uploads.
    """

    daemon_threads = True

    def __init__(self, page_size: int = 1000, xet_dir: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page_size, self.xet_dir = page_size, xet_dir
        self.repositories: dict[str, Repository] = {}  # "models/owner/name"
        self.blobs: dict[str, Content] = {}  # by sha256
        self.accounts: dict[str, Account | None] = {}  # by token; any other token is the user's own
        self.faults: list[Callable[[str, str, int], Fault | None]] = []  # (method, path, number of the request)
        self.requests: list[str] = []
        self.bytes_sent = 0  # of bodies of answers
        self.bytes_sent_by_path: Counter[str] = Counter()
        self.bytes_received = 0  # of bodies of requests
        self.bytes_uploaded = 0  # of those, file contents that were put into the LFS storage
        self.lock = threading.RLock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def serve_folder(self, repo_id: str, folder: Path, kind: str = "datasets") -> Repository:
        """A repository whose `main` holds the files of a folder; they are read from there when they are asked for."""
        repository = self.repositories.setdefault(f"{kind}/{repo_id}", Repository())
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        repository.commit({path.relative_to(folder).as_posix(): path for path in paths})
        return repository

    def learn(self, folder: Path) -> None:
        """Make the contents of a folder known, as if they had been uploaded at another time."""
        self.blobs.update({sha256_of(path): path for path in folder.rglob("*") if path.is_file()})

    def reset_counts(self) -> None:
        """Count from here on."""
        with self.lock:
            self.requests.clear()
            self.bytes_sent_by_path.clear()
            self.bytes_sent = self.bytes_received = self.bytes_uploaded = 0

    def fault_at(self, method: str, path: str) -> Fault | None:
        """Note a request; the first fault that wants it gets it."""
        with self.lock:
            index = len(self.requests)
            self.requests.append(f"{method} {path}")
        return next((fault for hook in self.faults if (fault := hook(method, path, index))), None)

    def count_sent(self, path: str, number: int) -> None:
        with self.lock:
            self.bytes_sent += number
            self.bytes_sent_by_path[path] += number

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up, as readers of a part do; anything else is a fault of this Hub and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


_REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"
_ROUTES = {  # method and path, still quoted -> the handler's method, which is given the groups, unquoted
    ("GET", r"/api/whoami-v2"): "_whoami",
    ("POST", r"/api/validate-yaml"): "_validate_yaml",
    ("POST", r"/api/repos/create"): "_create",
    ("GET", _REPO + r"(?:/revision/([^/]+))?"): "_info",
    ("GET", _REPO + r"/auth-check(/write)?"): "_auth_check",
    ("GET", _REPO + r"/refs"): "_refs",
    ("GET", _REPO + r"/commits/([^/]+)"): "_commits",
    ("GET", _REPO + r"/tree/([^/]+)(?:/(.*))?"): "_tree",
    ("POST", _REPO + r"/paths-info/([^/]+)"): "_paths_info",
    ("POST", _REPO + r"/preupload/([^/]+)"): "_preupload",
    ("GET", _REPO + r"/xet-write-token/([^/]+)"): "_xet_token",
    ("POST", _REPO + r"/commit/([^/]+)"): "_commit",
    ("POST", _REPO + r"/branch/([^/]+)"): "_create_branch",
    ("DELETE", _REPO + r"/branch/([^/]+)"): "_delete_branch",
    ("POST", _REPO + r"/tag/([^/]+)"): "_create_tag",
    ("DELETE", _REPO + r"/tag/([^/]+)"): "_delete_tag",
    ("GET", _REPO + r"/discussions"): "_discussions",
    ("POST", _REPO + r"/discussions"): "_open_discussion",
    ("GET", _REPO + r"/discussions/(\d+)"): "_discussion",
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch"): "_lfs_batch",
    ("PUT", r"/upload/([0-9a-f]{64})"): "_upload",
    ("POST", r"/verify"): "_verify",
    ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"): "_resolve",
}


class _Handler(HttpHandler):
    server: LoopbackHub

    def answer(self, method: str, path: str) -> None:
        for (wanted, pattern), name in _ROUTES.items():
            match = re.fullmatch(pattern, path) if wanted == method else None
            if match:
                groups = [group if group is None else unquote(group) for group in match.groups()]
                return getattr(self, name)(*groups)
        raise Refused(404, "RepoNotFound")

    # -------------------------------------------------------------- accounts and repositories

    def _whoami(self) -> None:
        account = self._account()
        organizations = [{"name": name, "type": "org"} for name in account.organizations]
        auth = {"type": "access_token", "accessToken": {"role": account.role}}
        self.send_json({"type": "user", "name": account.name, "orgs": organizations, "auth": auth})

    def _validate_yaml(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    def _create(self) -> None:
        wanted = json.loads(self.body)
        account = self._account()
        owner = wanted.get("organization") or account.name
        kind = f"{wanted.get('type') or 'model'}s"
        key = f"{kind}/{owner}/{wanted['name']}"
        url = f"{self.server.endpoint}/{'datasets/' if kind == 'datasets' else ''}{owner}/{wanted['name']}"
        if not account.may_write(owner):
            raise Refused(403, "", "You don't have the rights to create a dataset under this namespace")
        with self.server.lock:
            is_new = key not in self.server.repositories
            if is_new:
                self.server.repositories[key] = Repository(wanted.get("visibility") == "private")
        self.send_json({"url": url} if is_new else {"url": url, "error": "exists"}, 200 if is_new else 409)

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repository, (sha, files) = self._find(kind, name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": name, "sha": sha, "private": repository.is_private, "tags": [], "siblings": siblings})

    def _auth_check(self, kind: str, name: str, write: str | None) -> None:
        self._repository(kind, name)
        if write:
            self._require_write(name)
        self.send_json({})

    # -------------------------------------------------------------- reading

    def _refs(self, kind: str, name: str) -> None:
        self.send_json(self._repository(kind, name).refs(with_pull_requests="include_prs" in self.query))

    def _commits(self, kind: str, name: str, revision: str) -> None:
        repository, _ = self._find(kind, name, revision)
        self.send_json(
            [
                {"id": sha, "title": repository.titles[sha], "message": "", "authors": [], "date": DATE}
                for sha in repository.history(revision)
            ]
        )

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        _, (_, files) = self._find(kind, name, revision)
        is_recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = list_tree(files, folder or "", is_recursive)
        if entries is None:
            raise Refused(404, "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.server.page_size
        more = f"{self.server.endpoint}{self.path_only}?cursor={stop}&recursive={str(is_recursive).lower()}"
        headers = {"Link": f'<{more}>; rel="next"'} if stop < len(entries) else {}
        self.send_json(entries[start:stop], headers=headers)

    def _paths_info(self, kind: str, name: str, revision: str) -> None:
        _, (_, files) = self._find(kind, name, revision)
        paths = parse_qs(self.body.decode()).get("paths", [])
        self.send_json([entry_of(path, files[path]) for path in paths if path in files])

    def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        _, (sha, files) = self._find("datasets" if kind else "models", name, revision)
        content = self._known(files[path]) if path in files else None
        if content is None:
            return self.refuse(404, "EntryNotFound", headers={"X-Repo-Commit": sha})
        entry, size = entry_of(path, content), size_of(content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send(200, content, headers)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= stop:
            return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
        return self.send(206, content, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, start, stop)

    # -------------------------------------------------------------- uploading

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        self._require_write(name, revision, proposes="create_pr" in self.query)
        _, (_, files) = self._find(kind, name, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in files:
                entry = entry_of(file["path"], files[file["path"]])
                answer["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            answers.append(answer)
        self.send_json({"files": answers})

    def _lfs_batch(self, _kind: str | None, name: str) -> None:
        wanted = json.loads(self.body)
        self._require_write(name, wanted.get("ref", {}).get("name", "refs/pr/0"))
        objects = []
        for item in wanted["objects"]:
            actions = {
                "upload": {"href": f"{self.server.endpoint}/upload/{item['oid']}"},
                "verify": {"href": f"{self.server.endpoint}/verify"},
            }
            known = item["oid"] in self.server.blobs
            objects.append({**item, **({} if known else {"actions": actions})})
        self.send_json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if sha256_of(self.body) != oid:
            raise Refused(400, "", "the content does not have that sha256")
        with self.server.lock:
            self.server.blobs[oid] = self.body
            self.server.bytes_uploaded += len(self.body)
        self.send(200, b"")

    def _verify(self) -> None:
        wanted = json.loads(self.body)
        content = self.server.blobs.get(wanted["oid"])
        is_there = content is not None and size_of(content) == wanted["size"]
        self.send_json({}, 200 if is_there else 404)

    def _xet_token(self, _kind: str, name: str, revision: str) -> None:
        self._require_write(name, revision, proposes="create_pr" in self.query)
        if self.server.xet_dir is None:
            raise Refused(404, "EntryNotFound", "this Hub has no Xet storage")
        url, expires = f"local://{self.server.xet_dir.resolve()}", 4_000_000_000
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": "xet_fake",
            "X-Xet-Token-Expiration": str(expires),
        }
        self.send_json({"accessToken": "xet_fake", "exp": expires, "casUrl": url}, headers=headers)

    def _commit(self, kind: str, name: str, revision: str) -> None:
        proposes = "create_pr" in self.query
        self._require_write(name, revision, proposes)
        header, *items = (json.loads(line) for line in self.body.splitlines())
        with self.server.lock:
            repository, (head, files) = self._find(kind, name, revision)
            if revision not in repository.branches:
                raise Refused(404, "RevisionNotFound")
            if header["value"].get("parentCommit", head) != head:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            files = self._changed(files, items)
            title = header["value"]["summary"]
            answer = {}
            if proposes:
                num = repository.open_pull_request(title, self._account().name, revision).num
                revision = f"refs/pr/{num}"
                answer["pullRequestUrl"] = f"{self.server.endpoint}/{kind}/{name}/discussions/{num}"
            sha = repository.commit(files, revision, title)
        self.send_json(answer | {"commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    def _changed(self, files: Tree, items: list[dict[str, Any]]) -> Tree:
        files = dict(files)
        for item in items:
            value, path = item["value"], item["value"]["path"]
            if item["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[path] = self._lfs_content(value, files)
            elif item["key"] == "deletedFolder":
                files = {name: data for name, data in files.items() if not name.startswith(path.rstrip("/") + "/")}
            elif files.pop(path, None) is None:
                raise Refused(400, "", "A file with this name doesn't exist")
        return files

    def _lfs_content(self, value: dict[str, Any], files: Tree) -> Content:
        """What a pointer stands for: bytes that were uploaded, or under Xet the promise of some."""
        if value["oid"] in self.server.blobs:
            return self.server.blobs[value["oid"]]
        trees = [files, *(tree for repo in self.server.repositories.values() for _, tree in repo.commits)]
        known = (content for tree in trees for path, content in tree.items() if is_lfs(path, size_of(content)))
        found = next((content for content in known if sha256_of(content) == value["oid"]), None)
        if found is not None:
            return found
        if self.server.xet_dir is None:
            raise Refused(400, "", "an LFS file was never uploaded")
        return Claim(value["oid"], value["size"])

    # -------------------------------------------------------------- branches, tags, pull requests

    def _create_branch(self, kind: str, name: str, branch: str) -> None:
        self._require_write(name)
        repository, (sha, _) = self._find(kind, name, json.loads(self.body).get("startingPoint", "main"))
        with self.server.lock:
            if branch in repository.branches:
                raise Refused(409, "", "Reference already exists")
            repository.branches[branch] = sha
        self.send_json({}, 201)

    def _delete_branch(self, kind: str, name: str, branch: str) -> None:
        self._require_write(name)
        repository = self._repository(kind, name)
        if branch == "main" or repository.branches.pop(branch, None) is None:
            raise Refused(404, "RevisionNotFound")
        self.send_json({})

    def _create_tag(self, kind: str, name: str, revision: str) -> None:
        self._require_write(name)
        repository, (sha, _) = self._find(kind, name, revision)
        tag = json.loads(self.body)["tag"]
        with self.server.lock:
            if tag in repository.tags:
                raise Refused(409, "", "Tag reference exists already")
            repository.tags[tag] = sha
        self.send_json({}, 201)

    def _delete_tag(self, kind: str, name: str, tag: str) -> None:
        self._require_write(name)
        if self._repository(kind, name).tags.pop(tag, None) is None:
            raise Refused(404, "RevisionNotFound")
        self.send_json({})

    def _discussions(self, kind: str, name: str) -> None:
        author = self.query.get("author", [None])[0]
        everyone = self._repository(kind, name).pull_requests
        shown = [self._shown(kind, name, one.num) for one in everyone if author in (None, one.author)]
        self.send_json({"discussions": shown, "count": len(shown), "start": 0})

    def _open_discussion(self, kind: str, name: str) -> None:
        self._require_write(name, proposes=True)
        repository, wanted = self._repository(kind, name), json.loads(self.body)
        assert wanted["pullRequest"], "discussions without a proposal are of no use here"
        with self.server.lock:
            num = repository.open_pull_request(wanted["title"], self._account().name).num
        self.send_json({"num": num})

    def _discussion(self, kind: str, name: str, num: str) -> None:
        more = {"events": [], "changes": {"base": "refs/heads/main"}, "filesWithConflicts": False}
        self.send_json(self._shown(kind, name, int(num)) | more)

    def _shown(self, kind: str, name: str, num: int) -> dict[str, Any]:
        one = self._repository(kind, name).pull_requests[num - 1]
        return {
            "num": num,
            "title": one.title,
            "author": {"name": one.author},
            "createdAt": DATE,
            "status": one.status,
            "repo": {"name": name, "type": kind.removesuffix("s")},
            "isPullRequest": True,
        }

    # -------------------------------------------------------------- rights

    def _account(self) -> Account:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        account = self.server.accounts.get(token, Account()) if token else None
        if account is None:
            raise Refused(401, "", "Invalid credentials in Authorization header" if token else "Unauthorized")
        return account

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repository.is_private and not self._may_see(name):
            raise Refused(404 if "Authorization" in self.headers else 401, "RepoNotFound", "Repository not found")
        return repository

    def _may_see(self, name: str) -> bool:
        account = self._account() if "Authorization" in self.headers else Account("")
        return name.split("/")[0] in (account.name, *account.organizations)

    def _find(self, kind: str, name: str, revision: str) -> tuple[Repository, tuple[str, Tree]]:
        repository = self._repository(kind, name)
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _require_write(self, name: str, revision: str = "main", proposes: bool = False) -> None:
        """A pull request may be made by anyone whose token writes at all."""
        account = self._account()
        is_proposal = proposes or revision.startswith("refs/pr/")
        if not (account.may_write(name.split("/")[0]) or (is_proposal and account.role == "write")):
            raise Refused(403, "", "you don't have the rights to write to this repository")

    def _known(self, content: Content) -> Content | None:
        return self.server.blobs.get(content.sha256) if isinstance(content, Claim) else content
