"""Before each step all processes of a run say how they stand, so that all take it, or all leave.

What one of them finds (a sample that cannot be decoded, storage that is away, a signal) ends the run for all at the
same step, and rank 0 saves what was learned until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from schemas.errors import PeerLost
from student_trainer.batches import Batch
from student_trainer.learning.positions import PositionTarget, labels_name
from student_trainer.processes.world import World


class Met(NamedTuple):
    """What came of a meeting."""

    batch: Batch | None
    """This process's rows of the next batch; None: all leave."""
    stopped: bool
    """Whether they leave since one of them was asked to stop."""


def meet(world: World, batch: Batch | None, stopped: bool, labels: Sequence[str], batch_size: int) -> Met:
    """Settle whether the next step is taken.

    Args:
        world: all processes, which call this together, or `leave` in its place.
        batch: this process's; None: there is none any more.
        stopped: whether this process was asked to stop.
        labels: fields of hard labels of positions, whose density is that of the whole batch.
        batch_size: B of all processes together.

    Raises:
        PeerLost: another process cannot go on; says what it said.
    """
    if world.size == 1:
        return Met(None if stopped else batch, stopped)
    names = [labels_name(field) for field in labels]
    undecodable = 0 if batch is None or batch.weights is None else int((batch.weights == 0).sum())
    counts = [0 if batch is None else len(_positions(batch, name).at) for name in names]
    standing = world.stand(stopped, batch is None, False, undecodable, counts)
    if standing.failed:
        _raise_what_was_said(world)
    if batch is None or not standing.goes_on:
        return Met(None, standing.stopped > 0)
    there = {
        name: replace(_positions(batch, name), density=count / batch_size)
        for name, count in zip(names, standing.counts, strict=True)
    }
    return Met(replace(batch, targets=batch.targets | there, undecodable_rows=standing.undecodable), False)


def assemble(world: World) -> None:
    """Wait until all are ready to train; called by all of them, or `leave` in its place.

    Raises:
        PeerLost: another process cannot begin; says what it said.
    """
    if world.size > 1 and world.stand(False, False, False, 0).failed:
        _raise_what_was_said(world)


def leave(world: World, why: BaseException) -> None:
    """Tell the others, in place of `assemble` or `meet`, that this process cannot go on, as far as they are there."""
    if world.size > 1:
        with suppress(PeerLost):
            world.stand(False, False, True, 0, ())
            world.words(f"rank {world.rank}: {why}")


@contextmanager
def telling(world: World, first: Callable[[], object]) -> Iterator[None]:
    """Let the others, who go to the next meeting, hear of an error that ends this process before it.

    `first` is called before that: it ends what they may be waiting for on their way there, as rows.
    """
    try:
        yield
    except Exception as error:
        first()
        leave(world, error)
        raise


def _raise_what_was_said(world: World) -> None:
    said = [text for text in world.words("") if text]
    raise PeerLost(f"another process of the run cannot go on: {'; '.join(said)}")


def _positions(batch: Batch, name: str) -> PositionTarget:
    found = batch.targets[name]
    assert isinstance(found, PositionTarget)  # labels of positions are nothing else
    return found
