# SPDX-License-Identifier: Apache-2.0
"""`preference serve STUDY`: a page on which raters compare the pictures of a study -> STUDY/votes.jsonl.

The page is Gradio's; the pictures come from a route of their own that knows the study's random names and nothing else.
All texts are shown as text. Nothing is loaded from, or told to, any other machine.
"""

import html
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.preference_key import VOTES_FILE
from sharegpt4o_image.evaluation.preference_look import CSS, JAVASCRIPT, KEYS, REMEMBER_RATER
from sharegpt4o_image.evaluation.preference_pairs import PICTURES_DIR
from sharegpt4o_image.evaluation.preference_session import (
    MAX_NAME_LENGTH,
    Picture,
    PreferenceSession,
    Showing,
    Study,
    Ticket,
    read_study,
)

_LABELS = {"left": "Left better", "tie": "Tie", "right": "Right better", "both_bad": "Both bad"}
# What the page needs of Gradio's routes; those that read, fetch or store files are not among them.
_OPEN_ROUTES = (
    "/pictures/", "/assets/", "/static/", "/config", "/theme.css", "/favicon.ico",
    "/gradio_api/run/predict", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/info",
    "/gradio_api/app_id", "/gradio_api/startup-events",
)  # fmt: skip
# Gradio's page has scripts and styles within it, and makes functions of its templates.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Updates = dict[Any, Any]  # component -> what becomes of it


# ------------------------------------------------------------------ HTML


def _figure(picture: Picture, caption: str, kind: str) -> str:
    ratio = f"{picture.width / picture.height:.4f}"
    return (
        f'<figure class="{kind}" style="--ratio: {ratio}"><figcaption>{caption}</figcaption>'
        f'<div class="frame"><img src="pictures/{picture.name}" alt="{caption}: not loaded, please reload the page"'
        f' draggable="false"></div></figure>'
    )


def _pair_html(showing: Showing, ticket: Ticket) -> str:
    source = showing.pair.source
    figures = [(showing.left, "Left", "left"), (showing.right, "Right", "right")]
    shown = [*([(source, "Before the edit", "source")] if source else []), *figures]
    beside = sum(picture.width / picture.height for picture, _, _ in shown)
    item = html.escape(f"{ticket.position}:{ticket.pair}")
    return (
        f'<div class="item" data-item="{item}" data-chosen="{html.escape(ticket.answer or "")}">'
        f'<div class="prompt" dir="auto">{html.escape(showing.pair.prompt)}</div>'
        f'<div class="pictures" style="--ratios: {beside:.4f}; --columns: {len(shown)}">'
        f"{''.join(_figure(*one) for one in shown)}</div></div>"
    )


def _progress_html(ticket: Ticket, num_showings: int) -> str:
    number = min(ticket.position + 1, num_showings)
    hint = "answered; you may change it &middot; " if ticket.answer else ""
    return (
        f'<div class="study"><div class="progress"><span class="rater">{html.escape(ticket.rater)} '
        f'(<a href="./">not you?</a>)</span><span>{hint}<span id="progress">{number} of {num_showings}</span></span>'
        f'</div><div class="bar"><div style="width: {100 * ticket.position / num_showings:.1f}%"></div></div></div>'
    )


def _thanks_html(ticket: Ticket) -> str:
    return (
        '<div class="study thanks"><h1 id="thanks">Thank you!</h1>'
        f"<p>All {ticket.position} answers are stored. You can close this page.</p></div>"
    )


def _title_html(study: Study) -> str:
    return (
        f'<div class="study"><h1>{html.escape(study.title)}</h1>'
        f'<p id="criteria">{html.escape(study.criteria)}</p></div>'
    )


# ------------------------------------------------------------------ the page


