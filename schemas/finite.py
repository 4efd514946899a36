"""Numbers that can travel: none but finite ones, and in float16 none that overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import EncodeError


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Say whether no float in the array is NaN or infinite."""
    if values.dtype == np.float16:  # NumPy's isfinite takes ten times as long as a look at the exponents
        return not values.size or int((values.view(np.uint16) & np.uint16(0x7FFF)).max()) < 0x7C00
    return bool(np.isfinite(values).all())


def bad_rows(values: npt.NDArray[Any]) -> str:
    """Return the text that names the rows of [M, C] with NaN or infinity."""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    return f"row {rows[0]} and {len(rows) - 1} others" if len(rows) > 1 else f"row {rows[0]}"


def to_float16(values: npt.NDArray[Any], what: str, advice: str) -> npt.NDArray[np.float16]:
    """Return [M, C] rounded to float16; finite values that overflow raise EncodeError of `what` with `advice`."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not all_finite(half):
        raise EncodeError(f"{what} beyond the 65,504 of float16 in {bad_rows(half)}: {advice}")
    return half
