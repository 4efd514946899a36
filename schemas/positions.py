"""Outputs of which a sample has a row for each of its positions, such as the masked tokens of a text.

Which positions those are is chosen by a field of the view, a pure function of the sample, so labels say only how many,
and a hash.
Letters: M samples, P positions of them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.columns import Columns, IntArray

if TYPE_CHECKING:
    from schemas.codecs import SoftRows


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Which positions M samples have, as far as labels say it."""

    counts: IntArray
    """[M] int64: how many."""
    marks: IntArray
    """[M] int64, 0 to 2^32 - 1: a hash of which they are, so that others of the same number are told apart."""

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: IntArray | slice) -> Chosen:
        """Return those of some of the samples."""
        return Chosen(self.counts[rows], self.marks[rows])

    @classmethod
    def joined(cls, parts: Sequence[Chosen]) -> Chosen:
        """Return those of the samples of several, one or more."""
        return cls(np.concatenate([each.counts for each in parts]), np.concatenate([each.marks for each in parts]))


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """`SoftRows` of M samples, each of which has any number of rows, one after the other."""

    rows: SoftRows
    """P of them."""
    chosen: Chosen
    """Of the M samples."""

    @property
    def columns(self) -> Columns:
        """Name -> array whose first dimension is P."""
        return self.rows.columns

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """The temperatures at which they can be softened, rising; None: any."""
        return self.rows.temperatures

    def take(self, rows: IntArray) -> Positions:
        """Return the positions of the samples at [K] places."""
        return Positions(self.rows.take(positions_of(self.chosen.counts, rows)), self.chosen.take(rows))


def positions_of(counts: IntArray, rows: IntArray) -> IntArray:
    """Return [Q] int64: where the positions of the samples at [K] places lie among the P, sample after sample."""
    ends, taken = np.cumsum(counts), counts[rows]
    before = np.cumsum(taken) - taken
    starts: IntArray = np.repeat(ends[rows] - taken - before, taken)
    return starts + np.arange(len(starts), dtype=np.int64)
