# SPDX-License-Identifier: Apache-2.0
"""`publish dataset` against the loopback Hub: whole releases, nothing twice, no fault that leaves half of one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from loopback_hub import Account, Fault, LoopbackHub, environment
from loopback_repository import Tree, sha256_of
from picture_records import ListSource, make_record

from sharegpt4o_image.builders.croissant import CROISSANT, validate_croissant, write_croissant
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.publication import BRANCH, Release
from sharegpt4o_image.builders.publisher import plan_release, publish_dataset
from sharegpt4o_image.errors import UserError

REPO, TAG = "tester/pictures", "v1.0"
KEY = f"datasets/{REPO}"


def pack_set(folder: Path, numbers: range = range(8)) -> Path:
    """A data set of small records; both tasks, and where `numbers` is the same, the same files."""
    pack(ListSource([make_record(number) for number in numbers]), folder)
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_set(tmp_path_factory.mktemp("packed") / "pictures")


@pytest.fixture(scope="session")
def packed_later(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Path:
    """The next version: other edits, and the same pictures made from text."""
    later = pack_set(tmp_path_factory.mktemp("later") / "pictures", range(10))
    shard = "text_to_image/train-00000-of-00001.parquet"
    shutil.copyfile(packed / shard, later / shard)
    write_croissant(later)  # with the checksum of that file
    return later


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(packed, tmp_path / "pictures"))


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The process may talk to the loopback Hub, by LFS; what it would wait is noted instead."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return seconds


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What mlcroissant would check, which takes longer than all the rest of a release."""
    paths: list[Path] = []
    monkeypatch.setattr("sharegpt4o_image.builders.release_folder.validate_croissant", paths.append)
    return paths


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_size=2) as hub:
        yield hub


def publish(hub: LoopbackHub, folder: Path, tag: str = TAG, token: str = "hf_fake", **options: Any) -> Release:
    api = HfApi(endpoint=hub.endpoint, token=token)
    return publish_dataset(folder, options.pop("repo_id", REPO), tag, api=api, **options)


def local_tree(folder: Path) -> dict[str, str]:
    """What a folder holds; publishing writes its `croissant.json`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def remote_tree(hub: LoopbackHub, revision: str) -> dict[str, str] | None:
    repository = hub.repositories.get(KEY)
    commit = repository.at(revision) if repository else None
    return commit and digests(commit[1])


def digests(tree: Tree) -> dict[str, str]:
    return {path: sha256_of(content) for path, content in tree.items()}


READ = """
import hashlib, sys
sys.modules["sharegpt4o_image"] = None
from datasets import Image, List, get_dataset_config_names, load_dataset
for config in get_dataset_config_names(sys.argv[1], revision=sys.argv[2]):
    rows = load_dataset(sys.argv[1], config, split="train", revision=sys.argv[2])
    for row in rows.cast_column("output_image", Image(decode=False)):
        print(config, row["id"], hashlib.sha256(row["output_image"]["bytes"]).hexdigest())
