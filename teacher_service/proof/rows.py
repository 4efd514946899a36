"""Which rows of an order are labelled again: a pure function, so that two verifications look at the same ones.

Letters: N rows of an order, M of them with labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.hashing import hash64, hash_int, tag
from schemas.columns import IntArray

_TAG = tag("proof.rows")


@dataclass(frozen=True, slots=True)
class Choice:
    """How many rows of each order, and which."""

    rows: int = 1
    """At least; all of an order that has fewer."""
    fraction: float = 0.0
    """Of an order's N rows; more than `rows` where that is more."""
    seed: int = 0
    """Another one takes other rows."""

    def of_order(self, stream_id: str, sequence: int, num_rows: int, kept_rows: IntArray | None) -> IntArray:
        """Return [K] int64, rising: which of the M rows with labels, as places among the M.

        They are the first of a permutation of all N that is seeded by (stream_id, sequence, seed), so that different
        orders give different rows; rows without a label are passed over.

        Args:
            stream_id: of the stream.
            sequence: of the order.
            num_rows: N.
            kept_rows: [M] int64, rising; None: all N.
        """
        count = max(self.rows, math.ceil(self.fraction * num_rows))
        kept = np.arange(num_rows) if kept_rows is None else kept_rows
        draws = hash64(_of_stream(stream_id), self.seed, sequence, kept)
        return np.sort(np.argsort(draws, kind="stable")[:count])


@lru_cache(maxsize=8)
def _of_stream(stream_id: str) -> int:
    return hash_int(_TAG, tag(stream_id))
