"""The "none" view: samples as they are."""

from __future__ import annotations

from typing import Any

from pipeline.datasets.base import Arrays, Ints
from pipeline.views.images import as_float, resized


def plain(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Unchanged, whatever the seed; where a size is asked for that they do not have, images [N, C, H, W] are resized.

    Bytes then become float32 in [0, 1]. Draws nothing, takes no parameters.
    """
    if not size:
        return samples
    return {
        name: resized(as_float(array), size) if array.ndim == 4 and array.shape[2:] != tuple(size) else array
        for name, array in samples.items()
    }
