# SPDX-License-Identifier: Apache-2.0
"""The journal: what survives, what is refused, and that no secret gets in."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import GeneratedImage, Pipeline, Prompt, Task, Topic
from sharegpt4o_image.synthesis.journal import Item, Journal, Memory
from sharegpt4o_image.synthesis.run_folder import FILE_NAME, check_run_dir, is_held


def image(name: str) -> GeneratedImage:
    prompt = Prompt(
        id=f"prompt of {name}",
        topic=Topic(id=f"topic of {name}", pipeline="prompt_first"),
        text="a red circle",
        prompt_model="writer",
        template_version="prompt_first.v1",
    )
    return GeneratedImage(
        id=name,
        prompt=prompt,
        sha256="0" * 64,
        phash="0" * 16,
        format="png",
        width=64,
        height=64,
        image_model="painter",
        created_at="2026-11-23T00:00:00+00:00",
    )


def item(
    name: str,
    position: int,
    picture: GeneratedImage | None = None,
    reason: str | None = None,
    pipeline: Pipeline = "prompt_first",
) -> Item:
    task: Task = "text_and_image_to_image" if pipeline == "editing" else "text_to_image"
    return Item(name, pipeline, task, position, picture, reason, "gates", "2026-11-23T00:00:00+00:00")


def test_attempt_is_lost_until_it_ends(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
        attempt = journal.begin("key", "prompt", "writer", {"topic": "circle"})
        assert journal.count_attempts() == {"lost": 1}
        assert journal.recall("key") == Memory(None, None, 0)
        journal.end(attempt, "ok", answer='{"a": 1}', usage="{}", cost_usd=0.25, request_id="req_1")
        answer = journal.recall("key").answer
    assert answer is not None
    assert (answer.body, answer.cost_usd, answer.picture) == ({"a": 1}, 0.25, None)


def test_answers_survive_reopening(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with closing(Journal.create_or_resume(run_dir)) as journal:
        journal.end(journal.begin("key", "image", "painter", {}), "ok", answer="{}", usage="{}", cost_usd=0.5)
        journal.end(journal.begin("blocked", "image", "painter", {}), "blocked", reason="violence")
        journal.end(journal.begin("bad", "image", "painter", {}), "invalid", reason="not JSON", http_status=200)
        journal.end(journal.begin("bad", "image", "painter", {}), "invalid", reason="400", http_status=400)
    with closing(Journal.create_or_resume(run_dir)) as journal:
        assert journal.recall("key").answer is not None
        assert journal.recall("blocked").block == "violence"
        assert journal.recall("bad").num_useless == 1
        assert journal.spent_usd() == 0.5
        assert journal.count_attempts() == {"ok": 1, "blocked": 1, "invalid": 2}


def test_a_request_is_answered_once(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
        journal.end(journal.begin("key", "image", "painter", {}), "ok", answer="{}", usage="{}")
        again = journal.begin("key", "image", "painter", {})
        with pytest.raises(sqlite3.IntegrityError):
            journal.end(again, "ok", answer="{}", usage="{}")


def test_items_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
        for position in (2, 0, 1):
            journal.decide(item(f"item {position}", position, image(f"image {position}")))
        journal.decide(item("item 3", 3, reason="blocked"))
        journal.decide(item("item 4", 0, image("image 4"), pipeline="editing"))
        journal.decide(item("item 5", 0, image("image 5"), pipeline="document"))
        names = [item.image.id for item in journal.iter_items("text_to_image") if item.image]
        assert names == ["image 0", "image 1", "image 2", "image 5"]
        assert [item.item for item in journal.iter_items()][-1] == "item 4"
        assert [item.item for item in journal.iter_items(is_rejected=True)] == ["item 3"]
        assert journal.count_records() == {"text_to_image": 4, "text_and_image_to_image": 1}
        assert journal.count_items() == {"prompt_first": 4, "document": 1, "editing": 1}
        assert journal.count_rejections() == {"blocked": 1}
        found = journal.find_item("item 3")
        assert found is not None
        assert (found.image, found.reason) == (None, "blocked")


def test_secrets_are_cut_out(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with closing(Journal.create_or_resume(run_dir, secrets=("sk-secret", ""))) as journal:
        attempt = journal.begin("key", "image", "painter", {"prompt": "draw sk-secret"})
        journal.end(attempt, "ok", answer='{"echo": "sk-secret"}', usage="{}", reason="key sk-secret")
        journal.mark(attempt, "invalid", "sk-secret is wrong")
        journal.decide(item("item", 0, reason="sk-secret"))
    assert not any(b"sk-secret" in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


def test_blob_appears_whole_and_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with closing(Journal.create_or_resume(run_dir)) as journal:
        sha256 = journal.blobs.write(b"picture")
        assert journal.blobs.write(b"picture") == sha256
        assert journal.blobs.read(sha256) == b"picture"
        assert journal.blobs.path_of(sha256) == run_dir / "blobs" / sha256[:2] / sha256
        (run_dir / "blobs" / ".unfinished-1").write_bytes(b"pic")
    with closing(Journal.create_or_resume(run_dir)):
        assert [path.name for path in (run_dir / "blobs").rglob("*") if path.is_file()] == [sha256]


def test_lost_blob_is_a_sentence(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
        sha256 = journal.blobs.write(b"picture")
        journal.blobs.path_of(sha256).unlink()
        with pytest.raises(UserError, match="lost the picture"):
            journal.blobs.read(sha256)


def test_two_processes_cannot_have_the_same_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    script = (
        "import sys; from pathlib import Path; from sharegpt4o_image.synthesis.journal import Journal;"
        "journal = Journal.create_or_resume(Path(sys.argv[1])); print('ready', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match="another process"):
            Journal.create_or_resume(run_dir)
        assert is_held(run_dir)
        process.kill()
    assert not is_held(run_dir)
    Journal.create_or_resume(run_dir).close()


def test_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as writer:
        writer.begin("key", "image", "painter", {})
        with closing(Journal.open(tmp_path / "run")) as reader:
            assert reader.count_attempts() == {"lost": 1}
            with pytest.raises(sqlite3.OperationalError):
                reader.begin("key", "image", "painter", {})


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE_NAME).write_text("not a database " * 100)
    (tmp_path / "other").mkdir()
    with closing(sqlite3.connect(tmp_path / "other" / FILE_NAME)) as other:
        other.execute("CREATE TABLE t (x)")
    for name in ("file", "photos", "broken", "other"):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(UserError):
            Journal.create_or_resume(tmp_path / name)
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    check_run_dir(tmp_path / "empty")
    check_run_dir(tmp_path / "absent")


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Journal.open(tmp_path)
    (tmp_path / FILE_NAME).touch()  # killed before the tables were written
    with pytest.raises(UserError, match="has not begun"):
        Journal.open(tmp_path)
    Journal.create_or_resume(tmp_path).close()
    Journal.open(tmp_path).close()
