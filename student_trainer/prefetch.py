"""One background thread that keeps a bounded queue of batches filled, so that a step waits for labels only."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

_WAKE = 0.5
"""Seconds after which a wait looks again whether it was asked to stop."""


class Prefetcher(Generic[T]):
    """Runs `make()` and its iterator in one thread; `get` hands over what it yields, in order.

    Use as a context manager: leaving it calls `stop`, which must end a wait inside the iterator, and joins the thread.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[T]],
        depth: int,
        stop: Callable[[], None],
        others: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`others`: CPU seconds of threads that the thread has work for it."""
        self.waited = 0.0
        """Seconds that `get` waited in all."""
        self.first_wait = 0.0
        """Seconds until the first item came."""
        self.longest_wait = 0.0
        """Seconds of the longest wait after it."""
        self.produced = 0
        """How many items the thread has made."""
        self.busy = 0.0
        """CPU seconds that went into them: the thread's waits for labels or for room do not count."""
        self._make = make
        self._depth = depth
        # A full queue is refilled once half of it is taken: a thread that wakes for every item fights the training
        # thread for the interpreter at every step.
        self._low = depth // 2
        self._stop = stop
        self._others = others
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self._begun = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stop()
        # A daemon thread, and a bounded wait: a source that does not heed its stop must not keep the run from ending.
        if threading.current_thread() is not self._thread:  # as where it came to collect the garbage
            self._thread.join(timeout=10.0)

    @property
    def ready(self) -> int:
        """How many items lie ready."""
        return len(self._items)

    def get(self, interrupted: Callable[[], bool] = lambda: False) -> T | None:
        """Return the next item; None when there is no more, or when `interrupted()` (asked twice a second).

        Raises:
            BaseException: whatever the thread raised, once the items before it are taken.
        """
        try:
            item = self._items.popleft()  # atomic: no lock while items lie ready
        except IndexError:
            return self._wait(interrupted)
        if len(self._items) == self._low:
            with self._changed:
                self._changed.notify_all()
        return item

    def _wait(self, interrupted: Callable[[], bool]) -> T | None:
        since = time.perf_counter()
        try:
            with self._changed:
                while not self._items:
                    if self._error is not None:
                        raise self._error
                    if self._ended or interrupted():
                        return None
                    self._changed.wait(_WAKE)
                self._changed.notify_all()  # the queue may have filled up, and its thread fallen asleep, meanwhile
                return self._items.popleft()
        finally:
            waited = time.perf_counter() - since
            self.waited += waited
            if self._begun:
                self.longest_wait = max(self.longest_wait, waited)
            else:
                self.first_wait, self._begun = waited, True

    def _run(self) -> None:
        try:
            for item in self._make():
                self.busy = time.thread_time() + self._others()
                self.produced += 1
                with self._changed:
                    if len(self._items) >= self._depth:
                        while len(self._items) > self._low and not self._closed:
                            self._changed.wait(_WAKE)
                    if self._closed:
                        return
                    self._items.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # raised again by the thread that asks
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
