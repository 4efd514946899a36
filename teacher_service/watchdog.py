"""Notices a worker that hangs although it polls and sends heartbeats.

A stage that is busy with one order for 10 times the smoothed time of an order hangs. The polling thread then leaves
the group at once, so that others take over. If the polling thread itself is held up (C code that keeps the GIL),
`faulthandler` ends the process 5 minutes later: it needs no GIL. Others take over long before, since heartbeats do; and
a process that was frozen for less goes on when it wakes.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pipeline.metrics import Heart
from schemas.errors import WorkerHung
from teacher_service.clock import Clock
from teacher_service.stages import Stages

FACTOR = 10.0
MIN_DEADLINE = 30.0
"""seconds; below it, a slow disk or a busy machine would be taken for a hang"""
FIRST_DEADLINE = 600.0
"""seconds, while nothing is known: a large model on a small machine needs minutes"""
COLD_DEADLINE = 120.0
"""seconds for a first order, at least, when only the self-check is known, which may have read what was read before"""
BACKSTOP = 300.0
"""seconds beyond a deadline: its timer goes on while the process is frozen, and goes off when it wakes"""
LEAVE = 17.0
"""seconds in which a worker that hangs must have left its group"""
REARM_EVERY = 1.0


class Watchdog:
    """Watches the stages; `check` is called by the polling thread, at least once a second."""

    def __init__(self, stages: Stages, heart: Heart | None = None) -> None:
        """`heart` beats at each check, and rests while nothing is watched."""
        self._heart = heart or Heart(math.inf)
        self._clocks = {"loading": stages.loading, "inference": stages.inferring}
        self._armed = 0.0
        self._hung = False

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is WorkerHung:  # leaving may hang as well, and so may the interpreter's end, which joins threads
            self.expect_end()
        else:
            self.release()

    def end_within(self, seconds: float) -> None:
        """All is done, and what is left to close is no reason to stay for longer; undone by `release`."""
        if not self._hung:
            _end_in(seconds)

    def expect_end(self) -> None:
        """The process is to end soon, though an order may hang in it."""
        self._hung = True
        _end_in(LEAVE)

    def release(self) -> None:
        """Nothing is watched any more, unless the process is to end because of a hang."""
        self._heart.rest()
        if not self._hung:
            faulthandler.cancel_dump_traceback_later()

    def check(self) -> None:
        """Compare the stages with their deadlines and push the backstop back.

        Raises:
            WorkerHung: a stage is busy with one order for longer than its deadline.
        """
        now = time.monotonic()
        self._heart.beat()
        for stage, clock in self._clocks.items():
            since, deadline = clock.since, self._deadline(clock)
            if since is not None and now - since > deadline:
                raise WorkerHung(
                    f"{stage} of one order takes longer than {deadline:.0f} s "
                    f"(orders before it: {clock.smoothed:.2f} s); leaving the group so that others take over"
                )
        if now - self._armed > REARM_EVERY:
            self._armed = now
            longest = max(self._deadline(clock) for clock in self._clocks.values())
            _end_in(longest + BACKSTOP)

    @contextmanager
    def disarmed(self) -> Iterator[None]:
        """Around work of the polling thread that may take long and is no hang, such as reading a log to its end."""
        self.release()
        try:
            yield
        finally:
            self._armed = 0.0

    @staticmethod
    def _deadline(clock: Clock) -> float:
        if clock.smoothed:
            return max(MIN_DEADLINE, FACTOR * clock.smoothed)
        usual = clock.usual  # as the self-check had it
        return max(COLD_DEADLINE, FACTOR * usual) if usual else FIRST_DEADLINE


def _end_in(seconds: float) -> None:
    """End the process after that time, unless called again or cancelled."""
    # The process's own stderr: a notebook's or a test's in its place has no file descriptor.
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
