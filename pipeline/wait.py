"""Deadlines: every wait of the project has one."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock, `timeout` seconds from now."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float) -> None:
        self._at = time.monotonic() + timeout

    @property
    def over(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() >= self._at

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - time.monotonic())

    @property
    def left_ms(self) -> int:
        """Milliseconds left, never negative: what kafka-python's calls take."""
        return int(self.left * 1000)
