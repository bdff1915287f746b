# SPDX-License-Identifier: Apache-2.0
"""`report`: our rows beside the published ones, what differs in footnotes, and text that stays text."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation import dpg_record, preference_report, score_files
from sharegpt4o_image.evaluation.dpg_questions import Item
from sharegpt4o_image.evaluation.preference_votes import read_votes
from sharegpt4o_image.evaluation.published_scores import PREFERENCE, PUBLISHED
from sharegpt4o_image.evaluation.report import OFFICIAL_LOSS, build_report
from sharegpt4o_image.evaluation.report_page import escape_markdown, to_html, to_markdown
from sharegpt4o_image.evaluation.report_tables import Report, Row, Table
from sharegpt4o_image.evaluation.score_files import ScoreFile, read_measurements, shown_text
from sharegpt4o_image.evaluation.score_record import MissingItem, ScoreLine, ScoreRecord, write_scores

SHARED = Path(__file__).parents[3] / "shared" / "reference"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '</td><img src=x onerror="document.title=1">|**b** `c` <!-- \u202e \x00'
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Run = Callable[..., tuple[int, str, str]]


def record(**changes: Any) -> ScoreRecord:
    """A whole run of plain GenEval: every task 0.9, the overall score 0.83."""
    tasks = tuple(ScoreLine(tag, 0.9, 0.85, 0.94, 320) for tag in TAGS)
    whole = ScoreRecord(
        benchmark="geneval",
        name="geneval",
        unit=1,
        scores=(ScoreLine("overall", 0.83, 0.81, 0.85, 2212), *tasks),
        num_expected=2212,
        num_scored=2212,
        model="org/ours",
        generator={"model": "org/ours", "seed": 42, "sampling": {"guidance_scale": 5.0, "edit_freedom": None}},
        judge={"detector": "mask2former.pth"},
        command="sharegpt4o-image evaluate geneval -m /home/me/ours --output=/home/me/out",
        created_at="2026-12-01T00:00:00+00:00",
    )
    return replace(whole, **changes)


def table_of(*records: ScoreRecord) -> Table:
    report = report_of(*records)
    assert len(report.tables) == 1
    return report.tables[0]


def report_of(*records: ScoreRecord) -> Report:
    return build_report([ScoreFile(Path(f"{index}.json"), one) for index, one in enumerate(records)], [])


def rows_of(table: Table, kind: str) -> list[Row]:
    return [row for group in table.groups for row in group.rows if row.kind == kind]


def notes_of(table: Table, row: Row) -> list[str]:
    return [table.footnotes[number - 1] for number in row.notes]


# ------------------------------------------------------------------ published rows


@pytest.mark.skipif(not SHARED.is_dir(), reason="the references are not here")
@pytest.mark.parametrize(
    ("benchmark", "heading", "num_first"),
    [("geneval", "**GenEval**", 1), ("dpg-bench", "**DPG-Bench**", 1), ("imgedit", "**ImgEdit-Bench", 2)],
)
def test_published_rows_equal_the_reference(benchmark: str, heading: str, num_first: int) -> None:
    text = (SHARED / "paper.md").read_text(encoding="utf-8").split("## 9. Paper results")[1].split(heading)[1]
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")][2:]
    expected = []
    for line in lines:
        name, *cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        expected.append((name, tuple(map(float, cells[num_first - 1 :]))))
    rows = PUBLISHED[benchmark].groups[0].rows
    assert [(row.model, tuple(row.scores.values())) for row in rows] == expected
    assert list(rows[0].scores) == list(PUBLISHED[benchmark].columns)[: len(rows[0].scores)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the references are not here")
def test_every_other_published_number_is_in_the_references() -> None:
    paper, evaluation = ((SHARED / name).read_text(encoding="utf-8") for name in ("paper.md", "evaluation.md"))
    [(line, more)] = re.findall(r"The later GPT-4.1 table: (.*?)\n(.*?)\. Never mix", paper)
    later = dict(re.findall(r"([\w.-]+)\s+(\d\.\d\d)", f"{line} {more}"))
    rows = {row.model: row.scores for row in PUBLISHED["imgedit"].groups[1].rows}
    by_name = {"Step1X-Edit": "Step1X"}
    assert {by_name.get(name, name): f"{s['overall']:.2f}" for name, s in rows.items() if "overall" in s} == later
    assert "GPT-4o row (4.20)" in evaluation
    assert rows["GPT-4o"] == {"micro": 4.2}
    assert "its own report gives 0.80 and 84.19" in paper
    assert [PUBLISHED[name].groups[1].rows[0].scores["overall"] for name in ("geneval", "dpg-bench")] == [0.8, 84.19]
    first, second = (row.scores for row in PUBLISHED[PREFERENCE].groups[0].rows)
    shares = [f"{int(row['win'])}/{int(row['tie'])}/{int(row['loss'])}" for row in (first, second)]
    assert f"against Janus-Pro ({int(first['votes'])} T2I items) {shares[0]}" in paper
    assert f"against UltraEdit ({int(second['votes'])} edits) {shares[1]}" in paper


# ------------------------------------------------------------------ rows and footnotes


def test_a_plain_and_whole_record_is_compared_with_the_paper() -> None:
    table = table_of(record())
    [ours], [difference] = rows_of(table, "ours"), rows_of(table, "difference")
    assert table.columns == ("Single", "Two", "Counting", "Colors", "Position", "Color attr.", "Overall")
    assert [(cell.text, cell.interval) for cell in ours.cells[-2:]] == [
        ("0.900", "0.850 to 0.940"),
        ("0.830", "0.810 to 0.850"),
    ]
    assert (difference.cells[-1].text, difference.cells[-1].interval) == ("+0.030", "+0.010 to +0.050")
    assert difference.cells[2].text == "+0.320"  # counting: 0.90 - 0.58
    assert "2,212 of 2,212 scored, 0 missing" in ours.detail
    assert all("not published" in group.title for group in table.groups[1:])
    [janus] = [row for row in rows_of(table, "published") if row.label == "Janus-4o"]
    assert [cell.text for cell in janus.cells] == ["1.00", "0.92", "0.58", "0.88", "0.70", "0.70", "0.80"]
    assert any("seed 42, sampling guidance_scale 5.0" in note for note in notes_of(table, ours))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "geneval[detector=other]"},
        {"num_scored": 2211},
        {"num_scored": 2211, "missing": (MissingItem("00001/0000.png", "unreadable"),)},
    ],
)
def test_another_protocol_or_a_missing_item_is_not_compared(changes: dict[str, Any]) -> None:
    table = table_of(record(**changes))
    assert rows_of(table, "difference") == []
    [ours] = rows_of(table, "ours")
    notes = " ".join(notes_of(table, ours))
    assert ("is not plain geneval" in notes) == ("name" in changes)
    assert ("1 of 2,212 items have no score" in notes) == ("num_scored" in changes)


def test_what_the_official_dpg_script_loses_does_not_forbid_the_comparison() -> None:
    dpg = record(
        benchmark="dpg-bench",
        name="dpg-bench",
        unit=100,
        scores=(ScoreLine("overall", 85.0, 84.0, 86.0), ScoreLine("global", 90.0)),
        num_expected=1065,
        num_scored=1064,
        missing=(MissingItem("a", "the official script drops the file's first question (KeyError)"),),
    )
    table = table_of(dpg)
    [difference], [ours] = rows_of(table, "difference"), rows_of(table, "ours")
    assert difference.cells[-1].text == "-0.71"
    assert {cell.text for cell in difference.cells[:-1]} == {"-"}  # published categories may be mixtures
    assert (ours.cells[0].text, ours.cells[0].interval) == ("90.00", "no interval")
    assert ours.cells[1].text == "-"
    assert "1 of 1,065 items have no score" in " ".join(notes_of(table, ours))


def test_the_official_loss_is_known_by_the_words_of_its_record() -> None:
    item = Item("a", "a text", ())
    bench: Any = SimpleNamespace(items=(item,), first_row="drop")
    scores: Any = SimpleNamespace(per_image={}, failed={"a": "KeyError"})
    [missing] = dpg_record._missing(bench, {}, scores)
    assert missing.reason.startswith(OFFICIAL_LOSS)


def test_imgedit_is_never_compared_across_judges() -> None:
    lines = (ScoreLine("overall", 3.2, 3.1, 3.3), ScoreLine("paper8", 3.3, 3.2, 3.4), ScoreLine("strict", 3.0))
    edits = record(benchmark="imgedit", name="imgedit[judge=gpt-4.1]", unit=5, scores=lines)
    table = table_of(edits)
    [ours] = rows_of(table, "ours")
    assert rows_of(table, "difference") == []
    assert any("Never mix tables of different judges" in note for note in table.notes)
    shown = dict(zip(table.columns, (cell.text for cell in ours.cells), strict=True))
    assert (shown["Avg. of 8"], shown["Avg. of 9"], shown["Add"]) == ("3.30", "3.20", "-")
    assert "Further scores: strict 3.00 (no interval)." in notes_of(table, ours)


def test_several_models_share_a_table_and_equal_names_show_their_dates() -> None:
    later = record(created_at="2026-12-02T00:00:00+00:00")
    report = report_of(record(), later, record(model="org/other"))
    labels = [row.label for row in rows_of(report.tables[0], "ours")]
    assert labels == [
        "org/ours (2026-12-01T00:00:00+00:00)",
        "org/ours (2026-12-02T00:00:00+00:00)",
        "org/other",
    ]
    [warning] = report.warnings
    assert "2 records are geneval of org/ours" in warning
    assert "0.json" in warning
    assert "1.json" in warning


def test_an_unknown_benchmark_has_a_table_of_its_own() -> None:
    own = record(
        benchmark="scenes", name="scenes", scores=(ScoreLine("overall", 0.5, 0.4, 0.6), ScoreLine("x_y", 1.0))
    )
    report = report_of(own, record())
    assert [table.title for table in report.tables] == ["GenEval", "scenes"]
    table = report.tables[1]
    assert table.columns == ("overall", "x y")
    assert rows_of(table, "published") == []
    assert [cell.text for cell in rows_of(table, "ours")[0].cells] == ["0.500", "1.000"]


def test_missing_items_are_listed_and_the_rest_counted() -> None:
    missing = tuple(MissingItem(f"{number:05}", "no picture") for number in range(30))
    [shown] = table_of(record(missing=missing, num_scored=2112)).missing
    assert (shown.number, shown.expected, len(shown.items)) == (100, 2212, 21)
    assert shown.items[-1] == ("80 more", "see the file of scores")
    [complete] = table_of(record()).missing
    assert (complete.number, complete.items) == (0, ())


def test_no_folder_of_this_machine_and_no_credential_is_shown() -> None:
    drawn = {"model": "/home/me/runs/ours", "endpoint": "https://me:secret@host/v1"}
    table = table_of(record(model="/home/me/runs/ours", generator=drawn))
    text = json.dumps(table, default=vars)
    assert "home" not in text
    assert "secret" not in text
    assert rows_of(table, "ours")[0].label == "ours"
    assert table.protocols[0].facts[0] == ("command", "sharegpt4o-image evaluate geneval -m ours --output=out")


def test_no_folder_of_this_machine_is_shown_in_lists_reasons_and_warnings() -> None:
    one = record(
        judge={"models": ["/home/me/qwen", "https://me:secret@host"], "parts": [{"path": "/home/me/x"}]},
        missing=(MissingItem("00001", "/home/me/out/1.png is damaged (see file:///home/me/log)"),),
        num_scored=2211,
    )
    report = build_report([ScoreFile(Path(f"/home/me/{name}/geneval.json"), one) for name in "ab"], [])
    for page in (to_html(report), to_markdown(report)):
        assert "home" not in page
        assert "secret" not in page
        assert "1.png is damaged" in page
    assert "models qwen + https://host" in " ".join(report.tables[0].footnotes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:a@b@host/v1", "https://host/v1"),
        ("https://host/v1?api_key=secret", "https://host/v1"),
        ("an answer of a/b, 3/4 or and/or", "an answer of a/b, 3/4 or and/or"),
        ("opened '/a/b/c.png', C:\\Users\\me\\d.png and ~/e/f", "opened 'c.png', d.png and f"),
    ],
)
def test_a_sentence_loses_credentials_and_folders_alone(text: str, expected: str) -> None:
    assert shown_text(text) == expected


def test_pictures_of_a_folder_are_of_an_unknown_model() -> None:
    table = table_of(record(model=None, generator={"resolution": 384}))
    [ours] = rows_of(table, "ours")
    assert "Drawn by an unknown model, as only their folder was given (resolution 384)." in notes_of(table, ours)


def test_a_row_tells_of_how_many_and_when_an_interval_has_no_width() -> None:
    exact = record(scores=(ScoreLine("overall", 1.0, 1.0, 1.0, 2212),), created_at="2026-12-01T01:58:23.676118+00:00")
    table = table_of(exact)
    [ours] = rows_of(table, "ours")
    assert ours.cells[-1].count == 2212
    assert "<small>n = 2,212</small>" in to_html(report_of(exact))
    assert any(note.startswith("An interval of no width") for note in notes_of(table, ours))
    assert not any(note.startswith("An interval of no width") for note in table_of(record()).footnotes)
    assert any("on 2026-12-01T01:58:23+00:00." in note for note in notes_of(table, ours))


# ------------------------------------------------------------------ human preference


@pytest.fixture
def study(tmp_path: Path) -> Path:
    lines = [f"p{number},r,ours,theirs,{'model_a' if number % 4 else 'tie'}" for number in range(40)]
    votes = tmp_path / "votes.csv"
    votes.write_text("\n".join(["prompt_id,rater,model_a,model_b,winner", *lines, "q,r,ours,theirs,model_b"]) + "\n")
    path = tmp_path / "study" / "preference-1.json"
    path.parent.mkdir()
    path.write_text(json.dumps(preference_report.report(read_votes(votes))))
    return path


def test_a_study_stands_beside_that_of_the_paper(study: Path) -> None:
    report = build_report(*read_measurements([study.parent]))
    pairs, ratings = report.tables
    [ours] = rows_of(pairs, "ours")
    assert [cell.text for cell in ours.cells[:4]] == ["41", "73.2", "24.4", "2.4"]
    assert ours.cells[1].interval == "58.1 to 84.3"  # Wilson for 30 of 41
    assert any("p = 3e-08" in note for note in notes_of(pairs, ours))
    assert [row.cells[1].text for row in rows_of(pairs, "published")] == ["67", "60"]
    assert any("not confirmed" in note for note in pairs.footnotes)
    assert [row.label for row in rows_of(ratings, "ours")] == ["ours", "theirs"]


def test_models_without_a_rating_are_shown(tmp_path: Path) -> None:
    votes = tmp_path / "votes.csv"
    lines = ["p1,r,a,b,model_a", "p2,r,a,b,model_b", "p1,r,a,c,model_a"]  # c never wins
    votes.write_text("\n".join(["prompt_id,rater,model_a,model_b,winner", *lines]) + "\n")
    path = tmp_path / "preference.json"
    path.write_text(json.dumps(preference_report.report(read_votes(votes))))
    rows = rows_of(build_report(*read_measurements([path])).tables[1], "ours")
    assert {row.label for row in rows} == {"a", "b", "c"}
    [unrated] = [row for row in rows if row.label == "c"]
    assert unrated.cells[0].text == "-"
    assert unrated.detail.startswith("not rated: ")


def test_a_broken_study_is_named(study: Path) -> None:
    numbers = json.loads(study.read_text())
    numbers["pairs"]["ours vs theirs"].pop("raters")
    study.write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=r"preference-1\.json is no whole preference report"):
        build_report(*read_measurements([study]))


# ------------------------------------------------------------------ files


def _write(path: Path, **changes: Any) -> Path:
    return write_scores(record(**changes), path)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"value": 0.83', '"value": NaN', "overall is nan"),
        ('"value": 0.83', '"value": "0.83"', "overall is '0.83'"),
        ('"low": 0.81', '"low": 0.9', r"interval of overall is \(0.9, 0.85\)"),
        ('"low": 0.81', '"low": null', r"interval of overall is \(None, 0.85\)"),
        ('"num_scored": 2212', '"num_scored": -1', "num_scored"),
        ('"generator": {', '"generator": [], "x": {', "unexpected keyword"),
        ('"unit": 1', '"unit": 0', "unit"),
        ('"format": 1', '"format": 2', "another version"),
        ('"num_scored": 2212', '"num_scored": 2213', "2213 scored of 2212"),
        ('"created_at": "2026-12-01', '"created_at": "last week', "not a date"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_by_name(tmp_path: Path, old: str, new: str, fault: str) -> None:
    path = _write(tmp_path)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"geneval\.json.*{fault}"):
        read_measurements([path])


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff", b"[" * 100_000, b'{"a": 1}'])
def test_what_is_no_file_of_scores_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_measurements([path])


def test_files_are_found_below_folders_and_read_once(tmp_path: Path) -> None:
    first = _write(tmp_path / "a" / "geneval")
    _write(tmp_path / "b")
    (tmp_path / "a" / "geneval" / "results.json").write_text("{}")
    scores, studies = read_measurements([first, tmp_path, tmp_path / "a"])
    assert [file.path.relative_to(tmp_path).as_posix() for file in scores] == [
        "a/geneval/scores/geneval.json",
        "b/scores/geneval.json",
    ]
    assert studies == []


def test_a_file_of_scores_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path)
    parsed: list[str] = []
    loads = json.loads

    def counted(text: str, **options: Any) -> Any:
        parsed.append(text)
        return loads(text, **options)

    monkeypatch.setattr(score_files.json, "loads", counted)
    read_measurements([path])
    assert len(parsed) == 1


# ------------------------------------------------------------------ pages


def hostile_report() -> Report:
    edits = record(
        model=HOSTILE,
        name=f"geneval[{HOSTILE}]",
        judge={HOSTILE: HOSTILE},
        generator={HOSTILE: {HOSTILE: 1}},
        command=HOSTILE,
        created_at=HOSTILE,
        missing=(MissingItem(HOSTILE, HOSTILE),),
        num_scored=2211,
        scores=(ScoreLine("overall", 0.5), ScoreLine(HOSTILE, 0.5)),
    )
    return report_of(edits, edits, replace(edits, benchmark=HOSTILE))


class _Tags(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_text_from_outside_is_text_in_html() -> None:
    page = to_html(hostile_report())
    tags = _Tags(page).found
    allowed = (
        "html head meta link title style body h1 h2 h3 p section div table thead tbody tr th td small sup a ol ul li "
        "dl dt dd span b"
    )
    assert {tag for tag, _ in tags} <= set(allowed.split(" "))
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "&lt;img src=x onerror=" in page
    assert "\u202e" not in page
    assert "\x00" not in page
    addresses = [attributes.get("href") or "" for tag, attributes in tags if tag == "a"]
    assert addresses
    assert all(address.startswith("#note-") for address in addresses)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses} <= set(ids)


def test_text_from_outside_is_text_in_markdown() -> None:
    text = to_markdown(hostile_report())
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    without = re.sub(r"</?(?:br|sub|sup)>", "", text)
    assert "<" not in without
    assert "**b**" not in text
    assert "`" not in text


def test_tables_of_markdown_are_whole() -> None:
    text = to_markdown(report_of(record()))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[1] == "|" + " --- |" * 8
    assert lines[0] == "| Model | Single | Two | Counting | Colors | Position | Color attr. | Overall |"
    assert "| Janus-4o | 1.00 | 0.92 | 0.58 | 0.88 | 0.70 | 0.70 | 0.80 |" in lines
    assert "0.830<br><sub>0.810 to 0.850</sub><br><sub>n = 2,212</sub> |" in lines[3]


def test_escaping_keeps_what_is_no_markup() -> None:
    assert escape_markdown("single_object 0.5 to -0.4, a-b") == "single_object 0.5 to -0.4, a-b"
    assert escape_markdown("1. x") == "&#49;. x"
    assert escape_markdown("- x|y") == "&#45; x&#124;y"
    assert len(escape_markdown("word " * 500)) > 2000


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(to_html(hostile_report()), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>Scores beside the published ones</title>" in done.stdout
    assert "<img" not in done.stdout
    assert done.stdout.count("<table>") == 2


# ------------------------------------------------------------------ the verb


def test_the_verb_writes_a_page(run: Run, tmp_path: Path, study: Path) -> None:
    _write(tmp_path / "runs")
    code, out, _ = run("report", "runs", study, "-o", "pages/report.md")
    assert (code, out.strip()) == (0, "pages/report.md")
    assert "## Human preference" in Path("pages/report.md").read_text()
    code, out, _ = run("report", "runs", "--json")
    assert code == 0
    assert json.loads(out)["tables"][0]["groups"][0]["rows"][0]["cells"][-1]["value"] == 0.83
    assert Path("report.html").read_text().startswith("<!doctype html>")


def test_the_verb_tells_of_equal_names(run: Run, tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    code, out, _ = run("report", "a", "b")
    assert code == 0
    assert out.startswith("Warning: 2 records are geneval of org/ours")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("empty",), "empty holds no scores"),
        (("nowhere.json",), "nowhere.json"),
        (("a", "-o", "x.pdf"), "must end with .html or .md"),
    ],
)
def test_faults_are_one_sentence(run: Run, tmp_path: Path, arguments: tuple[str, ...], fault: str) -> None:
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "a")
    code, out, err = run("report", *arguments)
    assert (code, out) == (2, "")
    assert fault in err
    assert err.count("\n") == 1
