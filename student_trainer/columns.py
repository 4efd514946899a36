"""The columns of an order, and what they are gathered in, batch by batch.

Letters: B rows of a batch, M rows of an order, P positions of such rows. Columns are copied into tensors that torch
allocated, never wrapped: a matrix product's last bits may depend on how its memory is aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.columns import Array, IntArray
from student_trainer.sources.base import LabelledOrder


class Buffer:
    """[B, ...] of one column in torch's memory, filled piece by piece through NumPy."""

    def __init__(self, like: NDArray[Any], batch_size: int, pin: bool) -> None:
        dtype = torch.from_numpy(np.empty(0, like.dtype)).dtype
        self.tensor = torch.empty((batch_size, *like.shape[1:]), dtype=dtype, pin_memory=pin)
        self.array: NDArray[Any] = self.tensor.numpy()

    def put(self, at: int, piece: NDArray[Any]) -> None:
        """Fill the rows from `at` on."""
        self.array[at : at + len(piece)] = piece


class Pieces:
    """[P, ...] of one column, whose samples have any number of rows: joined once, when all are there."""

    def __init__(self, pin: bool) -> None:
        self._pin = pin
        self._pieces: list[NDArray[Any]] = []

    def put(self, at: int, piece: NDArray[Any]) -> None:
        """Add the rows of the samples from `at` on, which come in order."""
        self._pieces.append(piece)

    @property
    def tensor(self) -> Tensor:
        """The column; one piece at least was put."""
        joined = Buffer(self._pieces[0], sum(map(len, self._pieces)), self._pin)
        np.concatenate(self._pieces, out=joined.array)
        return joined.tensor


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One array of an order."""

    values: Array
    """[M, ...], or of all positions of the M rows."""
    ends: IntArray | None = None
    """[M + 1]: where each row's positions begin, and the end of the last one's."""
    target: str = ""
    """Whose it is; "": the rows' own."""

    def buffer(self, batch_size: int, pin: bool) -> Buffer | Pieces:
        """Return what a batch of such columns is gathered in."""
        return Buffer(self.values, batch_size, pin) if self.ends is None else Pieces(pin)

    def between(self, row: int, end: int) -> Array:
        """Return what the rows in [row, end) have."""
        return self.values[row:end] if self.ends is None else self.values[self.ends[row] : self.ends[end]]


def columns_of(order: LabelledOrder) -> dict[str, Column]:
    """Return all arrays of an order: sample IDs, labels, and each target's, under the target's name and their own."""
    columns = {"sample_ids": Column(order.sample_ids), "labels": Column(order.labels)}
    for name, rows in order.targets.items():
        ends = None
        if rows.chosen is not None:
            columns[name] = Column(rows.chosen.counts, target=name)
            columns[f"{name}#"] = Column(rows.chosen.marks, target=name)
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.chosen.counts)])
        columns |= {f"{name}/{column}": Column(values, ends, name) for column, values in rows.columns.items()}
    return columns
