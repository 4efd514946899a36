"""Whole numbers in as few bits as the largest needs, row by row. Letters: R rows, k numbers in each, w bits.

Bit i of a row's number j is bit j w + i of the row, the lowest bit of each byte first; rows begin at whole bytes, and
what is left of a row's last byte is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from schemas.columns import IntArray

Bytes = npt.NDArray[np.uint8]

_WIDEST = 32
_CHUNK = 2**13
"""Numbers handled at a time."""


def bits_of(max_value: int) -> int:
    """Return the bits that hold 0 .. max_value: one at least. Raises ValueError above 32."""
    width = max(1, max_value.bit_length())
    if width > _WIDEST:
        raise ValueError(f"{max_value} does not fit {_WIDEST} bits")
    return width


def bytes_of(count: int, width: int) -> int:
    """Return the bytes of a row of `count` numbers."""
    return -(-count * width // 8)


def pack_bits(numbers: IntArray, width: int) -> Bytes:
    """Return [R, bytes] uint8 of [R, k] numbers below 2^w."""
    rows, count = numbers.shape
    packed = np.empty((rows, bytes_of(count, width)), np.uint8)
    for part in _parts(rows, count):
        bits = np.unpackbits(_four_bytes(numbers[part]), axis=-1, count=width, bitorder="little")
        packed[part] = np.packbits(bits.reshape(len(bits), count * width), axis=1, bitorder="little")
    return packed


def unpack_bits(packed: Bytes, count: int, width: int) -> IntArray:
    """Undo `pack_bits`: [R, k] int64."""
    numbers = np.empty((len(packed), count), np.int64)
    for part in _parts(len(packed), count):
        found = np.unpackbits(packed[part], axis=1, count=count * width, bitorder="little")
        bits = np.zeros((len(found), count, _WIDEST), np.uint8)
        bits[..., :width] = found.reshape(len(found), count, width)
        numbers[part] = np.packbits(bits, axis=-1, bitorder="little").view("<u4")[..., 0]
    return numbers


def _parts(rows: int, count: int) -> Iterator[slice]:
    """Some rows at a time: a bit takes a byte on the way."""
    step = max(1, _CHUNK // count)
    return (slice(start, start + step) for start in range(0, rows, step))


def has_spare_bits(packed: Bytes, count: int, width: int) -> bool:
    """Whether a bit behind a row's numbers is set."""
    used = count * width - 8 * (packed.shape[1] - 1)
    return bool((packed[:, -1] >> np.uint8(used)).any()) if used < 8 else False


def _four_bytes(numbers: IntArray) -> Bytes:
    """[R, k] -> [R, k, 4] little-endian."""
    return np.ascontiguousarray(numbers, "<u4").view(np.uint8).reshape(*numbers.shape, 4)
