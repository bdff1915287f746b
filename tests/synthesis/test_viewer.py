# SPDX-License-Identifier: Apache-2.0
"""The pages that a run is looked through with: read back as a browser reads them."""

import tracemalloc
from contextlib import closing
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import GeneratedImage, Prompt, SourceImage, Task, Topic
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.journal import Item, Journal
from sharegpt4o_image.synthesis.records import iter_records
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.synthesis.run_folder import FILE_NAME
from sharegpt4o_image.synthesis.viewer import PER_PAGE, write_viewer

NOW = "2026-11-23T00:00:00+00:00"
HOSTILE = "<script>alert('1')</script> \"quoted\" & <b>bold</b>\n</p><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, its text, and the words of each table row."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def targets(self, tag: str, attribute: str) -> list[Path]:
        """The files that the page shows or links to."""
        found = [str(element[attribute]) for element in self.all(tag)]
        assert not [target for target in found if ":" in target or target.startswith("/")]
        return [(self.path.parent / unquote(target)).resolve() for target in found]

    def go(self, step: str) -> "Page | None":
        """The page behind the link to the `previous` or `next` one."""
        steps = [str(link["href"]) for link in self.all("a") if link.get("rel") == step]
        return Page(self.path.parent / steps[0]) if steps else None


def picture(name: str, text: str = "a red circle", sources: tuple[SourceImage, ...] = ()) -> GeneratedImage:
    pipeline = "editing" if sources else "prompt_first"
    topic = Topic(id=f"topic of {name}", pipeline=pipeline, objects=["circle"], style=text)  # type: ignore[arg-type]
    prompt = Prompt(id="p", topic=topic, text=text, prompt_model="writer", template_version="prompt_first.v1")
    return GeneratedImage(
        id=name,
        prompt=prompt,
        sha256="ab" * 32,
        phash="0" * 16,
        format="png",
        width=64,
        height=48,
        image_model="painter",
        sources=sources,
        created_at=NOW,
    )


def item(number: int, image: GeneratedImage | None, reason: str | None = None, task: Task = "text_to_image") -> Item:
    pipeline = "prompt_first" if task == "text_to_image" else "editing"
    return Item(f"item {number}", pipeline, task, number, image, reason, "gates", NOW)  # type: ignore[arg-type]


def write_run(run_dir: Path, items: list[Item]) -> None:
    with closing(Journal.create_or_resume(run_dir)) as journal:
        for decided in items:
            journal.decide(decided)


# --------------------------------------------------------------------------- a real run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder whose name has everything that an address must escape."""
    run_dir = tmp_path_factory.mktemp("runs") / "a #1 %20 'run' & \"more\"? <b>"
    synthesize(run_dir, SynthesisConfig(num_topics=4, num_edits=4, two_source_share=0.5))
    return run_dir


@pytest.mark.parametrize("where", ["in the run", "elsewhere"])
def test_pages_show_every_record_with_the_pictures_of_the_run(run_dir: Path, tmp_path: Path, where: str) -> None:
    output = None if where == "in the run" else tmp_path / "pages"
    index = write_viewer(run_dir, output)
    assert index == (output or run_dir / "viewer") / "index.html"
    records = list(iter_records(run_dir))
    for task in ("text_to_image", "text_and_image_to_image"):
        rows = [record for record in records if record.task == task]
        page = Page(index.parent / f"{task}-0001.html")
        assert len(page.all("article")) == len(rows) == 4
        expected = [file.bytes for record in rows for file in (*record.input_image, record.output_image)]
        assert [path.read_bytes() for path in page.targets("img", "src")] == expected
        for record in rows:
            for fact in (record.input_prompt, record.id, record.output_sha256, record.prompt_model, record.created_at):
                assert fact is not None
                assert fact in page.text
    assert run_dir.name in Page(index).text
    assert "4 of 4" in Page(index).text


