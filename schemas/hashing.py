"""Hashes of numbers: what is drawn at random without state is made of them.

Integer operations alone, and one multiplication by a power of two: the same bits on any CPU. The mixer is splitmix64
(Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; constants of Vigna's splitmix64.c).
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


def unit(hashes: UInt64s) -> npt.NDArray[np.float64]:
    """Hashes as float64 in [0, 1): their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
