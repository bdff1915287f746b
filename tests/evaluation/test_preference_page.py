# SPDX-License-Identifier: Apache-2.0
"""`preference serve` as a process of its own, used in real Chromium by mouse and keyboard."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import BROWSER, Chromium, Page
from small_study import SECRET_MODELS, read_votes, write_study

pytest.importorskip("gradio")
if BROWSER is None:
    pytest.skip("no chromium is installed", allow_module_level=True)

NUM_PAIRS = 20
NUM_SHOWN = 22  # with a tenth of them repeated
# The command line, which also writes down every file that it opens and every address that it looks up.
SERVE = """
import sys
log = open(sys.argv[1], "a", buffering=1)
events = ("open", "socket.getaddrinfo", "socket.connect")
sys.addaudithook(lambda event, given: event in events and log.write(f"{event} {given}\\n") and None)
from sharegpt4o_image.cli import main
sys.argv = ["sharegpt4o-image", "preference", "serve", *sys.argv[2:]]
main()
"""
THANKS = "document.querySelector('#thanks')"
READY = "document.querySelector('.item') && document.querySelector('#left') && !document.body.matches('.is-waiting')"


class Server:
    """A server process, working in the study's folder."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self._process, self.address = self._start(0)

    def _start(self, port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", SERVE, str(self.study.parent / "events"), str(self.study), f"--port={port}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "True"}
        process = subprocess.Popen(command, cwd=self.study, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = ""
        while (address := re.search(r"http://\S+/", said)) is None:
            line = process.stderr.readline()
            if not line:
                process.kill()
                raise RuntimeError(f"the server ended: {said}")
            said += line
        return process, address[0]

    def kill(self) -> None:
        """At once and without warning."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def restart(self) -> None:
        """At the same address."""
        self._process, self.address = self._start(int(self.address.rstrip("/").rpartition(":")[2]))

    def votes(self, rater: str) -> list[dict[str, Any]]:
        """What is stored of a rater."""
        return [vote for vote in read_votes(self.study) if vote["rater"] == rater]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    study = tmp_path_factory.mktemp("served") / f"{SECRET_MODELS[0]}-against-{SECRET_MODELS[1]}"
    write_study(study, NUM_PAIRS, allows_both_bad=True)
    server = Server(study)
    try:
        yield server
    finally:
        server.kill()


def enter(browser: Chromium, address: str, rater: str, **size: int) -> Page:
    """Type a name into the first page and begin."""
    page = browser.open(address, **size)
    page.wait_for("document.querySelector('#rater :is(input, textarea)')")
    page.click("#rater :is(input, textarea)")
    page.type(rater)
    page.click("#start")
    page.wait_for(READY)
    return page


def item(page: Page) -> str:
    """What tells one showing from another."""
    return str(page.evaluate("document.querySelector('.item').dataset.item"))


def seen(page: Page) -> dict[str, Any]:
    """What the rater sees, measured on the screen."""
    return dict(
        page.evaluate(
            """(() => {
              const box = one => { const b = one.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] };
              const address = kind => document.querySelector(`.${kind} img`)?.getAttribute("src") ?? null;
              const name = kind => address(kind)?.replace("pictures/", "") ?? null;
              return {
                prompt: document.querySelector(".prompt").textContent,
                inside: document.querySelector(".prompt").childElementCount,
                progress: document.querySelector("#progress").textContent,
                source: name("source"), left: name("left"), right: name("right"),
                boxes: [...document.querySelectorAll(".pictures img")].map(box),
                buttons: [...document.querySelectorAll("#answers button")].map(box),
              };
            })()"""
        )
    )


def do(page: Page, action: str) -> None:
    """A press of a key, or a click on `#element`; then the page shows something else."""
    before = item(page)
    if action.startswith("#"):
        page.click(action)
    else:
        page.press(action)
    page.wait_for(f"document.querySelector('.item')?.dataset.item !== {json.dumps(before)}")


# --------------------------------------------------------------------------- the whole way


ACTIONS = (
    "#left",
    "2",
    "ArrowRight",
    "#tie",
    "1",
    "4",
    "ArrowLeft",
    "#right",
    "3",
    "#both_bad",
    "ArrowDown",
    "ArrowUp",
)
ANSWERS = {
    "#left": "left", "1": "left", "ArrowLeft": "left",
    "#tie": "tie", "2": "tie", "ArrowDown": "tie",
    "#right": "right", "3": "right", "ArrowRight": "right",
    "#both_bad": "both_bad", "4": "both_bad", "ArrowUp": "both_bad",
}  # fmt: skip


def test_a_rater_clicks_and_types_through_a_study(browser: Chromium, server: Server, tmp_path: Path) -> None:
    pairs = {}
    for line in (server.study / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        pairs[pair["pair"]] = pair
    page = enter(browser, server.address, "Ann 1")
    clicked, places = [], []
    for number in range(1, NUM_SHOWN + 1):
        page.wait_for(READY)
        if number == 9:
            before = seen(page)
            page.reload()
            page.wait_for(READY)
            assert seen(page) == before
        shown = seen(page)
        assert shown["progress"] == f"{number} of {NUM_SHOWN}"
        pair = pairs[item(page).split(":")[1]]
        assert (shown["prompt"], shown["inside"], shown["source"]) == (pair["prompt"], 0, pair["source"])
        assert {shown["left"], shown["right"]} == {pair["first"], pair["second"]}
        heights = [height for _, _, _, height in shown["boxes"]]
        assert max(heights) - min(heights) < 0.5
        assert min(heights) > 300
        places.append((shown["boxes"][0][1], shown["buttons"]))
        if number in (1, 9, 16):
            page.screenshot(tmp_path / f"{number:02}.png")
        action = ACTIONS[number % len(ACTIONS)]
        answer = ANSWERS[action] if number < NUM_SHOWN else "tie"
        clicked.append((pair["pair"], shown["left"], shown.get(answer, answer)))
        if number < NUM_SHOWN:
            do(page, action)
    page.press("2")
    page.wait_for(THANKS)
    page.wait_for("!document.body.classList.contains('is-waiting')")
    page.screenshot(tmp_path / "end.png")
    page.press("1")
    page.press("Backspace")
    page.wait_for(READY)
    assert page.evaluate("document.querySelector('.chosen').id") == "tie"
    assert all(place == places[0] for place in places), "the layout jumps"

    votes = server.votes("Ann 1")
    stored = []
    for vote in votes:
        pair = pairs[vote["pair"]]
        stored.append((vote["pair"], pair[vote["shown_left"]], pair.get(vote["winner"], vote["winner"])))
    assert stored == clicked
    assert [vote["is_repeat"] for vote in votes] == [False] * NUM_PAIRS + [True] * (NUM_SHOWN - NUM_PAIRS)
    assert all(0.2 < vote["seconds"] < 30 for vote in votes)
    assert page.evaluate("document.title") == "Which <i>picture</i> is better?"
    assert page.evaluate("[document.querySelectorAll('h1 i, #criteria b').length, typeof window.owned]") == [
        0,
        "undefined",
    ]
    assert page.complaints() == []
    _check_nothing_is_told(page, server.address, server.study)


def _check_nothing_is_told(page: Page, address: str, study: Path) -> None:
    """Every request went to the server, and no answer names a model or the study's folder."""
    requested = [url for url in page.requested() if not url.startswith("data:")]
    assert len(requested) > 40
    assert [url for url in requested if not url.startswith(address)] == []
    bodies = 0
    for params in page.happened("Network.responseReceived"):
        try:
            answer = page.call("Network.getResponseBody", requestId=params["requestId"])
        except RuntimeError:  # of the page before the reload
            continue
        body = base64.b64decode(answer["body"]) if answer["base64Encoded"] else answer["body"].encode()
        told = f"{params['response']['headers']}".encode() + body
        assert not [secret for secret in (*SECRET_MODELS, str(study.parent)) if secret.encode() in told]
        bodies += 1
    assert bodies > 20
    events = (study.parent / "events").read_text().splitlines()
    assert any(event.startswith("open") and "pairs.jsonl" in event for event in events)
    assert not [event for event in events if "key.json" in event]
    assert not [event for event in events if event.startswith("socket") and "127.0.0.1" not in event]


