"""Where each order of a teacher lies: entries of one size, so that any is found without those before it.

Little-endian, and read entry by entry: a million orders are opened as fast as one, and take no memory.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np

ENTRY = np.dtype([("file", "<u4"), ("bytes", "<u4"), ("offset", "<u8"), ("crc32", "<u4")])
"""20 bytes for each order, in sequence, without padding."""
_ENTRY = struct.Struct("<IIQI")


class Place(NamedTuple):
    """Where the block of an order lies."""

    file: int
    """Number of the teacher's file, from 0."""
    num_bytes: int
    """Of the block, from its count of records to its sync marker."""
    offset: int
    """Of the block in its file, in bytes."""
    crc32: int
    """Of the block's bytes (the CRC-32 of zlib and PNG): no flipped bit of an order goes unseen."""

    @classmethod
    def of(cls, file: int, offset: int, block: bytes) -> Place:
        """Say where a block lies."""
        return cls(file, len(block), offset, zlib.crc32(block))

    @classmethod
    def decode(cls, entry: bytes) -> Place:
        """Undo `encode`."""
        return cls(*_ENTRY.unpack(entry))

    def encode(self) -> bytes:
        """Return the entry's bytes."""
        return _ENTRY.pack(*self)
