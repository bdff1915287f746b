# SPDX-License-Identifier: Apache-2.0
"""Score records and preference reports -> tables beside the published rows, with all that differs in footnotes.

Everything here is plain text; `report_page` makes HTML or Markdown of it.
"""

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten

from sharegpt4o_image.evaluation.published_scores import JANUS_4O, PUBLISHED, PublishedTable
from sharegpt4o_image.evaluation.report_studies import study_tables
from sharegpt4o_image.evaluation.report_tables import (
    NO_INTERVAL,
    Cell,
    Footnotes,
    Group,
    Missing,
    Protocol,
    Report,
    Row,
    Table,
    published_group,
)
from sharegpt4o_image.evaluation.score_files import (
    ScoreFile,
    StudyFile,
    date_of,
    drawn_by,
    is_variant,
    judged_by,
    model_name,
    num_missing,
    shown,
    shown_command,
    shown_text,
    unnamed_missing,
)
from sharegpt4o_image.evaluation.score_record import ScoreLine, ScoreRecord

NUM_ITEMS_SHOWN = 20  # missing items of a record that the page names; our choice
OFFICIAL_LOSS = "the official script drops"  # how `dpg_record` begins the reason
MAX_REASON = 300  # characters of a reason; our choice


def build_report(scores: Sequence[ScoreFile], studies: Sequence[StudyFile]) -> Report:
    """The page of all files; benchmarks in the paper's order, then others, then preference studies."""
    by_benchmark: dict[str, list[ScoreFile]] = {}
    for file in scores:
        by_benchmark.setdefault(file.record.benchmark, []).append(file)
    known = [name for name in PUBLISHED if name in by_benchmark]
    names = [*known, *sorted(by_benchmark.keys() - PUBLISHED.keys())]
    tables = [_score_table(name, by_benchmark[name]) for name in names]
    if studies:
        tables += study_tables(studies)
    return Report("Scores beside the published ones", tuple(tables), tuple(_same_names(scores)))


def _same_names(files: Sequence[ScoreFile]) -> list[str]:
    """A warning for each model that has several records of one name."""
    groups: dict[tuple[str, str], list[ScoreFile]] = {}
    for file in files:
        groups.setdefault(_identity(file.record), []).append(file)
    return [
        f"{len(group)} records are {name} of {model}; all are shown, by their dates: "
        + ", ".join(f"{shown(str(file.path))} ({date_of(file.record)})" for file in group)
        for (name, model), group in groups.items()
        if len(group) > 1
    ]


def _identity(record: ScoreRecord) -> tuple[str, str]:
    return record.name, model_name(record)


# ------------------------------------------------------------------ scores


def _score_table(benchmark: str, files: Sequence[ScoreFile]) -> Table:
    published = PUBLISHED.get(benchmark) or _unpublished(benchmark, [file.record for file in files])
    labels = _labels([file.record for file in files])
    footnotes = Footnotes()
    ours = [
        row
        for label, file in zip(labels, files, strict=True)
        for row in _rows_of(file.record, label, published, footnotes)
    ]
    theirs = [published_group(group, published, footnotes) for group in published.groups]
    return Table(
        title=published.title,
        columns=tuple(published.columns.values()),
        groups=(Group("Ours, with 95 % intervals", tuple(ours)), *theirs),
        footnotes=footnotes.texts,
        notes=published.notes,
        missing=tuple(_missing(file.record, label) for label, file in zip(labels, files, strict=True)),
        protocols=tuple(_protocol(file, label) for label, file in zip(labels, files, strict=True)),
    )


def _unpublished(benchmark: str, records: Sequence[ScoreRecord]) -> PublishedTable:
    """A table of its own for a benchmark that nobody published scores of, with the columns that the records have."""
    columns = {line.name: line.name.replace("_", " ") for record in records for line in record.scores}
    note = "No published scores of this benchmark are known here."
    return PublishedTable(benchmark, columns, 3, (), (note,))


def _labels(records: Sequence[ScoreRecord]) -> list[str]:
    """The models, with the date where several records are of the same name and model."""
    times = Counter(map(_identity, records))
    return [
        model_name(record) + (f" ({date_of(record)})" if times[_identity(record)] > 1 else "") for record in records
    ]


