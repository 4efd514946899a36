"""Schedules of learning rates, weights and temperatures: pure functions of the step, so that there is no state to save.

Each returns the factor on the optimizer's lr, or a loss's weight or temperature, for `step` in [0, total); so does a
user's own, `package.module:function` with the signature `(step, total, **params)`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from pipeline.user_code import said
from schemas.errors import ConfigError
from student_trainer.learning.students import check_parameters
from student_trainer.run.choices import Choice, choose


def _warm(step: int, warmup: int) -> float:
    """Rise linearly to 1 over the first `warmup` steps; the first one already learns."""
    return min(1.0, (step + 1) / (warmup + 1))


def constant(step: int, total: int, warmup: int = 0) -> float:
    """1 after the warm-up (steps). Ignores the total."""
    return _warm(step, warmup)


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Half a cosine from 1 to `floor` after the warm-up (steps); the last step takes the floor."""
    if step < warmup:
        return _warm(step, warmup)
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return floor + (1 - floor) * (1 + cos(pi * min(1.0, progress))) / 2


def linear(step: int, total: int, warmup: int = 0, start: float = 1.0, end: float = 0.0, steps: int = 0) -> float:
    """A straight line from `start` to `end` over so many `steps`, 0 for all, after the warm-up; then it stays there."""
    if steps < 0:
        raise ValueError(f"steps must not be negative, is {steps}")
    if step < warmup:
        return start * _warm(step, warmup)
    progress = (step - warmup) / max(1, (steps or total - warmup) - 1)
    return start + (end - start) * min(1.0, progress)


def one_cycle(
    step: int, total: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> float:
    """Cosine up from 1/div_factor to 1 over `pct_start` of the steps, then cosine down to 1/(div * final_div).

    The shape of torch's OneCycleLR with its defaults (Smith & Topin 2018); its warm-up is its own first phase.
    Momentum does not cycle.
    """

    def anneal(start: float, end: float, progress: float) -> float:
        return end + (start - end) / 2 * (1 + cos(pi * progress))

    first, last = 1 / div_factor, 1 / (div_factor * final_div_factor)
    peak = pct_start * total - 1
    if step <= peak:
        return anneal(first, 1.0, step / peak if peak else 1.0)
    return anneal(1.0, last, min(1.0, (step - peak) / max(1.0, total - 1 - peak)))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "one_cycle": one_cycle,
}


def build_schedule(settings: Choice, total: int, section: str = "[schedule]") -> Callable[[int], float]:
    """Return step -> factor for a run of `total` steps.

    Args:
        settings: a name of SCHEDULES, or an import path, and its parameters.
        total: the run's steps.
        section: of the run file, for messages.

    Raises:
        ConfigError: no such schedule, or a parameter that it does not take or that makes no sense.
    """
    function = choose(section, "schedule", settings.name, SCHEDULES, lambda found: found)
    check_parameters(function, 2, settings.params, f"{section} {settings.name}")
    params = dict(settings.params)
    if (warmup := params.get("warmup")) is not None and isinstance(warmup, int) and warmup >= total:
        raise ConfigError(
            f"{section} {settings.name}: a warmup of {warmup} steps does not end within the run's {total}; take fewer"
        )
    try:
        if not all(factor >= 0 for factor in (function(0, total, **params), function(total - 1, total, **params))):
            raise ValueError("it turns negative")
    except Exception as error:  # one may be of the user's own
        raise ConfigError(f"{section} {settings.name}: {said(error)}") from error
    return lambda step: function(step, total, **params)


def scheduled(value: float, choice: Choice | None, total: int, section: str) -> Callable[[int], float]:
    """Return step -> a value that is above 0, times the schedule's factor where there is one.

    Raises:
        ConfigError: as `build_schedule`.
    """
    if choice is None:
        return lambda step: value
    factor = build_schedule(choice, total, section)
    return lambda step: value * factor(step)
