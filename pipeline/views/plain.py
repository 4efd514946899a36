"""The "none" view: samples as they are."""

from __future__ import annotations

from typing import Any

from pipeline.datasets.base import Arrays, Ints, Parts
from pipeline.views.images import seen


def plain(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Unchanged, whatever the seed; where a size is asked for that they do not have, images [N, C, H, W] are resized.

    Draws nothing, takes no parameters.
    """
    if not size:
        return samples
    parts = Parts.whole(len(sample_ids))
    return {
        name: seen(array, parts, size) if array.ndim == 4 and array.shape[2:] != tuple(size) else array
        for name, array in samples.items()
    }


def whole(sample_ids: Ints, view_seed: int, params: dict[str, Any]) -> Parts:
    """All of [N] images, whatever the seed."""
    return Parts.whole(len(sample_ids))
