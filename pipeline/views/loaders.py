"""Threads that work on the parts of one request side by side, and give what they made in the parts' order."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Loaders:
    """`count` threads, of which one is the caller's own; used by one caller at a time.

    They are daemons: a mount that hangs must not keep a process from ending. They end with `close`, and when nobody
    knows their loaders any more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._queue: queue.SimpleQueue[_Work[Any, Any] | None] = queue.SimpleQueue()
        self._clocks = [_Clock() for _ in range(count - 1)]
        for number, clock in enumerate(self._clocks):
            # A thread knows the queue alone, or nobody would ever see that its loaders were dropped.
            threading.Thread(target=_help, args=(self._queue, clock), name=f"views-{number}", daemon=True).start()
        self._finalizer = weakref.finalize(self, _send_home, self._queue, count - 1)

    @property
    def busy(self) -> float:
        """CPU seconds that the threads beside the caller's spent."""
        return sum(clock.seconds for clock in self._clocks)

    def close(self) -> None:
        """Send the threads home; what is asked for from then on, the caller does alone."""
        self._finalizer()

    def map(self, call: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        """Return what `call` gives for each part, in their order.

        Raises:
            BaseException: what `call` raised for the first part, in their order, for which it raised.
        """
        work = _Work(call, parts)
        for _ in range(min(self.count, len(parts)) - 1):
            self._queue.put(work)
        work.share()
        return work.results()


class _Clock:
    """What one thread used."""

    seconds = 0.0


class _Work(Generic[T, R]):
    """One request; parts begin in order, and none begins once one has failed."""

    def __init__(self, call: Callable[[T], R], parts: Sequence[T]) -> None:
        self._call = call
        self._parts = parts
        self._made: dict[int, R] = {}
        self._errors: dict[int, BaseException] = {}
        self._begun = 0
        self._changed = threading.Condition()

    def share(self) -> None:
        """Work on parts until none is left to begin."""
        while (place := self._next()) is not None:
            try:
                made = self._call(self._parts[place])
            except BaseException as error:  # raised again for whoever asked
                with self._changed:
                    self._errors[place] = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._made[place] = made
                    self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            if self._errors or self._begun == len(self._parts):
                return None
            self._begun += 1
            return self._begun - 1

    def results(self) -> list[R]:
        """Wait for what has begun."""
        with self._changed:
            while len(self._made) + len(self._errors) < self._begun:
                self._changed.wait()
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._made[place] for place in range(len(self._parts))]


def _help(todo: queue.SimpleQueue[_Work[Any, Any] | None], clock: _Clock) -> None:
    while (work := todo.get()) is not None:
        work.share()
        del work  # else its arrays would stay until the next request
        clock.seconds = time.thread_time()


def _send_home(todo: queue.SimpleQueue[_Work[Any, Any] | None], count: int) -> None:
    for _ in range(count):
        todo.put(None)
