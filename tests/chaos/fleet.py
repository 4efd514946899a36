"""The fleet of the soak: a supervisor that is killed like any role, and the workers that it runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.roles import Role
from pipeline.wait import Deadline

GONE = 60.0
"""Seconds for the workers of a supervisor that has ended to have ended, too."""
THERE = 90.0
"""Seconds for a supervisor to have a worker in the place of one that was killed."""


class Fleet(Role):
    """The supervisor; whatever ends it, its workers have to end with it."""

    def __init__(self, *arguments: Any, workers: tuple[str, ...], model: Path) -> None:
        """As a role; `workers` by name, and the model, by whose path the processes are told from other soaks'."""
        super().__init__(*arguments)
        self.workers = {name: FleetWorker(name, self) for name in workers}
        self._model = model

    def kill(self) -> None:
        """SIGKILL to the supervisor alone; AssertionError where it leaves workers behind."""
        super().kill()
        self._await_workers()

    def end(self) -> None:
        """SIGTERM, and wait; AssertionError where it leaves workers behind."""
        super().end()
        self._await_workers()

    def close(self) -> None:
        """SIGKILL to whatever of all is left."""
        super().kill()
        for number in self._left():
            _send(number, signal.SIGKILL)

    def _await_workers(self) -> None:
        _wait(lambda: not self._left(), GONE, lambda: f"the supervisor ended without its workers {self._left()}")

    def _left(self) -> list[int]:
        return [number for name in self.workers for number in self.processes(name)]

    def processes(self, worker: str) -> list[int]:
        """Numbers of the processes that run as that worker; each is the number of its group, too."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")  # empty of one that nobody has waited for yet
            except OSError:
                continue
            if {b"--worker", worker.encode(), str(self._model).encode()} <= set(words):
                found.append(int(folder.name))
        return found


class FleetWorker:
    """One worker of a fleet, struck past its supervisor, who starts another one in its place."""

    def __init__(self, name: str, fleet: Fleet) -> None:
        self.name = name
        self.kills = 0
        self._fleet = fleet
        self._killed = 0
        """The last process that was."""
        self._frozen = 0

    def kill(self) -> None:
        """SIGKILL."""
        self._killed = self._process()
        self.kills += 1
        _send(self._killed, signal.SIGKILL)

    def start(self) -> None:
        """Wait until another one runs; AssertionError where none does."""
        self._process()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._frozen = self._process()
        _send(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self._frozen in self._fleet.processes(self.name):
            _send(self._frozen, signal.SIGCONT)

    def _process(self) -> int:
        """Of the worker that runs and was not killed."""
        found: list[int] = []

        def runs() -> bool:
            found[:] = [number for number in self._fleet.processes(self.name) if number != self._killed]
            return len(found) == 1

        _wait(runs, THERE, lambda: f"not one process runs as {self.name}: {found}")
        return found[0]


def _send(number: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(number, what)


def _wait(predicate: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = Deadline(seconds)
    while not predicate():
        assert not deadline.over, f"{what()} ({seconds:g} s)"
        time.sleep(0.1)
