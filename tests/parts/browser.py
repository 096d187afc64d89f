"""Drives Chromium through its DevTools protocol over a pipe: opens pages, runs expressions, types, takes pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--hide-scrollbars", "about:blank",
)  # fmt: skip


def find() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


# What Chromium answers when a page goes while it is asked.
_LEFT = ("navigated or closed", "context was destroyed", "Promise was collected")


class Left(AssertionError):
    """The page was left before it answered."""


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []  # exceptions and refusals that its console tells of
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, parameters, self._session, self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(event["params"]["entry"]["text"])

    def show(self, url: str, width: int = 1280, height: int = 800, dark: bool = False, phone: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Returns when a condition holds; it is looked at in the page whenever the page draws or a moment passed."""
        look = f"const look = () => ({condition}) ? done(true) : setTimeout(look, 10); look();"
        while True:
            try:
                assert self.run(f"new Promise((done) => {{ {look} }})") is True
                return
            except Left:  # the next page is asked
                continue

    def type(self, text: str) -> None:
        """Types into what has the focus; a line end is the Enter key."""
        for part in text.splitlines(keepends=True):
            if part.rstrip("\n"):
                self.call("Input.insertText", text=part.rstrip("\n"))
            if part.endswith("\n"):
                self.key("Enter", 13, "\r")

    def key(self, name: str, code: int, text: str = "") -> None:
        common = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A running Chromium. `call` sends a command and reads until its answer; events on the way go to `note`."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, os.fdopen(back, "rb", buffering=0)
        self._held, self._number = b"", 0

    def call(self, method: str, parameters: dict[str, Any], session: str | None = None, note: Any = None) -> Any:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                if any(text in str(answer.get("error")) for text in _LEFT):
                    raise Left(f"{method}: {answer['error']}")
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer and note is not None and answer.get("sessionId") == session:
                note(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            part = self._back.read(1 << 16)
            assert part, "the browser has ended"
            self._held += part
        line, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def tab(self) -> Tab:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        return Tab(self, self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"])

    def close(self) -> None:
        self._back.close()
        os.close(self._to)


@contextmanager
def running(path: str) -> Iterator[Browser]:
    """Starts a Chromium with a profile of its own, and ends it."""
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # The browser reads commands from descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, "bash", path, f"--user-data-dir={home}", *FLAGS],
            pass_fds=(read_there, write_there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        browser = Browser(write_here, read_here)
        try:
            yield browser
            browser.call("Browser.close", {})
        finally:
            browser.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
