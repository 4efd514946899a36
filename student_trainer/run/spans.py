"""Spans: from which order on a teacher counts in a run, and until which one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Span:
    """Some orders of each pass, one after the other."""

    first: int = 0
    """The first of them, by its sequence."""
    until: int | None = None
    """The first behind them; None: there is none."""

    def holds(self, sequence: int) -> bool:
        """Return whether an order is one of them."""
        return self.first <= sequence and (self.until is None or sequence < self.until)

    def next_in(self, sequence: int) -> int | None:
        """Return the first of them that is not before an order; None: there is none."""
        at = max(self.first, sequence)
        return at if self.holds(at) else None

    @property
    def partial(self) -> bool:
        """Whether there are orders that are none of them."""
        return self != Span()

    def __str__(self) -> str:
        """`from 20 until 40`, or what of it is said."""
        parts = [f"from {self.first}"] if self.first else []
        return " ".join([*parts, *([] if self.until is None else [f"until {self.until}"])])


WHOLE_STREAM = Span()


def uncovered(spans: Mapping[str, Span], num_orders: int) -> int | None:
    """Return the first of a stream's orders that is in no span; None: each is in one."""
    reached = 0
    for span in sorted(spans.values(), key=lambda each: each.first):
        if span.first > reached:
            break
        reached = num_orders if span.until is None else max(reached, span.until)
    return reached if reached < num_orders else None


def refuse_uncovered(spans: Mapping[str, Span], num_orders: int) -> None:
    """Refuse orders in which no teacher counts, and a teacher that counts in none.

    Args:
        spans: of the teachers that are learned from.
        num_orders: of the stream.

    Raises:
        ConfigError: it names the first such order, or the teacher.
    """
    for teacher, span in spans.items():
        if span.first >= num_orders:
            raise ConfigError(
                f"[[teachers]] {teacher}: counts from order {span.first} on, and the stream has {num_orders}, from 0 "
                "on: give a lower `from`, or leave the teacher out"
            )
    order = uncovered(spans, num_orders)
    if order is not None:
        said = ", ".join(f"{teacher} {span}".rstrip() for teacher, span in spans.items())
        raise ConfigError(
            f"[[teachers]] order {order}: no teacher that is learned from counts there ({said}); give one of them "
            "another `from` or `until`"
        )
