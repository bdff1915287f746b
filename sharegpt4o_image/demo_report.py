# SPDX-License-Identifier: Apache-2.0
"""The demo's results -> one self-contained HTML page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

Scores = Mapping[str, Mapping[str, float]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } small { color: #666; }
.sheet td { vertical-align: middle; } .sheet img { width: 112px; height: 112px; image-rendering: pixelated; }
.wrong { outline: 3px solid #d33; } .right { outline: 3px solid #2a2; }
"""


def definition_list(meanings: Mapping[str, str]) -> str:
    """An HTML list of names and what they mean."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in meanings.items())
    return f"<dl>{items}</dl>"


def paragraph(text: str) -> str:
    """An HTML paragraph."""
    return f"<p>{html.escape(text)}</p>"


def score_table(columns: Mapping[str, Scores]) -> str:
    """An HTML table: one row for each kind, one column for each checkpoint, with 95 % intervals."""
    kinds = list(next(iter(columns.values())))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{html.escape(kind)}</td>"
        + "".join(_score_cell(scores[kind]) for scores in columns.values())
        + "</tr>"
        for kind in kinds
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _score_cell(score: Mapping[str, float]) -> str:
    return (
        f'<td class="number">{score["score"]:.2f} '
        f"<small>[{score['low']:.2f}, {score['high']:.2f}] n={score['images']:.0f}</small></td>"
    )


def loss_curve(points: Sequence[tuple[float, float]], width: int = 640, height: int = 220) -> str:
    """An SVG line of (step, loss) points with its extreme values written at the axes."""
    if len(points) < 2:
        return "<p>No training in this run.</p>"
    steps, losses = zip(*points, strict=True)
    low, high = min(losses), max(losses)
    margin = 44

    def place(step: float, loss: float) -> str:
        x = margin + (step - steps[0]) / (steps[-1] - steps[0]) * (width - 2 * margin)
        y = margin + (high - loss) / (high - low or 1) * (height - 2 * margin)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'role="img" aria-label="training loss">'
        f'<polyline points="{line}" fill="none" stroke="#36c" stroke-width="2"/>'
        f'<text x="4" y="{margin}">{high:.2f}</text><text x="4" y="{height - margin}">{low:.2f}</text>'
        f'<text x="{margin}" y="{height - 12}">step {steps[0]:.0f}</text>'
        f'<text x="{width - 2 * margin}" y="{height - 12}">step {steps[-1]:.0f}</text></svg>'
    )


def picture_tag(picture: Image.Image | None, is_right: bool | None = None) -> str:
    """An `<img>` with the picture inside it; a green or red rim tells whether it was judged right."""
    if picture is None:
        return ""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    rim = {True: ' class="right"', False: ' class="wrong"', None: ""}[is_right]
    return f'<img{rim} alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def sheet_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """An HTML contact sheet: the text of each row, then its cells (already HTML)."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{html.escape(text)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for text, cells in rows
    )
    return f'<table class="sheet"><tr><th></th>{head}</tr>{body}</table>'


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page; section bodies are HTML, headings plain text."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{body}</html>"
    )
