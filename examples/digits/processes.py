"""The demo's child processes: each in a group and with a log file of its own, and none left when the demo ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from signals import Signals

from schemas.errors import DistillogError

DISTILLOG = Path(sysconfig.get_path("scripts"), "distillog")
GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL, for all together."""


class DemoError(DistillogError):
    """The demo cannot go on."""


class Child:
    """One process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.ended = False
        """Whether the demo itself ended it."""

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """Send its whole group a signal; a process that has ended is left alone, its number may be another's."""
        if self.running:
            os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raise if it ended badly.

        Raises:
            DemoError: with the last line that it wrote.
        """
        code = self.process.poll()
        if code and not self.ended:
            how = f"ended with {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
            raise DemoError(f"{self.name} {how}: {self.last_words()} (see {self.log})")

    def last_words(self) -> str:
        """Return the last error in its log, else its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")


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
        log = self._logs / f"{name}.log"
        ends = subprocess.PIPE if pipes else subprocess.DEVNULL
        with log.open("ab") as file, self._signals.held():
            process = subprocess.Popen(
                command,
                stdin=ends,
                stdout=ends if pipes else file,
                stderr=file,
                env=self.environment,
                start_new_session=True,  # Ctrl-C at the terminal reaches the demo alone, which ends them in order
            )
            self.children.append(Child(name, process, log))
        return self.children[-1]

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
            if child.process.stdin is not None:
                child.process.stdin.close()
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.send(signal.SIGKILL)
                child.process.wait()


class Trainer:
    """A process of trainer.py: does one job after another, so that PyTorch is loaded once."""

    def __init__(self, processes: Processes, name: str) -> None:
        self.progress: dict[str, Any] = {}
        """The last line of metrics of the job in hand."""
        self.busy = False
        self._child = processes.start(name, [sys.executable, Path(__file__).with_name("trainer.py")], pipes=True)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self._child.process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._child.process.stdout,), daemon=True)
        reader.start()

    @property
    def child(self) -> Child:
        """Its process."""
        return self._child

    def begin(self, do: str, **arguments: Any) -> None:
        """Hand over a job: a function of trainer.py and its arguments."""
        assert self._child.process.stdin is not None
        self.busy, self.progress = True, {}
        try:
            self._child.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._child.process.stdin.flush()
        except OSError as error:
            self._child.process.wait(5.0)
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
                self._child.process.wait(5.0)
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
