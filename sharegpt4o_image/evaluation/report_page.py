# SPDX-License-Identifier: Apache-2.0
"""A report -> one self-contained HTML page, or Markdown with GitHub's tables. All text of it is escaped."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

from sharegpt4o_image.builders.card_text import table
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.report_tables import Cell, Missing, Protocol, Report, Row, Table

_STYLE = """
:root { color-scheme: light; --line: #d5d8dc; --quiet: #5c6470; --soft: #f3f5f7; --ours: #eef5ff; --accent: #0b57a4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1.25rem 4rem; background: #fff; color: #1c2127;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 2px solid #1c2127; font-size: 1.25rem; }
h3 { margin: 1.25rem 0 .35rem; font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child { position: sticky; left: 0; min-width: 9rem; max-width: 19rem; background: #fff; text-align: left;
  white-space: normal; overflow-wrap: anywhere; font-weight: 600; }
thead th { border-bottom: 2px solid #1c2127; vertical-align: bottom; white-space: normal; }
tr.source th { position: static; max-width: none; background: var(--soft); color: #333a42; font-weight: 600;
  font-size: .85rem; }
tr.source span { position: sticky; left: .45rem; display: inline-block; max-width: min(70rem, calc(100vw - 3.8rem)); }
tr.ours th:first-child, tr.ours td, tr.difference th:first-child, tr.difference td { background: var(--ours); }
tr.difference th { padding-left: 1.4rem; font-style: italic; font-weight: normal; }
tr.published th { font-weight: normal; }
small { display: block; color: var(--quiet); font-size: .74rem; font-weight: normal; font-style: normal; }
sup a { color: var(--accent); text-decoration: none; font-weight: normal; }
ol, ul { margin: .35rem 0; padding-left: 1.4rem; }
li { overflow-wrap: anywhere; }
.footnotes, .notes, dl { font-size: .87rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; margin: .25rem 0 .75rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.warning { margin: .75rem 0; padding: .6rem .9rem; border-left: 4px solid #b26a00; background: #fff6e5;
  overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 1rem .75rem 3rem; font-size: 14px; }
  th:first-child { min-width: 7.5rem; max-width: 9.5rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .3rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; }
  .scroll { overflow: visible; } th, td { padding: .2rem .3rem; }
  th:first-child { position: static; min-width: 0; }
  tr, li, dl { break-inside: avoid; } h2, h3 { break-after: avoid; } thead { display: table-header-group; }
  * { print-color-adjust: exact; }
}
@page { size: A4 landscape; margin: 12mm; }
"""
_LEGEND = (
    "The rows called ours come first in each table. Below a score stand its 95 % interval and n, the pictures, items "
    "or answers that it is the mean of. A dash is what was not measured, or not published."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
# What begins markup, an address that GitHub would link, or, at the start, a list. Notes are longer than what
# `card_text.prose` keeps.
_MARKUP = re.compile(r"[\\`*\[\]<>&|#~$!{}@]|\b_|_\b|(?<=:)//|(?<=www)\.|^[-+](?=\s)|^\d+(?=[.)]\s)")


def write_report(report: Report, path: Path) -> None:
    """Write `report.html` or `report.md`, by the suffix."""
    writers = {".html": to_html, ".md": to_markdown}
    if path.suffix not in writers:
        raise UserError(f"{path} must end with .html or .md; choose such a name with --output")
    write_whole(path, writers[path.suffix](report).encode(errors="backslashreplace"))


# ------------------------------------------------------------------ HTML


def to_html(report: Report) -> str:
    """One page without scripts and without anything from elsewhere."""
    warnings = "".join(f'<p class="warning">{_html(warning)}</p>' for warning in report.warnings)
    sections = "".join(_section(table, number) for number, table in enumerate(report.tables, start=1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{_html(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_html(report.title)}</h1>\n<p>{_html(_LEGEND)}</p>\n{warnings}\n{sections}</body>\n</html>\n"
    )


def _section(table: Table, number: int) -> str:
    columns = "".join(f'<th scope="col">{_html(column)}</th>' for column in table.columns)
    body = ""
    for group in table.groups:
        span = len(table.columns) + 1
        body += (
            f'<tr class="source"><th colspan="{span}" scope="rowgroup"><span>{_html(group.title)}</span></th></tr>\n'
        )
        body += "".join(_html_row(row, number) for row in group.rows)
    footnotes = "".join(
        f'<li id="note-{number}-{index}">{_html(text)}</li>' for index, text in enumerate(table.footnotes, start=1)
    )
    return (
        f'<section>\n<h2>{_html(table.title)}</h2>\n<div class="scroll" tabindex="0"><table>\n'
        f'<thead><tr><th scope="col">Model</th>{columns}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
        + (f'<ol class="footnotes">{footnotes}</ol>\n' if footnotes else "")
        + _html_notes(table.notes)
        + _html_missing(table.missing)
        + _html_protocols(table.protocols)
        + "</section>\n"
    )


def _html_row(row: Row, section: int) -> str:
    marks = ", ".join(f'<a href="#note-{section}-{note}">{note}</a>' for note in row.notes)
    label = _html(row.label) + (f" <sup>{marks}</sup>" if marks else "")
    detail = f"<small>{_html(row.detail)}</small>" if row.detail else ""
    cells = "".join(_html_cell(cell) for cell in row.cells)
    return f'<tr class="{row.kind}"><th scope="row">{label}{detail}</th>{cells}</tr>\n'


def _html_cell(cell: Cell) -> str:
    return f"<td>{_html(cell.text)}" + "".join(f"<small>{_html(line)}</small>" for line in _below(cell)) + "</td>"


def _below(cell: Cell) -> list[str]:
    """The small lines below a number."""
    return [line for line in (cell.interval, "" if cell.count is None else f"n = {cell.count:,}") if line]


def _html_notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_html(note)}</li>" for note in notes)
    return f'<h3>To know</h3>\n<ul class="notes">{items}</ul>\n' if items else ""


def _html_missing(missing: Iterable[Missing]) -> str:
    lines = ""
    for one in missing:
        items = "".join(f"<li>{_html(f'{item}: {reason}')}</li>" for item, reason in one.items)
        lines += f"<li>{_html(_missing_text(one))}" + (f"<ul>{items}</ul>" if items else "") + "</li>"
    return f'<h3>Missing items</h3>\n<ul class="notes">{lines}</ul>\n' if lines else ""


def _html_protocols(protocols: Iterable[Protocol]) -> str:
    lines = ""
    for protocol in protocols:
        facts = "".join(f"<dt>{_html(name)}</dt><dd>{_html(text)}</dd>" for name, text in protocol.facts)
        lines += f'<p class="notes"><b>{_html(protocol.label)}</b></p><dl>{facts}</dl>'
    return f"<h3>To measure ours again</h3>\n{lines}\n" if lines else ""


def _missing_text(missing: Missing) -> str:
    number = f"{missing.number:,} of {missing.expected:,} missing" if missing.number else "complete"
    return f"{missing.label}: {number}"


def _html(text: str) -> str:
    return html.escape(_one_line(text))


def _one_line(text: str) -> str:
    """Without letters that are not seen, such as those that turn the direction of what follows."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# ------------------------------------------------------------------ Markdown


def to_markdown(report: Report) -> str:
    """Tables as GitHub shows them."""
    parts = [
        f"# {escape_markdown(report.title)}",
        escape_markdown(_LEGEND),
        *(f"> **Warning:** {escape_markdown(warning)}" for warning in report.warnings),
    ]
    for section in report.tables:
        parts += _markdown_section(section)
    return "\n\n".join(parts) + "\n"


def _markdown_section(section: Table) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for group in section.groups:
        rows.append((f"**{escape_markdown(group.title)}**", *([""] * len(section.columns))))
        rows += [_markdown_row(row) for row in group.rows]
    parts = [f"## {escape_markdown(section.title)}", table(("Model", *map(escape_markdown, section.columns)), rows)]
    footnotes = [f"{index}. {escape_markdown(text)}" for index, text in enumerate(section.footnotes, start=1)]
    parts += ["\n".join(footnotes)] if footnotes else []
    parts += ["\n".join(f"- {escape_markdown(note)}" for note in section.notes)] if section.notes else []
    if section.missing:
        parts += ["### Missing items", "\n".join(map(_markdown_missing, section.missing))]
    if section.protocols:
        parts += ["### To measure ours again", "\n".join(map(_markdown_protocol, section.protocols))]
    return parts


def _markdown_row(row: Row) -> tuple[str, ...]:
    marks = f" <sup>{', '.join(map(str, row.notes))}</sup>" if row.notes else ""
    detail = f"<br><sub>{escape_markdown(row.detail)}</sub>" if row.detail else ""
    return f"{escape_markdown(row.label)}{marks}{detail}", *map(_markdown_cell, row.cells)


def _markdown_cell(cell: Cell) -> str:
    return escape_markdown(cell.text) + "".join(f"<br><sub>{escape_markdown(line)}</sub>" for line in _below(cell))


def _markdown_missing(missing: Missing) -> str:
    items = [f"  - {escape_markdown(f'{item}: {reason}')}" for item, reason in missing.items]
    return "\n".join([f"- {escape_markdown(_missing_text(missing))}", *items])


def _markdown_protocol(protocol: Protocol) -> str:
    facts = [f"  - {name}: {escape_markdown(text)}" for name, text in protocol.facts]
    return "\n".join([f"- {escape_markdown(protocol.label)}", *facts])


def escape_markdown(text: str) -> str:
    """Every character that Markdown or HTML could take for markup, as a reference."""
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(letter)};" for letter in found[0]), _one_line(text))
