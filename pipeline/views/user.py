"""A user's own view: `my_package.my_module:function`, called per sample with a generator of that sample's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.datasets.user import imported
from pipeline.hashing import hash_int, tag
from pipeline.views.plain import plain

_TAG = tag("view.user")


def generator(view_seed: int, sample_id: int) -> np.random.Generator:
    """A sample's own generator: the same whichever batch it is in."""
    return np.random.Generator(np.random.PCG64(hash_int(view_seed, _TAG, sample_id)))


def load(name: str) -> tuple[Callable[..., Any], dict[str, Any], int, bool]:
    """(function, its keyword defaults, its version, whether it takes **params) of `module:function`.

    The version is the function's attribute `version`, 1 without: raise it when the function's result changes.
    Raises ConfigError.
    """
    module, _, attribute = name.partition(":")
    function = imported("view", module, attribute, "Views are called function(sample, rng, **params)")
    parameters = list(inspect.signature(function).parameters.values())[2:]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return function, defaults, int(getattr(function, "version", 1)), open_ended


def per_sample(function: Callable[..., Any]) -> Callable[..., Arrays]:
    """The function as a view of a whole batch; its images are resized where a size is asked for."""

    def apply(
        samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
    ) -> Arrays:
        if not len(sample_ids):
            return samples
        seen = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            sample = {name: array[row].copy() for name, array in samples.items()}
            seen.append(function(sample, generator(view_seed, sample_id), **params))
        stacked = {name: np.stack([view[name] for view in seen]) for name in seen[0]}
        return plain(stacked, sample_ids, view_seed, {}, size)

    return apply
