"""Natural logarithm and roots with the same bits on every CPU, which the C libraries and NumPy do not promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LN_2 = 0.6931471805599453
_HALF_ROOT = 0.7071067811865476
_TERMS = 23
"""Odd powers up to this one: the next is below 2e-18."""


def ln(values: Floats) -> Floats:
    """Logarithm of positive numbers, to 4e-16 of it (near 1: of the number's distance).

    Powers of two are taken out, which is exact; of m in [0.7, 1.42) it is 2 (s + s^3/3 + s^5/5 ...), s = (m-1) / (m+1).
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < _HALF_ROOT
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / _TERMS)
    for power in range(_TERMS - 2, 0, -2):
        series *= square
        series += 1.0 / power
    series *= s
    series *= 2.0
    return exponent * _LN_2 + series


def root(value: float, degree: int) -> float:
    """The `degree`-th root of a number above 1, by halving the interval until it has no number inside."""
    low, high = 1.0, value
    while low < (middle := (low + high) / 2) < high:
        power = 1.0
        for _ in range(degree):
            power *= middle
            if power > value:
                break
        low, high = (low, middle) if power > value else (middle, high)
    return low