# --------------------------------------------------------------------------- details


def test_back_changes_the_last_vote(browser: Chromium, server: Server) -> None:
    page = enter(browser, server.address, "Changing")
    assert page.evaluate("document.querySelector('#back').disabled")
    first = seen(page)
    do(page, "1")
    page.wait_for(READY)
    do(page, "Backspace")
    page.wait_for(READY)
    again = seen(page)
    assert (again["left"], again["right"]) == (first["left"], first["right"])
    assert page.evaluate("[...document.querySelectorAll('.chosen')].map(one => one.id)") == ["left"]
    assert "you may change it" in page.evaluate("document.body.innerText")
    do(page, "3")
    page.wait_for(READY)
    assert page.evaluate("document.querySelectorAll('.chosen').length") == 0
    assert seen(page)["progress"] == f"2 of {NUM_SHOWN}"
    before, after = server.votes("Changing")
    assert before["pair"] == after["pair"]
    assert {before["winner"], after["winner"]} == {"first", "second"}
    assert before["winner"] == before["shown_left"]


def test_a_double_click_is_one_vote(browser: Chromium, server: Server) -> None:
    page = enter(browser, server.address, "Quick")
    page.click("#left", times=2)
    page.wait_for(f"document.querySelector('#progress').textContent === '2 of {NUM_SHOWN}'")
    page.press("1")  # within a moment of the new pair: not meant for it
    page.wait_for(READY)
    assert seen(page)["progress"] == f"2 of {NUM_SHOWN}"
    assert len(server.votes("Quick")) == 1


