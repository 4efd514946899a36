"""SIGTERM and Ctrl-C as a question: finish what is in hand, then leave. A second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def on_stop(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call `stop` on the first SIGTERM or Ctrl-C inside the block; a second one ends the process as ever.

    Gives the list of signals that came. Outside the main thread, where Python delivers no signals, nothing happens.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ask)
    try:
        yield came
    finally:
        restore()
