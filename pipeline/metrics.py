"""What a service shows of itself to machines: its metrics, the heartbeat of its loop, whether it is ready.

A metric reads plain attributes of whatever does the work, when somebody asks and never before: the work does nothing
for it, and nobody asks Kafka. `metrics_server.py` serves them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", contravariant=True)


@dataclass(frozen=True, slots=True)
class Metric(Generic[S]):
    """One of a service's numbers."""

    name: str
    """what and its unit, the service left out; one that ends in `_total` only grows, any other is of now"""
    means: str
    read: Callable[[S], float | None]
    """from another thread than works; None: there is none now"""


class Heart:
    """The heartbeat of a loop, beaten by its thread and listened to by others.

    It rests before the loop begins and after it ends, and around whatever may take as long as it takes.
    """

    def __init__(self, within: float) -> None:
        """`within` is seconds between two beats, above which the loop counts as hanging."""
        self.within = within
        self._last: float | None = None

    def beat(self) -> None:
        """The loop goes round."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """No beat is to be expected until the next one."""
        self._last = None

    @property
    def silent(self) -> float:
        """Seconds since the last beat; 0 while it rests."""
        last = self._last
        return 0.0 if last is None else time.monotonic() - last

    @property
    def alive(self) -> bool:
        """Whether the loop goes round, or rests."""
        return self.silent < self.within


class Served(Protocol):
    """What is asked about health."""

    @property
    def heart(self) -> Heart:
        """Of its loop."""

    @property
    def unready(self) -> str:
        """Why it cannot do its work now; empty: it can."""
