# SPDX-License-Identifier: Apache-2.0
"""A release folder and a repository -> a tagged release; each step looks first, so that it may be repeated."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile

from sharegpt4o_image.builders.croissant import CROISSANT
from sharegpt4o_image.builders.hub_calls import HubRepository, HubState, NotAllowed
from sharegpt4o_image.builders.release_folder import CARD, ReleaseFile, ReleaseFolder, is_foreign
from sharegpt4o_image.errors import UserError

OnProgress = Callable[[int, int], None]

COMMIT_FILES = 50  # of one commit on the way; the Hub advises fewer than 100
UPLOAD_FILES = 5  # as many as huggingface_hub uploads at once
BRANCH = "sharegpt4o-image-release-"  # what follows is the tag; only we name a branch so, and only it is deleted


@dataclass(frozen=True)
class Release:
    """What stands on the Hub now.

    Args:
        repo_id, tag, commit, url (`str`): where it is.
        num_files, num_bytes (`int`): what it holds.
        num_uploaded, uploaded_bytes (`int`): files that the repository did not hold, and their size.
        is_new (`bool`): this run made it; otherwise it stood there already.
        is_tagged (`bool`): the commit has its tag; false for a pull request by somebody who may not tag.
        pull_request (`str`, *optional*): address of the pull request.
        left_out (`tuple`): what lies in the folder and is not published.
        note (`str`, *optional*): what is left to do.
    """

    repo_id: str
    tag: str
    commit: str
    url: str
    num_files: int
    num_bytes: int
    num_uploaded: int
    uploaded_bytes: int
    is_new: bool
    is_tagged: bool
    pull_request: str | None
    left_out: tuple[str, ...]
    note: str | None

    def to_json(self) -> str:
        """The release as one line of JSON."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """The release for people, ending with the line of Python that loads it."""
        sent = f"{self.num_uploaded:,} of them uploaded, {self.uploaded_bytes / 1e6:,.2f} MB"
        state = sent if self.is_new else "published already"
        lines = [f"{self.repo_id} {self.tag}: {self.num_files:,} files, {self.num_bytes / 1e6:,.2f} MB; {state}"]
        lines += [f"Not published: {', '.join(self.left_out)}"] if self.left_out else []
        lines += [f"Pull request: {self.pull_request}"] if self.pull_request else []
        lines += [self.note] if self.note else []
        revision = self.tag if self.is_tagged else self.commit
        return "\n".join([*lines, self.url, f'load_dataset("{self.repo_id}", revision="{revision}")'])


class Publication:
    """One release on its way.

    Args:
        repository (`HubRepository`): where it goes.
        release (`ReleaseFolder`): what goes there.
        tag (`str`): its name.
        on_progress (callable, *optional*): called with the number of files read and uploaded, and twice their number.
    """

    def __init__(
        self, repository: HubRepository, release: ReleaseFolder, tag: str, on_progress: OnProgress | None = None
    ):
        self._repository, self._release, self._tag = repository, release, tag
        self._progress = _Progress(2 * len({CROISSANT, *(file.path for file in release.files)}), on_progress)
        self._message = f"Release {tag}"
        self._sent: list[ReleaseFile] = []
        self._pull_request: str | None = None

    def run(self, author: str, is_private: bool, creates_pull_request: bool) -> Release:
        """Everything, from looking to tagging; `author` is whose pull requests are ours."""
        state = self._open(is_private, creates_pull_request)
        self._prepare()
        is_new, note = self._tag not in state.tags, None
        if is_new:
            head = self._bring(state, author, creates_pull_request)
            note = self._name(head)
        else:
            head = self._repository.attempt("find the tag", lambda: self._repository.head(self._tag))
            check_same(self._release, self._repository.repo_id, self._tag, self._tree(head))
        is_tagged = note is None
        note = " ".join(filter(None, (note, self._delete_branch()))) or None
        self._progress.advance(len(self._release.files) - len(self._sent))
        return self._describe(head, is_new, is_tagged, note)

    def _describe(self, head: str, is_new: bool, is_tagged: bool, note: str | None) -> Release:
        endpoint, name = self._repository.api.endpoint, self._repository.repo_id
        return Release(
            repo_id=name,
            tag=self._tag,
            commit=head,
            url=f"{endpoint}/datasets/{name}/tree/{self._tag if is_tagged else head}",
            num_files=len(self._release.files),
            num_bytes=self._release.num_bytes,
            num_uploaded=len(self._sent),
            uploaded_bytes=sum(file.size for file in self._sent),
            is_new=is_new,
            is_tagged=is_tagged,
            pull_request=self._pull_request,
            left_out=self._release.left_out,
            note=note,
        )

    def _prepare(self) -> None:
        """Read all files for their checksums, and write the one that depends on them."""
        for file in self._release.files:
            if file.path != CROISSANT:
                _ = file.sha256
                self._progress.advance(1)
        self._release = self._release.with_croissant(self._repository.repo_id, self._tag)
        self._progress.advance(1)

    # ------------------------------------------------------------- the places

    def _open(self, is_private: bool, creates_pull_request: bool) -> HubState:
        """Make the repository, or see that it may be written to."""
        repository = self._repository

        def step() -> tuple[HubState | None, bool]:
            state = repository.look()
            if state is not None:
                return state, True
            repository.create(is_private)
            return repository.look(), False

        state, was_there = repository.attempt("create the repository", step)
        if state is None or "main" not in state.branches:
            raise UserError(f"the Hub does not show {repository.repo_id} yet; run the same command again in a minute")
        if was_there and not creates_pull_request:
            repository.attempt("write to the repository", repository.check_write)
        check_repository(repository.repo_id, state, self._tag, is_private)
        return state

    def _make_branch(self, start: str) -> str:
        repository, branch = self._repository, BRANCH + self._tag

        def step() -> None:
            state = repository.look()
            if state is not None and branch not in state.branches:
                repository.create_branch(branch, start)

        repository.attempt(f"create the branch {branch}", step)
        return branch

    def _open_pull_request(self, author: str) -> str:
        """The open one of an earlier run, or a new one."""
        repository, title = self._repository, f"Data set release {self._tag}"
        description = f"Made by `sharegpt4o-image publish dataset --create-pr`, to be tagged `{self._tag}`."

        def step() -> int:
            found = repository.find_pull_request(title, author)
            return found or repository.create_pull_request(title, description)

        num = repository.attempt("open a pull request", step)
        self._pull_request = f"{repository.api.endpoint}/datasets/{repository.repo_id}/discussions/{num}"
        return f"refs/pr/{num}"

    def _delete_branch(self) -> str | None:
        """Tidy up; the release stands without it. Returns what the user should know."""
        repository, branch = self._repository, BRANCH + self._tag

        def step() -> None:
            state = repository.look()
            if state is not None and branch in state.branches:
                repository.delete_branch(branch)

        try:
            repository.attempt(f"delete the branch {branch}", step)
        except UserError as error:
            return f"A branch is left over: {error}."
        return None

    # ------------------------------------------------------------- the files

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        return self._repository.attempt("list the files", lambda: self._repository.tree(revision))

    def _bring(self, state: HubState, author: str, creates_pull_request: bool) -> str:
        """A commit that holds exactly the files of the folder, beside what is not of a data set."""
        head = state.branches["main"]
        tree = self._tree(head)
        refuse_foreign(self._repository, head, tree)
        if _is_same(self._release, tree):
            return head
        if creates_pull_request:
            head = self._fill(self._open_pull_request(author))
        else:
            staged = self._fill(self._make_branch(head))
            self._check(staged)
            head = self._bring_main(staged)
        self._check(head)
        return head

    def _fill(self, revision: str) -> str:
        """Bring a branch to the files of the folder, some at a time; returns its head."""
        repository = self._repository
        head = repository.attempt("find the branch", lambda: repository.head(revision))
        tree = self._tree(head)
        groups = list(_chunks(self._release.missing_from(tree), COMMIT_FILES)) or [[]]
        for index, group in enumerate(groups):
            stale = self._release.stale_in(tree) if index == len(groups) - 1 else []
            message = self._message if len(groups) == 1 else f"{self._message} (part {index + 1} of {len(groups)})"
            head = self._fill_in(revision, group, stale, message)
        return head

    def _fill_in(self, revision: str, files: Sequence[ReleaseFile], stale: list[str], message: str) -> str:
        repository = self._repository
        additions = {file.path: _addition(file) for file in files}
        for part in _chunks(files, UPLOAD_FILES):
            self._upload(part, [additions[file.path] for file in part], revision)

        def step() -> str:
            head = repository.head(revision)
            tree = repository.tree(head)
            missing = [file.path for file in files if file.path not in tree or not file.equals(tree[file.path])]
            for file in files:
                file.check_unchanged()
            operations = [*(additions[path] for path in missing), *_deletions(path for path in stale if path in tree)]
            return repository.commit(operations, message, revision, head) if operations else head

        return repository.attempt(f"commit to {revision}", step)

    def _upload(self, files: Sequence[ReleaseFile], additions: list[CommitOperationAdd], revision: str) -> None:
        what = f"upload {_some([file.path for file in files])}"
        self._repository.attempt(what, lambda: self._repository.upload(additions, revision))
        for file in files:
            file.check_unchanged()
        self._sent += files
        self._progress.advance(len(files))

    def _bring_main(self, staged: str) -> str:
        """Bring `main` to what a commit holds, in one commit that moves no contents; returns the new head."""
        repository, release = self._repository, self._release

        def step() -> str:
            head = repository.head("main")
            tree = repository.tree(head)
            refuse_foreign(repository, head, tree)  # somebody may have committed while the files were sent
            operations: list[Any] = [
                CommitOperationCopy(file.path, file.path, src_revision=staged) for file in release.missing_from(tree)
            ]
            operations += _deletions(release.stale_in(tree))
            return repository.commit(operations, self._message, "main", head) if operations else head

        return repository.attempt("commit to main", step)

    def _check(self, commit: str) -> None:
        """Compare a commit with the folder: paths, sizes, checksums."""
        tree = self._tree(commit)
        if not _is_same(self._release, tree):
            raise UserError(
                f"{self._repository.repo_id} does not hold what was sent ({_differences(self._release, tree)}), "
                "so nothing was tagged; run the same command again"
            )

    # ------------------------------------------------------------- the name

    def _name(self, commit: str) -> str | None:
        """Tag a commit; returns why it has no tag, where the release need not fail for that."""
        try:
            self._repository.attempt(f"tag {commit[:8]} as {self._tag}", lambda: self._make_tag(commit))
        except NotAllowed:
            if self._pull_request is None:
                raise
            return (
                f"The pull request is open, but the token may not tag: once it is merged, somebody who may write to "
                f"{self._repository.repo_id} has to run the same command without --create-pr."
            )
        return None

    def _make_tag(self, commit: str) -> None:
        repository = self._repository
        state = repository.look()
        if state is None or self._tag not in state.tags:
            repository.create_tag(self._tag, commit)
            return
        check_same(self._release, repository.repo_id, self._tag, repository.tree(self._tag))


# --------------------------------------------------------------------------- what is refused


def check_repository(name: str, state: HubState, tag: str, is_private: bool) -> None:
    """Refuse a repository that others can see although it must not be, and a name that is taken."""
    if is_private and not state.is_private:
        raise UserError(f"{name} exists and is public; make it private in its settings, or leave out --private")
    if tag in state.branches:
        raise UserError(f"{name} has a branch named {tag}; choose another name with --tag")


def check_same(release: ReleaseFolder, name: str, tag: str, tree: dict[str, RepoFile]) -> None:
    """Refuse a tag that stands for something else; `croissant.json` is made anew each time, and not compared."""
    release, tree = release.without_croissant(), {path: file for path, file in tree.items() if path != CROISSANT}
    if not _is_same(release, tree):
        raise UserError(
            f"{name} has a release {tag} that is not the same as the folder ({_differences(release, tree)}); tags are "
            "not moved, choose another one with --tag"
        )


def refuse_foreign(repository: HubRepository, commit: str, tree: dict[str, RepoFile]) -> None:
    """Leave a repository alone that holds something else, be it a card that somebody wrote."""

    def step() -> str:
        with tempfile.TemporaryDirectory() as folder:
            return repository.read_text(CARD, commit, folder)

    card = repository.attempt("read the card", step) if CARD in tree else ""
    if is_foreign(tree, card):
        raise UserError(
            f"{repository.repo_id} holds something that `sharegpt4o-image pack` did not write "
            f"({_some(sorted(tree))}); publish to another repository"
        )


def _is_same(release: ReleaseFolder, tree: dict[str, RepoFile]) -> bool:
    return not release.missing_from(tree) and not release.stale_in(tree)


def _differences(release: ReleaseFolder, tree: dict[str, RepoFile]) -> str:
    return _some([file.path for file in release.missing_from(tree)] + release.stale_in(tree))


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")


# --------------------------------------------------------------------------- parts


class _Progress:
    def __init__(self, total: int, on_progress: OnProgress | None):
        self._done, self._total, self._on_progress = 0, total, on_progress

    def advance(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _addition(file: ReleaseFile) -> CommitOperationAdd:
    addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # so that it is not read once more
    return addition


def _deletions(paths: Iterable[str]) -> list[CommitOperationDelete]:
    return [CommitOperationDelete(path, is_folder=False) for path in paths]


def _chunks(files: Sequence[ReleaseFile], size: int) -> Iterator[Sequence[ReleaseFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))
