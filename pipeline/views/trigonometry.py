"""Sine and cosine with the same bits on every CPU, which the C libraries and NumPy's vector code do not promise."""

from __future__ import annotations

from math import pi

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def sin_cos(degrees: Floats) -> tuple[Floats, Floats]:
    """(sine, cosine) of angles in degrees, to 1e-15: quarter turns taken out, then Taylor series to x^17."""
    quarters = np.floor(degrees / 90.0 + 0.5)
    x = (degrees - quarters * 90.0) * (pi / 180.0)  # within pi/4 of zero
    square = x * x
    sin, cos = np.ones_like(x), np.ones_like(x)
    for k in range(16, 0, -2):
        sin = 1.0 - square / (k * (k + 1)) * sin
        cos = 1.0 - square / (k * (k - 1)) * cos
    sin *= x
    turn = quarters % 4.0
    odd = (turn == 1.0) | (turn == 3.0)
    sin, cos = np.where(odd, cos, sin), np.where(odd, sin, cos)
    return np.where(turn >= 2.0, -sin, sin), np.where((turn == 1.0) | (turn == 2.0), -cos, cos)
