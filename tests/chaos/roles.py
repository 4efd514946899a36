"""Roles of the soak, each played by one process of the command after another, and watched."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.processes import Child, Distillog

END = 90.0
"""Seconds in which a process that was asked to has ended."""
Command = Callable[[], tuple[object, ...]]


class Events:
    """The event log: what was done and seen, one JSON object a line, with the seconds since it began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._file = path.open("w", buffering=1)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def add(self, what: str, **more: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"s": round(self.seconds, 2), "what": what, **more}) + "\n")

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Unexpected:
    """An end that nobody asked for."""

    role: str
    code: int
    words: str
    """The last error in its log."""
    log: str


class Role:
    """A worker, a student or the feeder; all its methods may be called by any thread."""

    def __init__(
        self,
        name: str,
        command: Command,
        distillog: Distillog,
        address: str,
        events: Events,
        over: Callable[[Child], bool] = lambda child: False,
    ) -> None:
        """`over`: whether an end with exit code 0 that nobody asked for means that all is done."""
        self.name = name
        self.done = False
        self.unexpected: list[Unexpected] = []
        self.refused_starts = 0
        """Starts that met no broker in the middle of their first questions, and said so; they were tried again."""
        self.child: Child | None = None
        self.logs: list[Path] = []
        """Of all its processes."""
        self.began = 0.0
        """When the last process was started: seconds since 1970."""
        self.struck: float | None = None
        """When it was killed or asked to end, if it was."""
        self._command = command
        self._distillog = distillog
        self._address = address
        self._events = events
        self._over = over
        self._lock = threading.RLock()
        self._wanted = False

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    def start(self) -> None:
        with self._lock:
            if self.done:
                return
            self.began, self.struck = time.time(), None
            self.child = self._distillog.start(*self._command(), KAFKA_BOOTSTRAP_SERVERS=self._address)
            self.logs.append(self.child.log)
            self._wanted = True
            self._events.add("started", role=self.name, pid=self.child.pid, log=self.child.log.name)

    def kill(self) -> None:
        """SIGKILL."""
        with self._lock:
            self.look()
            self._wanted = False
        if self.child is not None and not self.done:
            self.struck = time.time()
            self.child.kill()

    def end(self) -> None:
        """SIGTERM, and wait."""
        with self._lock:
            self.look()
            self._wanted = False
        child = self.child
        if child is None or self.done:
            return
        self.struck = time.time()
        child.terminate()
        child.thaw()
        try:
            code = child.wait(END)
        except AssertionError:
            child.kill()
            self._note(child, f"did not end within {END:g} s of SIGTERM")
            return
        if code == 0 and self._over(child):
            self.done = True
        # Before its work has begun nothing is there to save, and SIGTERM itself ends it.
        if code not in (0, -signal.SIGTERM) and not _met_no_broker(child):
            self._note(child)

    def freeze(self) -> None:
        if self.child is not None:
            self.child.freeze()

    def thaw(self) -> None:
        if self.child is not None:
            self.child.thaw()

    def look(self) -> bool:
        """Take note of an end; whether it was one that nobody asked for, so that it is to be started again."""
        with self._lock:
            child = self.child
            if not self._wanted or child is None or child.running:
                return False
            self._wanted = False
            if child.popen.returncode == 0 and self._over(child):
                self.done = True
                self._events.add("done", role=self.name)
                return False
            if _met_no_broker(child):
                self.refused_starts += 1
                self._events.add("refused start", role=self.name, log=child.log.name)
            else:
                self._note(child)
            return True

    def _note(self, child: Child, words: str = "") -> None:
        found = Unexpected(self.name, child.wait(1.0), words or child.last_words(), str(child.log))
        self.unexpected.append(found)
        self._events.add("unexpected end", **asdict(found))


def _met_no_broker(child: Child) -> bool:
    """Whether a process ended before it had said anything else than that Kafka is away."""
    lines = child.stderr.splitlines()
    return child.popen.returncode == 1 and len(lines) == 1 and re.search("^error: .* Kafka at ", lines[0]) is not None
