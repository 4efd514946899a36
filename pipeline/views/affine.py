"""The "affine" view: small images warped, dimmed and given noise.

N: images; C: channels; [H, W]: their size. Bilinear, zeros outside. Every magnitude is 0 unless asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Ints
from pipeline.hashing import normal, uniform
from pipeline.views.images import as_float, image_fields, resized
from pipeline.views.trigonometry import sin_cos

_CHUNK_PIXELS = 1 << 20
"""Of source per pass, so that an order of large images needs little more memory than the images themselves."""

Floats = npt.NDArray[np.float32]


def affine(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Every field [N, C, H, W] as float32, warped alike; other fields pass unchanged.

    `intensity`: factor 1 +- this; `scale`: factor 1 +- this; `shear`: +- this, columns a row; `rotation`: +- degrees;
    `shift`: +- fraction of the width (and height); `noise`: sigma. Noise comes after the warp and before a resize to
    `size`, so that every size shows the same view.
    """
    names = image_fields("affine", samples)
    step = max(1, _CHUNK_PIXELS // max(1, max(samples[name][:1].size for name in names)))
    if len(sample_ids) > step:
        cuts = [slice(at, at + step) for at in range(0, len(sample_ids), step)]
        parts = [affine({k: v[s] for k, v in samples.items()}, sample_ids[s], view_seed, params, size) for s in cuts]
        return {name: np.concatenate([part[name] for part in parts]) for name in samples}
    draws = uniform(view_seed, sample_ids, "affine", 6) * 2.0 - 1.0
    brightness = (1.0 + params["intensity"] * draws[:, 0]).astype(np.float32)
    warps = any(params[name] for name in ("scale", "shear", "rotation", "shift"))
    result = dict(samples)
    for name in names:
        images = as_float(samples[name])
        if warps:
            images = _warped(images, _matrices(draws, params, images.shape[3] / images.shape[2]))
        if params["intensity"]:
            images = images * brightness[:, None, None, None]
        if params["noise"]:
            pixels = normal(view_seed, sample_ids, f"affine.noise.{name}", images.size // max(1, len(images)))
            pixels *= np.float32(params["noise"])
            images = images + pixels.reshape(images.shape)
        result[name] = resized(images, size)
    return result


def _matrices(draws: npt.NDArray[np.float64], params: dict[str, Any], aspect: float) -> npt.NDArray[np.float64]:
    """[6, N]: a, b, c, d, e, f of x' = a x + b y + e, y' = c x + d y + f, in units of the width, origin in the middle.

    Takes a place in the view to its place in the source: the inverse of shift, rotation, shear and scale.
    """
    zoom = 1.0 / (1.0 + params["scale"] * draws[:, 1])
    shear = params["shear"] * draws[:, 2]
    sin, cos = sin_cos(params["rotation"] * draws[:, 3])
    a, b = (cos + shear * sin) * zoom, (shear * cos - sin) * zoom
    c, d = sin * zoom, cos * zoom
    right, down = params["shift"] * draws[:, 4], params["shift"] * draws[:, 5] / aspect
    return np.stack([a, b, c, d, -(a * right + b * down), -(c * right + d * down)])


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[Floats, Floats]:
    """([1, H*W], [1, H*W]) float32: x and y of each pixel's middle, in pixels from the image's middle."""
    y, x = np.mgrid[0:height, 0:width]
    return (
        (x.reshape(1, -1) - (width - 1) / 2).astype(np.float32),
        (y.reshape(1, -1) - (height - 1) / 2).astype(np.float32),
    )


def _warped(images: Floats, matrices: npt.NDArray[np.float64]) -> Floats:
    """[N, C, H, W] float32: `images` seen through `matrices`."""
    n, channels, height, width = images.shape
    # A rim of zeros, one pixel before and two behind, lets every place outside read zeros without a mask.
    padded = np.zeros((n, channels, height + 3, width + 3), np.float32)
    padded[:, :, 1:-2, 1:-2] = images
    stride = width + 3
    a, b, c, d, e, f = matrices.astype(np.float32)[:, :, None]
    x, y = _grid(height, width)
    px, left = _split(a * x + b * y + (e * np.float32(width) + np.float32((width - 1) / 2 + 1)), width + 1)
    py, top = _split(c * x + d * y + (f * np.float32(width) + np.float32((height - 1) / 2 + 1)), height + 1)
    corner = top * np.int32(stride) + left
    plane = (height + 3) * stride
    out = np.empty((n, channels, height * width), np.float32)
    for channel in range(channels):
        offset = (np.arange(n, dtype=np.intp) * channels + channel)[:, None] * plane
        at = corner + offset
        source = padded.reshape(-1)
        # mode="wrap" skips NumPy's bounds pass; all indices are inside by construction.
        row0 = source.take(at, mode="wrap")
        row0 += px * (source.take(at + 1, mode="wrap") - row0)
        at += stride
        row1 = source.take(at, mode="wrap")
        row1 += px * (source.take(at + 1, mode="wrap") - row1)
        row1 -= row0
        row1 *= py
        row1 += row0
        out[:, channel] = row1
    return out.reshape(n, channels, height, width)


def _split(place: Floats, highest: int) -> tuple[Floats, npt.NDArray[np.intp]]:
    """(fraction, whole part) of places clipped to [0, highest]."""
    np.clip(place, np.float32(0), np.float32(highest), out=place)
    whole = place.astype(np.int32)  # truncation is floor, since nothing is negative
    place -= whole
    return place.astype(np.float32, copy=False), whole.astype(np.intp)
