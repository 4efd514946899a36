"""When single bad samples become a broken mount."""

from __future__ import annotations

import logging
from collections import deque

from pipeline.datasets.base import Faults, Ints
from schemas.errors import BadSamples

LIMIT = 0.01
WINDOW = 10_000
"""rows among which at most 1 % may fail (of at least 1,000: a single small order proves nothing)"""
LEAST = 1_000

log = logging.getLogger(__name__)


class FaultLimit:
    """Counts failed rows among the recent ones; used by one thread. `cannot_be` says what was to happen to them."""

    def __init__(self, cannot_be: str = "labelled") -> None:
        self._cannot_be = cannot_be
        self._recent: deque[tuple[int, int]] = deque()

    def add(self, sequence: int | None, num_rows: int, num_faults: int, reason: str = "") -> None:
        """Count the rows of an order, or of a batch that is none; `reason` is that of the last fault, if known.

        Raises:
            BadSamples: more than 1 % of the recent rows failed; the order must not be used.
        """
        self._recent.append((num_rows, num_faults))
        rows = sum(rows for rows, _ in self._recent)
        while rows - self._recent[0][0] >= WINDOW:
            rows -= self._recent.popleft()[0]
        faults = sum(faults for _, faults in self._recent)
        if faults > LIMIT * max(rows, LEAST):
            last = f", the last because of: {reason}" if reason else ""
            before = "" if sequence is None else f"; stopped before order {sequence}"
            raise BadSamples(
                f"{faults} of the last {rows} samples cannot be {self._cannot_be}{last}: that is no matter of single "
                f"samples (a broken mount? another version of the data?){before}"
            )

    def leave_out(self, uri: str, sequence: int | None, sample_ids: Ints, faults: Faults) -> None:
        """Count the rows of [N] IDs and log those that are left out, for who writes no dead letters.

        Raises:
            BadSamples: as `add`.
        """
        for row, reason in faults:
            log.warning("dataset %s: sample %d is left out: %s", uri, sample_ids[row], reason)
        self.add(sequence, len(sample_ids), len(faults), faults[-1][1] if faults else "")
