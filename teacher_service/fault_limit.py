"""When single bad samples become a broken mount."""

from __future__ import annotations

from collections import deque

from schemas.errors import BadSamples

LIMIT = 0.01
WINDOW = 10_000
"""rows among which at most 1 % may fail (of at least 1,000: a single small order proves nothing)"""
_LEAST = 1_000


class FaultLimit:
    """Counts failed rows among the recent ones; used by one thread."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque()

    def add(self, sequence: int, num_rows: int, num_faults: int) -> None:
        """Count an order.

        Raises:
            BadSamples: more than 1 % of the recent rows failed; the order must not be published.
        """
        self._recent.append((num_rows, num_faults))
        rows = sum(rows for rows, _ in self._recent)
        while rows - self._recent[0][0] >= WINDOW:
            rows -= self._recent.popleft()[0]
        faults = sum(faults for _, faults in self._recent)
        if faults > LIMIT * max(rows, _LEAST):
            raise BadSamples(
                f"{faults} of the last {rows} samples cannot be labelled: that is no matter of single samples "
                f"(a broken mount? another version of the data?); stopped before order {sequence}"
            )
