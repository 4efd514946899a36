"""What was measured of models, and what follows from it: medians, ratios, costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.inputs import Inputs

_FIGURES = ("p50_ms", "p95_ms", "p99_ms", "samples_per_s", "peak_bytes")
_DRAWN = {"p50_ms": "p50 of a call, ms", "samples_per_s": "samples/s", "p95_ms": "p95 of a call, ms"}
_COMPARED = ("p50_ms", "samples_per_s", "peak_bytes")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """An ONNX file to be measured."""

    name: str
    """As the user calls it."""
    path: Path
    file_bytes: int
    """With its external data."""
    inputs: Inputs
    data: str
    """Where they are from, for people."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a model is run."""

    batch_size: int
    threads: int
    """Of one call; 0: as many as there are cores."""
    provider: str
    """As `open_session` takes it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds' figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Summarise the figures of the rounds; None where one of them has none."""
        known = [each for each in values if each is not None]
        return Spread(statistics.median(known), min(known), max(known)) if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Measured:
    """One model in one configuration."""

    model: Model
    configuration: Configuration
    rounds: tuple[dict[str, Any], ...]
    """What `child.measure` gave, in order."""

    def spread(self, figure: str) -> Spread | None:
        """Median of a figure of `Times`, or of `peak_bytes`; None where a round has none."""
        return Spread.of([each[figure] for each in self.rounds])

    def ratio(self, figure: str, to: Measured) -> Spread | None:
        """Median of a figure over another model's of the same round, which a slow minute of the machine slows alike."""
        pairs = zip(self.rounds, to.rounds, strict=True)
        return Spread.of([one[figure] / other[figure] if other[figure] else None for one, other in pairs])


def cost_of_a_million(samples_per_s: float, price_per_hour: float) -> float:
    """Return what a million samples cost on a machine of that price that does nothing else, and is never idle."""
    return price_per_hour / 3600 * 1e6 / samples_per_s


def as_dicts(found: Sequence[Measured], price_per_hour: float | None = None) -> list[dict[str, Any]]:
    """Return all figures as JSON has them; each configuration's first model is what the others are compared with."""
    firsts: dict[Configuration, Measured] = {}
    return [_as_dict(each, firsts.setdefault(each.configuration, each), price_per_hour) for each in found]


def as_curves(found: Sequence[Measured]) -> tuple[list[str], list[dict[str, list[tuple[int, float]]]]]:
    """Return names, and of each its medians by batch size: figure -> (batch size, value), rising.

    A model has a name for each number of threads and provider that it was run with.
    """
    threads = {each.configuration.threads for each in found}
    providers = {each.configuration.provider for each in found}
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for each in sorted(found, key=lambda one: one.configuration.batch_size):
        how = each.configuration
        name = each.model.name
        name += f", {how.threads or 'all'} threads" if len(threads) > 1 else ""
        name += f", {how.provider}" if len(providers) > 1 else ""
        for figure, title in _DRAWN.items():
            spread = each.spread(figure)
            if spread is not None:
                curves.setdefault(name, {}).setdefault(title, []).append((how.batch_size, spread.median))
    return list(curves), list(curves.values())


def _as_dict(each: Measured, first: Measured, price_per_hour: float | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": each.model.name,
        **asdict(each.configuration),
        "providers": each.rounds[0]["providers"],
        "num_calls": sum(one["num_calls"] for one in each.rounds),
        **{name: _spread(each.spread(name)) for name in _FIGURES},
    }
    if price_per_hour is not None:
        result["cost_of_a_million"] = cost_of_a_million(result["samples_per_s"]["median"], price_per_hour)
    if first is not each:
        ratios = {name: _spread(each.ratio(name, first)) for name in _COMPARED}
        files = each.model.file_bytes / first.model.file_bytes
        result["ratios"] = {"to": first.model.name, **ratios, "file_bytes": files}
    return result


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)
