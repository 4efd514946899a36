"""SIGTERM and Ctrl-C as a question: finish what is in hand, then leave. A second one insists.

One rule says how a command ends that has finished so: with 0 on SIGTERM, since whoever supervises it asked for just
that; with 130 on Ctrl-C, so that a script does not go on as if all were done.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

_came: set[int] = set()


def forget() -> None:
    """Begin anew: another command begins in this process."""
    _came.clear()


def interrupted() -> bool:
    """Whether Ctrl-C came inside an `on_stop` since the last `forget`."""
    return signal.SIGINT in _came


def terminated() -> bool:
    """Whether SIGTERM came inside an `on_stop` since the last `forget`."""
    return signal.SIGTERM in _came


@contextmanager
def on_stop(stop: Callable[[], None], *, hangup: bool = False, insists: bool = True) -> Iterator[None]:
    """Call `stop` on the first SIGTERM or Ctrl-C inside the block; a second one ends the process as ever.

    Without `insists` it does not: of a supervisor's signal and that of whoever ended the supervisor, neither does. With
    `hangup` it is called on SIGHUP, too, by which a supervisor's death is told, and as often as it comes.
    It is called on a thread of its own: a signal may come anywhere, also where the main thread holds the very lock that
    `stop` would take, as inside the same `threading.Event`, and then neither would go on. Outside the main thread,
    where Python delivers no signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _called_by_a_byte(stop) as call:
        before: dict[signal.Signals, Any] = {}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(number: int, frame: FrameType | None) -> None:
            _came.add(number)
            if insists:
                restore()
            call()

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
        hung_up = signal.signal(signal.SIGHUP, lambda number, frame: call()) if hangup else None
        try:
            yield
        finally:
            restore()
            if hangup:
                signal.signal(signal.SIGHUP, hung_up)


@contextmanager
def _called_by_a_byte(stop: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Give a way to call `stop` that takes no lock; what was asked for inside the block is done when it ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        with open(reading, "rb", buffering=0) as bytes_:
            while bytes_.read(1):
                stop()

    def call() -> None:
        with suppress(BlockingIOError):  # a pipe that is full says it often enough
            os.write(writing, b"!")

    thread = threading.Thread(target=listen, name="stop signals", daemon=True)
    thread.start()
    try:
        yield call
    finally:
        os.close(writing)
        thread.join()
