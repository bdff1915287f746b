# SPDX-License-Identifier: Apache-2.0
"""A packed data set folder -> a tagged release on the Hub, whole or not at all; or the plan of one.

The files go to a branch of their own first, a few at a time. Once the branch holds exactly what the folder holds,
`main` is brought to it in one commit, that commit is tagged, and the branch is deleted. With a pull request, its head
is tagged instead, and `main` stays as it is. What was uploaded before a kill is found again.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from sharegpt4o_image.builders.croissant import CROISSANT, require_validator
from sharegpt4o_image.builders.hub_calls import HubRepository, HubState, NotAllowed, ask_account, check_repo_id
from sharegpt4o_image.builders.publication import (
    BRANCH,
    OnProgress,
    Publication,
    Release,
    check_repository,
    check_same,
    refuse_foreign,
)
from sharegpt4o_image.builders.release_folder import ReleaseFile, ReleaseFolder, read_release
from sharegpt4o_image.errors import UserError

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")  # also cut short


def publish_dataset(
    folder: Path,
    repo_id: str,
    tag: str,
    *,
    is_private: bool = False,
    creates_pull_request: bool = False,
    on_progress: OnProgress | None = None,
    api: HfApi | None = None,
) -> Release:
    """Upload a data set folder and tag it; what the repository holds already is not uploaded again.

    A run that was killed or that failed leaves no tag; the next one goes on from what is there. What a repository
    holds beside data sets (a licence, say) stays; files of an earlier release that this one lacks are deleted.

    Reads: `folder`: card, shards, `rejections.parquet`, `card/`; not `codes/`.
    Writes: `croissant.json` in `folder`, with repository and version. On the Hub: branch
    `sharegpt4o-image-release-<tag>` while it runs, `main` in one commit, and the tag; or a pull request and the tag.

    Args:
        folder (`Path`):
            A data set folder that `pack` wrote.
        repo_id (`str`):
            `owner/name`, or `name` for a repository of the token's user; made when it is not there.
        tag (`str`):
            Name of the release. A tag is never moved.
        is_private (`bool`, *optional*, defaults to `False`):
            Make a new repository private; one that is public is refused.
        creates_pull_request (`bool`, *optional*, defaults to `False`):
            Open a pull request and leave `main` alone.
        on_progress (callable, *optional*):
            Called with the number of steps done, and of all: each file is read once and uploaded once.
        api (`HfApi`, *optional*):
            Endpoint and token; by default those of the environment.
    """
    check_tag(tag)
    check_repo_id(repo_id)
    require_validator()
    release = read_release(folder)
    api = api or HfApi()
    account = ask_account(api)
    if not account.may_write:
        raise NotAllowed("the token may only read; log in with `hf auth login`, or set HF_TOKEN to one that may write")
    repository = HubRepository(api, _full_name(repo_id, account.name))
    with _quiet_hub(on_progress is not None):
        publication = Publication(repository, release, tag, on_progress)
        return publication.run(account.name, is_private, creates_pull_request)


def check_tag(tag: str) -> None:
    """Refuse what git or the Hub could take for something else."""
    is_name = _TAG.fullmatch(tag) and ".." not in tag and not tag.endswith((".", ".lock"))
    if not is_name or tag in ("main", "HEAD") or _COMMIT.fullmatch(tag):
        raise UserError(f"{tag!r} cannot be the name of a release; take one like v1.0")


def _full_name(repo_id: str, user: str) -> str:
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


@contextmanager
def _quiet_hub(has_own_bar: bool) -> Iterator[None]:
    """Its client logs the addresses that it asks again, which may be signed; and two bars would be one too many."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    hides_bars = has_own_bar and not are_progress_bars_disabled()
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hides_bars:
            enable_progress_bars()


