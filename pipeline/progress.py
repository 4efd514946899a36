"""Progress of long work: a live line on a terminal; elsewhere a plain one every 10 s, rarer while nothing moves."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

PLAIN_INTERVAL = 10.0
"""seconds between two lines that are not on a terminal; one that says what the last did comes after twice as many, the
next after twice that, and so on"""
PLAIN_LONGEST = 600.0
"""seconds between two such lines at most"""
RATE_SECONDS = 60.0
"""over which a rate is taken: several orders of a slow teacher, and soon 0 for one that has nothing to do"""


class Rate:
    """How fast a count grows, per second of the last minute; for one thread."""

    def __init__(self) -> None:
        self._looks = deque([(time.monotonic(), 0)])

    def of(self, count: int) -> float:
        """Take note of the count as it is now."""
        now = time.monotonic()
        self._looks.append((now, count))
        while now - self._looks[0][0] > RATE_SECONDS and len(self._looks) > 2:
            self._looks.popleft()
        then, before = self._looks[0]
        return (count - before) / max(now - then, 1e-9)


class Progress:
    """Shows named figures of a long work; a context manager, so that the terminal is left clean.

    Safe to call from one thread at a time.
    """

    _num_quiet: ClassVar[int] = 0
    """How many quiet ones are entered: what is shown inside of them is quiet too."""

    def __init__(
        self, console: Console | None = None, *, title: str = "", quiet: bool = False, after: float = 0.0
    ) -> None:
        """`console` is stderr's if not given; `quiet` shows nothing at all; figures come `after` seconds."""
        self._title = title
        self._asked_quiet = quiet
        self._quiet = quiet or Progress._num_quiet > 0
        self._first = time.monotonic() + after
        self._fields: dict[str, object] = {}
        self._shown = ""
        self._rows: Sequence[Sequence[object]] = ()
        self._last = float("-inf")
        self._again = PLAIN_INTERVAL
        """seconds after which a line comes again that says nothing new"""
        self._console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        Progress._num_quiet += self._asked_quiet
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress._num_quiet -= self._asked_quiet
        self.close()

    def update(self, **fields: Any) -> None:
        """Set figures; those not named keep their value, None removes one. `sample_ids=3` shows `sample ids 3`."""
        if self._quiet:
            return
        self._fields = {key: value for key, value in {**self._fields, **fields}.items() if value is not None}
        if time.monotonic() < self._first:
            return
        if self._terminal():
            self._show_live()
        elif self._fields:
            least = self._again if self.line() == self._shown else PLAIN_INTERVAL
            if time.monotonic() - self._last >= least:
                self._print_plain()

    def table(self, rows: Sequence[Sequence[object]]) -> None:
        """Set rows to show below the figures, on a terminal alone; the first one is the header."""
        self._rows = rows

    def message(self, text: str) -> None:
        """Print a line of its own, at once."""
        if self._quiet:
            return
        if self._terminal():
            assert self._console is not None  # a terminal was found
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def close(self) -> None:
        """End the live line; print the last figures if they were not."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif not self._quiet and self._fields and self.line() != self._shown and time.monotonic() >= self._first:
            self._print_plain()

    def line(self) -> str:
        """What is shown now."""
        figures = (f"{key.replace('_', ' ')} {_text(value)}" for key, value in self._fields.items())
        return "  ".join(filter(None, (self._title, *figures)))

    def _terminal(self) -> bool:
        if self._console is None and sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True)
        return self._console is not None and self._console.is_terminal

    def _show_live(self) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        line = Text(self.line(), overflow="ellipsis", no_wrap=True)
        self._live.update(Group(line, _table(self._rows)) if self._rows else line)

    def _print_plain(self) -> None:
        line = self.line()
        self._again = min(PLAIN_LONGEST, 2 * (self._again if line == self._shown else PLAIN_INTERVAL))
        self._last, self._shown = time.monotonic(), line
        self._write(line)

    def _write(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _table(rows: Sequence[Sequence[object]]) -> Table:
    from rich.table import Table

    table = Table(*map(str, rows[0]), box=None, padding=(0, 2, 0, 0))
    for row in rows[1:]:
        table.add_row(*("-" if cell is None else _text(cell) for cell in row))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
