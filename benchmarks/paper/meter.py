"""What a student in a process of its own publishes at each step, and how it is stopped and let run from outside.

The page is a small file that both processes map: numbers of the student's, and one of the controller's, the seconds for
which the student was stopped. CPU seconds stand still while a process is stopped, so they are exact from step to step
wherever the stops fall; what the clock says is cut by the stops.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.processes import Running
from pipeline.wait import Deadline

_VERSION, _STEPS, _CPU, _IDLE, _CLOCK, _SENT, _STOPPED = range(7)
"""Places in the page; a version is odd while the student writes."""
LONGEST = 120.0
"""seconds that the controller waits for a step, at most"""


def make_page(path: Path) -> Path:
    """Write a page of zeros."""
    path.write_bytes(bytes(8 * 16))
    return path


@dataclass(frozen=True, slots=True)
class Reading:
    """What a student had published at the end of a step."""

    steps: int
    cpu: float
    """seconds of all its threads"""
    idle: float
    """seconds within waits for a batch in which none of its threads ran"""
    clock: float
    """seconds, without those for which it was stopped"""
    sent: int
    """bytes that it moved to teachers and back by itself"""

    def __sub__(self, other: Reading) -> Reading:
        return Reading(
            self.steps - other.steps,
            self.cpu - other.cpu,
            self.idle - other.idle,
            self.clock - other.clock,
            self.sent - other.sent,
        )


class Meter:
    """The student's side; `step` and `waiting` are for its training thread alone."""

    def __init__(self, page: Path) -> None:
        self._page = np.memmap(page, dtype=np.float64, mode="r+")
        self._began = self._running_clock()
        self.steps = -1
        self.sent = 0
        """bytes so far"""
        self._idle = 0.0

    def step(self) -> None:
        """Publish, as the next step begins."""
        self.steps += 1
        page = self._page
        page[_VERSION] += 1
        page[_STEPS], page[_CPU], page[_IDLE] = self.steps, time.process_time(), self._idle
        page[_CLOCK], page[_SENT] = self._running_clock() - self._began, self.sent
        page[_VERSION] += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count as idle what of this block is neither CPU of the process nor a stop."""
        clock, cpu = self._running_clock(), time.process_time()
        try:
            yield
        finally:
            self._idle += max(0.0, self._running_clock() - clock - (time.process_time() - cpu))

    def _running_clock(self) -> float:
        return time.monotonic() - float(self._page[_STOPPED])


class Metered:
    """The controller's side: a student that runs, or is stopped together with its company."""

    def __init__(self, process: Running, page: Path, company: Sequence[Running] = ()) -> None:
        """Take charge of a student that runs; `company` stands still whenever it does."""
        self.process = process
        self._page = np.memmap(page, dtype=np.float64, mode="r+")
        self._company = company
        self._stopped_at: float | None = None

    def go(self) -> None:
        """Let it run."""
        if self._stopped_at is None:
            return
        for each in self._company:
            each.send(signal.SIGCONT)
        self._page[_STOPPED] += time.monotonic() - self._stopped_at
        self._stopped_at = None
        self.process.send(signal.SIGCONT)

    def halt(self) -> Reading:
        """Stop it, if it runs, and read what it published last."""
        if self._stopped_at is not None:
            return self._reading()
        while True:
            for each in (self.process, *self._company):
                each.send(signal.SIGSTOP)
            self._check()
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            self._stopped_at = time.monotonic()
            if self._page[_VERSION] % 2 == 0:
                return self._reading()
            self.go()
            time.sleep(0.001)

    def read(self) -> Reading:
        """Read while it runs."""
        while True:
            version = self._page[_VERSION]
            reading = self._reading()
            if version % 2 == 0 and self._page[_VERSION] == version:
                return reading

    def run(self, seconds: float, steps: int = 0) -> Reading:
        """Let it run for as long, and for as many steps, then stop it; what came about from step to step.

        Raises:
            RuntimeError: it ended, or made no step for long.
        """
        before = self.halt()
        self.go()
        time.sleep(seconds)
        self.wait(before.steps + steps)
        return self.halt() - before

    def watch(self, seconds: float) -> Reading:
        """What comes about in as long, without a stop."""
        before = self.read()
        self.wait(before.steps + 1)
        before = self.read()
        time.sleep(seconds)
        self.wait(before.steps + 1)
        return self.read() - before

    def begun(self) -> None:
        """Wait until it asks for its first batch."""
        self.wait(0)

    def wait(self, steps: int) -> None:
        """Wait until it has taken that many steps. Raises RuntimeError as `run`."""
        deadline = Deadline(LONGEST)
        while not self._page[_VERSION] or self._page[_STEPS] < steps:
            self._check()
            if deadline.over:
                raise RuntimeError(f"{self.process.name} came to {self.read()} in {LONGEST:.0f} s, not to step {steps}")
            time.sleep(0.005)

    def _check(self) -> None:
        if not self.process.running:
            raise RuntimeError(f"{self.process.name} has ended: {self.process.last_words()}")

    def _reading(self) -> Reading:
        page = self._page
        return Reading(int(page[_STEPS]), float(page[_CPU]), float(page[_IDLE]), float(page[_CLOCK]), int(page[_SENT]))


def peak_mib(pid: int) -> float | None:
    """Peak resident memory of a process, in MiB; None where there is no /proc.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
