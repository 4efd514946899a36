"""The table that a fleet shows on a terminal: a row for each worker, with what its group says of it."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from teacher_service.fleet.readings import Figures
from teacher_service.fleet.slot import Slot

_HEADER = ("worker", "on", "", "partitions", "samples/s", "labelled/s", "lag")
_FIGURES = attrgetter("partitions", "samples_per_second", "labelled_per_second", "lag")


def table(slots: Iterable[Slot], figures: Figures, now: float) -> list[tuple[object, ...]]:
    """Header and rows; `now` is seconds on the monotonic clock."""
    rows: list[tuple[object, ...]] = [_HEADER]
    for slot in slots:
        if not slot.free:
            worker = figures.teacher.workers.get(slot.name) if slot.process else None
            known = _FIGURES(worker) if worker else (None,) * 4
            rows.append((slot.name, slot.place.name, _state(slot, now), *known))
    return rows


def _state(slot: Slot, now: float) -> str:
    if slot.process is None:
        return f"starts in {max(0.0, slot.starts_at - now):.0f} s"
    if not slot.wanted:
        return "leaves"
    return "works" if slot.ready_at is not None else f"starts since {now - slot.began:.0f} s"
