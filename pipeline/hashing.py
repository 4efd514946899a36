"""Random numbers without state: every draw is a hash of what it is for.

A draw depends on (view seed, sample ID, name, index) alone, so that any batching, any machine and any order of work
give the same number. Only integer operations and IEEE +, -, *, / are used, no sin, log or exp: those differ in the last
bit between CPUs, and a dataset's fingerprint must not.
The hashes are those of `schemas/hashing.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.hashing import UInt64s, hash64, hash_int, hash_int_on, hash_on, tag, unit

__all__ = [
    "bits",
    "gaussian",
    "hash64",
    "hash_int",
    "hash_int_on",
    "hash_on",
    "integers",
    "normal",
    "tag",
    "uniform",
    "unit",
]

# With c = 0.0125 and the sum's moments m4 = 2.7, m6 = 10.929: 1 + 2c(m4 - 3) + c^2 (m6 - 6 m4 + 9) = 0.99308.
_TO_UNIT_VARIANCE = np.float32(0.993083**-0.5)
_LANES = np.uint64(0x0000FFFF0000FFFF)


def bits(view_seed: int, sample_ids: npt.NDArray[np.int64], name: str, count: int) -> UInt64s:
    """[N, count] uint64: the raw draws that all others below are made of."""
    return hash64(view_seed, tag(name), sample_ids[:, None], np.arange(count, dtype=np.uint64)[None, :])


def uniform(view_seed: int, sample_ids: npt.NDArray[np.int64], name: str, count: int) -> npt.NDArray[np.float64]:
    """[N, count] float64 in [0, 1), 53 random bits each."""
    return unit(bits(view_seed, sample_ids, name, count))


def normal(view_seed: int, sample_ids: npt.NDArray[np.int64], name: str, count: int) -> npt.NDArray[np.float32]:
    """[N, count] float32 of nearly normal draws, mean 0 and variance 1; the same bits on any CPU."""
    return gaussian(bits(view_seed, sample_ids, name, count))


def integers(
    view_seed: int, sample_ids: npt.NDArray[np.int64], name: str, count: int, high: int
) -> npt.NDArray[np.int64]:
    """[N, count] int64 in [0, high), 0 < high <= 2^40 (the bias of the modulo is below 2^-24)."""
    return (bits(view_seed, sample_ids, name, count) % np.uint64(high)).astype(np.int64)


def gaussian(hashes: UInt64s) -> npt.NDArray[np.float32]:
    """Hashes as nearly normal float32: mean 0, variance 1, at most 3.82 in magnitude.

    The sum of a hash's four 16-bit lanes has excess kurtosis -0.3; the first Cornish-Fisher term
    z - k/24 (z^3 - 3z) takes it to -0.1. Box-Muller would need log and cos, which differ between CPUs.
    """
    pairs = (hashes & _LANES) + ((hashes >> np.uint64(16)) & _LANES)
    sums = (pairs + (pairs >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    # Each lane is uniform on 0..65535: mean 32767.5, variance (2^32 - 1) / 12; four of them.
    z: npt.NDArray[np.float32] = sums.astype(np.float32)
    z -= np.float32(4 * 32767.5)
    z *= np.float32((12.0 / (4.0 * (2.0**32 - 1.0))) ** 0.5)
    cubic = z * z
    cubic -= np.float32(3.0)
    cubic *= np.float32(0.0125)
    cubic += np.float32(1.0)
    z *= cubic
    z *= _TO_UNIT_VARIANCE
    return z
