"""Two loops against each other on a machine that others use too: interleaved, as ratios, with the noise beside them.

The order is bare, ours, bare, ours, ..., bare. Each of our figures is divided by the geometric mean of the bare ones
right before and after it, so a machine that slows down slowly slows both; and each bare figure divided by the one
before it is what the same method says of a loop against itself: the noise below which a ratio means nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

Measure = Callable[[], float]
"""Runs a loop once and returns its rate (more is better) or its time; the same for both loops."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of some figures."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one figure; quartiles are interpolated between the figures themselves."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def width(self) -> float:
        """Distance of the quartiles."""
        return self.high - self.low


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of the median of what such figures are drawn from, whatever their distribution (by order statistics).

    Of too few figures for that confidence (below 6 for 0.95) the least and the largest.
    """
    ordered, count = sorted(values), len(values)
    left_out, chance = 0, 0.0
    for rank in range((count + 1) // 2):
        chance += comb(count, rank) / 2**count  # that no more than `rank` of the figures lie below the median
        if 2 * chance > 1 - confidence:
            break
        left_out = rank
    return ordered[left_out], ordered[count - 1 - left_out]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Figures of n of our loops and of the n + 1 bare ones around them, in the order in which they ran."""

    ours: tuple[float, ...]
    bare: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ours or len(self.bare) != len(self.ours) + 1:
            raise ValueError(f"{len(self.ours)} figures need {len(self.ours) + 1} bare ones, not {len(self.bare)}")

    @property
    def ratios(self) -> list[float]:
        """[n] ours / bare."""
        return [
            ours / sqrt(before * after)
            for ours, before, after in zip(self.ours, self.bare[:-1], self.bare[1:], strict=True)
        ]

    @property
    def self_ratios(self) -> list[float]:
        """[n] bare / bare, each with the one before it."""
        return [after / before for before, after in zip(self.bare[:-1], self.bare[1:], strict=True)]

    @property
    def differences(self) -> list[float]:
        """[n] ours - bare, for figures that are times."""
        return [
            ours - (before + after) / 2
            for ours, before, after in zip(self.ours, self.bare[:-1], self.bare[1:], strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return what `bench.json` says of a ratio."""
        ratio, itself = Spread.of(self.ratios), Spread.of(self.self_ratios)
        return {
            "median": ratio.median,
            "spread": ratio.width,
            "quartiles": [ratio.low, ratio.high],
            "self_median": itself.median,
            "self_spread": itself.width,
            "self_quartiles": [itself.low, itself.high],
            "pairs": len(self.ours),
            "values": self.ratios,
            "self_values": self.self_ratios,
        }


def interleave(num_pairs: int, bare: Measure, *ours: Measure) -> list[Pairs]:
    """Run bare, every one of ours, bare, every one of ours, ..., bare; one `Pairs` for each of ours.

    Nothing is warmed up here.
    """
    bares = [bare()]
    figures: list[list[float]] = [[] for _ in ours]
    for _ in range(num_pairs):
        for measure, taken in zip(ours, figures, strict=True):
            taken.append(measure())
        bares.append(bare())
    return [Pairs(tuple(taken), tuple(bares)) for taken in figures]
