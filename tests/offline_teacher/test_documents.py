# SPDX-License-Identifier: Apache-2.0
"""Documents: a subject becomes a text, the text a prompt, and the prompt a page."""

import json
import random
from typing import Any

import numpy as np
import pytest
from teacher_client import chat, generate, json_format

from sharegpt4o_image.offline_teacher.documents import (
    ACCENTS,
    INKS,
    LAYOUTS,
    PAPERS,
    Page,
    find_page,
    write_content,
    write_layout,
)
from sharegpt4o_image.offline_teacher.pages import draw_page

TYPES = ("Slide", "Paper", "Document", "Infographic/Chart", "Poster")
SUBJECT = "quarterly sales review about a fictional lakeside bakery"


def ask_for(task: dict[str, Any], *fields: str) -> dict[str, str]:
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in fields}}
    text = chat(f"Write.\n{json.dumps(task)}\nAnswer with JSON.", response_format=json_format(schema))
    answer: dict[str, str] = json.loads(text)
    assert list(answer) == list(fields)
    return answer


@pytest.mark.parametrize("document_type", TYPES)
def test_subject_becomes_text_prompt_and_page(document_type: str) -> None:
    task = {"document_type": document_type, "subject": SUBJECT}
    content = ask_for(task, "title", "content")
    assert content["title"] == "Lakeside bakery"
    lines = content["content"].splitlines()
    assert lines[0] == "Quarterly sales review"
    assert len(set(lines)) == 4
    prompt = ask_for({**task, **content}, "prompt")["prompt"]
    page = find_page(prompt, random.Random(0))
    assert page is not None
    assert page.type in document_type.lower()
    assert (page.title, page.lines) == ("Lakeside bakery", tuple(lines))
    [image] = generate(prompt, size="128x128")
    assert image.tobytes() == draw_page(page, 128).tobytes()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_page_has_the_colors_of_its_prompt(kind: str) -> None:
    for ink, accent, paper in zip(INKS, ACCENTS, PAPERS, strict=False):
        pixels = np.asarray(draw_page(Page(kind, "A title", ("First: 40 %", "Second"), ink, accent, paper), 256))
        colors, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        shares = {tuple(color): count / 256**2 for color, count in zip(colors.tolist(), counts, strict=True)}
        assert shares[PAPERS[paper]] > 0.3
        assert shares[ACCENTS[accent]] > 0.003
        assert shares[INKS[ink]] > 0.0004


def test_longer_bar_for_a_larger_number() -> None:
    page = Page("chart", "Visitors", ("Spring: 25 %", "Summer: 100 %"), "black", "teal", "white")
    pixels = np.asarray(draw_page(page, 400))
    light = (pixels == ACCENTS["teal"]).all(-1).sum(1).max()  # the first bar
    width = 400 * 0.84
    assert light == pytest.approx(0.25 * width, abs=4)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_page_stays_within_its_margins(kind: str) -> None:
    """Long lines and odd titles are drawn smaller, not cut off."""
    title = "Supercalifragilistic neighbourhoods of the lakeside"
    page = Page(kind, title, ("W" * 48, "M " * 24, "short", "7"), "black", "coral", "white")
    pixels = np.asarray(draw_page(page, 256)).astype(int)
    right = pixels[:, 256 - 16 :]
    assert np.abs(right - right[:, -1:]).max() == 0  # nothing but background in the outer margin
    assert np.abs(pixels[-4:] - pixels[-1, -1]).max() <= (255 if kind == "slide" else 0)


@pytest.mark.parametrize(
    "prompt",
    ["a red circle on a white background", 'a "red circle"', "a slide about bakeries", 'a slide titled ""', "paper"],
)
def test_other_prompts_are_no_pages(prompt: str) -> None:
    assert find_page(prompt, random.Random(0)) is None


def test_prompt_of_another_writer_is_read_too() -> None:
    page = find_page("An elegant POSTER that says “Open  Day” in dark red type, coral accents", random.Random(0))
    assert page is not None
    assert (page.type, page.title, page.lines, page.ink, page.accent) == (
        "poster",
        "Open Day",
        (),
        "dark red",
        "coral",
    )


def test_odd_tasks_are_answered() -> None:
    dice = random.Random(0)
    assert write_content({"document_type": "Slide"}, dice)["title"] == "Slide"
    assert write_content({"document_type": 3, "subject": "  "}, dice)["title"]
    for content in (None, 3, ["a", "b"], 'say "hi"\n\n' + "x" * 500, ""):
        prompt = write_layout({"document_type": "Memo", "title": 'A "quoted" title', "content": content}, dice)
        page = find_page(prompt, dice)
        assert page is not None
        assert (page.type, page.title) == ("document", "A 'quoted' title")
        draw_page(page, 64)
