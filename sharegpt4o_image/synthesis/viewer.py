# SPDX-License-Identifier: Apache-2.0
"""The journal and the pictures of a run -> `RUN/viewer/index.html`: static pages to look through its records.

The pages link to the run's own pictures and hold no script, so they open from the disk. A run that is going on may be
looked at; writing the pages again brings them up to date.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, GeneratedImage, SourceImage, Task
from sharegpt4o_image.synthesis.journal import Item, Journal
from sharegpt4o_image.synthesis.run_folder import is_held
from sharegpt4o_image.synthesis.status import RunStatus, status_of

PER_PAGE = 50  # records: a page of 1 MB pictures stays readable (our choice)

_INDEX = "index.html"
_SECTIONS: tuple[tuple[str, Task | None], ...] = (*((task, task) for task in TASKS), ("rejected", None))
_MARK = '<meta name="generator" content="sharegpt4o-image">'  # by which our pages are known from others
_CSP = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --quiet: light-dark(#555, #aaa); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 3rem; max-width: 100rem; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .6rem 0;
  background: Canvas; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; }
main.records { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem;
  align-items: start; margin-top: 1rem; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; overflow-wrap: anywhere; }
article:target { outline: 2px solid Highlight; }
.pictures { display: flex; gap: .4rem; align-items: center; }
.pictures a { flex: 1 1 0; min-width: 0; }
.pictures img { display: block; width: 100%; height: auto; max-height: 32rem; object-fit: contain;
  outline: 1px solid var(--line); outline-offset: -1px;
  background: repeating-conic-gradient(#8883 0 25%, transparent 0 50%) 0 0 / 16px 16px; }
.prompt { white-space: pre-wrap; margin: .6rem 0; max-height: 16rem; overflow: auto; }
.reason { margin: .6rem 0; padding: .3rem .6rem; border-left: 3px solid #d33; background: #d332; }
.quiet, summary, th { color: var(--quiet); }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; }
th { font-weight: normal; white-space: nowrap; } td.number { text-align: right; } details table { font-size: .85rem; }
"""


@dataclass(frozen=True)
class _Section:
    """One list of the viewer, `text_to_image` for example: how many records on how many pages."""

    name: str
    num_records: int
    num_pages: int


def write_viewer(run_dir: Path, output: Path | None = None) -> Path:
    """Write the pages, the index last, and return its path.

    Args:
        run_dir (`Path`): what `synthesize` wrote.
        output (`Path`, *optional*): folder of the pages; defaults to `RUN/viewer`.
    """
    output = output or run_dir / "viewer"
    with closing(Journal.open(run_dir)) as journal:
        _prepare(output)
        pages = _Pages(output.resolve(), run_dir.resolve())
        sections = [
            pages.write_section(name, journal.iter_items(task, is_rejected=task is None)) for name, task in _SECTIONS
        ]
        index = pages.write_index(sections, status_of(journal, is_held(run_dir)))
    pages.remove_stale(sections)
    return output / index.name


def _prepare(output: Path) -> None:
    """Make the folder; one whose index is not ours is not written over."""
    index = output / _INDEX
    try:
        output.mkdir(parents=True, exist_ok=True)
        is_foreign = index.exists() and _MARK not in index.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}; choose another folder") from error
    if is_foreign:
        raise UserError(f"{index} is not a page of ours; remove it, or choose another folder")


