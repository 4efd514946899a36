"""Students in turns, one at a time, and what the turns come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from benchmarks.pairs import Pairs, Spread, interleave, median_interval
from benchmarks.paper.meter import Metered, Reading
from benchmarks.streams import ORDER_SIZE


@dataclass(frozen=True, slots=True)
class Turns:
    """How students take turns."""

    pairs: int = 30
    seconds: float = 0.8
    """of a turn, at least"""
    steps: int = 3
    """of a turn, at least"""


def samples_per_s(taken: Reading) -> float:
    """Samples over the student's seconds: CPU, and idle within its waits."""
    return ORDER_SIZE * taken.steps / (taken.cpu + taken.idle)


def samples_per_s_by_the_clock(taken: Reading) -> float:
    """Samples over all seconds in which it was not stopped."""
    return ORDER_SIZE * taken.steps / taken.clock


def in_turns(turns: Turns, pure: Metered, others: Mapping[str, Metered]) -> tuple[list[Reading], dict[str, Any]]:
    """Let pure training and the others run in turns; pure's readings, and the others' by name."""
    of_pure: list[Reading] = []
    readings: dict[str, list[Reading]] = {name: [] for name in others}

    def turn(student: Metered, into: list[Reading]) -> Callable[[], float]:
        def take() -> float:
            into.append(student.run(turns.seconds, turns.steps))
            return samples_per_s(into[-1])

        return take

    interleave(turns.pairs, turn(pure, of_pure), *(turn(others[name], readings[name]) for name in others))
    return of_pure, readings


def ratios(
    ours: Sequence[Reading], pure: Sequence[Reading], rate: Callable[[Reading], float] = samples_per_s
) -> dict[str, Any]:
    """What is said of a student against pure training: `Pairs.as_dict`, the median's interval, and both rates."""
    pairs = Pairs(tuple(map(rate, ours)), tuple(map(rate, pure)))
    return pairs.as_dict() | {
        "interval": list(median_interval(pairs.ratios)),
        "samples_per_s": Spread.of(pairs.ours).median,
        "bare_samples_per_s": Spread.of(pairs.bare).median,
        "idle": sum(each.idle for each in ours) / sum(each.cpu + each.idle for each in ours),
    }


def against(ours: Sequence[Reading], theirs: Sequence[Reading]) -> dict[str, Any]:
    """One student against another that took turns with it, turn by turn."""
    values = [samples_per_s(one) / samples_per_s(other) for one, other in zip(ours, theirs, strict=True)]
    spread = Spread.of(values)
    return {
        "median": spread.median,
        "spread": spread.width,
        "quartiles": [spread.low, spread.high],
        "interval": list(median_interval(values)),
        "pairs": len(values),
        "values": values,
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of one of them; 0 of a single one."""
    mean = sum(values) / len(values)
    return mean, sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
