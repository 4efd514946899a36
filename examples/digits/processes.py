"""The demo's child processes: none that ended badly goes unnoticed, and none is left when the demo ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from signals import Signals

from pipeline.processes import DISTILLOG, GRACE, Process, stop
from schemas.errors import DistillogError


class DemoError(DistillogError):
    """The demo cannot go on."""


class Child(Process):
    """One process of the demo."""

    ended = False
    """Whether the demo itself ended it."""

    def check(self) -> None:
        """Raise if it ended badly.

        Raises:
            DemoError: with the last line that it wrote.
        """
        code = self.popen.poll()
        if code and not self.ended:
            how = f"ended with {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
            raise DemoError(f"{self.name} {how}: {self.last_words()} (see {self.log})")


class Processes:
    """All that the demo started, to be stopped together."""

    def __init__(self, signals: Signals, logs: Path) -> None:
        self._signals = signals
        self._logs = logs
        self.children: list[Child] = []
        """All that were started, also those that have ended."""
        # A user's own settings are not for the demo's processes.
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("DISTILLOG_")}
        # Text that is written late says less than text that was lost.
        self.environment["PYTHONUNBUFFERED"] = "1"

    def start(self, name: str, command: Sequence[str | Path], *, pipes: bool = False) -> Child:
        """Start a process; with `pipes` it reads from us and we from it, otherwise its output goes to its log."""
        ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if pipes else {}
        with self._signals.held():
            child = Child(name, command, self._logs / f"{name}.log", environment=self.environment, **ends)
            self.children.append(child)
        return child

    def distillog(self, name: str, *arguments: str | Path) -> Child:
        """Start a `distillog` command."""
        return self.start(name, [DISTILLOG, *arguments])

    def check(self) -> None:
        """Raise Stopped if a signal came, DemoError if a process ended badly."""
        self._signals.check()
        for child in self.children:
            child.check()

    def stop(self, *children: Child, timeout: float = GRACE) -> None:
        """Ask processes to end, and kill those that have not after `timeout` seconds."""
        for child in children:
            child.ended = True
        stop(children, timeout)


class Trainer:
    """A process of trainer.py: does one job after another, so that PyTorch is loaded once."""

    def __init__(self, processes: Processes, name: str) -> None:
        self.progress: dict[str, Any] = {}
        """The last line of metrics of the job in hand."""
        self.busy = False
        self._child = processes.start(name, [sys.executable, Path(__file__).with_name("trainer.py")], pipes=True)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self._child.popen.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._child.popen.stdout,), daemon=True)
        reader.start()

    @property
    def child(self) -> Child:
        """Its process."""
        return self._child

    def begin(self, do: str, **arguments: Any) -> None:
        """Hand over a job: a function of trainer.py and its arguments."""
        assert self._child.popen.stdin is not None
        self.busy, self.progress = True, {}
        try:
            self._child.popen.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._child.popen.stdin.flush()
        except OSError as error:
            self._child.popen.wait(5.0)
            self._child.check()
            raise DemoError(f"{self._child.name} takes no work: {error}") from error

    def answer(self) -> Any | None:
        """Return the job's result once it is there, else None; keeps `progress` up to date.

        Raises:
            DemoError: the job failed, or the process ended.
        """
        while not self._lines.empty():
            line = self._lines.get()
            if not line:
                self._child.popen.wait(5.0)
                self._child.check()
                raise DemoError(f"{self._child.name} ended in the middle: {self._child.last_words()}")
            message = json.loads(line)
            if "error" in message:
                raise DemoError(message["error"])
            if "result" in message:
                self.busy = False
                return message["result"]
            self.progress = message["progress"]
        return None

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")
