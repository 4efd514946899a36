"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state of theirs.

Each returns the factor on the optimizer's lr for `step` in [0, total); so does a user's own, `package.module:function`
with the signature `(step, total, **params)`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from pipeline.user_code import said
from schemas.errors import ConfigError
from student_trainer.learning.students import check_parameters
from student_trainer.run.choices import choose
from student_trainer.run.settings import Choice


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


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "cosine": cosine, "one_cycle": one_cycle}


def build_schedule(settings: Choice, total: int) -> Callable[[int], float]:
    """Return step -> factor on the learning rate for a run of `total` steps.

    Raises:
        ConfigError: no such schedule, or a parameter that it does not take or that makes no sense.
    """
    function = choose("[schedule]", "schedule", settings.name, SCHEDULES, lambda found: found)
    check_parameters(function, 2, settings.params, f"[schedule] {settings.name}")
    params = dict(settings.params)
    if (warmup := params.get("warmup")) is not None and isinstance(warmup, int) and warmup >= total:
        raise ConfigError(
            f"[schedule] {settings.name}: a warmup of {warmup} steps does not end within the run's {total}; take fewer"
        )
    try:
        if not all(factor >= 0 for factor in (function(0, total, **params), function(total - 1, total, **params))):
            raise ValueError("it turns negative")
    except Exception as error:  # one may be of the user's own
        raise ConfigError(f"[schedule] {settings.name}: {said(error)}") from error
    return lambda step: function(step, total, **params)
