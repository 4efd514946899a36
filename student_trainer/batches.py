"""Full batches cut from consecutive orders, each with the cursor where the next one starts.

Letters: B rows of a batch, M kept rows of an order, P partitions. Rows are copied into tensors that torch allocated,
never wrapped: a matrix product's last bits may depend on how its memory is aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_trainer.learning.targets import Target, target_of
from student_trainer.sources.base import Cursor, ReadyOrder


@dataclass(frozen=True, slots=True)
class Cut:
    """Consecutive rows of one order."""

    pass_number: int
    sequence: int
    row: int
    """The first of them among the order's kept rows, from 0."""
    num_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B rows to train on."""

    sample_ids: Tensor
    """[B] int64, to say which rows they are; stays where it is."""
    inputs: dict[str, Tensor]
    """Field -> [B, ...]."""
    labels: Tensor
    """[B] int64, -1 = no label."""
    targets: tuple[Target, ...]
    """One per teacher."""
    cuts: tuple[Cut, ...] = ()
    """What it was put together from, in this order."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies from pinned memory do not wait."""
        inputs = {field: values.to(device, non_blocking=True) for field, values in self.inputs.items()}
        labels = self.labels.to(device, non_blocking=True)
        return Batch(self.sample_ids, inputs, labels, tuple(target.to(device) for target in self.targets), self.cuts)


def batches(
    orders: Iterable[ReadyOrder], batch_size: int, start: Cursor, partitions: int, num_orders: int, pin: bool = False
) -> Iterator[tuple[Batch, Cursor]]:
    """Cut the rows of consecutive orders, from the cursor on, into full batches across orders, epochs and passes.

    Args:
        orders: begins with the cursor's order, whole.
        batch_size: B.
        start: the next row to train on.
        partitions: P, by which a sequence finds its offset.
        num_orders: of a pass; after its last one a cursor says pass + 1, sequence 0, offsets 0.
        pin: allocate page-locked memory, which a CUDA copy need not wait for.

    Yields:
        A batch and the cursor where the next one starts. Rows that are left at the end are dropped.
    """
    offsets = [list(each) for each in start.offsets]
    skip = start.row
    buffers: list[_Rows] = []
    cuts: list[Cut] = []
    filled = 0
    for order in orders:
        num_rows = len(order.labels)
        row, skip = min(skip, num_rows), 0
        while row < num_rows:
            if not filled:
                buffers, cuts = [_Rows(columns, batch_size, pin) for columns in _columns(order)], []
            taken = min(batch_size - filled, num_rows - row)
            for rows, columns in zip(buffers, _columns(order), strict=True):
                rows.copy(columns, filled, row, taken)
            cuts.append(Cut(order.pass_number, order.sequence, row, taken))
            row += taken
            filled += taken
            if filled == batch_size:
                filled = 0
                if row == num_rows:
                    yield _batch(order, buffers, cuts), _behind(order, offsets, partitions, num_orders)
                else:
                    place = tuple(tuple(each) for each in offsets)
                    yield _batch(order, buffers, cuts), Cursor(order.pass_number, order.sequence, row, place)
        _behind(order, offsets, partitions, num_orders)


def _behind(order: ReadyOrder, offsets: list[list[int]], partitions: int, num_orders: int) -> Cursor:
    """Move the offsets behind an order that was trained on to its end, and return the cursor there."""
    for teacher, offset in enumerate(order.next_offsets):
        offsets[teacher][order.sequence % partitions] = offset
    if order.sequence + 1 < num_orders:
        return Cursor(order.pass_number, order.sequence + 1, 0, tuple(tuple(each) for each in offsets))
    for each in offsets:
        each[:] = [0] * partitions
    return Cursor(order.pass_number + 1, 0, 0, tuple(tuple(each) for each in offsets))


def _columns(order: ReadyOrder) -> list[NDArray[Any]]:
    """All arrays of an order, in a fixed sequence: sample IDs, labels, inputs, then each teacher's."""
    columns: list[NDArray[Any]] = [order.sample_ids, order.labels, *order.inputs.values()]
    for target in order.targets:
        columns += target.columns.values()
    return columns


class _Rows:
    """[B, ...] of one column, filled piece by piece through NumPy."""

    def __init__(self, columns: NDArray[Any], batch_size: int, pin: bool) -> None:
        dtype = torch.from_numpy(np.empty(0, columns.dtype)).dtype
        self.tensor = torch.empty((batch_size, *columns.shape[1:]), dtype=dtype, pin_memory=pin)
        self._array = self.tensor.numpy()

    def copy(self, columns: NDArray[Any], at: int, row: int, count: int) -> None:
        self._array[at : at + count] = columns[row : row + count]


def _batch(order: ReadyOrder, buffers: list[_Rows], cuts: list[Cut]) -> Batch:
    tensors = iter([rows.tensor for rows in buffers])
    sample_ids, labels = next(tensors), next(tensors)
    inputs = {field: next(tensors) for field in order.inputs}
    targets = [target_of(each, {name: next(tensors) for name in each.columns}) for each in order.targets]
    return Batch(sample_ids, inputs, labels, tuple(targets), tuple(cuts))