def test_every_link_leads_to_a_file_and_nothing_is_fetched(run_dir: Path) -> None:
    pages = [Page(path) for path in write_viewer(run_dir).parent.glob("*.html")]
    assert len(pages) == 3
    for page in pages:
        assert all(path.is_file() for path in page.targets("a", "href") + page.targets("img", "src"))
        assert {tag for tag, _ in page.elements}.isdisjoint(
            {"script", "link", "iframe", "object", "form", "base", "b"}
        )
        [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
        assert policy == "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"
        for image in page.all("img"):
            assert image["loading"] == "lazy"
            assert (image["width"], image["height"]) == ("256", "256")


def test_looking_changes_nothing(run_dir: Path) -> None:
    before = (run_dir / FILE_NAME).read_bytes()
    write_viewer(run_dir)
    first = {path.name: path.read_bytes() for path in (run_dir / "viewer").iterdir()}
    write_viewer(run_dir)
    assert {path.name: path.read_bytes() for path in (run_dir / "viewer").iterdir()} == first
    assert (run_dir / FILE_NAME).read_bytes() == before


# --------------------------------------------------------------------------- what is shown


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    source = SourceImage(
        id="s", sha256="cd" * 32, format="png", width=64, height=48, text=HOSTILE, origin=HOSTILE, license=HOSTILE
    )
    edit = picture("edit", HOSTILE, (source,)).model_copy(
        update={"judgement": {"reason": HOSTILE}, "usage": {HOSTILE: 1}, "served_model": HOSTILE}
    )
    write_run(
        tmp_path / "run",
        [
            item(1, edit, task="text_and_image_to_image"),
            item(2, picture("made", HOSTILE), HOSTILE),
            item(3, None, HOSTILE),
        ],
    )
    viewer = write_viewer(tmp_path / "run").parent
    expected = {"text_and_image_to_image-0001": 2, "rejected-0001": 1, "index": 0}
    for name, num_pictures in expected.items():
        page = Page(viewer / f"{name}.html")
        assert len(page.all("img")) == num_pictures
        assert not page.all("script")
        assert not page.all("b")
        assert "<script>alert('1')</script> \"quoted\" & <b>bold</b>" in page.text
        assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_rejected_samples_are_shown_with_their_reason(tmp_path: Path) -> None:
    items = [item(0, picture("kept")), item(1, picture("refused"), "the picture is blank"), item(2, None, "blocked")]
    write_run(tmp_path / "run", items)
    index = Page(write_viewer(tmp_path / "run"))
    assert [Path(str(link["href"])).name for link in index.all("a")][:2] == [
        "text_to_image-0001.html",
        "rejected-0001.html",
    ]
    assert "the picture is blank" in index.text
    page = Page(index.path.parent / "rejected-0001.html")
    assert [article["id"] for article in page.all("article")] == ["item 1", "item 2"]
    assert len(page.all("img")) == 1
    assert "the picture is blank" in page.text
    assert "blocked" in page.text
    assert "blocked" not in Page(index.path.parent / "text_to_image-0001.html").text


# --------------------------------------------------------------------------- pages


def test_records_are_spread_over_pages_that_lead_to_one_another(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [item(number, picture(str(number))) for number in range(2 * PER_PAGE + 1)])
    index = write_viewer(tmp_path / "run")
    page: Page | None = Page(index.parent / "text_to_image-0001.html")
    seen: list[list[str | None]] = []
    while page is not None:
        seen.append([article["id"] for article in page.all("article")])
        last, page = page, page.go("next")
    assert [len(ids) for ids in seen] == [PER_PAGE, PER_PAGE, 1]
    assert list(chain.from_iterable(seen)) == [f"item {number}" for number in range(2 * PER_PAGE + 1)]
    middle = last.go("prev")
    assert middle is not None
    assert middle.path.name == "text_to_image-0002.html"
    first = middle.go("prev")
    assert first is not None
    assert first.go("prev") is None
    assert f"Text to image {PER_PAGE + 1} to {2 * PER_PAGE}" in middle.text


def test_full_pages_need_no_empty_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [item(number, picture(str(number))) for number in range(PER_PAGE)])
    names = {path.name for path in write_viewer(tmp_path / "run").parent.iterdir()}
    assert names == {"index.html", "text_to_image-0001.html"}


def test_pages_of_an_earlier_longer_list_go(tmp_path: Path) -> None:
    items = [item(number, picture(str(number))) for number in range(PER_PAGE + 1)]
    write_run(tmp_path / "run", items)
    write_viewer(tmp_path / "run")
    write_run(tmp_path / "run", [item(PER_PAGE, picture("last"), "the picture is blank")])
    names = {path.name for path in write_viewer(tmp_path / "run").parent.iterdir()}
    assert names == {"index.html", "text_to_image-0001.html", "rejected-0001.html"}


def test_memory_is_that_of_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [item(number, picture(str(number), "x" * 1000)) for number in range(40 * PER_PAGE)])
    write_viewer(tmp_path / "run")
    tracemalloc.start()
    write_viewer(tmp_path / "run")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # the pages are 8 MB


# --------------------------------------------------------------------------- states of a run


def test_a_run_that_goes_on_may_be_looked_at(tmp_path: Path) -> None:
    with closing(Journal.create_or_resume(tmp_path / "run")) as journal:
        assert not Page(write_viewer(tmp_path / "run")).all("a")
        journal.decide(item(0, picture("first")))
        index = Page(write_viewer(tmp_path / "run"))
        assert "running; these pages are from the middle of it" in index.text
        assert len(Page(index.path.parent / "text_to_image-0001.html").all("article")) == 1
    assert "not running" in Page(write_viewer(tmp_path / "run")).text


def test_pages_of_others_are_not_written_over(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(UserError, match="not a page of ours"):
        write_viewer(tmp_path / "run", tmp_path / "site")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        write_viewer(tmp_path / "run", tmp_path / "file")
    with pytest.raises(UserError, match="is not a run directory"):
        write_viewer(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