def build_page(session: PreferenceSession) -> gr.Blocks:
    """The page of a study: who rates, then pair by pair, then thanks.

    What is shown is kept by the browser as a ticket and comes back with each answer: the server keeps no state of a
    window, so a restart does not matter to it.
    """
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title=session.study.title, analytics_enabled=False) as page:
        gr.HTML(_title_html(session.study), apply_default_css=False)
        with gr.Column(visible=False, elem_id="entry") as entry:
            name = gr.Textbox(
                label="Your name or a pseudonym; the same whenever you come back",
                max_length=MAX_NAME_LENGTH,
                elem_id="rater",
                autofocus=True,
            )
            wrong = gr.HTML(apply_default_css=False)
            start = gr.Button("Start", variant="primary", elem_id="start")
        progress = gr.HTML(apply_default_css=False)
        stage = gr.HTML(apply_default_css=False)
        ticket = gr.Textbox(visible=False)
        with gr.Row(visible=False, elem_id="answers") as row:
            back = gr.Button("Back", elem_id="back")
            buttons = {answer: gr.Button(_LABELS[answer], elem_id=answer) for answer in session.study.answers}

        def entered(given: str) -> Updates:
            try:
                return shown(session.enter(given))
            except UserError as error:
                return asked(str(error))

        def loaded(request: gr.Request) -> Updates:
            given = request.query_params.get("rater")
            return asked("") if given is None else entered(given)

        def voted(answer: str, sent: str) -> Updates:
            return step(lambda: session.vote(Ticket.from_json(sent), answer))

        def gone_back(sent: str) -> Updates:
            return step(lambda: session.back(Ticket.from_json(sent)))

        def step(move: Callable[[], Ticket]) -> Updates:
            try:
                return shown(move())
            except UserError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error

        def asked(what_is_wrong: str) -> Updates:
            text = f'<div class="study"><p class="wrong">{html.escape(what_is_wrong)}</p></div>'
            return {entry: gr.update(visible=True), wrong: text, row: gr.update(visible=False)}

        def shown(now: Ticket) -> Updates:
            showing = session.showing(now)
            return {
                entry: gr.update(visible=False),
                progress: _progress_html(now, session.num_showings()),
                stage: _thanks_html(now) if showing is None else _pair_html(showing, now),
                ticket: now.to_json(),
                row: gr.update(visible=True),
                back: gr.update(interactive=now.position > 0),
                **{button: gr.update(visible=showing is not None) for button in buttons.values()},
            }

        outputs = [entry, wrong, progress, stage, ticket, row, back, *buttons.values()]
        page.load(loaded, None, outputs, **quick)
        for begin in (start.click, name.submit):
            begin(entered, name, outputs, **quick).then(None, ticket, None, js=REMEMBER_RATER)
        back.click(gone_back, ticket, outputs, **quick)
        for answer, button in buttons.items():
            button.click(partial(voted, answer), ticket, outputs, **quick)
    return page


# ------------------------------------------------------------------ the server


def build_app(session: PreferenceSession) -> FastAPI:
    """The page and the pictures, and nothing else."""
    shown = [picture for pair in session.study.pairs for picture in (pair.source, pair.first, pair.second)]
    names = {picture.name for picture in shown if picture is not None}
    app = FastAPI(openapi_url=None)

    @app.get("/pictures/{name}")
    def picture(name: str) -> FileResponse:
        if name not in names:
            raise HTTPException(404)
        path = session.study.folder / PICTURES_DIR / name
        return FileResponse(path, headers={"Cache-Control": "private, max-age=86400"})

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path
        is_open = path == "/" or path.startswith(_OPEN_ROUTES)
        response = await answer(request) if is_open else Response(status_code=404)
        response.headers.update(_HEADERS)
        return response

    keys = json.dumps(KEYS, ensure_ascii=False)
    return gr.mount_gradio_app(
        app,
        build_page(session),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=CSS,
        head=f"<script>{JAVASCRIPT % {'keys': keys}}</script>",
    )


def serve_study(study: Path, host: str, port: int) -> None:
    """Serve a study until the process is ended by Ctrl-C; port 0 takes a free one."""
    session = PreferenceSession(read_study(study))
    try:
        with _listen(host, port) as listener:
            at = f"[{host}]" if ":" in host else host
            server = uvicorn.Server(
                uvicorn.Config(build_app(session), log_level="warning", timeout_graceful_shutdown=1)
            )
            address = f"http://{at}:{listener.getsockname()[1]}/"
            print(
                f"Raters open {address} in a browser; Ctrl-C ends. {session.num_votes} votes so far.", file=sys.stderr
            )
            server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        session.close()
    print(f"{session.num_votes} votes in {study / VOTES_FILE}.", file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
