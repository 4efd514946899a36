"""Reads a file by ranges, and ahead of whoever reads it in sequence: a range from far away takes its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

_LEAST = 64 << 10
"""Bytes of the first range that is read ahead."""
_MOST = 4 << 20
"""Bytes of a range, but for what is asked for at once; each is twice the one before until then."""
_DEPTH = 4
"""Ranges that are under way or wait: with the one in hand 20 MiB of a file, at most."""


class _Range(NamedTuple):
    offset: int
    size: int
    future: Future[bytes]


class ReadingAhead:
    """A `StoredFile` by ranges; used by one thread.

    What is asked for first, or anywhere else than behind the last read, is asked for alone. What follows it is read
    ahead, in ranges that grow.

    Args:
        begin: starts the request of so many bytes from a place on.
        finish: waits for a request with its size and place, or makes it anew; raises as `StoredFile.read`.
        num_bytes: of the file; nothing behind them is read.
    """

    def __init__(
        self,
        begin: Callable[[int, int], Future[bytes]],
        finish: Callable[[Future[bytes], int, int], bytes],
        num_bytes: int,
    ) -> None:
        self._begin, self._finish, self._num_bytes = begin, finish, num_bytes
        self._ahead: deque[_Range] = deque()
        """One behind the other, the first of them holding the place that is read next, if any."""
        self._here, self._start = b"", 0
        """Bytes of the last range, and where they lie."""
        self._next: int | None = None
        """Where whoever reads in sequence goes on."""
        self._size = _LEAST

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Return bytes from a place on, fewer where the file ends; raises as `StoredFile.read`."""
        end = max(offset, min(offset + num_bytes, self._num_bytes))
        if offset != self._next:
            self._ahead.clear()
            self._here, self._start, self._size = b"", offset, _LEAST
            if end > offset:
                self._ask(end - offset, offset)
        else:
            self._fill(end)
        self._next = None  # unless all of it comes
        parts: list[bytes] = []
        while offset < end:
            at = offset - self._start
            if at < len(self._here):
                parts.append(self._here[at : at + end - offset])
                offset += len(parts[-1])
            elif not self._take():
                return b"".join(parts)
        self._next = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Forget what was read, and what comes still."""
        self._ahead.clear()
        self._here, self._next = b"", None

    def _fill(self, needed: int) -> None:
        """Ask for what is needed, up to a place, and for what follows."""
        end = self._ahead[-1].offset + self._ahead[-1].size if self._ahead else self._start + len(self._here)
        while end < self._num_bytes and (end < needed or len(self._ahead) < _DEPTH):
            size = min(max(self._size, min(needed - end, _MOST)), self._num_bytes - end)
            self._ask(size, end)
            end += size
            self._size = min(2 * self._size, _MOST)

    def _ask(self, size: int, offset: int) -> None:
        self._ahead.append(_Range(offset, size, self._begin(size, offset)))

    def _take(self) -> bool:
        """Wait for the next range; False: there is none, or the file is shorter than it was."""
        if not self._ahead:
            return False
        first = self._ahead.popleft()
        self._here, self._start = self._finish(first.future, first.size, first.offset), first.offset
        if len(self._here) < first.size:
            self._ahead.clear()
        return bool(self._here)
