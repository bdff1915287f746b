# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub answers huggingface_hub as the Hub does, counts what it sends, and fails where it is told to."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import Account, Fault, LoopbackHub, Repository, environment
from loopback_repository import sha256_of

REPO = "tester/things"
KEY = f"datasets/{REPO}"
LARGE = bytes(range(256)) * 4000  # 1 MB
FILES = {"README.md": b"# Things", "data/a.parquet": LARGE, "data/deep/b.txt": b"b", "empty.bin": b""}


@pytest.fixture(autouse=True)
def _connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_size=2) as hub:
        yield hub


@pytest.fixture
def repository(hub: LoopbackHub) -> Repository:
    hub.repositories[KEY] = Repository()
    hub.repositories[KEY].commit(FILES)
    return hub.repositories[KEY]


def client(hub: LoopbackHub, token: str | bool = "hf_fake") -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def get(hub: LoopbackHub, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{hub.endpoint}/datasets/{REPO}/resolve/main/{path}", headers=headers)


# --------------------------------------------------------------------------- reading


class TestReading:
    def test_a_tree_comes_in_pages(self, hub: LoopbackHub, repository: Repository) -> None:
        entries = list(client(hub).list_repo_tree(REPO, repo_type="dataset", recursive=True))
        assert [entry.path for entry in entries] == [
            "README.md", "data", "data/a.parquet", "data/deep", "data/deep/b.txt", "empty.bin",
        ]  # fmt: skip
        assert len(hub.requests) == 3
        by_path = {entry.path: entry for entry in entries}
        assert by_path["data/a.parquet"].lfs.sha256 == sha256_of(LARGE)
        assert by_path["empty.bin"].lfs is None
        assert by_path["README.md"].blob_id == "68ed1ec23f20e56a7c740d511ebdbf6c810b4902"  # by `git hash-object`

    def test_a_folder_is_listed_without_what_lies_deeper(self, hub: LoopbackHub, repository: Repository) -> None:
        entries = client(hub).list_repo_tree(REPO, "data", repo_type="dataset")
        assert [entry.path for entry in entries] == ["data/a.parquet", "data/deep"]
        with pytest.raises(EntryNotFoundError):
            list(client(hub).list_repo_tree(REPO, "nowhere", repo_type="dataset"))

    @pytest.mark.parametrize(
        ("wanted", "status", "expected"),
        [
            ("bytes=0-9", 206, LARGE[:10]),
            ("bytes=1000-", 206, LARGE[1000:]),
            ("bytes=-7", 206, LARGE[-7:]),
            ("bytes=5-99999999", 206, LARGE[5:]),
            ("bytes=99999999-", 416, b""),
        ],
    )
    @pytest.mark.parametrize("is_on_disk", [False, True])
    def test_ranges(
        self, hub: LoopbackHub, tmp_path: Path, wanted: str, status: int, expected: bytes, is_on_disk: bool
    ) -> None:
        (tmp_path / "a.parquet").write_bytes(LARGE)
        if is_on_disk:
            hub.serve_folder(REPO, tmp_path)
        else:
            hub.repositories[KEY] = Repository()
            hub.repositories[KEY].commit({"a.parquet": LARGE})
        answer = get(hub, "a.parquet", Range=wanted)
        assert (answer.status_code, answer.content) == (status, expected)
        assert hub.bytes_sent == len(expected)
        assert hub.bytes_sent_by_path[f"/datasets/{REPO}/resolve/main/a.parquet"] == len(expected)

    def test_a_head_costs_nothing(self, hub: LoopbackHub, repository: Repository) -> None:
        answer = httpx2.head(f"{hub.endpoint}/datasets/{REPO}/resolve/main/data/a.parquet")
        assert answer.headers["Content-Length"] == str(len(LARGE))
        assert answer.headers["ETag"] == f'"{sha256_of(LARGE)}"'
        assert hub.bytes_sent == 0

    def test_what_is_not_there(self, hub: LoopbackHub, repository: Repository, tmp_path: Path) -> None:
        with pytest.raises(RepositoryNotFoundError):
            client(hub).dataset_info("tester/nothing")
        with pytest.raises(RevisionNotFoundError):
            client(hub).dataset_info(REPO, revision="v9")
        with pytest.raises(EntryNotFoundError):
            client(hub).hf_hub_download(REPO, "none.txt", repo_type="dataset", cache_dir=tmp_path)

    def test_a_file_system_sees_the_whole(self, hub: LoopbackHub, repository: Repository) -> None:
        files = HfFileSystem(endpoint=hub.endpoint, token="hf_fake", skip_instance_cache=True)
        assert sorted(files.glob(f"datasets/{REPO}/**/*.*")) == [f"datasets/{REPO}/{path}" for path in FILES]
        with files.open(f"datasets/{REPO}/data/a.parquet", block_size=1000) as file:
            file.seek(500_000)
            assert file.read(10) == LARGE[500_000:500_010]
        assert hub.bytes_sent_by_path[f"/datasets/{REPO}/resolve/main/data/a.parquet"] < 10_000

    def test_contents_stay_on_disk(self, hub: LoopbackHub, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(LARGE)
        hub.serve_folder(REPO, tmp_path)
        assert get(hub, "a.bin").content == LARGE
        os.truncate(tmp_path / "a.bin", 3)
        assert get(hub, "a.bin").content == LARGE[:3]


# --------------------------------------------------------------------------- writing


class TestCommits:
    def test_add_copy_and_delete(self, hub: LoopbackHub, repository: Repository) -> None:
        api = client(hub)
        operations = [
            CommitOperationAdd("new.txt", b"new"),
            CommitOperationAdd("new.parquet", b"PAR1"),
            CommitOperationCopy("data/a.parquet", "copy.parquet"),
            CommitOperationDelete("empty.bin"),
            CommitOperationDelete("data/"),
        ]
        commit = api.create_commit(REPO, operations, commit_message="changes", repo_type="dataset")
        sha, files = repository.commits[-1]
        assert sha == commit.oid == repository.branches["main"]
        assert files == {"README.md": b"# Things", "new.txt": b"new", "new.parquet": b"PAR1", "copy.parquet": LARGE}
        assert next(iter(api.list_repo_commits(REPO, repo_type="dataset"))).title == "changes"
        assert hub.bytes_uploaded == 4

    def test_known_contents_are_not_sent_again(self, hub: LoopbackHub, repository: Repository) -> None:
        for path in ("one.bin", "two.bin"):
            operation = CommitOperationAdd(path, b"content")
            client(hub).create_commit(REPO, [operation], commit_message="add", repo_type="dataset")
        assert hub.bytes_uploaded == len(b"content")
        assert repository.commits[-1][1]["two.bin"] == b"content"

    def test_a_pointer_to_nothing_is_refused(self, hub: LoopbackHub, repository: Repository) -> None:
        header = '{"key": "header", "value": {"summary": "x"}}'
        pointer = f'{{"key": "lfsFile", "value": {{"path": "x.bin", "oid": "{"0" * 64}", "size": 3}}}}'
        url = f"{hub.endpoint}/api/datasets/{REPO}/commit/main"
        answer = httpx2.post(url, content=f"{header}\n{pointer}", headers={"Authorization": "Bearer hf_fake"})
        assert answer.status_code == 400
        assert len(repository.commits) == 2

    def test_a_stale_parent_is_refused(self, hub: LoopbackHub, repository: Repository) -> None:
        operation = CommitOperationAdd("x.txt", b"x")
        with pytest.raises(HfHubHTTPError) as raised:
            client(hub).create_commit(
                REPO, [operation], commit_message="x", repo_type="dataset", parent_commit=repository.commits[0][0]
            )
        assert raised.value.response.status_code == 412
        assert repository.commits[-1][1] == FILES

    def test_branches_and_tags(self, hub: LoopbackHub, repository: Repository) -> None:
        api, where = client(hub), {"repo_id": REPO, "repo_type": "dataset"}
        head = repository.branches["main"]
        api.create_branch(**where, branch="side/way")
        operation = CommitOperationAdd("x.txt", b"x")
        api.create_commit(REPO, [operation], commit_message="x", repo_type="dataset", revision="side/way")
        api.create_tag(**where, tag="v1", revision="side/way")
        refs = api.list_repo_refs(**where)
        assert {ref.name for ref in refs.branches} == {"main", "side/way"}
        assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", repository.branches["side/way"])]
        assert repository.branches["main"] == head
        with pytest.raises(HfHubHTTPError) as raised:
            api.create_tag(**where, tag="v1", revision="main")
        assert raised.value.response.status_code == 409
        api.delete_branch(**where, branch="side/way")
        assert api.dataset_info(REPO, revision="v1").sha == refs.tags[0].target_commit
        api.delete_tag(**where, tag="v1")
        with pytest.raises(RevisionNotFoundError):
            api.dataset_info(REPO, revision="v1")

    def test_pull_requests_come_about_in_two_ways(self, hub: LoopbackHub, repository: Repository) -> None:
        api = client(hub)
        opened = api.create_pull_request(REPO, "first", repo_type="dataset")
        operation = CommitOperationAdd("x.txt", b"x")
        api.create_commit(REPO, [operation], commit_message="x", repo_type="dataset", revision=opened.git_reference)
        proposed = api.create_commit(
            REPO, [CommitOperationAdd("y.bin", b"y")], commit_message="second", repo_type="dataset", create_pr=True
        )
        assert proposed.pr_num == 2
        assert [one.title for one in api.get_repo_discussions(REPO, repo_type="dataset")] == ["first", "second"]
        assert set(repository.at("refs/pr/2")[1]) == {*FILES, "y.bin"}
        assert repository.at("main")[1] == FILES
        refs = api.list_repo_refs(REPO, repo_type="dataset", include_pull_requests=True)
        assert [ref.name for ref in refs.pull_requests] == ["1", "2"]
        repository.merge(1)
        assert set(repository.at("main")[1]) == {*FILES, "x.txt"}


class TestRights:
    def test_a_private_repository_is_not_there_for_others(self, hub: LoopbackHub) -> None:
        client(hub).create_repo(REPO, repo_type="dataset", private=True)
        hub.accounts["hf_other"] = Account("other")
        assert client(hub).dataset_info(REPO).private
        for token in ("hf_other", False):
            with pytest.raises(RepositoryNotFoundError):
                client(hub, token).dataset_info(REPO)

    @pytest.mark.parametrize(
        ("account", "status"), [(Account(role="read"), 403), (Account("other"), 403), (None, 401)]
    )
    def test_who_may_not_write(
        self, hub: LoopbackHub, repository: Repository, account: Account | None, status: int
    ) -> None:
        hub.accounts["hf_guest"] = account
        operation = CommitOperationAdd("x.txt", b"x")
        with pytest.raises(HfHubHTTPError) as raised:
            client(hub, "hf_guest").create_commit(REPO, [operation], commit_message="x", repo_type="dataset")
        assert raised.value.response.status_code == status
        assert len(repository.commits) == 2

    def test_members_write_to_their_organization(self, hub: LoopbackHub) -> None:
        hub.accounts["hf_member"] = Account("member", organizations=("group",))
        client(hub, "hf_member").create_repo("group/things", repo_type="dataset")
        with pytest.raises(HfHubHTTPError, match="rights"):
            client(hub, "hf_member").create_repo("tester/things", repo_type="dataset")
        assert list(hub.repositories) == ["datasets/group/things"]


# --------------------------------------------------------------------------- faults


class TestFaults:
    def test_an_error_comes_instead_of_the_effect(self, hub: LoopbackHub) -> None:
        hub.faults.append(lambda method, path, _: Fault(429, {"Retry-After": "7"}) if method == "POST" else None)
        with pytest.raises(HfHubHTTPError) as raised:
            client(hub).create_repo(REPO, repo_type="dataset")
        assert raised.value.response.headers["Retry-After"] == "7"
        assert hub.repositories == {}

    @pytest.mark.parametrize("is_carried_out", [False, True])
    def test_a_connection_breaks(self, hub: LoopbackHub, is_carried_out: bool) -> None:
        hub.faults.append(lambda *_: Fault(is_carried_out=is_carried_out))
        with pytest.raises(httpx2.TransportError):
            client(hub).create_repo(REPO, repo_type="dataset")
        assert (KEY in hub.repositories) == is_carried_out

    def test_a_body_is_cut_off(self, hub: LoopbackHub, repository: Repository) -> None:
        hub.faults.append(lambda _, path, __: Fault(keep_bytes=1000) if path.endswith("a.parquet") else None)
        with pytest.raises(httpx2.RemoteProtocolError):
            get(hub, "data/a.parquet")
        assert hub.bytes_sent == 1000

    def test_requests_are_numbered(self, hub: LoopbackHub, repository: Repository) -> None:
        hub.faults.append(lambda _, __, index: Fault(500) if index == 1 else None)
        assert [get(hub, "README.md").status_code for _ in range(3)] == [200, 500, 200]
        hub.reset_counts()
        assert (hub.requests, hub.bytes_sent) == ([], 0)

    def test_a_client_that_hangs_up_hurts_nobody(
        self, hub: LoopbackHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with (tmp_path / "a.bin").open("wb") as file:
            file.truncate(100_000_000)
        hub.serve_folder(REPO, tmp_path)
        with httpx2.stream("GET", f"{hub.endpoint}/datasets/{REPO}/resolve/main/a.bin") as answer:
            next(answer.iter_raw())
        assert get(hub, "none").status_code == 404
        assert hub.bytes_sent < 100_000_000
        assert capfd.readouterr().err == ""


UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], repo_type="dataset")
for proposes in (False, True):
    api.upload_file(path_or_fileobj=sys.argv[2], path_in_repo=f"{proposes}.bin", repo_id=sys.argv[1],
                    repo_type="dataset", create_pr=proposes)
"""


def test_xet_puts_contents_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(LARGE)
    (tmp_path / "storage").mkdir()
    with LoopbackHub(xet_dir=tmp_path / "storage") as hub:
        variables = os.environ | environment(hub.endpoint, str(tmp_path / "home"), uses_xet=True)
        command = [sys.executable, "-c", UPLOAD, REPO, str(tmp_path / "a.bin")]
        subprocess.run(command, env=variables, check=True, timeout=60)
        repository = hub.repositories[KEY]
        assert {path: sha256_of(content) for path, content in repository.at("refs/pr/1")[1].items()} == {
            "False.bin": sha256_of(LARGE),
            "True.bin": sha256_of(LARGE),
        }
        assert hub.bytes_uploaded == 0
        assert any((tmp_path / "storage").rglob("*"))
        assert get(hub, "False.bin").status_code == 404  # the storage is not read
        hub.learn(tmp_path)
        assert get(hub, "False.bin").content == LARGE