class _Pages:
    """Writes the pages of one run, a page in memory at a time."""

    def __init__(self, output: Path, run_dir: Path):
        self._output = output
        self._run_dir = run_dir
        self._blobs = quote(Path(os.path.relpath(run_dir / "blobs", output)).as_posix())

    def write_section(self, name: str, items: Iterator[Item]) -> _Section:
        """Write all pages of a list; one without records has none."""
        num_records = num_pages = 0
        page = list(itertools.islice(items, PER_PAGE))
        while page:
            following = list(itertools.islice(items, PER_PAGE))
            num_pages += 1
            links = _steps(name, num_pages, has_next=bool(following))
            first, last = num_records + 1, num_records + len(page)
            title = f"{_in_words(name)} {first:,} to {last:,}"
            records = "\n".join(self._record(item) for item in page)
            body = f'{_nav(links)}\n<h1>{title}</h1>\n<main class="records">\n{records}\n</main>'
            self._write(page_name(name, num_pages), title, body)
            num_records, page = last, following
        return _Section(name, num_records, num_pages)

    def write_index(self, sections: list[_Section], status: RunStatus) -> Path:
        """The first page: what there is, and where the run stands."""
        filled = [section for section in sections if section.num_pages]
        links = [_link(page_name(section.name, 1), _heading(section)) for section in filled]
        body = [_nav(links), f"<h1>{escape(self._run_dir.name)}</h1>", "<main>", _totals(status)]
        body += [_list_of_pages(section) for section in filled]
        body += [_rejections(status), "</main>"]
        return self._write(_INDEX, self._run_dir.name, "\n".join(body))

    def remove_stale(self, sections: list[_Section]) -> None:
        """Delete pages that an earlier, longer list had."""
        for section in sections:
            kept = {page_name(section.name, number + 1) for number in range(section.num_pages)}
            for path in self._output.glob(f"{section.name}-*.html"):
                if path.name not in kept:
                    path.unlink()

    def _write(self, name: str, title: str, body: str) -> Path:
        text = (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )
        unfinished = self._output / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate is no text
        return unfinished.replace(self._output / name)

    # ----------------------------------------------------------------------- one record

    def _record(self, item: Item) -> str:
        image = item.image
        parts = [f'<article id="{escape(item.item)}">']
        if image is not None:
            parts.append(f'<div class="pictures">{self._pictures(image)}</div>')
            parts.append(f'<p class="prompt">{escape(image.prompt.text)}</p>')
        if item.reason is not None:
            parts.append(f'<p class="reason">{escape(item.reason)}</p>')
        parts.append(f"<details><summary>{_summary(item)}</summary>{_table(_provenance(item))}</details>")
        return "\n".join([*parts, "</article>"])

    def _pictures(self, image: GeneratedImage) -> str:
        """What was edited, an arrow, and the result."""
        sources = "".join(self._picture(source, f"source {k}") for k, source in enumerate(image.sources, start=1))
        arrow = "<span>&rarr;</span>" if sources else ""
        return f"{sources}{arrow}{self._picture(image, 'result')}"

    def _picture(self, picture: GeneratedImage | SourceImage, role: str) -> str:
        where = f"{self._blobs}/{quote(picture.sha256[:2])}/{quote(picture.sha256)}"
        size = f'width="{picture.width}" height="{picture.height}"'  # keeps the page from jumping while it loads
        return f'<a href="{where}"><img loading="lazy" src="{where}" {size} alt="{role}"></a>'


def page_name(section: str, number: int) -> str:
    """The file of a page: `text_to_image-0001.html`."""
    return f"{section}-{number:04}.html"


# --------------------------------------------------------------------------- what is shown of a record


def _summary(item: Item) -> str:
    """Pipeline, and what the sample is about, in a line."""
    topic = item.image.prompt.topic if item.image else None
    about = [item.pipeline.replace("_", "-")]
    if topic is not None:
        about += [value for value in (topic.edit_task, topic.document_type, topic.style) if value]
        about += dict.fromkeys(topic.objects)  # each once
    return escape(" · ".join(about))


def _provenance(item: Item) -> Iterator[tuple[str, Any]]:
    """Everything else that is known, by name; what is not known is left out."""
    yield "item", item.item
    yield "pipeline", f"{item.pipeline}, position {item.position:,}"
    if item.image is not None:
        yield from _topic_facts(item.image)
        yield from _prompt_facts(item.image)
        yield from _image_facts(item.image)
        for number, source in enumerate(item.image.sources, start=1):
            yield f"source {number}", _source_facts(source)
    yield "decided", item.decided_at


def _topic_facts(image: GeneratedImage) -> Iterator[tuple[str, Any]]:
    for name, value in image.prompt.topic.model_dump(exclude={"id", "pipeline"}).items():
        yield name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value
    yield "topic id", image.prompt.topic.id