def _rows_of(record: ScoreRecord, label: str, table: PublishedTable, footnotes: Footnotes) -> list[Row]:
    by_name = {line.name: line for line in record.scores}
    lines = [by_name.get(name) for name in table.columns]
    decimals = max(table.decimals, 3 if record.unit == 1 else 2)
    counts = f"{record.num_scored:,} of {record.num_expected:,} scored, {num_missing(record):,} missing"
    notes = footnotes.refer(*_differences(record, table))
    cells = tuple(_cell(line, decimals) for line in lines)
    rows = [Row(label, f"{record.name}; {counts}", cells, notes)]
    compared = _compared_with(record, table)
    if compared is not None:
        differences = tuple(
            _difference(line, compared.get(name), decimals) for name, line in zip(table.columns, lines, strict=True)
        )
        detail = f"less the row {JANUS_4O} below, which is taken as exact"
        rows.append(Row("difference", detail, differences, kind="difference"))
    return rows


def _cell(line: ScoreLine | None, decimals: int) -> Cell:
    if line is None:
        return Cell()
    text = f"{line.value:.{decimals}f}"
    if line.low is None or line.high is None:
        return Cell(text, NO_INTERVAL, line.value, count=line.count)
    interval = f"{line.low:.{decimals}f} to {line.high:.{decimals}f}"
    return Cell(text, interval, line.value, line.low, line.high, line.count)


def _compared_with(record: ScoreRecord, table: PublishedTable) -> dict[str, float] | None:
    """The paper's scores of Janus-4o, if the record is complete and measured by the benchmark's plain protocol."""
    if is_variant(record) or not _is_whole(record):
        return None
    for group in table.groups:
        for row in group.rows:
            if group.compared and row.model == JANUS_4O:
                return {name: row.scores[name] for name in group.compared}
    return None


def _is_whole(record: ScoreRecord) -> bool:
    """Whether nothing is missing but what the official script of DPG-Bench loses by itself."""
    lost = [missing for missing in record.missing if missing.reason.startswith(OFFICIAL_LOSS)]
    return num_missing(record) == len(lost)


def _difference(line: ScoreLine | None, theirs: float | None, decimals: int) -> Cell:
    if line is None or theirs is None:
        return Cell()
    text = f"{line.value - theirs:+.{decimals}f}"
    if line.low is None or line.high is None:
        return Cell(text, NO_INTERVAL, line.value - theirs)
    low, high = line.low - theirs, line.high - theirs
    return Cell(text, f"{low:+.{decimals}f} to {high:+.{decimals}f}", line.value - theirs, low, high)


def _differences(record: ScoreRecord, table: PublishedTable) -> list[str | None]:
    """What keeps a record from being compared with the published rows, or what to know when one does."""
    return [
        _variant_note(record),
        f"Drawn by {drawn_by(record)}.",
        f"Judged by {judged_by(record)}, on {date_of(record)}.",
        _missing_note(record),
        _width_note(record),
        _other_scores(record, table),
    ]


def _variant_note(record: ScoreRecord) -> str | None:
    if not is_variant(record):
        return None
    return (
        f"{record.name} is not plain {record.benchmark}: what stands in its name differs. Compare it only with rows "
        "of the same name."
    )


def _missing_note(record: ScoreRecord) -> str | None:
    number = num_missing(record)
    if not number:
        return None
    return f"{number:,} of {record.num_expected:,} items have no score; the scores are of the others."


def _width_note(record: ScoreRecord) -> str | None:
    if not any(line.low is not None and line.low == line.high for line in record.scores):
        return None
    return (
        "An interval of no width says that all resamples agree, as they do where all items of a part score alike, not "
        "that the score is exact."
    )


def _other_scores(record: ScoreRecord, table: PublishedTable) -> str | None:
    """Scores that the table has no column for."""
    decimals = 3 if record.unit == 1 else 2
    others = [(line.name, _cell(line, decimals)) for line in record.scores if line.name not in table.columns]
    text = ", ".join(f"{name} {cell.text} ({cell.interval})" for name, cell in others)
    return f"Further scores: {text}." if others else None


def _missing(record: ScoreRecord, label: str) -> Missing:
    missing = unnamed_missing(record)
    items = [(one.item, shorten(shown_text(one.reason), MAX_REASON)) for one in missing[:NUM_ITEMS_SHOWN]]
    if len(missing) > NUM_ITEMS_SHOWN:
        items.append((f"{num_missing(record) - NUM_ITEMS_SHOWN:,} more", "see the file of scores"))
    return Missing(f"{label}, {record.name}", num_missing(record), record.num_expected, tuple(items))


def _protocol(file: ScoreFile, label: str) -> Protocol:
    record = file.record
    facts = (("command", shown_command(record) or "not recorded"), ("file", file.path.name))
    return Protocol(f"{label}, {record.name}", facts)
