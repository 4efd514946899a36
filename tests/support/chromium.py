"""A real Chromium without a window, told what to do over a pipe: what it lays out, what it says, what it asks for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --remote-debugging-pipe --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
PATIENCE = 30.0
"""seconds until it must have answered"""
# Chromium reads commands from descriptor 3 and answers on 4: here both are one socket.
ON_3_AND_4 = "import os, sys; [os.dup2(int(sys.argv[1]), each) for each in (3, 4)]; os.execv(sys.argv[2], sys.argv[2:])"


def chromium() -> str:
    """Its path; the test that asks is skipped where there is none."""
    for found in filter(None, map(shutil.which, NAMES)):
        if os.path.basename(os.path.realpath(found)) != "snap":  # which sees no files of /tmp
            return found
    pytest.skip(f"needs one of {', '.join(NAMES)} in PATH (Debian: apt-get install chromium)")


class Browser:
    """One page of a running Chromium; what the page logged, and asked for, gathers in `said` and `asked`."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe, self._rest, self._number = pipe, b"", 0
        self._events: list[str] = []
        self._session: dict[str, str] = {}
        self.said: list[str] = []
        self.asked: list[str] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        text = json.dumps({"id": self._number, "method": method, "params": params, **self._session})
        self._pipe.sendall(text.encode() + b"\0")
        while True:
            if (message := self._next()).get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def open(self, address: str, width: int = 1000, height: int = 800) -> None:
        """Load a page into a window of that many pixels; returns when all that it holds has been loaded."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._events.clear()
        self.said.clear()
        self.asked.clear()
        assert "errorText" not in self.tell("Page.navigate", url=address)
        while "Page.loadEventFired" not in self._events:
            self._next()

    def evaluate(self, script: str) -> Any:
        """What a script gives, as JSON would hold it."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._pipe.recv(1 << 16)
            assert more, "Chromium ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" as kind:
                self.said.append(f"{kind}: {json.dumps(message['params'])}")
            case "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            case str() as kind:
                self._events.append(kind)
        return message


@contextmanager
def browser(path: str, profile: Path) -> Iterator[Browser]:
    """A Chromium with a new profile in that folder, which ends with the block; it reaches no other machine."""
    ours, its = socket.socketpair()
    options = [*OPTIONS.split(), f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    if os.geteuid() == 0:  # for whom it has no sandbox
        options.append("--no-sandbox")
    log = profile.with_suffix(".log")
    with log.open("wb") as output, ours:
        command = [sys.executable, "-c", ON_3_AND_4, str(its.fileno()), path, *options]
        child = subprocess.Popen(command, pass_fds=[its.fileno()], stdout=output, stderr=output, start_new_session=True)
        its.close()
        ours.settimeout(PATIENCE)
        try:
            yield Browser(ours)
        except (AssertionError, OSError) as error:
            error.add_note(f"of {path}: {log.read_text(errors='replace')[-2000:]}")
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(PATIENCE)