def _prompt_facts(image: GeneratedImage) -> Iterator[tuple[str, Any]]:
    prompt = image.prompt
    yield "prompt model", _asked_and_served(prompt.prompt_model, prompt.served_model)
    yield "template", prompt.template_version
    yield "prompt usage", prompt.usage
    yield "prompt cost", f"{prompt.cost_usd:.6f} USD"
    yield "prompt id", prompt.id
    if prompt.described is not None:
        yield "described", _source_facts(prompt.described)


def _image_facts(image: GeneratedImage) -> Iterator[tuple[str, Any]]:
    yield "image model", _asked_and_served(image.image_model or "none: a photograph", image.served_model)
    yield "parameters", image.image_params
    yield "picture", f"{image.format}, {image.width}x{image.height}"
    yield "image usage", image.usage
    yield "image cost", f"{image.cost_usd:.6f} USD"
    yield "created", image.created_at
    yield "license", image.license
    yield "judgement", image.judgement
    yield "image id", image.id
    yield "sha256", image.sha256
    yield "phash", image.phash


def _source_facts(source: SourceImage) -> str:
    facts = [source.origin, source.license or "unknown license", f"{source.format}, {source.width}x{source.height}"]
    return "\n".join([*facts, f"id {source.id}", *([source.text] if source.text else [])])


def _asked_and_served(asked: str, served: str | None) -> str:
    return asked if served in (None, asked) else f"{asked}, served by {served}"


# --------------------------------------------------------------------------- what is shown of the run


def _totals(status: RunStatus) -> str:
    """Where the run stands, in a few rows."""
    statuses = ", ".join(f"{count:,} {name}" for name, count in sorted(status.by_status.items()))
    rows = [
        ("records", f"{status.records:,}"),
        ("rejected", f"{sum(status.rejected.values()):,}"),
        *((f"{name} decided", f"{count:,}{_of_plan(status, name)}") for name, count in status.decided.items()),
        ("attempts", f"{status.attempts:,} ({statuses or 'none'})"),
        ("money", status.money),
        ("state", "running; these pages are from the middle of it" if status.is_running else "not running"),
    ]
    return _table(rows)


def _of_plan(status: RunStatus, pipeline: str) -> str:
    return f" of {status.planned[pipeline]:,}" if status.planned.get(pipeline) else ""


def _list_of_pages(section: _Section) -> str:
    links = (_link(page_name(section.name, number), str(number)) for number in range(1, section.num_pages + 1))
    return f"<h2>{_heading(section)}</h2>\n<p>Pages {' '.join(links)}</p>"


def _heading(section: _Section) -> str:
    return f"{_in_words(section.name)} ({section.num_records:,})"


def _rejections(status: RunStatus) -> str:
    if not status.rejected:
        return ""
    counts = ((f"{count:,}", escape(reason)) for reason, count in status.rejected.items())
    rows = (f'<tr><td class="number">{count}</td><td>{reason}</td></tr>' for count, reason in counts)
    return f"<h2>Why samples were rejected</h2>\n<table>{''.join(rows)}</table>"


# --------------------------------------------------------------------------- pieces of HTML


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values; a mapping is shown as JSON."""
    shown = ((name, _as_text(value)) for name, value in rows)
    lines = (f'<tr><th scope="row">{escape(name)}</th><td>{text}</td></tr>' for name, text in shown if text)
    return f"<table>{''.join(lines)}</table>"


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False) if value else None
    return escape(str(value)).replace("\n", "<br>") if value is not None else ""


def _steps(section: str, number: int, has_next: bool) -> list[str]:
    """The links of a page; on most keyboards Alt (and Shift) with P or N goes back and on."""
    links = [_link(_INDEX, "index")]
    if number > 1:
        links.append(_link(page_name(section, number - 1), "previous", 'rel="prev" accesskey="p"'))
    if has_next:
        links.append(_link(page_name(section, number + 1), "next", 'rel="next" accesskey="n"'))
    return links


def _nav(links: list[str]) -> str:
    return f"<nav>{''.join(links)}</nav>"


def _link(target: str, text: str, attributes: str = "") -> str:
    return f'<a href="{quote(target)}"{" " if attributes else ""}{attributes}>{escape(text)}</a>'


def _in_words(section: str) -> str:
    return section.replace("_", " ").capitalize()
