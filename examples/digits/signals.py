"""Ctrl-C, SIGTERM and a closed terminal as one exception, which never comes between a process and its registration."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked the demo to end. No Exception, so that no library takes it for a fault of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Signals:
    """A context manager: the signals raise `Stopped` in the main thread, at once or at the end of `held`."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came: int | None = None
        self._held = False
        self._deaf = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal interrupt the block; one that came is raised at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise Stopped if a signal came; called in every loop, in case a callback swallowed the exception."""
        if self._came is not None and not self._deaf:
            raise Stopped(self._came)

    def ignore(self) -> None:
        """From now on heed none: what was started is being stopped, which takes seconds at most."""
        self._deaf = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deaf:
            return
        self._came = number
        if not self._held:
            raise Stopped(number)
