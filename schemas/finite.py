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


def finite_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return [M] bool: which rows of [M, ...] hold no NaN and no infinity."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def bad_rows(values: npt.NDArray[Any]) -> str:
    """Return the text that names the rows of [M, ...] with NaN or infinity."""
    rows = np.flatnonzero(~finite_rows(values))
    return f"row {rows[0]} and {len(rows) - 1} others" if len(rows) > 1 else f"row {rows[0]}"


def to_float16(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return an array of values at most 0, rounded to float16; those below its lowest, -65,504, become that."""
    half: npt.NDArray[np.float16] = np.maximum(values, values.dtype.type(_LOWEST)).astype(np.float16)
    return half
