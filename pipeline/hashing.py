"""Random numbers without state: every draw is a hash of what it is for.

A draw depends on (view seed, sample ID, name, index) alone, so that any batching, any machine and any order of work
give the same number. Only integer operations and IEEE +, -, *, / are used, no sin, log or exp: those differ in the last
bit between CPUs, and a dataset's fingerprint must not.

The mixer is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; constants of
Vigna's splitmix64.c).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_START = 0x243F6A8885A308D3  # pi's first 64 fractional bits: hash64() of zeros must not be zero
_GOLDEN = 0x9E3779B97F4A7C15
_MUL1 = 0xBF58476D1CE4E5B9
_MUL2 = 0x94D049BB133111EB
# With c = 0.0125 and the sum's moments m4 = 2.7, m6 = 10.929: 1 + 2c(m4 - 3) + c^2 (m6 - 6 m4 + 9) = 0.99308.
_TO_UNIT_VARIANCE = np.float32(0.993083**-0.5)
_LANES = np.uint64(0x0000FFFF0000FFFF)


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MUL1) & _MASK
    value = ((value ^ (value >> 27)) * _MUL2) & _MASK
    return value ^ (value >> 31)


def _mix(values: UInt64s) -> UInt64s:
    """splitmix64 of `values`, in place: at [256, 64] fresh temporaries cost as much as the arithmetic."""
    scratch = np.empty_like(values)
    values += np.uint64(_GOLDEN)
    np.right_shift(values, np.uint64(30), out=scratch)
    values ^= scratch
    values *= np.uint64(_MUL1)
    np.right_shift(values, np.uint64(27), out=scratch)
    values ^= scratch
    values *= np.uint64(_MUL2)
    np.right_shift(values, np.uint64(31), out=scratch)
    values ^= scratch
    return values


def hash_int(*parts: int) -> int:
    """The hash of some integers (taken modulo 2^64), in [0, 2^64); the order of the parts matters."""
    state = _START
    for part in parts:
        state = _mix_int(state ^ (part & _MASK))
    return state


def hash64(*parts: int | npt.NDArray[Any]) -> UInt64s:
    """The hash of integers and integer arrays: uint64, in the shape that the parts broadcast to.

    Equal to `hash_int` of the parts, element by element.
    """
    state: int | UInt64s = _START
    for part in parts:
        if isinstance(part, int):
            part &= _MASK
            state = _mix_int(state ^ part) if isinstance(state, int) else _mix(state ^ np.uint64(part))
        else:
            # At least one dimension: NumPy warns of overflow on scalars, and overflow is the point here.
            column = np.atleast_1d(part).astype(np.uint64, copy=False)
            state = _mix(np.asarray(column ^ (np.uint64(state) if isinstance(state, int) else state)))
    shape = np.broadcast_shapes(*(np.shape(part) for part in parts))
    return np.asarray(state, np.uint64).reshape(shape)


def hash_on(state: int, values: UInt64s) -> UInt64s:
    """`hash64(*parts, values)` for `state = hash_int(*parts)`: for those who hash small arrays many times."""
    return _mix(values ^ np.uint64(state))


def hash_int_on(state: int, value: int) -> int:
    """`hash_int(*parts, value)` for `state = hash_int(*parts)`."""
    return _mix_int(state ^ value)


def tag(text: str) -> int:
    """A stable 64-bit number of a name: the first 8 bytes of its SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


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


def unit(hashes: UInt64s) -> npt.NDArray[np.float64]:
    """Hashes as float64 in [0, 1): their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
