"""The "signal" view: one-dimensional signals shifted, scaled and given noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import normal, uniform
from pipeline.views.images import resized
from schemas.errors import ConfigError


def signal(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Every float field [N, C, L] as float32; other fields pass unchanged. `size`: (another length,).

    `shift`: +- fraction of the length, linear between points, zeros come in; `scale`: factor 1 +- this; `noise`:
    sigma, added before a resize. Raises ConfigError when there is no such field.
    """
    names = sorted(name for name, array in samples.items() if array.ndim == 3 and array.dtype.kind == "f")
    if not names:
        raise ConfigError(f"view signal needs a float field [channels, length], the dataset has {sorted(samples)}")
    draws = uniform(view_seed, sample_ids, "signal", 2) * 2.0 - 1.0
    factor = (1.0 + params["scale"] * draws[:, 1]).astype(np.float32)[:, None, None]
    result = dict(samples)
    for name in names:
        values = samples[name].astype(np.float32, copy=False)
        n, channels, length = values.shape
        if params["shift"]:
            padded = np.zeros((n, channels, length + 3), np.float32)
            padded[:, :, 1:-2] = values
            place = np.clip(np.arange(length) - params["shift"] * length * draws[:, :1] + 1.0, 0.0, length + 1.0)
            left = np.floor(place).astype(np.int64)
            rest = (place - left).astype(np.float32)[:, None, :]
            at = np.broadcast_to(left[:, None, :], values.shape)
            low = np.take_along_axis(padded, at, 2)
            values = low + (np.take_along_axis(padded, at + 1, 2) - low) * rest
        if params["scale"]:
            values = values * factor
        if params["noise"]:
            points = normal(view_seed, sample_ids, f"signal.noise.{name}", channels * length)
            values = values + points.reshape(values.shape) * np.float32(params["noise"])
        if size and len(size) != 1:
            raise ConfigError(f"signals need a size of (length,), got {size}")
        result[name] = resized(values[:, :, None], (1, *size))[:, :, 0] if size else values
    return result
