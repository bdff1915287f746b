# SPDX-License-Identifier: Apache-2.0
"""Steps on a data set repository -> done, or one sentence that says why not.

`huggingface_hub` does not repeat the requests that make commits, branches, tags and repositories, for their answer may
get lost after they were carried out. Here each step looks at the repository before it changes it, so it can be
repeated.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import tenacity
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id

from sharegpt4o_image.errors import UserError

T = TypeVar("T")
Operations = Iterable[Any]  # what `HfApi.create_commit` takes

MAX_TRIES = 5  # our choice; with the waits of huggingface_hub in between, an outage of two minutes is sat out
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1, 30  # our choice
_PATIENCE_SECONDS = 300  # our choice: the longest wait that the Hub may ask for; its windows are of 5 minutes
_TOKEN = re.compile(r"[!-~]+")  # what an HTTP header can carry
_PASSING = (408, 409, 412, 425, 429)  # beside 5xx: the same step, looking again, may fare better
_NEEDS_TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_GOES_ON = "run the same command again, it goes on where it stopped"


class NotAllowed(UserError):
    """The token may not do this."""


@dataclass(frozen=True)
class Account:
    """Whose token it is, and whether it can write at all; the Hub tells the rest when it is asked to."""

    name: str
    may_write: bool


@dataclass(frozen=True)
class HubState:
    """A repository as it stands: its visibility, and name -> commit of branches and tags."""

    is_private: bool
    branches: dict[str, str]
    tags: dict[str, str]


class HubRepository:
    """A data set repository on the Hub.

    Args:
        api (`HfApi`): endpoint and token.
        repo_id (`str`): `owner/name`.
        max_tries (`int`, *optional*): how often a step is tried.
    """

    def __init__(self, api: HfApi, repo_id: str, max_tries: int = MAX_TRIES):
        self.api, self.repo_id, self._max_tries = api, repo_id, max_tries
        self._where: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset"}

    def attempt(self, what: str, step: Callable[[], T]) -> T:
        """Try a step until it is done; it must look before it changes anything.

        Args:
            what (`str`): the step in words that follow "could not".
            step (callable): what to do.
        """
        with _one_sentence(what, self.repo_id):
            return _retrying(self._max_tries)(step)

    # ------------------------------------------------------------- looking; to be called within steps

    def look(self) -> HubState | None:
        """What the repository is like; None where there is none."""
        try:
            info = self.api.repo_info(**self._where)
        except RepositoryNotFoundError:
            return None
        refs = self.api.list_repo_refs(**self._where)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        return HubState(bool(info.private), branches, {ref.name: ref.target_commit for ref in refs.tags})

    def head(self, revision: str) -> str:
        """The commit that a revision stands for."""
        sha = self.api.repo_info(**self._where, revision=revision).sha
        assert sha is not None
        return sha

    def tree(self, revision: str) -> dict[str, RepoFile]:
        """Path -> file, of a whole revision."""
        entries = self.api.list_repo_tree(**self._where, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def read_text(self, path: str, commit: str, folder: str) -> str:
        """A small file, fetched into a folder."""
        local = self.api.hf_hub_download(**self._where, filename=path, revision=commit, local_dir=folder)
        with open(local, encoding="utf-8", errors="replace") as file:
            return file.read()

    def find_pull_request(self, title: str, author: str) -> int | None:
        """The number of an open pull request of that title."""
        proposals = self.api.get_repo_discussions(**self._where, author=author, discussion_type="pull_request")
        return next((one.num for one in proposals if one.title == title and one.status in ("open", "draft")), None)

    # ------------------------------------------------------------- changing

    def create(self, is_private: bool) -> None:
        """Make the repository; without a wish, its visibility is what the owner's settings say."""
        self.api.create_repo(self.repo_id, repo_type="dataset", private=is_private or None, exist_ok=True)

    def check_write(self) -> None:
        """Refuse a token that may not write to the repository."""
        self.api.auth_check(**self._where, write=True)

    def upload(self, additions: list[CommitOperationAdd], revision: str) -> None:
        """Bring contents to the Hub, for a commit to come."""
        self.api.preupload_lfs_files(
            self.repo_id, additions, repo_type="dataset", revision=revision, free_memory=False
        )

    def commit(self, operations: Operations, message: str, revision: str, parent: str) -> str:
        """Commit upon `parent` and nothing else; returns the new head."""
        commit = self.api.create_commit(
            **self._where, operations=operations, commit_message=message, revision=revision, parent_commit=parent
        )
        return commit.oid

    def create_branch(self, branch: str, start: str) -> None:
        """A branch that starts at a commit."""
        self.api.create_branch(**self._where, branch=branch, revision=start)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch."""
        self.api.delete_branch(**self._where, branch=branch)

    def create_tag(self, tag: str, commit: str) -> None:
        """Name a commit; a tag that exists is never moved."""
        self.api.create_tag(**self._where, tag=tag, revision=commit)

    def create_pull_request(self, title: str, description: str) -> int:
        """Open a pull request against `main`; returns its number."""
        return self.api.create_pull_request(**self._where, title=title, description=description).num


def ask_account(api: HfApi, max_tries: int = MAX_TRIES) -> Account:
    """Who the token belongs to."""
    token = api.token if isinstance(api.token, str) else get_token()
    if token is not None and not _TOKEN.fullmatch(token):
        raise NotAllowed(f"the token for the Hub has characters that no token has; {_NEEDS_TOKEN}")
    with _one_sentence("ask the Hub whose token this is", "the Hub"):
        answer = _retrying(max_tries)(api.whoami)
    role = answer.get("auth", {}).get("accessToken", {}).get("role")
    return Account(answer["name"], may_write=role != "read")


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a repository; give it as owner/name") from error


# --------------------------------------------------------------------------- what becomes of failures


def _retrying(max_tries: int) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        stop=tenacity.stop_after_attempt(max_tries),
        wait=_wait_seconds,
        reraise=True,
    )


def _answer_of(error: BaseException | None) -> httpx2.Response | None:
    """The error answer behind an exception; uploads wrap it once or twice."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error.response if isinstance(error, HfHubHTTPError) else None


