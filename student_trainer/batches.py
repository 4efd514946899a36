"""Full batches of rows cut from consecutive orders, each with the cursor where the next one starts.

Letters: B rows of a batch, M rows of an order, P positions of such rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from schemas.codecs import SoftRows
from schemas.errors import ConfigError
from student_trainer.columns import Buffer, Column, Pieces, columns_of
from student_trainer.learning.part_target import PartTarget
from student_trainer.learning.targets import Target, target_of
from student_trainer.sources.base import Cursor, LabelledOrder


@dataclass(frozen=True, slots=True)
class Cut:
    """Consecutive rows of one order."""

    pass_number: int
    sequence: int
    row: int
    """The first of them among the order's rows, from 0."""
    num_rows: int
    view_seed: int = 0
    address: str = ""
    """Where the labels lie of a teacher that has seen these samples; "" where none has."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """Which rows a batch has that several processes have shares of."""

    sample_ids: Tensor
    """[B] int64, of all of them."""
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """B rows to train on, whose views nobody has fetched yet."""

    sample_ids: Tensor
    """[B] int64."""
    labels: Tensor
    """[B] int64, -1 = no label."""
    targets: dict[str, Target]
    """"TEACHER.OUTPUT" -> soft targets of B rows, or of P; a `PartTarget` of a teacher that counts in some of them,
    and none of one that counts in none."""
    cuts: tuple[Cut, ...]
    """What it was put together from, in this order."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """[B] int64 of each target of positions: how many of its P rows each sample has."""
    marks: dict[str, Tensor] = field(default_factory=dict)
    """[B] int64 of each of these: a hash of which positions they are (`schemas.positions.Chosen`)."""
    density: dict[str, float] = field(default_factory=dict)
    """Of each target of positions: how many a sample has, the mean over the batch of all processes."""
    whole: Whole | None = None
    """Of a batch that several processes have shares of, on the one that records it; None: it is all there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B rows to train on."""

    sample_ids: Tensor
    """[B] int64, to say which rows they are; stays where it is."""
    inputs: dict[str, Tensor]
    """Field -> [B, ...]."""
    labels: Tensor
    """[B] int64, -1 = no label."""
    targets: dict[str, Target] = field(default_factory=dict)
    """"TEACHER.OUTPUT" -> soft targets of B rows; and hard labels of positions, by `labels_name`."""
    cuts: tuple[Cut, ...] = ()
    """What it was put together from, in this order."""
    weights: Tensor | None = None
    """[B] float32, each row's factor on its losses: 0 where the sample cannot be decoded. None: 1 for all."""
    whole: Whole | None = None
    """As in `RowBatch`."""
    undecodable_rows: int | None = None
    """Rows of weight 0 in the shares of all processes; None: those of `weights` are all."""

    def parts(self, rows: int) -> list[Batch]:
        """Return the batch, which is on the CPU, as batches of so many rows at most, as views, of nearly equal sizes.

        They are for the step alone: `cuts` and what is said of the whole batch are left out.
        """
        num_rows = len(self.labels)
        count = -(-num_rows // rows)
        if count == 1:
            return [self]
        ends = [number * num_rows // count for number in range(count + 1)]
        return [
            Batch(
                self.sample_ids[low:high],
                {name: values[low:high] for name, values in self.inputs.items()},
                self.labels[low:high],
                {name: target.between(low, high) for name, target in self.targets.items()},
                weights=None if self.weights is None else self.weights[low:high],
            )
            for low, high in pairwise(ends)
        ]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies from pinned memory do not wait."""
        return Batch(
            self.sample_ids,
            {name: values.to(device, non_blocking=True) for name, values in self.inputs.items()},
            self.labels.to(device, non_blocking=True),
            {name: target.to(device) for name, target in self.targets.items()},
            self.cuts,
            None if self.weights is None else self.weights.to(device, non_blocking=True),
            self.whole,
            self.undecodable_rows,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of each batch are this process's: the rank-th of `world` parts, which differ by one row at most."""

    rank: int = 0
    world: int = 1

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return the first of its rows of B, and the one behind the last.

        Raises:
            ConfigError: there is no such part, or there are fewer rows than parts.
        """
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world} processes: ranks go from 0 to {self.world - 1}")
        if batch_size < self.world:
            raise ConfigError(f"batch_size {batch_size} is of all {self.world} processes together: each needs a row")
        return self.rank * batch_size // self.world, (self.rank + 1) * batch_size // self.world


WHOLE = Share()


def cut_of(cuts: Iterable[Cut], row: int) -> Cut:
    """Return the cut that a row of them all is of."""
    for each in cuts:
        if row < each.num_rows:
            return each
        row -= each.num_rows
    raise IndexError(f"no row {row} behind the last cut")


def cut(
    orders: Iterable[LabelledOrder],
    batch_size: int,
    start: Cursor,
    num_orders: int,
    together: int = 1,
    pin: bool = False,
    share: Share = WHOLE,
) -> Iterator[list[tuple[RowBatch, Cursor]]]:
    """Cut the rows of consecutive orders into full batches, of which this process trains on a share.

    Args:
        orders, batch_size, start, num_orders, together, pin: as `cut_for_all` has them.
        share: which of the B rows are given.

    Yields:
        Batches, or this process's share of them, each with the cursor where the next whole one starts. Rows that are
        left at the end are dropped.
    """
    for group in cut_for_all(orders, batch_size, start, num_orders, [share], together, pin):
        yield [(rows, cursor) for (rows,), cursor in group]


def cut_for_all(
    orders: Iterable[LabelledOrder],
    batch_size: int,
    start: Cursor,
    num_orders: int,
    shares: Sequence[Share],
    together: int = 1,
    pin: bool = False,
) -> Iterator[list[tuple[tuple[RowBatch, ...], Cursor]]]:
    """Cut the rows of consecutive orders, from the cursor on, into full batches across orders, epochs and passes.

    Args:
        orders: begins with the cursor's order, whole.
        batch_size: B.
        start: the next row to train on.
        num_orders: of a pass; after its last one a cursor says pass + 1, sequence 0.
        shares: which of the B rows each process gets.
        together: how many batches are given at once, at most; none waits for an order that it needs no row of.
        pin: allocate page-locked memory, which a CUDA copy need not wait for.

    Yields:
        Batches, each as the rows of each share, with the cursor where the next one starts. Rows that are left at the
        end are dropped.
    """
    bounds = [share.rows(batch_size) for share in shares]
    skip, place, too_old = start.row, start.place, start.too_old
    parts: list[_Part] = []
    positions: dict[str, int] = {}
    done: list[tuple[tuple[RowBatch, ...], Cursor]] = []
    filled = 0
    for order in orders:
        columns = columns_of(order)
        num_rows = len(order.labels)
        row, skip = min(skip, num_rows), 0
        too_old += order.too_old
        while row < num_rows:
            if not filled:
                parts, positions = [_Part(low, high, pin) for low, high in bounds], {}
            taken = min(batch_size - filled, num_rows - row)
            for part in parts:
                part.take(order, columns, row, filled, taken)
            for name, rows in order.targets.items():
                if rows.chosen is not None:
                    positions[name] = positions.get(name, 0) + int(rows.chosen.counts[row : row + taken].sum())
            row += taken
            filled += taken
            if filled == batch_size:
                filled = 0
                after = Cursor(order.pass_number, order.sequence, row, place, too_old)
                density = {name: count / batch_size for name, count in positions.items()}
                batches = tuple(part.batch(density) for part in parts)
                done.append((batches, _behind(order, num_orders, too_old) if row == num_rows else after))
                if len(done) == together:
                    yield done
                    done = []
        place = order.place
        if done:
            yield done
            done = []


class _Part:
    """The rows [low, high) of a batch while it is filled."""

    def __init__(self, low: int, high: int, pin: bool) -> None:
        self._low, self._high, self._pin = low, high, pin
        self._buffers: dict[str, Buffer | Pieces] = {}
        self._rows: dict[str, SoftRows] = {}
        """Of each target those of one order."""
        self._places: dict[str, list[range]] = {}
        """Which of its rows have each target."""
        self._cuts: list[Cut] = []

    def take(self, order: LabelledOrder, columns: Mapping[str, Column], row: int, filled: int, taken: int) -> None:
        """Take what is its own of the order's rows [row, row + taken), which are the batch's from `filled` on."""
        begin, end = max(filled, self._low), min(filled + taken, self._high)
        if begin >= end:
            return
        first, num_rows = row + begin - filled, end - begin
        at = {"": begin - self._low}
        for name, rows in order.targets.items():
            places = self._places.setdefault(name, [])
            at[name], self._rows[name] = sum(map(len, places)), rows
            places.append(range(begin - self._low, end - self._low))
        for name, each in columns.items():
            if name not in self._buffers:
                self._buffers[name] = each.buffer(self._high - self._low, self._pin)
            self._buffers[name].put(at[each.target], each.between(first, first + num_rows))
        cut = Cut(order.pass_number, order.sequence, first, num_rows, order.view_seed, order.address)
        self._cuts.append(cut)

    def batch(self, density: dict[str, float]) -> RowBatch:
        """Return its rows."""
        buffers = self._buffers
        targets = {name: self._target(name, rows) for name, rows in self._rows.items()}
        counts = {name: buffers[name].tensor for name in density}
        marks = {name: buffers[f"{name}#"].tensor for name in density}
        ids, labels = buffers["sample_ids"].tensor, buffers["labels"].tensor
        return RowBatch(ids, labels, targets, tuple(self._cuts), counts, marks, density)

    def _target(self, name: str, rows: SoftRows) -> Target:
        """Return a target of which `rows` are some."""
        tensors = {column: self._buffers[f"{name}/{column}"].tensor for column in rows.columns}
        at, num_rows = np.concatenate([np.asarray(each) for each in self._places[name]]), self._high - self._low
        if len(at) == num_rows:
            return target_of(rows, tensors)
        assert rows.chosen is None, f"{name}: of positions its teacher counts in all orders"
        there = target_of(rows, {column: tensor[: len(at)] for column, tensor in tensors.items()})
        return PartTarget(there, torch.tensor(at), num_rows)


def _behind(order: LabelledOrder, num_orders: int, too_old: int) -> Cursor:
    """Return the cursor behind an order."""
    if order.sequence + 1 < num_orders:
        return Cursor(order.pass_number, order.sequence + 1, 0, order.place, too_old)
    return Cursor(order.pass_number + 1, 0, 0, order.place, too_old)
