# SPDX-License-Identifier: Apache-2.0
"""`write_gallery`: the page holds the rows that it should, nothing of a row becomes markup, and a browser shows it."""

import base64
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from picture_records import ListSource, make_record
from PIL import Image

from sharegpt4o_image.builders.gallery import write_gallery
from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import ImageFile, Record, RejectedRecord

HOSTILE = '</script><img src=x onerror="document.title=1">&amp; <!-- \u2028 {{data}}'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _pack(folder: Path, records: list[Record], negatives: list[RejectedRecord] | None = None, **options: int) -> Path:
    pack(ListSource(records, negatives or []), folder, includes_negatives=bool(negatives), **options)
    return folder


def _with(record: Record, **update: object) -> Record:
    return record.model_copy(update=update)


def _noise(side: int, seed: int) -> ImageFile:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, "PNG")
    return ImageFile(bytes=buffer.getvalue(), path="noise.png")


def _large(record: Record, side: int, seed: int) -> Record:
    picture = _noise(side, seed)
    return _with(
        record,
        output_image=picture,
        output_image_resolution=[side, side],
        output_sha256=hashlib.sha256(picture.bytes).hexdigest(),
    )


def _data(page: Path) -> dict[str, Any]:
    [text] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL
    )
    data: dict[str, Any] = json.loads(text)
    return data


def _decode(thumbnail: dict[str, Any]) -> Image.Image:
    header, _, data = thumbnail["uri"].partition(",")
    assert header == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


# --------------------------------------------------------------------------- what the page holds


def test_the_page_holds_every_column_that_is_known(tmp_path: Path) -> None:
    records = [make_record(index) for index in range(6)]
    data = _data(write_gallery(_pack(tmp_path / "set", records), tmp_path / "page.html"))
    assert (data["title"], data["num_rows"]) == ("set", 6)
    shown = {row["columns"]["id"]: row for row in data["rows"]}
    for record in records:
        stored = record.model_dump(exclude={"input_image", "output_image"})
        row = shown[record.id]
        assert row["columns"] == {name: value for name, value in stored.items() if value not in (None, [], {})}
        assert (row["config"], row["split"]) == (record.task, "train")
        assert len(row["sources"]) == len(record.input_image)


