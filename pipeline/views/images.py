"""Resampling of images: of bytes by Pillow's whole numbers, of floats by plain arithmetic.

No BLAS, whose bits depend on the number of rows.

N: images; C: channels; [H, W]: source size; [h, w]: size asked for; T: taps of the filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Parts, image_size
from pipeline.datasets.pictures import need_pillow, resampled
from schemas.errors import ConfigError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_CHUNK_PIXELS = 1 << 18
"""Of source per pass: about what a core's cache holds. Results do not depend on it."""


def image_fields(view: str, samples: Arrays) -> list[str]:
    """The names of the fields [N, C, H, W], sorted. Raises ConfigError when there is none."""
    names = sorted(name for name, array in samples.items() if array.ndim == 4)
    if not names:
        shapes = {name: array.shape[1:] for name, array in samples.items()}
        raise ConfigError(f"view {view} needs images [channels, height, width], the dataset has {shapes}")
    return names


def as_float(images: npt.NDArray[Any]) -> Floats:
    """float32: uint8 becomes [0, 1], floats stay as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) * np.float32(1 / 255)
    return images.astype(np.float32, copy=False)


def seen(images: npt.NDArray[Any], parts: Parts, size: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """[N, C, h, w]: parts of the images [N, C, H, W] at `size` (h, w), or at their own; bytes stay bytes.

    Raises ConfigError for another kind of size, and as `need_pillow` where bytes are resampled.
    """
    height, width = image_size(size or images.shape[2:])
    if images.dtype != np.uint8:
        return cropped(as_float(images), parts.box, parts.flip, (height, width))
    if (height, width) == images.shape[2:] and (parts.box.T == (0.0, 0.0, 1.0, 1.0)).all():
        return np.where(parts.flip[:, None, None, None], images[:, :, :, ::-1], images)
    need_pillow("resampling of bytes")
    out = np.empty((*images.shape[:2], height, width), np.uint8)
    for row, (box, flip) in enumerate(zip(parts.box.T.tolist(), parts.flip.tolist(), strict=True)):
        resampled(out[row], images[row], box, flip)
    return out


def resized(images: Floats, size: tuple[int, ...] | None) -> Floats:
    """[N, C, h, w]: the whole images at `size` (h, w), or as they are. Raises ConfigError for another kind of size."""
    if not size or tuple(size) == images.shape[2:]:
        return images
    parts = Parts.whole(len(images))
    return cropped(images, parts.box, parts.flip, size)


def cropped(images: Floats, box: Doubles, flip: npt.NDArray[np.bool_], size: tuple[int, ...]) -> Floats:
    """[N, C, h, w]: the boxes of the images at `size`, mirrored left to right where `flip`.

    `box` is [4, N]: top, left, height, width as fractions of the source. A triangle filter as wide as a target pixel
    (Pillow's "bilinear"), so that shrinking does not alias. Raises ConfigError when `size` is not (h, w).
    """
    image_size(size)
    n, channels, height, width = images.shape
    out = np.empty((n, channels, *size), np.float32)
    step = max(1, _CHUNK_PIXELS // max(1, channels * height * width))
    for start in range(0, n, step):
        some = slice(start, start + step)
        top, left, tall, wide = box[:, some]
        rows = images[some].transpose(0, 2, 1, 3)
        rows = _filtered(rows, top * height, tall * height, size[0])
        columns = rows.transpose(0, 3, 1, 2)
        columns = _filtered(columns, left * width, wide * width, size[1])
        got = columns.transpose(0, 3, 2, 1)
        out[some] = np.where(flip[some, None, None, None], got[:, :, :, ::-1], got)
    return out


def _filtered(values: Floats, start: Doubles, length: Doubles, count: int) -> Floats:
    """[n, count, ...]: axis 1 of `values` [n, K, ...], from `start` [n] over `length` [n] cells, in `count` cells."""
    n, cells, *tail = values.shape
    # One contiguous run a cell: gathering strided ones is four times slower.
    flat = np.ascontiguousarray(values).reshape(n, cells, -1)
    ratio = length / count
    middle = start[:, None] + (np.arange(count) + 0.5) * ratio[:, None]
    reach = np.maximum(ratio, 1.0)[:, None]
    first = np.floor(middle - reach).astype(np.int64)
    # Taps for the widest box of all; where one image needs fewer, the others weigh exactly 0 and add exactly 0, so
    # that an image's bits do not depend on its neighbours.
    taps = int(np.ceil(2.0 * float(reach.max(initial=1.0)))) + 2
    places = first[:, :, None] + np.arange(taps)
    weights = np.maximum(1.0 - np.abs(places + 0.5 - middle[:, :, None]) / reach[:, :, None], 0.0)
    weights[(places < 0) | (places >= cells)] = 0.0
    total = np.zeros((n, count))
    for tap in range(taps):
        total += weights[:, :, tap]
    weights /= total[:, :, None]
    np.clip(places, 0, cells - 1, out=places)
    rows = np.arange(n)[:, None]
    out = np.zeros((n, count, flat.shape[2]), np.float32)
    for tap in range(taps):
        weight = weights[:, :, tap].astype(np.float32)
        if weight.any():
            gathered = flat[rows, places[:, :, tap]]
            gathered *= weight[:, :, None]
            out += gathered
    return out.reshape(n, count, *tail)