"""


def read_back(hub: LoopbackHub, home: Path, revision: str) -> list[str]:
    """What a process without our package reads from the Hub."""
    variables = os.environ | environment(hub.endpoint, str(home))
    command = [sys.executable, "-c", READ, REPO, revision]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def expected_rows(numbers: range) -> list[str]:
    records = map(make_record, numbers)
    return sorted(f"{r.task} {r.id} {hashlib.sha256(r.output_image.bytes).hexdigest()}" for r in records)


# --------------------------------------------------------------------------- releases


class TestRelease:
    def test_it_can_be_loaded_by_its_tag(self, hub: LoopbackHub, packed: Path, tmp_path: Path) -> None:
        release = publish(hub, packed)
        repository = hub.repositories[KEY]
        assert release.left_out == ()
        assert remote_tree(hub, TAG) == remote_tree(hub, "main") == local_tree(packed)
        assert repository.tags == {TAG: release.commit}
        assert list(repository.branches) == ["main"]
        assert release.is_new
        assert release.num_uploaded == release.num_files == len(local_tree(packed))
        assert read_back(hub, tmp_path / "home", TAG) == expected_rows(range(8))

    def test_main_changes_once(self, hub: LoopbackHub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharegpt4o_image.builders.publication.COMMIT_FILES", 1)
        publish(hub, packed)
        repository = hub.repositories[KEY]
        assert [repository.titles[sha] for sha in repository.history("main")] == [f"Release {TAG}", "initial commit"]
        assert len(repository.commits) == 2 + len(local_tree(packed))  # one commit for each file on the way

    def test_the_card_comes_last(self, hub: LoopbackHub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharegpt4o_image.builders.publication.COMMIT_FILES", 1)
        publish(hub, packed)
        *on_the_way, complete, _main = [set(tree) for _, tree in hub.repositories[KEY].commits]
        assert "README.md" in complete
        assert not any("README.md" in tree for tree in on_the_way)

    def test_again_uploads_nothing(self, hub: LoopbackHub, packed: Path) -> None:
        first = publish(hub, packed)
        hub.reset_counts()
        again = publish(hub, packed)
        assert hub.bytes_uploaded == 0
        assert not [request for request in hub.requests if not request.startswith("GET")]
        assert (again.is_new, again.num_uploaded, again.commit) == (False, 0, first.commit)

    def test_the_next_one_uploads_what_changed(
        self, hub: LoopbackHub, packed: Path, packed_later: Path, tmp_path: Path
    ) -> None:
        first = publish(hub, packed)
        hub.reset_counts()
        publish(hub, packed_later, "v1.1")
        before, after = digests(hub.repositories[KEY].at(TAG)[1]), local_tree(packed_later)
        changed = {path for path, digest in after.items() if before.get(path) != digest}
        assert "text_to_image/train-00000-of-00001.parquet" in before.keys() - changed
        large = [path for path in changed if path.endswith((".parquet", ".png"))]
        assert hub.bytes_uploaded == sum((packed_later / path).stat().st_size for path in large)
        assert remote_tree(hub, "v1.1") == after
        assert hub.repositories[KEY].tags[TAG] == first.commit
        assert remote_tree(hub, TAG) == before

    def test_the_metadata_names_repository_and_version(
        self, hub: LoopbackHub, packed: Path, checked: list[Path]
    ) -> None:
        publish(hub, packed, "v1.2")
        assert checked == [packed / CROISSANT]
        validate_croissant(packed / CROISSANT)
        [content] = [content for path, content in hub.repositories[KEY].at("v1.2")[1].items() if "croissant" in path]
        metadata = json.loads(content)
        assert (metadata["url"], metadata["version"]) == (f"https://huggingface.co/datasets/{REPO}", "1.2.0")

    def test_files_of_an_earlier_release_go_and_others_stay(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed)
        repository = hub.repositories[KEY]
        old = {"text_to_image/train-00001-of-00002.parquet": b"old", "rejections.parquet": b"old"}
        repository.commit(repository.at("main")[1] | old | {"LICENSE": b"mine", ".gitattributes": b""})
        publish(hub, packed, "v1.1")
        assert remote_tree(hub, "v1.1").keys() == local_tree(packed).keys() | {"LICENSE", ".gitattributes"}

    def test_nothing_but_the_data_set_is_published(self, hub: LoopbackHub, folder: Path) -> None:
        for name in ("codes/text_to_image.parquet", ".token", "text_to_image/notes.txt"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("private")
        release = publish(hub, folder)
        assert set(release.left_out) == {"codes", ".token", "text_to_image/notes.txt"}
        assert not remote_tree(hub, TAG).keys() & {"codes/text_to_image.parquet", ".token", "text_to_image/notes.txt"}

    def test_a_bare_name_belongs_to_the_user(self, hub: LoopbackHub, packed: Path) -> None:
        assert publish(hub, packed, repo_id="pictures").repo_id == REPO

    def test_progress_ends_at_its_total(self, hub: LoopbackHub, packed: Path) -> None:
        total = 2 * len(local_tree(packed))
        for tag in (TAG, "v1.1"):
            seen: list[tuple[int, int]] = []
            publish(hub, packed, tag, on_progress=lambda *step, seen=seen: seen.append(step))
            assert seen == sorted(seen)
            assert seen[-1] == (total, total)

    def test_the_summary_names_the_line_that_loads_it(self, hub: LoopbackHub, packed: Path) -> None:
        release = publish(hub, packed)
        assert release.to_text().endswith(f'load_dataset("{REPO}", revision="{TAG}")')
        assert json.loads(release.to_json())["tag"] == TAG


class TestVisibility:
    def test_a_new_repository_is_private_where_asked(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, is_private=True)
        assert hub.repositories[KEY].is_private
        publish(hub, packed, is_private=True)

    def test_a_public_one_is_refused(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed)
        with pytest.raises(UserError, match="exists and is public"):
            publish(hub, packed, "v1.1", is_private=True)
        assert list(hub.repositories[KEY].tags) == [TAG]


class TestPullRequest:
    def test_main_stays_and_the_head_is_tagged(self, hub: LoopbackHub, packed: Path, tmp_path: Path) -> None:
        release = publish(hub, packed, creates_pull_request=True)
        repository = hub.repositories[KEY]
        assert remote_tree(hub, "main") == {}
        assert repository.tags == {TAG: repository.branches["refs/pr/1"]} == {TAG: release.commit}
        assert release.pull_request == f"{hub.endpoint}/datasets/{REPO}/discussions/1"
        assert read_back(hub, tmp_path / "home", TAG) == expected_rows(range(8))

    def test_many_commits_make_one(self, hub: LoopbackHub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharegpt4o_image.builders.publication.COMMIT_FILES", 1)
        publish(hub, packed, creates_pull_request=True)
        assert len(hub.repositories[KEY].pull_requests) == 1

    def test_a_run_after_a_failure_goes_on_with_it(self, hub: LoopbackHub, packed: Path) -> None:
        hub.faults.append(lambda method, path, _: Fault(403) if method == "POST" and "/commit/" in path else None)
        with pytest.raises(UserError, match="may not do that"):
            publish(hub, packed, creates_pull_request=True)
        hub.faults.clear()
        publish(hub, packed, creates_pull_request=True)
        assert [one.status for one in hub.repositories[KEY].pull_requests] == ["draft"]

    def test_one_that_is_closed_is_left_alone(self, hub: LoopbackHub, packed: Path) -> None:
        hub.accounts["hf_other"] = Account("other")
        publish(hub, packed)
        repository = hub.repositories[KEY]
        repository.tags.clear()
        repository.commit({}, title="back to nothing")
        repository.open_pull_request(f"Data set release {TAG}", "tester").status = "closed"
        repository.open_pull_request(f"Data set release {TAG}", "other")
        assert publish(hub, packed, creates_pull_request=True).pull_request.endswith("/3")

    def test_who_may_not_tag_is_told_what_is_left(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, "v0.1", repo_id=REPO)
        hub.repositories[KEY].commit({})
        hub.accounts["hf_guest"] = Account("guest")
        release = publish(hub, packed, token="hf_guest", creates_pull_request=True)
        assert not release.is_tagged
        assert "once it is merged" in release.note
        assert f'revision="{release.commit}"' in release.to_text()
        hub.repositories[KEY].merge(1)
        hub.reset_counts()
        assert publish(hub, packed).is_tagged
        assert hub.bytes_uploaded == 0
        assert remote_tree(hub, TAG) == local_tree(packed)


# --------------------------------------------------------------------------- what is refused


class TestRefused:
    def test_a_tag_is_not_moved(self, hub: LoopbackHub, packed: Path, packed_later: Path) -> None:
        first = publish(hub, packed)
        with pytest.raises(UserError, match=r"not the same as the folder .*choose another one with --tag"):
            publish(hub, packed_later)
        assert hub.repositories[KEY].tags == {TAG: first.commit}
        assert remote_tree(hub, "main") == local_tree(packed)

    def test_a_card_that_somebody_wrote(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, "v0.1")
        hub.repositories[KEY].commit({"README.md": b"---\nlicense: mit\n---\n\n# Soon to come"})
        with pytest.raises(UserError, match="holds something that `sharegpt4o-image pack` did not write"):
            publish(hub, packed)
        hub.repositories[KEY].commit({"README.md": b"---\nlicense: mit\n---\n"})  # as the Hub makes it
        assert publish(hub, packed).is_tagged

    def test_pictures_of_the_card_stay(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, "v0.1")
        repository = hub.repositories[KEY]
        repository.commit(repository.at("main")[1] | {"card/banner.png": b"mine", "rejections.parquet": b"of v0.1"})
        publish(hub, packed)
        assert remote_tree(hub, TAG).keys() - local_tree(packed).keys() == {"card/banner.png"}

    def test_a_file_that_is_not_the_one_that_was_packed(self, hub: LoopbackHub, folder: Path) -> None:
        shard = folder / "text_to_image" / "train-00000-of-00001.parquet"
        shard.write_bytes(shard.read_bytes().replace(b"PNG", b"PNH", 1))
        with pytest.raises(UserError, match="is not the file that `pack` wrote"):
            publish(hub, folder)

    def test_a_link(self, hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (folder / "card" / "holiday.png").symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match="is a link"):
            publish(hub, folder)

    @pytest.mark.parametrize("token", ["hf_a\x0bbc", "hf_abc\u201d"])
    def test_a_token_that_is_none(self, hub: LoopbackHub, packed: Path, token: str) -> None:
        with pytest.raises(UserError, match="has characters that no token has") as refused:
            publish_dataset(packed, "tester/pictures", TAG, api=HfApi(endpoint=hub.endpoint, token=token))
        assert "hf_a" not in str(refused.value)

    def test_a_repository_with_something_else(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed)
        hub.repositories[KEY].commit({"README.md": b"# Letters", "data/letters.csv": b"a,b"})
        with pytest.raises(UserError, match="holds something that `sharegpt4o-image pack` did not write"):
            publish(hub, packed, "v1.1")
        assert remote_tree(hub, "main").keys() == {"README.md", "data/letters.csv"}
        assert list(hub.repositories[KEY].tags) == [TAG]

    def test_a_repository_fresh_from_the_page(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, "v0.1")
        hub.repositories[KEY].commit({"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b""})
        publish(hub, packed)
        assert remote_tree(hub, TAG).keys() == local_tree(packed).keys() | {".gitattributes"}

    @pytest.mark.parametrize(
        ("account", "sentence"),
        [
            (Account(role="read"), "the token may only read; log in"),
            (None, "does not accept the token"),
            (Account("guest"), "the token may not do that in tester/pictures"),
        ],
    )
    @pytest.mark.parametrize("is_there", [False, True])
    def test_a_token_that_may_not_write(
        self, hub: LoopbackHub, packed: Path, account: Account | None, sentence: str, is_there: bool
    ) -> None:
        if is_there:
            publish(hub, packed, "v0.1")
        before = {name: len(repository.commits) for name, repository in hub.repositories.items()}
        hub.reset_counts()
        hub.accounts["hf_secret"] = account
        with pytest.raises(UserError, match=sentence) as raised:
            publish(hub, packed, token="hf_secret")
        assert "hf_secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert {name: len(repository.commits) for name, repository in hub.repositories.items()} == before
        assert not [request for request in hub.requests if not request.startswith("GET") and is_there]

    def test_no_token(self, hub: LoopbackHub, packed: Path) -> None:
        with pytest.raises(UserError, match="there is no token for the Hub; log in"):
            publish_dataset(packed, REPO, TAG, api=HfApi(endpoint=hub.endpoint))
        assert hub.requests == []

    def test_offline(self, hub: LoopbackHub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
            publish(hub, packed)

    @pytest.mark.parametrize("tag", ["", "main", "-v", "v 1", "v1..2", "v1.lock", "a/b", "refs/tags/x", "0" * 40])
    def test_tags_that_are_none(self, hub: LoopbackHub, packed: Path, tag: str) -> None:
        with pytest.raises(UserError, match="cannot be the name of a release"):
            publish(hub, packed, tag)
        assert hub.requests == []

    @pytest.mark.parametrize("name", ["", "a/b/c", "a b", "datasets/a/b", "../x", "a--b"])
    def test_names_that_are_none(self, hub: LoopbackHub, packed: Path, name: str) -> None:
        with pytest.raises(UserError, match="is no name of a repository"):
            publish(hub, packed, repo_id=name)
        assert hub.requests == []

    def test_a_branch_of_that_name(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed)
        hub.repositories[KEY].branches["v2"] = hub.repositories[KEY].branches["main"]
        with pytest.raises(UserError, match="has a branch named"):
            publish(hub, packed, "v2")

    @pytest.mark.parametrize(
        ("path", "content", "sentence"),
        [
            ("README.md", None, "has no README.md"),
            ("README.md", "# Letters", "is no card of a packed data set"),
            ("text_to_image/train-00000-of-00001.parquet", None, "holds no files of text_to_image, split train"),
            ("text_to_image/train-00001-of-00003.parquet", "", "holds files of two packings"),
            ("text_to_image/validation-00000-of-00001.parquet", "", "that its card does not name"),
        ],
    )
    def test_a_folder_that_is_not_whole(
        self, hub: LoopbackHub, folder: Path, path: str, content: str | None, sentence: str
    ) -> None:
        (folder / path).unlink() if content is None else (folder / path).write_text(content)
        with pytest.raises(UserError, match=sentence):
            publish(hub, folder)
        assert hub.requests == []

    def test_a_file_that_changes_on_the_way(self, hub: LoopbackHub, folder: Path) -> None:
        def change(method: str, _path: str, _index: int) -> None:
            if method == "PUT":
                (folder / "README.md").write_text("other")

        hub.faults.append(change)
        with pytest.raises(UserError, match="changed while it was published"):
            publish(hub, folder)
        assert hub.repositories[KEY].tags == {}


# --------------------------------------------------------------------------- faults

ONCE = {
    "500": Fault(500),
    "429": Fault(429, {"Retry-After": "3"}),
    "412": Fault(412),
    "403": Fault(403),
    "dropped before": Fault(),
    "dropped after": Fault(is_carried_out=True),
    "500 after": Fault(500, is_carried_out=True),
    "cut off": Fault(keep_bytes=1),
}


@pytest.fixture(scope="session")
def num_requests(packed: Path) -> dict[bool, int]:
    """How many requests a release takes, through a branch and through a pull request."""
    counts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        for through_pull_request in (False, True):
            with LoopbackHub(page_size=2) as hub:
                publish(hub, packed, creates_pull_request=through_pull_request)
                counts[through_pull_request] = len(hub.requests)
    return counts


def survive(packed: Path, fault: Fault, indices: range, through_pull_request: bool = False) -> bool:
    """Publish with a fault at some requests; whatever comes of it, the tag is whole or absent, and a re-run ends well.

    Returns whether the first run set the tag.
    """
    with LoopbackHub(page_size=2) as hub:
        hub.faults.append(lambda _method, _path, index: fault if index in indices else None)
        is_done, sentence = False, ""
        try:
            is_done = publish(hub, packed, creates_pull_request=through_pull_request).is_tagged
        except UserError as error:
            sentence = str(error)
        whole = local_tree(packed)
        assert "\n" not in sentence
        assert len(sentence) < 500
        assert remote_tree(hub, TAG) == whole if is_done else remote_tree(hub, TAG) in (None, whole)
        assert is_done or remote_tree(hub, "main") in (None, {}, whole)
        hub.faults.clear()
        publish(hub, packed, creates_pull_request=through_pull_request)
        assert remote_tree(hub, TAG) == whole
        repository = hub.repositories[KEY]
        assert len(repository.pull_requests) == through_pull_request
        assert [name for name in repository.branches if name.startswith(BRANCH)] == []
    return is_done


class TestFaults:
    """The fast subset puts one kind of fault to each request, in turn; the slow ones put all kinds to each."""

    @pytest.mark.parametrize("name", ONCE)
    def test_once(self, packed: Path, num_requests: dict[bool, int], name: str) -> None:
        start = list(ONCE).index(name)
        for index in range(start, num_requests[False], len(ONCE)):
            assert survive(packed, ONCE[name], range(index, index + 1)) or name == "403"

    @pytest.mark.parametrize("name", ["500", "dropped after"])
    def test_once_with_a_pull_request(self, packed: Path, num_requests: dict[bool, int], name: str) -> None:
        for index in range(list(ONCE).index(name), num_requests[True], len(ONCE)):
            assert survive(packed, ONCE[name], range(index, index + 1), through_pull_request=True)

    def test_for_good(self, packed: Path, num_requests: dict[bool, int]) -> None:
        for index in range(0, num_requests[False], 7):
            survive(packed, ONCE["dropped before"], range(index, 10_000))

    def test_the_wish_of_the_hub_is_obeyed(self, hub: LoopbackHub, packed: Path, waits: list[float]) -> None:
        fault = iter([Fault(429, {"Retry-After": "17"}), None])
        hub.faults.append(lambda _, path, __: next(fault, None) if path.endswith(f"/tag/{path[-40:]}") else None)
        publish(hub, packed)
        assert waits == [18]

    def test_a_wish_for_an_hour_is_told_instead(self, hub: LoopbackHub, packed: Path, waits: list[float]) -> None:
        hub.faults.append(lambda *_: Fault(429, {"Retry-After": "3600"}))
        with pytest.raises(UserError, match=r"the Hub answers 429 .*goes on where it stopped"):
            publish(hub, packed)
        assert waits == []

    def test_waits_grow(self, hub: LoopbackHub, packed: Path, waits: list[float]) -> None:
        hub.faults.append(lambda *_: Fault(500))
        with pytest.raises(
            UserError, match=r"could not ask the Hub whose token this is: the Hub answers 500 \(a fault"
        ):
            publish(hub, packed)
        assert waits == [1, 2, 4, 8]

    def test_no_hub_at_all(self, packed: Path) -> None:
        with LoopbackHub() as hub:
            pass
        with pytest.raises(
            UserError, match=r"could not ask the Hub whose token this is: .*; run the same command again"
        ):
            publish(hub, packed)

    def test_somebody_else_commits_to_main(self, hub: LoopbackHub, packed: Path) -> None:
        """Between our look and our commit; the Hub answers 412, and we look again."""
        publish(hub, packed, "v0.1")
        repository = hub.repositories[KEY]
        repository.commit({})
        card = (packed / "README.md").read_bytes()
        others = iter(
            [
                {
                    "README.md": card,
                    "LICENSE": b"mine",
                    "text_to_image/train-00001-of-00002.parquet": b"of an earlier release",
                }
            ]
        )

        def meddle(method: str, path: str, _: int) -> None:
            if method == "POST" and path.endswith("/commit/main") and (files := next(others, None)):
                repository.commit(files, title="a licence")

        hub.faults.append(meddle)
        publish(hub, packed)
        assert remote_tree(hub, TAG) == local_tree(packed) | {"LICENSE": hashlib.sha256(b"mine").hexdigest()}

    def test_somebody_else_makes_it_theirs(self, hub: LoopbackHub, packed: Path) -> None:
        publish(hub, packed, "v0.1")
        repository = hub.repositories[KEY]
        theirs = {"README.md": b"# Letters", "data/letters.csv": b"a,b", "card/mine.png": b"png"}
        once = iter([theirs])

        def meddle(method: str, path: str, _: int) -> None:
            if method == "POST" and "/commit/" in path and (files := next(once, None)):
                repository.commit(files, title="letters")

        repository.commit({"README.md": (packed / "README.md").read_bytes()})
        hub.faults.append(meddle)
        with pytest.raises(UserError, match="holds something that `sharegpt4o-image pack` did not write"):
            publish(hub, packed)
        assert remote_tree(hub, "main").keys() == theirs.keys()
        assert list(repository.tags) == ["v0.1"]

    def test_somebody_else_takes_the_tag(self, hub: LoopbackHub, packed: Path) -> None:
        def meddle(method: str, path: str, _: int) -> None:
            if method == "POST" and "/tag/" in path:
                repository = hub.repositories[KEY]
                repository.tags.setdefault(TAG, repository.commits[0][0])

        hub.faults.append(meddle)
        with pytest.raises(UserError, match="choose another one with --tag"):
            publish(hub, packed)
        assert remote_tree(hub, TAG) == {}

    def test_a_hub_that_stores_something_else_gets_no_tag(self, hub: LoopbackHub, packed: Path) -> None:
        def spoil(method: str, path: str, _: int) -> None:
            if method == "GET" and "/tree/" in path and KEY in hub.repositories:
                for _sha, tree in hub.repositories[KEY].commits:
                    tree.update({name: b"spoiled" for name in tree if name.startswith("text_to_image/")})

        hub.faults.append(spoil)
        with pytest.raises(UserError, match="so nothing was tagged"):
            publish(hub, packed)
        assert hub.repositories[KEY].tags == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("through_pull_request", [False, True])
    @pytest.mark.parametrize("name", ONCE)
    def test_everywhere(
        self, packed: Path, num_requests: dict[bool, int], name: str, through_pull_request: bool
    ) -> None:
        for index in range(num_requests[through_pull_request]):
            is_done = survive(packed, ONCE[name], range(index, index + 1), through_pull_request)
            assert is_done or name == "403", index

    @pytest.mark.slow
    @pytest.mark.parametrize("through_pull_request", [False, True])
    @pytest.mark.parametrize("name", ["500", "412", "dropped before", "dropped after"])
    def test_everywhere_for_good(
        self, packed: Path, num_requests: dict[bool, int], name: str, through_pull_request: bool
    ) -> None:
        for index in range(num_requests[through_pull_request]):
            survive(packed, ONCE[name], range(index, 10_000), through_pull_request)


PUBLISH = """
import sys
from pathlib import Path
from sharegpt4o_image.builders.publisher import publish_dataset
publish_dataset(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def start(hub: LoopbackHub, folder: Path, home: Path, uses_xet: bool = False) -> subprocess.Popen[str]:
    variables = os.environ | environment(hub.endpoint, str(home), uses_xet)
    command = [sys.executable, "-c", PUBLISH, str(folder), REPO, TAG]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestKilled:
    @pytest.mark.parametrize("place", ["/upload/", f"/commit/{BRANCH}{TAG}", "/commit/main", "/tag/"])
    def test_a_run_after_it_ends_well(self, hub: LoopbackHub, packed: Path, tmp_path: Path, place: str) -> None:
        """Killed when the request has arrived, before or after it took effect."""
        processes: list[subprocess.Popen[str]] = []

        def kill(method: str, path: str, _: int) -> Fault | None:
            if method == "GET" or place not in path or processes[0].returncode is not None:
                return None
            processes[0].send_signal(signal.SIGKILL)
            processes[0].wait()
            return Fault(is_carried_out=True)

        hub.faults.append(kill)
        processes.append(start(hub, packed, tmp_path))
        processes[0].communicate(timeout=60)
        assert processes[0].returncode == -signal.SIGKILL
        whole = local_tree(packed)
        assert remote_tree(hub, TAG) == (whole if place == "/tag/" else None)
        assert remote_tree(hub, "main") == (whole if place in ("/tag/", "/commit/main") else {})
        sent = hub.bytes_uploaded
        publish(hub, packed)
        assert remote_tree(hub, TAG) == whole
        large = [path for path in packed.rglob("*.*") if path.suffix in (".parquet", ".png")]
        assert sent <= hub.bytes_uploaded == sum(path.stat().st_size for path in large)
        assert list(hub.repositories[KEY].branches) == ["main"]


class TestXet:
    """hf_xet itself runs; its storage is a folder."""

    def test_a_refusal_is_told_in_a_sentence(self, packed: Path, tmp_path: Path) -> None:
        with LoopbackHub(xet_dir=tmp_path) as hub:
            hub.faults.append(lambda _, path, __: Fault(403) if "xet-write-token" in path else None)
            _, errors = start(hub, packed, tmp_path / "home", uses_xet=True).communicate(timeout=60)
            assert "UserError: could not upload " in errors.splitlines()[-1]
            assert hub.repositories[KEY].tags == {}

    def test_the_second_time_nothing_is_stored(self, packed: Path, tmp_path: Path) -> None:
        with LoopbackHub(xet_dir=tmp_path / "storage") as hub:
            for _ in range(2):
                (tmp_path / "storage").mkdir(exist_ok=True)
                process = start(hub, packed, tmp_path / "home", uses_xet=True)
                _, errors = process.communicate(timeout=60)
                assert process.returncode == 0, errors
                stored = {path: path.stat().st_size for path in (tmp_path / "storage").rglob("*") if path.is_file()}
            assert remote_tree(hub, TAG) == remote_tree(hub, "main") == local_tree(packed)
            assert hub.bytes_uploaded == 0
            assert any("xet-write-token" in request for request in hub.requests)
            hub.learn(packed)  # what the storage holds cannot be read through the loopback Hub
            assert read_back(hub, tmp_path / "reading", TAG) == expected_rows(range(8))
        large = sum(path.stat().st_size for path in packed.rglob("*.parquet"))
        assert sum(stored.values()) >= large / 2  # it compresses


# --------------------------------------------------------------------------- the plan


class TestPlan:
    def plan(self, hub: LoopbackHub, folder: Path, tag: str = TAG, **options: Any) -> Any:
        return plan_release(folder, REPO, tag, api=HfApi(endpoint=hub.endpoint, token="hf_fake"), **options)

    def test_it_changes_nothing(self, hub: LoopbackHub, packed: Path) -> None:
        plan = self.plan(hub, packed, is_private=True)
        assert hub.repositories == {}
        assert plan.steps == [
            f"create the private repository {REPO}",
            f"write croissant.json for {REPO} {TAG}",
            f"upload to the branch {BRANCH}{TAG}, and compare it with the folder",
            "bring main to the same files in one commit",
            f"tag that commit as {TAG}",
            "delete the branch",
        ]
        assert {file["path"] for file in plan.files if not file["is_there"]} == local_tree(packed).keys() - {CROISSANT}

    def test_it_knows_what_is_there(self, hub: LoopbackHub, packed: Path, packed_later: Path) -> None:
        publish(hub, packed)
        plan = self.plan(hub, packed_later, "v1.1", creates_pull_request=True)
        before = set(local_tree(packed).values())
        assert {file["path"]: file["is_there"] for file in plan.files} == {
            path: digest in before for path, digest in local_tree(packed_later).items() if path != CROISSANT
        }
        assert plan.steps[-1] == "tag the head of the pull request as v1.1"
        assert self.plan(hub, packed).steps == []
        with pytest.raises(UserError, match="tags are not moved"):
            self.plan(hub, packed_later)

    def test_it_does_without_the_hub(self, packed: Path) -> None:
        with LoopbackHub() as hub:
            pass
        plan = self.plan(hub, packed)
        assert plan.note.startswith("The Hub could not be asked: ")
        assert {file["is_there"] for file in plan.files} == {None}
        assert "unknown" in plan.to_text()
        assert json.loads(plan.to_json())["repo_id"] == REPO
