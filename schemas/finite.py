"""Numbers that can travel: none but finite ones, and in float16 none below its lowest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LOWEST = float(np.finfo(np.float16).min)


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Say whether no float in the array is NaN or infinite."""
    if values.dtype == np.float16:  # NumPy's isfinite takes ten times as long as a look at the exponents
        return not values.size or int((values.view(np.uint16) & np.uint16(0x7FFF)).max()) < 0x7C00
    return bool(np.isfinite(values).all())


def bad_rows(values: npt.NDArray[Any]) -> str:
    """Return the text that names the rows of [M, C] with NaN or infinity."""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    return f"row {rows[0]} and {len(rows) - 1} others" if len(rows) > 1 else f"row {rows[0]}"


def to_float16(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return [M, C] of values at most 0, rounded to float16; those below its lowest, -65,504, become that."""
    half: npt.NDArray[np.float16] = np.maximum(values, values.dtype.type(_LOWEST)).astype(np.float16)
    return half
