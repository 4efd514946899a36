"""A metric of a user's own: `my_package.my_module:MyMetric`, a class or a function that makes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from numpy.typing import NDArray

from pipeline.user_code import calling, said
from schemas.errors import ConfigError, DistillogError
from student_trainer.scores.seen import Metric, Seen


class Own(Metric):
    """A user's metric among ours: whatever it raises, and whatever it gives that is no figure, is one line.

    It has `update(outputs, inputs, labels)`, of the student's outputs by name, the view's fields by name and the
    dataset's labels [N] int64 (-1: none), and `compute()`, which returns finite numbers by name. The arrays are
    read-only: others look at them, too.
    """

    def __init__(self, make: Callable[..., Any], params: Mapping[str, Any]) -> None:
        """Make it with its parameters. Raises ConfigError as all methods do."""
        with _called("it"):
            self._metric = make(**params)
        for method in ("update", "compute"):
            if not callable(getattr(self._metric, method, None)):
                raise ConfigError(f"is a {type(self._metric).__name__} without {method}()")

    def update(self, seen: Seen) -> None:
        """Hand a batch on."""
        outputs, inputs = (
            {name: _kept(values) for name, values in each.items()} for each in (seen.outputs, seen.inputs)
        )
        with _called("update()"):
            self._metric.update(outputs, inputs, _kept(seen.labels))

    def compute(self) -> dict[str, float]:
        """Return its figures."""
        with _called("compute()"):
            given = self._metric.compute()
        if not isinstance(given, Mapping):
            raise ConfigError(f"compute() gave a {type(given).__name__}; it has to give a dict of numbers")
        return {_name(key): _number(key, value) for key, value in given.items()}


def _kept(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view


def _name(key: Any) -> str:
    if not isinstance(key, str) or not key or not key.isprintable():
        raise ConfigError(f"compute() gave the name {key!r}; names are texts that can be printed, on one line")
    return key


def _number(key: Any, value: Any) -> float:
    try:
        finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise ConfigError(
            f"compute() gave {str(value)[:40]!r} for {key!r}; figures are finite numbers: leave out what is not defined"
        )
    return int(value) if isinstance(value, Integral) else float(value)


@contextmanager
def _called(what: str) -> Iterator[None]:
    try:
        with calling(what):
            yield
    except DistillogError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} raised {said(error)}") from error
