"""From a source to batches that lie ready: cut its rows, fetch the views of this process's share, ahead of the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from pipeline.views.fetch import Fetcher
from student_trainer.batches import WHOLE, Batch, Share, cut, cut_for_all
from student_trainer.learning.targets import TargetSpec
from student_trainer.loading import ROWS_TOGETHER, Loader
from student_trainer.placing import Placing
from student_trainer.prefetch import Prefetcher
from student_trainer.preparation import first_ids
from student_trainer.processes.deal import Dealt, deal
from student_trainer.processes.world import ALONE, World
from student_trainer.sources.base import Cursor, OrderSource


def supply(
    source: OrderSource,
    start: Cursor,
    batch_size: int,
    size: tuple[int, ...],
    depth: int,
    pin: bool = False,
    share: Share = WHOLE,
    labels: Mapping[str, int] | None = None,
    world: World = ALONE,
) -> Prefetcher[tuple[Batch, Cursor]]:
    """Return what prepares all batches from a cursor on, each with the cursor where the next one starts.

    Args:
        source: read once it is entered, and closed when it is left.
        start: the next row to train on.
        batch_size: B, of all processes together.
        size: the spatial size that the student asks of the view.
        depth: batches that lie ready at most.
        pin: allocate page-locked memory, which a CUDA copy need not wait for.
        share: which rows of each batch this process trains on.
        labels: fields of hard labels, and how many classes the student tells apart there.
        world: the processes that the rows are dealt out to, where this one reads for all; `share` is then rank 0's.
    """
    loader = Loader(source.fetcher, size, first_ids(source), pin, Placing(source.targets, labels or {}, pin))
    shares = [Share(rank, world.size) for rank in range(world.size)]
    low, high = (share if world.size == 1 else shares[0]).rows(batch_size)

    def make() -> Iterator[tuple[Batch, Cursor]]:
        together = max(1, ROWS_TOGETHER // (high - low))
        num_orders = source.sequence.num_orders
        # Closed by hand: an error of the loader's own leaves the source in the middle of its orders, with its clients,
        # and other processes waiting for their rows.
        with closing(source.orders(start)) as orders:
            if world.size == 1:
                yield from loader.batches(cut(orders, batch_size, start, num_orders, together, pin, share))
                return
            for_all = cut_for_all(orders, batch_size, start, num_orders, shares, together, pin)
            with closing(deal(for_all, world)) as groups:
                yield from loader.batches(groups)

    def stop() -> None:
        source.close()
        loader.close()

    return Prefetcher(make, depth, stop, lambda: loader.busy)


def supply_dealt(
    dealt: Dealt,
    fetcher: Fetcher,
    targets: Mapping[str, TargetSpec],
    stand_ins: NDArray[np.int64],
    size: tuple[int, ...],
    depth: int,
    pin: bool,
    labels: Mapping[str, int],
) -> Prefetcher[tuple[Batch, Cursor]]:
    """Return what prepares this process's rows of all batches that rank 0 deals out.

    Args:
        dealt: where they come from.
        fetcher: the dataset under its view.
        targets: what the run's targets are, by name.
        stand_ins: [N] int64 samples, the first of which that can be decoded stands for one that cannot.
        size, depth, pin, labels: as `supply` has them.
    """
    loader = Loader(fetcher, size, stand_ins, pin, Placing(targets, labels, pin))
    return Prefetcher(lambda: loader.batches(dealt.batches(pin)), depth, loader.close, lambda: loader.busy)
