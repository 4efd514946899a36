"""The "crop_flip" view: a random part of an image, perhaps mirrored, at the size asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import uniform
from pipeline.views.images import as_float, cropped, image_fields
from schemas.errors import ConfigError


def crop_flip(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Every field [N, C, H, W], uint8 or float, as float32 [N, C, h, w]; other fields pass unchanged.

    `min_area`: the smallest part, as a fraction of the image's area (1 crops nothing); `ratio`: the part is up to
    1 + this times wider or taller than the image's own shape; `flip`: the probability of mirroring; `mean`, `std`:
    comma-separated, one number or one a channel, taken off and divided by at the end. Bytes become [0, 1] first.
    """
    draws = uniform(view_seed, sample_ids, "crop_flip", 6)
    area = 1.0 - (1.0 - params["min_area"]) * draws[:, 0]
    # Wider or taller with equal chance; a product and a root instead of exp(log), whose bits differ between CPUs.
    stretch = 1.0 + params["ratio"] * draws[:, 1]
    root = np.sqrt(stretch)
    root = np.where(draws[:, 2] < 0.5, root, 1.0 / root)
    side = np.sqrt(area)
    wide, tall = np.minimum(side * root, 1.0), np.minimum(side / root, 1.0)
    box = np.stack([(1.0 - tall) * draws[:, 3], (1.0 - wide) * draws[:, 4], tall, wide])
    flip = draws[:, 5] < params["flip"]
    result = dict(samples)
    for name in image_fields("crop_flip", samples):
        images = as_float(samples[name])
        images = cropped(images, box, flip, size or images.shape[2:])
        if params["mean"]:
            images -= _per_channel("mean", params["mean"], images.shape[1])
        if params["std"]:
            images /= _per_channel("std", params["std"], images.shape[1])
        result[name] = images
    return result


def _per_channel(name: str, text: str, channels: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[1 or C, 1, 1] float32"""
    try:
        numbers = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError as error:
        raise ConfigError(f"view crop_flip: {name} is {text!r}: write numbers joined by commas") from error
    if len(numbers) not in (1, channels) or (name == "std" and not (numbers > 0).all()):
        raise ConfigError(f"view crop_flip: {name} is {text!r}: give one number or {channels}, a std above 0")
    return numbers[:, None, None]
