"""How long students waited for labels, over all the processes that played them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chaos.roles import Role


class Student(Role):
    """A student, whose run's metrics are read between the end of one process and the start of the next, which cuts
    them back to its checkpoint."""

    def __init__(self, *arguments: Any, folder: Path) -> None:
        """As a role; `folder` is its run's."""
        super().__init__(*arguments)
        self.longest_wait = 0.0
        """Seconds of the longest wait of the processes that have ended; see `longest_wait` below."""
        self._folder = folder

    def start(self) -> None:
        with self._lock:
            self.take_note()
            super().start()

    def take_note(self) -> None:
        """Look at the waits of the last process, if it has ended."""
        if self.child is None or self.running:
            return
        first = len(self.logs) == 1
        self.longest_wait = max(self.longest_wait, longest_wait(self._folder, self.began, self.struck, first))


def longest_wait(run: Path, began: float, struck: float | None, first: bool) -> float:
    """Seconds of the longest wait for a batch of a process that has ended, of a run that logs every step.

    That is the longest of: its waits that a batch ended, by its own clock; its wait for the first batch, which
    connecting and reading are part of; and, where it was killed or asked to end, the time from its last step to that,
    which is what a wait under way had come to, if there was one, and never less. Where it was frozen in a wait, that
    counts.

    Args:
        run: folder of the run.
        began: when the process was started: seconds since 1970, as the metrics have it.
        struck: when it was killed or asked to end; None: it ended by itself.
        first: whether no other has trained before it. The wait for its first batch is left out then: it is for workers
            that are starting.
    """
    timings = [each for each in _timings(run / "metrics.jsonl") if each["time"] >= began]
    waits = [0.0]
    if timings:
        waits.append(timings[-1]["longest_wait_s"])
        if not first:
            waits.append(timings[0]["waited_s"])
    if struck is not None and (since := timings[-1]["time"] if timings else _trains_since(run, began)) is not None:
        waits.append(struck - since)
    return max(waits)


def _timings(path: Path) -> list[dict[str, float]]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line)["timing"])
        except ValueError:
            continue  # the kill came while it was written
    return found


def _trains_since(run: Path, began: float) -> float | None:
    """When a process that has taken no step said that it trains, right before it asked for its first batch."""
    try:
        said = (run / "run.json").stat().st_mtime
    except FileNotFoundError:
        return None
    return said if said >= began else None
