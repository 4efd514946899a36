"""One slot of a fleet: a place, and the worker that runs in it, is started again, or is asked to leave."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.exit_codes import CRASHED, FINAL, PASSING
from pipeline.processes import HeardProcess
from schemas.errors import FleetFailed
from teacher_service.fleet.places import Place

log = logging.getLogger(__name__)

_FINISH = 4.0
"""times what an order takes: a worker that leaves gives the one in hand three times that"""
_USAGE = 2
"""click's exit code for options that it does not know"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a fleet bears of its workers. Times are seconds."""

    steady: float = 60.0
    """in its group after which a worker's end is no part of a crash loop"""
    crashes: int = 5
    """in a row, each before that time or told by the worker itself, after which a fleet gives up"""
    longest_pause: float = 30.0
    """before a worker is started again; 0 the first time, then 1, 2, 4, ..."""
    drain: float = 120.0
    """in which a worker that is asked to leave must have done so, unless its orders take longer"""


class Slot:
    """Driven by one thread, which gives it the time: seconds on the monotonic clock."""

    def __init__(self, name: str, place: Place, launch: Callable[[str, Place], HeardProcess], limits: Limits) -> None:
        """Nothing runs in it yet; `launch` starts a worker of that name."""
        self.name = name
        self.place = place
        self.wanted = False
        """whether a worker is to run here"""
        self.process: HeardProcess | None = None
        self.began = 0.0
        """when the present worker was started"""
        self.ready_at: float | None = None
        """when the present worker was first seen in its group"""
        self.order_seconds = 0.0
        """that an order takes the present worker; 0: not known"""
        self.starts_at = 0.0
        """when one is to be started, while none runs"""
        self._launch = launch
        self._limits = limits
        self._kill_at = 0.0
        self._short_lives = 0
        self._crashes = 0
        self._labelled = 0
        """orders of the group, when the last one ended unasked"""

    @property
    def free(self) -> bool:
        """Whether a worker could be started here."""
        return not self.wanted and self.process is None

    def want(self, now: float) -> None:
        """Let a worker run here."""
        self.wanted, self.starts_at = True, now
        self._short_lives = self._crashes = 0

    def dismiss(self, now: float) -> None:
        """Let it finish the order in hand and leave, for a bounded time."""
        self.wanted = False
        if self.process is not None:
            self._kill_at = now + max(self._limits.drain, _FINISH * self.order_seconds)
            self.process.send(signal.SIGTERM)
            self.process.send(signal.SIGCONT)  # a frozen one hears nothing else

    def look(self, now: float) -> HeardProcess | None:
        """Start what is to be started, kill what does not leave; return a process that has just ended."""
        if self.process is None:
            if self.wanted and now >= self.starts_at:
                self.process = self._launch(self.name, self.place)
                self.began, self.ready_at, self.order_seconds = now, None, 0.0
            return None
        if self.process.running:
            if not self.wanted and now >= self._kill_at:
                self.process.kill()
                if self.process.running:
                    log.warning("%s: process %d does not even end by SIGKILL: left alone", self.name, self.process.pid)
                    self.process = None
            return None
        ended, self.process = self.process, None
        return ended

    def again(self, ended: HeardProcess, now: float, worked: bool, joined: bool = False, labelled: int = 0) -> str:
        """Set when a worker that ended unasked gets a successor, and return how it ended, for people.

        Args:
            ended: the process.
            now: the time.
            worked: whether any worker of the fleet has ever been ready; until then any error counts as a crash, since
                what never worked may never come right.
            joined: whether this one was a member of its group.
            labelled: orders that the group has labelled. If they became more since the last crash here, a worker that
                had joined begins another row: samples that end their workers do so, and are left behind one by one.

        Raises:
            FleetFailed: its error cannot come right, or it crashes again and again.
        """
        code, words = ended.popen.returncode, ended.last_words()
        # Of a worker that had not joined, in a fleet that works, it may be its machine's: a GPU that was lost.
        if code == _USAGE or (code == FINAL and (joined or not worked)):
            raise FleetFailed(f"worker {self.name}: {words}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        short = now - (self.ready_at or now) < self._limits.steady
        self._short_lives = self._short_lives + 1 if short else 0
        if joined and labelled > self._labelled:
            self._crashes = 0
        self._labelled = labelled
        if code != PASSING or not worked:
            # An order that no child can label may take long to say so.
            self._crashes = self._crashes + 1 if short or code == CRASHED else 0
        if self._crashes >= self._limits.crashes:
            raise FleetFailed(
                f"worker {self.name} ({self.place.name}) crashed {self._crashes} times in a row; the last one {how}: "
                f"{words}"
            )
        pause = min(self._limits.longest_pause, 2.0 ** (self._short_lives - 2)) if self._short_lives > 1 else 0.0
        self.starts_at = now + pause
        text = f"{how}: {words}" if code in (CRASHED, PASSING, FINAL) else how
        return f"{text}; another one starts {f'in {pause:.0f} s' if pause else 'now'}"
