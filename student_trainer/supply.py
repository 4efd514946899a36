"""From a source to batches that lie ready: cut its rows, fetch the views of this process's share, ahead of the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

from student_trainer.batches import WHOLE, Batch, Share, cut
from student_trainer.loading import ROWS_TOGETHER, Loader
from student_trainer.placing import Placing
from student_trainer.prefetch import Prefetcher
from student_trainer.preparation import first_ids
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
    """
    loader = Loader(source.fetcher, size, first_ids(source), pin, Placing(source.targets, labels or {}, pin))
    low, high = share.rows(batch_size)

    def make() -> Iterator[tuple[Batch, Cursor]]:
        together = max(1, ROWS_TOGETHER // (high - low))
        num_orders = source.sequence.num_orders
        # Closed by hand: an error of the loader's own leaves the source in the middle of its orders, with its clients.
        with closing(source.orders(start)) as orders:
            yield from loader.batches(cut(orders, batch_size, start, num_orders, together, pin, share))

    def stop() -> None:
        source.close()
        loader.close()

    return Prefetcher(make, depth, stop, lambda: loader.busy)
