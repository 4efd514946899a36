"""When a worker asks for the partitions to be shared out anew. No Kafka and no clock of its own: a test is its time.

Whoever joins or leaves makes the group share out anew by itself. What is left are members that became faster or
slower, and the end of a stream, where somebody is done before the others.
"""

from __future__ import annotations

CHANGED = 2 ** (1 / 8)
"""A speed that differs less from what was bid is the same speed."""
CHANGED_MUCH = 2.0
"""One that differs more is worth asking at once."""
HOLD = 10.0
"""Seconds for which a speed must have differed."""
SELDOM = 60.0
"""Seconds between two sharings out that lesser changes may ask for."""
IDLE = 0.3
"""Seconds without work after which a worker looks whether others have too much of it."""
IDLE_EVERY = 5.0
"""Seconds between two sharings out that idle workers ask for."""
LOOK_EVERY = (1.0, 60.0)
"""Seconds between the first two looks of an idle worker, and at most: each takes twice as long to come as the last."""
GAIN = 1.05
"""By which factor all must be done sooner, or nobody asks."""


class Asking:
    """One worker's mind. Times are seconds on any clock that never goes back."""

    def __init__(self) -> None:
        self._bid = 0.0
        self._shared_out = float("-inf")
        self._changed: float | None = None
        """since when the speed differs from what was bid"""
        self._look_changed = float("-inf")
        self._look_idle: float | None = None
        self._pause = LOOK_EVERY[0]

    def shared_out(self, now: float, bid: float) -> None:
        """The partitions were shared out just now, while this worker bid a speed."""
        self._bid, self._shared_out, self._changed = bid, now, None

    def look(self, now: float, speed: float, idle: bool) -> float | None:
        """Say whether to find out now what sharing out anew would gain; whoever finds `GAIN` or more asks for it.

        Args:
            now: the time.
            speed: samples per second by the stages' clocks; 0: not known.
            idle: there is nothing to do.

        Returns:
            The speed to reckon with: the present one if it has changed; for an idle worker the one that it bid, since
            noise in it is no reason to move anything. None: do not look.
        """
        # Both are always looked at: each keeps a time.
        changed, idle = self._has_changed(now, speed), self._is_idle(now, idle)
        return speed if changed else self._bid if idle else None

    def _has_changed(self, now: float, speed: float) -> bool:
        ratio = max(speed / self._bid, self._bid / speed) if speed and self._bid else 1.0
        if ratio < CHANGED:
            self._changed = None
            return False
        if self._changed is None:
            self._changed = self._look_changed = now
        may = now - self._changed >= HOLD and (ratio >= CHANGED_MUCH or now - self._shared_out >= SELDOM)
        if not may or now - self._look_changed < IDLE_EVERY:
            return False
        self._look_changed = now
        return True

    def _is_idle(self, now: float, idle: bool) -> bool:
        if not idle:
            self._look_idle, self._pause = None, LOOK_EVERY[0]
            return False
        if self._look_idle is None:
            self._look_idle = now + IDLE
        if now < self._look_idle or now - self._shared_out < IDLE_EVERY:
            return False
        self._look_idle = now + self._pause
        self._pause = min(2 * self._pause, LOOK_EVERY[1])
        return True
