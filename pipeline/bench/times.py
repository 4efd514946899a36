"""What calls of an ONNX session take: `session.run` alone, with inputs that lie ready in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MIN_CALLS = 20
"""Timed calls at least, however long they take: of fewer a 95th percentile says nothing."""
CALLS_FOR_P99 = 100
"""Fewer have no 99th percentile."""
_WARM_CALLS = 3
_WARM_SHARE = 0.2
"""Of the seconds: caches fill, clocks rise, and the first calls allocate."""


class Session(Protocol):
    """What is needed of ONNX Runtime's `InferenceSession`."""

    def run(self, output_names: None, input_feed: Mapping[str, NDArray[Any]], /) -> object:
        """Compute all outputs."""


@dataclass(frozen=True, slots=True)
class Times:
    """What some calls took; percentiles in milliseconds a call."""

    num_calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float | None
    """None of fewer than CALLS_FOR_P99 calls."""
    samples_per_s: float
    """Samples of all calls over the seconds that all of them took."""


def time_calls(session: Session, inputs: Mapping[str, NDArray[Any]], num_samples: int, seconds: float) -> Times:
    """Call a session again and again, warm it up first, and time each call.

    Args:
        session: on a device of its own, what is timed includes the way of inputs and outputs there and back.
        inputs: name -> values; no more than the session takes.
        num_samples: of one call.
        seconds: for which calls are timed; longer where that are fewer than MIN_CALLS.
    """
    warm_until = time.perf_counter() + _WARM_SHARE * seconds
    calls = 0
    while calls < _WARM_CALLS or time.perf_counter() < warm_until:
        session.run(None, inputs)
        calls += 1
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < MIN_CALLS or time.perf_counter() < until:
        since = time.perf_counter()
        session.run(None, inputs)
        taken.append(time.perf_counter() - since)
    p50, p95, p99 = (float(each) for each in 1000 * np.percentile(taken, [50, 95, 99]))
    num_calls = len(taken)
    return Times(num_calls, p50, p95, p99 if num_calls >= CALLS_FOR_P99 else None, num_calls * num_samples / sum(taken))
