# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium with real mouse and keyboard, over the DevTools protocol on a pipe.

    with Chromium(tmp_path) as browser:
        page = browser.open("http://127.0.0.1:7860/")
        page.click("#start")
        page.press("ArrowLeft")

Commands go to the browser's file descriptor 3, answers and events come from 4, each JSON ended by a NUL.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Of `KeyboardEvent.keyCode`, for the keys that write no character.
_KEY_CODES = {
    "Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, "PageDown": 34,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


class Chromium:
    """A browser process of its own, with a profile of its own; ended, with all its children, on leaving.

    Args:
        folder (`Path`): for the profile and what the browser writes to its standard output and error.
    """

    def __init__(self, folder: Path) -> None:
        assert BROWSER is not None
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # Out of the way of 3 and 4, which the browser's ends become.
        commands, answers = (_moved(end) for end in (commands, answers))
        log = str(folder / "chromium.log")
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, commands, 3),
            (os.POSIX_SPAWN_DUP2, answers, 4),
        ]
        self._process = os.posix_spawn(BROWSER, command, os.environ, file_actions=actions, setpgroup=0)
        os.close(commands)
        os.close(answers)
        self._ids = itertools.count(1)
        self._received = b""
        self._context: str | None = None
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, session: str | None = None, timeout: float = 30, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is kept in `events`."""
        message = {"id": next(self._ids), "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") != message["id"]:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return dict(answer["result"])

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError(f"no answer to {method} from the browser")
            self._received += data
        answer, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(answer))

    def open(self, url: str, width: int = 1280, height: int = 800) -> "Page":
        """Open a page; all pages of a browser share cookies, storage and cache."""
        if self._context is None:
            self._context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.resize(width, height)
        page.navigate(url)
        return page


def _moved(end: int) -> int:
    moved = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return moved


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol to this tab."""
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int) -> None:
        """Of the viewport, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def navigate(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        error = self.call("Page.navigate", url=url).get("errorText")
        assert error is None, f"{url}: {error}"
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        """Load the page anew; all that its scripts knew is gone."""
        self.evaluate("window.isOld = true")
        self.call("Page.reload", ignoreCache=True)
        self.wait_for("document.readyState === 'complete' && !window.isOld")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 20) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if self.evaluate(f"!!({condition})"):
                    return
            except RuntimeError:  # the page is between two documents
                pass
            time.sleep(0.02)
        shown = self.evaluate("document.body && document.body.innerText.slice(0, 2000)")
        raise TimeoutError(f"{condition} stays false; the page shows: {shown}")

    def click(self, selector: str, times: int = 1) -> None:
        """Press the left mouse button over the middle of an element, which nothing may cover."""
        quoted = json.dumps(selector)
        where = self.evaluate(
            f"""(() => {{
              const element = document.querySelector({quoted});
              if (!element) return "is not on the page";
              element.scrollIntoView({{block: "nearest", behavior: "instant"}});
              const box = element.getBoundingClientRect();
              const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
              const top = document.elementFromPoint(x, y);
              return element.contains(top) ? [x, y] : `is covered by ${{top?.outerHTML.slice(0, 200)}}`;
            }})()"""
        )
        assert isinstance(where, list), f"{selector} {where}"
        mouse = {"x": where[0], "y": where[1], "button": "left"}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])
        for count in range(1, times + 1):
            self.call("Input.dispatchMouseEvent", type="mousePressed", clickCount=count, **mouse)
            self.call("Input.dispatchMouseEvent", type="mouseReleased", clickCount=count, **mouse)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key, named as `KeyboardEvent.key`; modifiers: Alt 1, Ctrl 2, Meta 4, Shift 8."""
        event: dict[str, Any] = {"key": key, "code": key, "modifiers": modifiers}
        event["windowsVirtualKeyCode"] = _KEY_CODES.get(key) or ord(key.upper())
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Press the key of each character."""
        for character in text:
            self.press(character)

    def screenshot(self, path: Path) -> None:
        """The viewport as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def happened(self, method: str) -> list[dict[str, Any]]:
        """Parameters of all events of a kind in this tab so far."""
        events = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in events if event["method"] == method]

    def requested(self) -> list[str]:
        """The addresses that the page asked for, in order."""
        return [params["request"]["url"] for params in self.happened("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Errors that the browser logged, and exceptions that scripts did not catch."""
        logged = [params["entry"] for params in self.happened("Log.entryAdded")]
        errors = [f"{one['text']} {one.get('url', '')}" for one in logged if one["level"] == "error"]
        thrown = [params["exceptionDetails"] for params in self.happened("Runtime.exceptionThrown")]
        return errors + [one.get("exception", {}).get("description", one["text"]) for one in thrown]
