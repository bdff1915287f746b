# SPDX-License-Identifier: Apache-2.0
"""What the loopback Hub holds: commits, branches, tags and pull requests; contents in memory or on disk."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".jpg", ".webp", ".bin", ".tar", ".zip")
LFS_BYTES = 10_000_000  # larger files go the LFS way whatever they are called
DATE = "2026-11-23T00:00:00.000Z"


@dataclass(frozen=True)
class Claim:
    """A file of which only the checksum is known here: its bytes went to the Xet storage."""

    sha256: str
    size: int


Content = bytes | Path | Claim
Tree = dict[str, Any]  # path -> Content; tests read the bytes of what they committed as bytes


def size_of(content: Content) -> int:
    if isinstance(content, Claim):
        return content.size
    return content.stat().st_size if isinstance(content, Path) else len(content)


def sha256_of(content: Content) -> str:
    if isinstance(content, Claim):
        return content.sha256
    if isinstance(content, Path):
        return _file_digest(content, "sha256", b"", content.stat().st_mtime_ns)
    return hashlib.sha256(content).hexdigest()


def git_oid(content: Content) -> str:
    """What git calls a blob of this content."""
    assert not isinstance(content, Claim)
    head = b"blob %d\0" % size_of(content)
    if isinstance(content, Path):
        return _file_digest(content, "sha1", head, content.stat().st_mtime_ns)
    return hashlib.sha1(head + content).hexdigest()


@functools.cache
def _file_digest(path: Path, algorithm: str, head: bytes, _modified: int) -> str:
    digest = hashlib.new(algorithm, head)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_BYTES)


def entry_of(path: str, content: Content) -> dict[str, Any]:
    """How tree listings and `paths-info` show a file."""
    size = size_of(content)
    if not is_lfs(path, size):
        return {"type": "file", "path": path, "size": size, "oid": git_oid(content)}
    sha256 = sha256_of(content)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": size, "oid": git_oid(pointer), "lfs": lfs}


def list_tree(files: Tree, folder: str, is_recursive: bool) -> list[dict[str, Any]] | None:
    """The entries of a folder, in order of their paths; None where there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    if folder and not inside:
        return None
    parents = {path[:end] for path in inside for end in range(len(prefix), len(path)) if path[end] == "/"}
    entries = [entry_of(path, content) for path, content in inside.items()]
    entries += [{"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0} for path in parents]
    shown = (entry for entry in entries if is_recursive or "/" not in entry["path"][len(prefix) :])
    return sorted(shown, key=lambda entry: str(entry["path"]))


@dataclass
class PullRequest:
    """A proposal; its commits are on `refs/pr/<num>`."""

    num: int
    title: str
    author: str
    status: str = "draft"


@dataclass
class Repository:
    """Commits of all branches, oldest first: each a sha and a mapping of paths to contents."""

    is_private: bool = False
    commits: list[tuple[str, Tree]] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({}, title="initial commit")

    def commit(self, files: Mapping[str, Content], revision: str = "main", title: str = "a commit") -> str:
        """A new head of a branch, or of `refs/pr/<num>`, that holds these files and no others."""
        sha = hashlib.sha1(f"{id(self)}{len(self.commits)}".encode()).hexdigest()
        self.commits.append((sha, dict(files)))
        self.titles[sha] = title
        self.parents[sha] = self.branches.get(revision)
        self.branches[revision] = sha
        return sha

    def at(self, revision: str) -> tuple[str, Tree] | None:
        """The commit that a branch, a tag, a pull request or a sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit[0] == sha), None)

    def history(self, revision: str) -> list[str]:
        """The shas that lead to a revision, newest first."""
        commit = self.at(revision)
        shas, sha = [], commit[0] if commit else None
        while sha is not None:
            shas.append(sha)
            sha = self.parents[sha]
        return shas

    def open_pull_request(self, title: str, author: str, start: str = "main") -> PullRequest:
        found = self.at(start)
        assert found is not None
        pull_request = PullRequest(len(self.pull_requests) + 1, title, author)
        self.pull_requests.append(pull_request)
        self.branches[f"refs/pr/{pull_request.num}"] = found[0]
        return pull_request

    def merge(self, num: int) -> str:
        """What the button on the page does."""
        found = self.at(f"refs/pr/{num}")
        assert found is not None
        self.pull_requests[num - 1].status = "merged"
        return self.commit(found[1], title=f"{self.pull_requests[num - 1].title} (#{num})")

    def refs(self, with_pull_requests: bool) -> dict[str, Any]:
        def shown(refs: Mapping[str, str], prefix: str, is_wanted: Callable[[str], bool]) -> list[dict[str, str]]:
            return [
                {"name": name.removeprefix("refs/pr/"), "ref": prefix + name, "targetCommit": sha}
                for name, sha in refs.items()
                if is_wanted(name)
            ]

        proposals = shown(self.branches, "", lambda name: name.startswith("refs/")) if with_pull_requests else []
        branches = shown(self.branches, "refs/heads/", lambda name: not name.startswith("refs/"))
        tags = shown(self.tags, "refs/tags/", lambda name: True)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": proposals}