def _is_broken_connection(error: BaseException | None) -> bool:
    """Whether no whole answer came; an answer that is cut off may be no JSON."""
    while error is not None:
        if isinstance(error, httpx2.TransportError | json.JSONDecodeError):
            return not isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol)
        error = error.__cause__
    return False


def _is_of_xet(error: Exception) -> bool:
    """Whether hf_xet gave up; it has tried again for minutes before it says so."""
    return isinstance(error, ConnectionError | TimeoutError | PermissionError) and error.filename is None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return False
    answer = _answer_of(error)
    if answer is None:
        return _is_broken_connection(error)
    is_passing = answer.status_code in _PASSING or answer.status_code >= 500
    return is_passing and (_asked_wait(answer) or 0) <= _PATIENCE_SECONDS


def _asked_wait(answer: httpx2.Response) -> float | None:
    """How many seconds the Hub asks to wait."""
    limit = parse_ratelimit_headers(answer.headers)
    if answer.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    seconds = answer.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else None


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    exponential = tenacity.wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)
    answer = _answer_of(state.outcome.exception()) if state.outcome else None
    asked = None if answer is None else _asked_wait(answer)
    return exponential if asked is None else asked + 1  # the Hub rounds down


@contextmanager
def _one_sentence(what: str, repo_id: str) -> Iterator[None]:
    """Turn what the Hub and its client say into a sentence for people; anything else passes."""
    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise NotAllowed(f"there is no token for the Hub; {_NEEDS_TOKEN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError("the Hub is switched off by HF_HUB_OFFLINE=1; unset it") from error
    except Exception as error:
        answer = _answer_of(error)
        if answer is not None:
            raise _refusal(what, repo_id, answer, _said(error)) from error
        if _is_broken_connection(error) or _is_of_xet(error):
            raise UserError(f"could not {what}: {_short(str(error)) or 'the connection broke'}; {_GOES_ON}") from error
        if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
            raise UserError(f"could not {what}: the Hub's address is no good; check HF_ENDPOINT") from error
        if isinstance(error, ValueError | RuntimeError) or (isinstance(error, OSError) and error.filename is None):
            raise UserError(f"could not {what}: {_short(str(error))}; {_GOES_ON}") from error
        raise


def _refusal(what: str, repo_id: str, answer: httpx2.Response, said: str) -> UserError:
    status = answer.status_code
    if status == 401:
        return NotAllowed(f"could not {what}: the Hub does not accept the token ({said}); {_NEEDS_TOKEN}")
    if status == 403:
        return NotAllowed(f"could not {what}: the token may not do that in {repo_id} ({said}); {_NEEDS_TOKEN}")
    if status == 404:
        return UserError(f"could not {what}: {repo_id} lacks it, or the token may not see it ({said}); check the name")
    if status == 400:
        return UserError(f"could not {what}: the Hub calls it wrong ({said}); pack the data set again")
    return UserError(f"could not {what}: the Hub answers {status} ({said}); {_GOES_ON}")


def _said(error: BaseException | None) -> str:
    """The Hub's own words; never the address, which may be a signed one."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    assert error is not None
    words = _short(error.server_message or "")
    return words if words and "<" not in words else _short(error.response.reason_phrase) or "no reason given"


def _short(text: str) -> str:
    """One line without signed addresses."""
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", " ".join(text.split()))[:200].rstrip(" .")
