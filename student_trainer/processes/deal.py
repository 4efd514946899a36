"""Dealing the rows of each batch out: rank 0 reads and cuts them, and each process gets its own.

Sending waits until rows are taken. So rank 0 hands its own on batch by batch, and never lacks one that the others wait
to train on; and whoever leaves takes, and drops, what is still on its way, until rank 0 says that nothing more comes.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from schemas.errors import PeerLost
from student_trainer.batches import Cut, RowBatch, Whole
from student_trainer.processes.frames import pack, unpack
from student_trainer.processes.world import World
from student_trainer.sources.base import Cursor

Group = list[tuple[RowBatch, Cursor]]

_OVER = torch.zeros(1, dtype=torch.uint8)
"""A message that is no rows: nothing more comes."""


def deal(groups: Iterable[list[tuple[tuple[RowBatch, ...], Cursor]]], world: World) -> Generator[Group]:
    """Yield rank 0's own rows of each batch, when the others have theirs; close it, that they hear of its end.

    Args:
        groups: each batch as the rows of each rank, and the cursor behind it.
        world: all processes.

    Raises:
        PeerLost: one of them is gone.
    """
    try:
        for group in groups:
            for parts, cursor in group:
                for rank in range(1, world.size):
                    world.send(rank, pack((parts[rank], cursor)))
                yield [(_with_whole(parts), cursor)]
    finally:
        for rank in range(1, world.size):
            with suppress(PeerLost):
                world.send(rank, _OVER)


def _with_whole(parts: tuple[RowBatch, ...]) -> RowBatch:
    """Rank 0's rows, which say what the whole batch is."""
    ids = torch.cat([part.sample_ids for part in parts])
    cuts: list[Cut] = []
    for cut in (cut for part in parts for cut in part.cuts):
        last = cuts[-1] if cuts else None
        if last and replace(last, row=last.row + last.num_rows, num_rows=cut.num_rows) == cut:
            cuts[-1] = replace(last, num_rows=last.num_rows + cut.num_rows)  # parted by the shares alone
        else:
            cuts.append(cut)
    return replace(parts[0], whole=Whole(ids, tuple(cuts)))


class Dealt:
    """This process's rows of each batch, as rank 0 deals them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._turn = threading.Lock()
        self._over = False
        self._dropping: threading.Thread | None = None

    def batches(self, pin: bool) -> Iterator[Group]:
        """Yield the rows of each batch, in page-locked memory where asked.

        Raises:
            PeerLost: rank 0 is gone.
        """
        while (message := self._next()) is not None:
            rows, cursor = unpack(message, pin)
            yield [(rows, cursor)]

    def drop(self) -> None:
        """From now on take what comes and drop it, beside whatever else this process does."""
        if self._dropping is None:
            self._dropping = threading.Thread(target=self._drop, name="drops rows", daemon=True)
            self._dropping.start()

    def wait(self, seconds: float) -> None:
        """Wait until rank 0 has said that nothing more comes, so long at most; `drop` was called."""
        if self._dropping is not None:
            self._dropping.join(seconds)

    def _drop(self) -> None:
        with suppress(PeerLost):
            while self._next() is not None:
                pass

    def _next(self) -> Tensor | None:
        """The next message; None: nothing more comes."""
        with self._turn:
            if self._over:
                return None
            message = self._world.receive()
            self._over = len(message) == len(_OVER)
            return None if self._over else message