def test_keys_are_for_typing_in_a_field(browser: Chromium, server: Server) -> None:
    page = browser.open(server.address)
    page.wait_for("document.querySelector('#rater :is(input, textarea)')")
    page.click("#rater :is(input, textarea)")
    for key in ("1", "2", "x", "Backspace", "3", "ArrowLeft"):
        page.press(key)
    assert page.evaluate("document.querySelector('#rater :is(input, textarea)').value") == "123"
    page.press("Enter")
    page.wait_for(READY)
    assert page.evaluate("new URL(location).searchParams.get('rater')") == "123"
    for modifier in (1, 2, 4):
        page.press("2", modifier)
    page.press("5")
    page.press("Escape")
    page.click(".left .frame")
    assert page.evaluate("document.querySelector('.left img').getBoundingClientRect().width") == 1280
    page.press("Escape")
    assert page.evaluate("document.querySelector('.left img').getBoundingClientRect().width") < 640
    assert seen(page)["progress"] == f"1 of {NUM_SHOWN}"
    assert server.votes("123") == []


@pytest.mark.slow
def test_two_raters_at_once(browser: Chromium, server: Server) -> None:
    pages = {rater: browser.open(f"{server.address}?rater={rater}") for rater in ("Bob", "Cleo")}
    orders: dict[str, list[str]] = {"Bob": [], "Cleo": []}
    for _ in range(4):
        for rater, page in pages.items():
            page.wait_for(READY)
            orders[rater].append(item(page).split(":")[1])
            do(page, "1")
    for rater in orders:
        assert [vote["pair"] for vote in server.votes(rater)] == orders[rater]
    assert orders["Bob"] != orders["Cleo"]


def test_a_name_that_is_none_is_asked_for_again(browser: Chromium, server: Server) -> None:
    page = browser.open(f"{server.address}?rater=%E2%80%AEx")
    page.wait_for("document.querySelector('.wrong')?.textContent.includes('1 to 64 printable')")
    page.click("#rater :is(input, textarea)")
    page.type("<b>Dora")
    page.click("#start")
    page.wait_for(READY)
    assert page.evaluate("document.querySelector('.rater').textContent").startswith("<b>Dora (")
    assert page.evaluate("document.querySelectorAll('.rater b').length") == 0


