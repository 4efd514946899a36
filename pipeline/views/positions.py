"""Which positions of a sample a field of its view chooses: those where it is not 0. Letters: M samples, P positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError
from schemas.names import did_you_mean
from schemas.positions import Chosen

_TAG = tag("view.positions")

Bools = npt.NDArray[np.bool_]


def chosen(values: npt.NDArray[Any]) -> Bools:
    """Return where a field [M, *places] chooses a position."""
    mask: Bools = values != 0
    return mask


def num_chosen(mask: Bools) -> Ints:
    """Return [M] int64: how many positions of each sample [M, *places] are chosen."""
    return np.asarray(np.count_nonzero(mask, axis=tuple(range(1, mask.ndim))), np.int64)


def what_is_chosen(mask: Bools) -> Chosen:
    """Return what labels say of the positions [M, *places] that are chosen.

    A sample's mark is the sum of a hash of each of its places, modulo 2^64, of which the upper half is kept.
    """
    rows = mask.reshape(len(mask), math.prod(mask.shape[1:]))
    hashes = hash64(_TAG, np.arange(rows.shape[1]))
    marks = (np.where(rows, hashes, np.uint64(0)).sum(axis=1, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)
    return Chosen(num_chosen(mask), marks)


def choosers(values: npt.NDArray[Any]) -> Bools:
    """Return [M]: which samples of a field [M, *places] hold nothing negative and no NaN, as a field of labels may."""
    return np.asarray((values >= 0).all(axis=tuple(range(1, values.ndim))))


def too_many(view: str, inputs: Arrays, limits: Mapping[str, int]) -> dict[int, str]:
    """Return row -> why, of the M samples (field -> [M, ...]) that choose more positions than their view allows.

    Args:
        view: its name.
        inputs: the views of one sample or more.
        limits: field -> the most positions of a sample.

    Raises:
        ConfigError: a limit of a field that the view does not give.
    """
    reasons: dict[int, str] = {}
    for field, limit in limits.items():
        if field not in inputs:
            raise ConfigError(f"view {view}: max_positions is of a field {field!r}: {did_you_mean(field, inputs)}")
        counts = num_chosen(chosen(inputs[field]))
        for row in np.flatnonzero(counts > limit).tolist():
            why = f"chooses {counts[row]} positions by field {field!r}, and its max_positions are {limit}"
            reasons.setdefault(row, f"view {view}: {why}")
    return reasons
