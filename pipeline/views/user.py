"""A user's own view: `my_package.my_module:function`, called per sample with a generator of that sample's own."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import hash_int, tag
from pipeline.second_look import SecondLook
from pipeline.user_code import blames_sample, calling, imported, said
from pipeline.views.plain import plain
from schemas.errors import ConfigError

_TAG = tag("view.user")


@dataclass(frozen=True, slots=True)
class UserView:
    """A user's function, and what it says of itself."""

    function: Callable[..., Any]
    defaults: dict[str, Any]
    """Its parameters that have one."""
    version: int
    """Its attribute `version`, 1 without: raised when the function's result changes."""
    open_ended: bool
    """It takes **params."""
    evaluation: Mapping[str, Any] | None
    """Its attribute `evaluation`: the parameters under which it augments nothing; None where it does not say."""
    thread_safe: bool
    """Its attribute `thread_safe`: whether several threads may call it at once."""
    max_positions: Mapping[str, int]
    """Its attribute `max_positions`: field -> the most positions of a sample that it chooses."""


@dataclass(slots=True)
class Usual:
    """What all samples of a view are held to."""

    kind: str = ""
    """Fields, dtypes and shapes; "" until a sample was seen."""


class BadRows(Exception):
    """Some samples of a batch have no view, which are faults of their rows."""

    def __init__(self, reasons: dict[int, str], inputs: Arrays) -> None:
        super().__init__(f"{len(reasons)} samples have no view")
        self.reasons = reasons
        """row -> why"""
        self.inputs = inputs
        """The views of all other rows."""


def generator(view_seed: int, sample_id: int) -> np.random.Generator:
    """A sample's own generator: the same whichever batch it is in."""
    return np.random.Generator(np.random.PCG64(hash_int(view_seed, _TAG, sample_id)))


def load(name: str) -> UserView:
    """The view that `module:function` names. Raises ConfigError."""
    function = imported("view", name, "Views are called function(sample, rng, **params)")
    try:
        with calling(f"view {name}"):
            parameters = list(inspect.signature(function).parameters.values())[2:]
            version = operator.index(getattr(function, "version", 1))
            evaluation = getattr(function, "evaluation", None)
            evaluation = None if evaluation is None else dict(evaluation)
            limits = {}
            for field, limit in dict(getattr(function, "max_positions", {})).items():
                if not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 1:
                    raise ValueError(f"max_positions of field {str(field)!r} is {limit!r}: no whole number from 1 on")
                limits[str(field)] = int(limit)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"view {name}: {said(error)}; a view is a function(sample, rng, **params), its attribute `version` a whole "
            "number, `evaluation` a dict of parameters, `max_positions` a dict of whole numbers"
        ) from error
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    thread_safe = getattr(function, "thread_safe", False) is True
    return UserView(function, defaults, version, open_ended, evaluation, thread_safe, limits)


def per_sample(name: str, function: Callable[..., Any], usual: Usual) -> Callable[..., Arrays]:
    """The function as a view of a whole batch; its images are resized where a size is asked for.

    The view raises BadRows where the function raises for a sample, gives no arrays, or gives other fields or shapes
    than is `usual`: for most of the first batch that it saw (of a stream: the first sample of its probe). OSError as
    the function does, ConfigError and DataUnavailable as `calling`.
    """

    def view_of(samples: Arrays, row: int, sample_id: int, view_seed: int, params: dict[str, Any]) -> Arrays:
        sample = {field: array[row].copy() for field, array in samples.items()}
        with calling(f"view {name}, for sample {sample_id}"):
            return _arrays(function(sample, generator(view_seed, sample_id), **params))

    def apply(
        samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
    ) -> Arrays:
        seen: dict[int, Arrays] = {}
        reasons: dict[int, str] = {}
        look = SecondLook()
        for row, sample_id in enumerate(sample_ids.tolist()):
            try:
                seen[row] = look.at(partial(view_of, samples, row, sample_id, view_seed, params))
            except Exception as error:
                if not blames_sample(error):
                    raise
                reasons[row] = f"view {name}: {said(error)}"
        kinds = {row: _kind(view) for row, view in seen.items()}
        if kinds and not usual.kind:
            usual.kind = Counter(kinds.values()).most_common(1)[0][0]
        for row, kind in kinds.items():
            if kind != usual.kind:
                del seen[row]
                reasons[row] = f"view {name}: gives {kind} for this sample, {usual.kind} for others"
        inputs = {field: array[:0] for field, array in samples.items()}
        if seen:
            views = list(seen.values())
            inputs = {field: np.stack([view[field] for view in views]) for field in views[0]}
            inputs = plain(inputs, sample_ids[list(seen)], view_seed, {}, size)
        if reasons:
            raise BadRows(reasons, inputs)
        return inputs

    return apply


def _arrays(view: Any) -> Arrays:
    if not isinstance(view, dict) or not view:
        raise ValueError(f"gave a {type(view).__name__}; give a dict of arrays")
    arrays = {field: np.asarray(values) for field, values in view.items()}
    for field, array in arrays.items():
        if not isinstance(field, str) or array.dtype.kind not in "biuf":
            raise ValueError(f"field {field!r} is {array.dtype}; give arrays of numbers under names")
    return arrays


def _kind(view: Arrays) -> str:
    return ", ".join(f"{field} {array.dtype} {list(array.shape)}" for field, array in sorted(view.items()))