def test_no_vote_on_what_has_not_been_seen(browser: Chromium, server: Server) -> None:
    page = browser.open(server.address)
    page.call("Network.setBlockedURLs", urlPatterns=[{"urlPattern": "*://*:*/pictures/*", "block": True}])
    page.wait_for("document.querySelector('#rater :is(input, textarea)')")
    page.click("#rater :is(input, textarea)")
    page.type("Blind")
    page.press("Enter")
    page.wait_for("document.querySelector('.item')")
    page.wait_for("[...document.querySelectorAll('.pictures img')].every(one => one.complete)")
    page.evaluate("new Promise(done => setTimeout(done, 500))")
    assert page.evaluate("document.body.classList.contains('is-waiting')")
    page.press("1")
    page.click("#tie")
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    assert seen(page)["progress"] == f"1 of {NUM_SHOWN}"
    assert server.votes("Blind") == []


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_telephone_shows_all_of_an_edit(browser: Chromium, server: Server, tmp_path: Path, scheme: str) -> None:
    page = browser.open("data:,", width=400, height=800)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.navigate(f"{server.address}?rater=Phone")
    for _ in range(NUM_SHOWN):
        page.wait_for(READY)
        shown = seen(page)
        if shown["source"]:
            break
        do(page, "2")
    page.screenshot(tmp_path / "telephone.png")
    text, ground = page.evaluate(
        "(style => [style.color, style.backgroundColor])(getComputedStyle(document.querySelector('.prompt')))"
    )
    assert abs(_lightness(text) - _lightness(ground)) > 150
    source, left, right = shown["boxes"]
    assert left[3] == pytest.approx(right[3], abs=0.5)
    assert left[1] == right[1]
    assert source[1] + source[3] < left[1]
    assert left[1] + left[3] < shown["buttons"][0][1]  # above the buttons, without scrolling
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def _lightness(color: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 255."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


# --------------------------------------------------------------------------- the server


def _status(address: str, data: bytes | None = None) -> int:
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_pictures_are_served(server: Server) -> None:
    address, study = server.address, server.study
    picture = next((study / "pictures").iterdir())
    assert _status(f"{address}pictures/{picture.name}") == 200
    hidden = [study / name for name in ("key.json", "votes.jsonl", "pairs.jsonl", "study.json")]
    for path in [*hidden, picture, study, Path("/etc/passwd")]:
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "pictures/", "svelte/"):
            for name in (path, path.name, f"../{path.name}", f"..%2f{path.name}", f"%2e%2e/{path.name}"):
                answer = _status(f"{address}{route}{name}")
                is_shown = (route, str(name)) == ("pictures/", picture.name)
                assert answer in ((200,) if is_shown else (403, 404)), (route, name)
    for route in ("gradio_api/upload", "gradio_api/proxy=http://127.0.0.1/", "monitoring", "gradio_api/runs", "docs"):
        assert _status(f"{address}{route}") == _status(f"{address}{route}", b"{}") == 404, route


@pytest.mark.slow
def test_a_killed_server_has_lost_nothing(browser: Chromium, server: Server) -> None:
    page = enter(browser, server.address, "Ann")
    for action in ("1", "ArrowUp"):
        page.wait_for(READY)
        do(page, action)
    page.wait_for(READY)
    before = seen(page)
    server.kill()
    page.press("1")  # in vain, and the rater is told
    page.wait_for("document.querySelector('.toast-body')")
    assert seen(page) == before
    votes = read_votes(server.study)
    assert len(server.votes("Ann")) == 2
    with (server.study / "votes.jsonl").open("a") as file:
        file.write('{"pair": "012')  # as if it had been writing
    server.restart()
    assert read_votes(server.study) == votes
    other = browser.open(f"{server.address}?rater=Ann")
    other.wait_for(READY)
    assert seen(other) == before
    page.wait_for(READY)
    do(page, "#right")  # in the window that was open all the time
    page.wait_for(READY)
    assert seen(page)["progress"] == f"4 of {NUM_SHOWN}"
    do(page, "2")
    stored = server.votes("Ann")
    assert len({vote["pair"] for vote in stored}) == len(stored) == 4
    other.press("1")  # what the first window has answered already
    other.wait_for(f"document.querySelector('#progress').textContent === '5 of {NUM_SHOWN}'")
    assert server.votes("Ann") == stored


def test_what_cannot_be_served_is_told(run: Any, tmp_path: Path) -> None:
    code, _, err = run("preference", "serve", tmp_path)
    assert (code, "is no finished study" in err) == (2, True)
    write_study(tmp_path / "study", 2)
    code, _, err = run("preference", "serve", tmp_path / "study", "--host", "203.0.113.1")
    assert (code, "cannot listen on 203.0.113.1:7860" in err) == (2, True)