def test_numbers_that_json_lacks_are_shown_as_text(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", [make_record(0)])
    [shard] = folder.rglob("train-*.parquet")
    table = pq.read_table(shard)
    [row] = table.to_pylist()
    row |= {"cost_usd": float("nan"), "image_params": '{"steps": [1, NaN]}', "usage": '{"seconds": {"all": Infinity}}'}
    pq.write_table(table.from_pylist([row], schema=table.schema), shard)
    [shown] = [row["columns"] for row in _data(write_gallery(folder, tmp_path / "page.html"))["rows"]]
    assert (shown["cost_usd"], shown["usage"]) == ("nan", {"seconds": {"all": "inf"}})
    assert shown["image_params"] == {"steps": [1, "nan"]}


def test_thumbnails_are_small_and_state_the_size_of_the_picture(tmp_path: Path) -> None:
    records = [_large(make_record(0), 100, 0), make_record(2)]
    page = write_gallery(_pack(tmp_path / "set", records), tmp_path / "page.html", side=40)
    large, small = (row["output"] for row in _data(page)["rows"])
    assert (large["width"], large["height"], _decode(large).size) == (100, 100, (40, 40))
    assert (small["width"], small["height"], _decode(small).size) == (16, 16, (16, 16))


def test_rows_are_drawn_from_every_category_in_turn(tmp_path: Path) -> None:
    sizes = {"Object-level": 30, "Style": 4, "Text": 1}
    categories = [name for name, count in sizes.items() for _ in range(count)]
    records = [_with(make_record(2 * k + 1), edit_category=name) for k, name in enumerate(categories)]
    folder = _pack(tmp_path / "set", records)

    def draw(name: str, seed: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = _data(write_gallery(folder, tmp_path / name, limit=9, seed=seed))["rows"]
        return [row["columns"] for row in rows]

    first = draw("a.html", 0)
    assert Counter(row["edit_category"] for row in first) == {"Object-level": 4, "Style": 4, "Text": 1}
    assert [row["id"] for row in first] == [record.id for record in records if record.id in {r["id"] for r in first}]
    assert draw("b.html", 0) == first
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert draw("c.html", 1) != first


def test_only_the_pictures_that_are_shown_are_read(tmp_path: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("the system does not count what a process reads")
    records = [_large(make_record(2 * k), 256, k) for k in range(40)]  # 197 kB each
    folder = _pack(tmp_path / "set", records, row_group_bytes=400_000)

    def num_read() -> int:
        return int(re.findall(r"rchar: (\d+)", counters.read_text())[0])

    write_gallery(folder, tmp_path / "page.html", limit=1)  # imports what it needs
    before = num_read()
    write_gallery(folder, tmp_path / "page.html", limit=2)
    assert num_read() - before < 2_000_000 < sum(len(record.output_image.bytes) for record in records)


def test_negatives_come_with_their_reason(tmp_path: Path) -> None:
    negative = RejectedRecord(**dict(make_record(3)), reject_reason="the edit changed nothing")
    page = write_gallery(_pack(tmp_path / "set", [make_record(1)], [negative]), tmp_path / "page.html")
    configs = {row["config"]: row["columns"].get("reject_reason") for row in _data(page)["rows"]}
    assert configs == {
        "text_and_image_to_image": None,
        "text_and_image_to_image_negatives": "the edit changed nothing",
    }


def test_reasons_are_filtered_without_particulars(tmp_path: Path) -> None:
    negatives = [
        RejectedRecord(**dict(make_record(index)), reject_reason=f"it looks the same ({index})") for index in (3, 5)
    ]
    data = _data(write_gallery(_pack(tmp_path / "set", [make_record(1)], negatives), tmp_path / "page.html"))
    assert [row["reason"] for row in data["rows"]] == [None, "it looks the same", "it looks the same"]
    assert data["rows"][1]["columns"]["reject_reason"] == "it looks the same (3)"


def test_a_picture_that_cannot_be_decoded_is_told(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", [make_record(0)])
    [shard] = folder.rglob("train-*.parquet")
    table = pq.read_table(shard)
    [row] = table.to_pylist()
    row["output_image"]["bytes"] = b"junk"
    pq.write_table(table.from_pylist([row], schema=table.schema), shard)
    [row] = _data(write_gallery(folder, tmp_path / "page.html"))["rows"]
    assert row["output"]["fault"].startswith("unreadable: ")


# --------------------------------------------------------------------------- what the page cannot do


@pytest.fixture
def hostile_page(tmp_path: Path) -> Path:
    records = [_with(make_record(0), input_prompt=HOSTILE, style=HOSTILE), *map(make_record, range(1, 7))]
    return write_gallery(_pack(tmp_path / "set", records), tmp_path / "page.html")


def test_text_of_rows_never_becomes_markup(hostile_page: Path) -> None:
    text = hostile_page.read_text("utf-8")
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script>", text)) == 2
    assert "<img" not in text
    assert "\u2028" not in text
    assert _data(hostile_page)["rows"][0]["columns"]["input_prompt"] == HOSTILE


def test_the_policy_allows_the_pages_own_script_and_style_only(hostile_page: Path) -> None:
    text = hostile_page.read_text("utf-8")
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name in ("script", "style"):
        [content] = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"data:image/webp;base64,[^\"]*", "", text))


# --------------------------------------------------------------------------- in a browser


def _browse(page: Path, address: str, profile: Path) -> tuple[str, list[str]]:
    """The document after its script has run, and what the console says."""
    if BROWSER is None:
        pytest.skip("no chromium is installed")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run",
        "--disable-background-networking", "--disable-component-update",
        "--virtual-time-budget=5000", f"--user-data-dir={profile}", "--dump-dom", f"{page.as_uri()}{address}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class _Elements(HTMLParser):
    """The elements of a document, with their attributes; and the text of its prompts."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.prompts: list[str] = []
        self._is_prompt = False
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._is_prompt = self.found[-1] == ("p", {"class": "prompt"})

    def handle_endtag(self, tag: str) -> None:
        self._is_prompt = False

    def handle_data(self, data: str) -> None:
        if self._is_prompt:
            self.prompts.append(data)

    def shown_cards(self) -> list[bool]:
        return ["hidden" not in attributes for tag, attributes in self.found if tag == "article"]


def test_a_browser_shows_the_cards(hostile_page: Path, tmp_path: Path) -> None:
    document, console = _browse(hostile_page, "", tmp_path / "profile")
    assert console == []
    elements = _Elements(document)
    assert elements.shown_cards() == [True] * 7
    assert elements.prompts[0] == HOSTILE
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    pictures = [attributes["src"] or "" for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 4 + 2 * 3
    assert all(source.startswith("data:image/webp;base64,") for source in pictures)
    assert "<title>set</title>" in document


def test_filters_are_read_from_the_address(hostile_page: Path, tmp_path: Path) -> None:
    document, console = _browse(hostile_page, "#category=Object-level&q=number+5", tmp_path / "profile")
    assert console == []
    assert _Elements(document).shown_cards() == [False] * 6 + [True]
    assert "1 of 7 rows" in document


def test_more_filters_are_open_when_the_address_asks_for_one(hostile_page: Path, tmp_path: Path) -> None:
    document, console = _browse(hostile_page, "#objects=star", tmp_path / "profile")
    assert console == []
    assert _Elements(document).shown_cards() == [False] * 7
    [details] = [attributes for tag, attributes in _Elements(document).found if tag == "details"]
    assert "open" in details


def test_a_row_is_found_by_one_of_its_objects(tmp_path: Path) -> None:
    records = [_with(make_record(0), objects=["circle", "star"]), make_record(2)]
    page = write_gallery(_pack(tmp_path / "set", records), tmp_path / "page.html")
    document, _ = _browse(page, "#objects=star", tmp_path / "profile")
    assert _Elements(document).shown_cards() == [True, False]
    assert ">star (1)<" in document


def test_a_script_that_was_changed_does_not_run(hostile_page: Path, tmp_path: Path) -> None:
    text = hostile_page.read_text("utf-8")
    hostile_page.write_text(text.replace('"use strict";', '"use strict"; "changed";'), "utf-8")
    document, console = _browse(hostile_page, "", tmp_path / "profile")
    assert "<article" not in document
    assert "Content Security Policy" in console[0]


# --------------------------------------------------------------------------- bad input


def test_only_a_page_of_ours_is_replaced(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", [make_record(0)])
    page = write_gallery(folder, tmp_path / "new/page.html")
    assert write_gallery(folder, page) == page
    page.write_text("mine")
    with pytest.raises(UserError, match="is not a gallery; remove it"):
        write_gallery(folder, page)
    assert page.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        write_gallery(folder, tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no data set that `sharegpt4o-image pack` wrote"):
        write_gallery(tmp_path, tmp_path / "page.html")
    folder = _pack(tmp_path / "set", [make_record(0)])
    [shard] = folder.rglob("train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        write_gallery(folder, tmp_path / "page.html")
    shard.unlink()
    with pytest.raises(UserError, match="lacks files of the split train"):
        write_gallery(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", [make_record(0)])
    with pytest.raises(UserError, match="is not UTF-8; rename the folder"):
        write_gallery(folder.rename(tmp_path / "set-\udcff"), tmp_path / "page.html")
