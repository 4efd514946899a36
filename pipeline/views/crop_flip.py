"""The "crop_flip" view: a random part of an image, perhaps mirrored, at the size asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Ints, Parts
from pipeline.hashing import uniform
from pipeline.views.images import image_fields, seen


def crop_flip(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Every field [N, C, H, W] as [N, C, h, w], bytes as bytes, other numbers as float32; other fields unchanged."""
    parts = drawn(sample_ids, view_seed, params)
    names = image_fields("crop_flip", samples)
    return samples | {name: seen(samples[name], parts, size) for name in names}


def drawn(sample_ids: Ints, view_seed: int, params: dict[str, Any]) -> Parts:
    """What is looked at of [N] images, whatever their pixels are.

    `min_area`: the smallest part, as a fraction of the image's area (1 crops nothing); `ratio`: the part is up to
    1 + this times wider or taller than the image's own shape; `flip`: the probability of mirroring.
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
    return Parts(box, draws[:, 5] < params["flip"])