# --------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class ReleasePlan:
    """What `publish_dataset` would do.

    Args:
        repo_id, tag (`str`): what would be released.
        files (`list`): path, size and, where the Hub could be asked, whether it holds the file.
        deletions (`list`): files of an earlier release that would go.
        steps (`list`): the changes, in order.
        left_out (`tuple`): what lies in the folder and is not published.
        note (`str`, *optional*): what else there is to know.
    """

    repo_id: str
    tag: str
    files: list[dict[str, Any]]
    deletions: list[str]
    steps: list[str]
    left_out: tuple[str, ...]
    note: str | None

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """The plan for people."""
        states = {True: "there", False: "to upload", None: "unknown"}
        lines = [f"{self.repo_id} {self.tag}"]
        lines += [f"{file['size']:>16,}  {states[file['is_there']]:<9}  {file['path']}" for file in self.files]
        lines += [f"To delete: {', '.join(self.deletions)}"] if self.deletions else []
        lines += [f"Not published: {', '.join(self.left_out)}"] if self.left_out else []
        lines += [f"{number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def plan_release(
    folder: Path,
    repo_id: str,
    tag: str,
    *,
    is_private: bool = False,
    creates_pull_request: bool = False,
    api: HfApi | None = None,
) -> ReleasePlan:
    """Say what `publish_dataset` would do with the same arguments; changes nothing, and does without the Hub."""
    check_tag(tag)
    check_repo_id(repo_id)
    release = read_release(folder).without_croissant()  # which is written for repository and tag
    found = _ask_hub(api or HfApi(), repo_id, tag)
    if found.state is not None:
        _check_found(found, release, tag, is_private)
    deletions = release.stale_in(found.trees.get("main", {}))
    steps = [] if tag in found.trees else _steps(found, tag, is_private, creates_pull_request)
    files = [{"path": file.path, "size": file.size, "is_there": found.has(file)} for file in release.files]
    note = found.fault or (None if steps else "Published already; nothing is to be done.")
    return ReleasePlan(found.repository.repo_id, tag, files, deletions, steps, release.left_out, note)


@dataclass(frozen=True)
class _Found:
    """What the Hub told: the repository, the trees that a release would find, or why it did not answer."""

    repository: HubRepository
    state: HubState | None
    trees: dict[str, dict[str, RepoFile]]
    fault: str | None = None

    def has(self, file: ReleaseFile) -> bool | None:
        """Whether the repository holds the bytes of a file under whatever name."""
        if self.fault is not None:
            return None
        held = [remote for tree in self.trees.values() for remote in tree.values()]
        return any(file.equals(remote) for remote in held)


def _ask_hub(api: HfApi, repo_id: str, tag: str) -> _Found:
    repository = HubRepository(api, _full_name(repo_id, "<user>"), max_tries=1)
    try:
        if "/" not in repo_id:
            repository = HubRepository(api, _full_name(repo_id, ask_account(api, max_tries=1).name), max_tries=1)
        state = repository.attempt("look at the repository", repository.look)
        refs = {} if state is None else state.branches | state.tags
        names = [name for name in ("main", BRANCH + tag, tag) if name in refs]  # a killed run leaves its branch
        trees = repository.attempt("list the files", lambda: {name: repository.tree(refs[name]) for name in names})
        for tree in trees.values():
            tree.pop(CROISSANT, None)
    except UserError as error:
        return _Found(repository, None, {}, f"The Hub could not be asked: {error}.")
    return _Found(repository, state, trees)


def _check_found(found: _Found, release: ReleaseFolder, tag: str, is_private: bool) -> None:
    assert found.state is not None
    name = found.repository.repo_id
    check_repository(name, found.state, tag, is_private)
    if tag in found.state.tags:
        check_same(release, name, tag, found.trees[tag])
    elif "main" in found.trees:
        refuse_foreign(found.repository, found.state.branches["main"], found.trees["main"])


def _steps(found: _Found, tag: str, is_private: bool, creates_pull_request: bool) -> list[str]:
    name = found.repository.repo_id
    is_made = found.state is not None or found.fault is not None
    steps = [] if is_made else [f"create the {'private ' if is_private else ''}repository {name}"]
    steps += [f"write croissant.json for {name} {tag}"]
    place = "a pull request" if creates_pull_request else f"the branch {BRANCH}{tag}"
    steps += [f"upload to {place}, and compare it with the folder"]
    if creates_pull_request:
        return [*steps, f"tag the head of the pull request as {tag}"]
    return [*steps, "bring main to the same files in one commit", f"tag that commit as {tag}", "delete the branch"]
