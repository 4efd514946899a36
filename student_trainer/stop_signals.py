"""SIGTERM and Ctrl-C as a question that the loop asks: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a signal came; a second one ends the process as ever.

    Outside the main thread, where Python delivers no signals, it always says no.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping.is_set
        return
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stopping.set()
        restore()

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    try:
        yield stopping.is_set
    finally:
        restore()
