"""A user's own view: `my_package.my_module:function`, called per sample with a generator of that sample's own."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import hash_int, tag
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


class BadRows(Exception):
    """A view raised for some samples of a batch, which are faults of their rows."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} samples have no view")
        self.reasons = reasons
        """row -> why"""


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
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"view {name}: {said(error)}; a view is a function(sample, rng, **params), its attribute `version` a whole "
            "number, `evaluation` a dict of parameters"
        ) from error
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return UserView(function, defaults, version, open_ended, evaluation)


def per_sample(name: str, function: Callable[..., Any]) -> Callable[..., Arrays]:
    """The function as a view of a whole batch; its images are resized where a size is asked for.

    The view raises BadRows where the function raises for a sample, or gives no arrays; OSError and MemoryError as the
    function does; ConfigError where samples get unlike fields.
    """

    def apply(
        samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
    ) -> Arrays:
        if not len(sample_ids):
            return samples
        seen: list[Arrays] = []
        reasons: dict[int, str] = {}
        for row, sample_id in enumerate(sample_ids.tolist()):
            sample = {field: array[row].copy() for field, array in samples.items()}
            try:
                with calling(f"view {name}, for sample {sample_id}"):
                    seen.append(_arrays(function(sample, generator(view_seed, sample_id), **params)))
            except Exception as error:
                if not blames_sample(error):
                    raise
                reasons[row] = f"view {name}: {said(error)}"
        if reasons:
            raise BadRows(reasons)
        kinds = [_kind(view) for view in seen]
        for kind, sample_id in zip(kinds, sample_ids.tolist(), strict=True):
            if kind != kinds[0]:
                raise ConfigError(
                    f"view {name} gives {kinds[0]} for sample {sample_ids[0]}, {kind} for sample {sample_id}; "
                    "a view gives all samples the same fields and shapes"
                )
        stacked = {field: np.stack([view[field] for view in seen]) for field in seen[0]}
        return plain(stacked, sample_ids, view_seed, {}, size)

    return apply


def _arrays(view: Any) -> Arrays:
    if not isinstance(view, dict) or not view:
        raise ValueError(f"gave a {type(view).__name__}; give a dict of arrays")
    arrays = {field: np.asarray(values) for field, values in view.items()}
    for field, array in arrays.items():
        if not isinstance(field, str) or array.dtype.kind not in "biuf":
            raise ValueError(f"field {field!r} is {array.dtype}; give arrays of numbers under names")
    return arrays


def _kind(view: Arrays) -> dict[str, str]:
    return {field: f"{array.dtype} {list(array.shape)}" for field, array in sorted(view.items())}
