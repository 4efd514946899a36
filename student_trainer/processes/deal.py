"""Dealing the rows of each batch out: rank 0 reads and cuts them, and each process gets its own.

Once a dealer or a receiver has begun, it ends by itself whoever leaves first: rank 0 says when nothing more comes, and
the others take what is still on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import torch

from schemas.errors import PeerLost
from student_trainer.batches import Cut, RowBatch, Whole
from student_trainer.processes.frames import pack, unpack
from student_trainer.processes.world import World
from student_trainer.sources.base import Cursor

Group = list[tuple[RowBatch, Cursor]]

_OVER = torch.zeros(1, dtype=torch.uint8)
"""A message that is no rows: nothing more comes."""


def deal(groups: Iterable[list[tuple[tuple[RowBatch, ...], Cursor]]], world: World) -> Iterator[Group]:
    """Yield rank 0's own rows of each batch, when the others have theirs.

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
            yield [(_with_whole(parts), cursor) for parts, cursor in group]
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


def dealt(world: World, pin: bool) -> Iterator[Group]:
    """Yield this process's rows of each batch as rank 0 deals them, in page-locked memory where asked.

    Raises:
        PeerLost: rank 0 is gone.
    """
    over = False
    try:
        while not (over := len(message := world.receive()) == len(_OVER)):
            rows, cursor = unpack(message, pin)
            yield [(rows, cursor)]
    finally:
        with suppress(PeerLost):
            while not over:
                over = len(world.receive()) == len(_OVER)
