"""One walk over batches that lie ready: it hands them out, reports where it stands, and always ends its threads."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

from schemas.errors import ConfigError, Starved
from student_trainer.batches import Batch
from student_trainer.prefetch import Prefetcher
from student_trainer.sources.base import Cursor

if TYPE_CHECKING:
    from student_trainer.reporter import RunReporter

T = TypeVar("T")


class Walk(Iterator[T], Generic[T]):
    """Iterates over what `hand_out` makes of each batch and the cursor behind it; used by one thread.

    It ends with its last batch, with `close`, when it raises, when nobody holds it any more, and with the program. Its
    report then says done, stopped, or failed.

    Args:
        ready: not yet entered.
        reporter: told before each batch where the walk stands; None: nobody is.
        start: the cursor of the first batch.
        hand_out: called once for each batch.
    """

    def __init__(
        self,
        ready: Prefetcher[tuple[Batch, Cursor]],
        reporter: RunReporter | None,
        start: Cursor,
        hand_out: Callable[[Batch, Cursor], T],
    ) -> None:
        self._ready, self._reporter, self._cursor, self._hand_out = ready, reporter, start, hand_out
        closing = ExitStack()
        if reporter is not None:
            if start != Cursor.start():
                reporter.checkpointed(start)  # whoever goes on there has saved it
            closing.enter_context(reporter)
        closing.enter_context(ready)
        # None of what it holds may hold the walk, or nobody would ever see that it was dropped.
        self._finalizer = weakref.finalize(self, _leave, closing, reporter, "stopped")
        self._closed = False

    def __next__(self) -> T:
        if not self._finalizer.alive:
            if self._closed:
                raise ConfigError("this iteration was ended by a later one over the same batches")
            raise StopIteration
        try:
            self._report()
            item = self._ready.get(self._report)
        except BaseException as error:
            failed = "starved" if isinstance(error, Starved) else "failed"
            self._end(failed if isinstance(error, Exception) else "stopped")
            raise
        if item is None:
            self._end("done")
            raise StopIteration
        batch, cursor = item
        handed_out = self._hand_out(batch, cursor)
        self._cursor = cursor
        return handed_out

    def close(self) -> None:
        """End the walk before its last batch."""
        self._closed = self._finalizer.alive
        self._end("stopped")

    def _report(self) -> bool:
        """Say where the walk stands, also while it waits; never a reason to wait no longer."""
        if self._reporter is not None:
            self._reporter.trained(self._cursor)
        return False

    def _end(self, state: str) -> None:
        if (found := self._finalizer.detach()) is not None:
            _, _, (closing, reporter, _), _ = found
            _leave(closing, reporter, state)


def _leave(closing: ExitStack, reporter: RunReporter | None, state: str) -> None:
    if reporter is not None:
        reporter.state(state)
    closing.close()
