"""Columns: how an array travels inside an Avro record.

A column on the wire is `{name, dtype, shape, data, row_splits}`; `data` is little-endian in C order. A reader gets a
read-only view of the record's own bytes: nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import EncodeError

Array = npt.NDArray[Any]
Columns = dict[str, Array]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("int8", "uint8", "uint16", "uint32", "int32", "int64", "float16", "float32", "float64")
}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_IDS = tuple(DTYPES[name] for name in ("uint8", "uint16", "uint32", "int64"))
_INT64 = DTYPES["int64"]
_MAX_DIMENSIONS = 8
# An empty array may have any other dimension; NumPy overflows on an absurd one.
_MAX_DIMENSION = 2**31 - 1


def narrowest(max_value: int) -> np.dtype[Any]:
    """Return the first of uint8, uint16, uint32 and int64 that holds 0 .. max_value."""
    for dtype in _IDS:
        if max_value <= np.iinfo(dtype).max:
            return dtype
    raise EncodeError(f"{max_value} does not fit 63 bits")


def pack(name: str, array: Array) -> dict[str, Any]:
    """Return the Avro datum of a column; a dtype that cannot travel raises EncodeError."""
    dtype = _NAME_OF.get(array.dtype)
    if dtype is None:
        raise EncodeError(f"column {name!r} has dtype {array.dtype}; use one of {', '.join(DTYPES)}")
    return {"name": name, "dtype": dtype, "shape": array.shape, "data": array.tobytes(), "row_splits": None}


def unpack(datum: dict[str, Any]) -> Array:
    """Return the column as a read-only view of the record's bytes.

    Raises ValueError with the reason where dtype, shape and data do not fit; a record's `decode` makes that a
    DecodeError with the address.
    """
    if datum["row_splits"] is not None:
        raise ValueError(f"column {datum['name']!r} has rows of varying length, which this version cannot read")
    shape, data = datum["shape"], datum["data"]
    dtype = DTYPES[datum["dtype"]]
    if len(shape) > _MAX_DIMENSIONS or any(not 0 <= size <= _MAX_DIMENSION for size in shape):
        raise ValueError(f"column {datum['name']!r} has an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"column {datum['name']!r} has {len(data)} bytes, not those of {tuple(shape)} {dtype}")
    return np.ndarray(shape, dtype, data)


def concatenated(parts: Sequence[Columns]) -> Columns:
    """Return the columns of the rows of several, one or more, that lie one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pack_columns(columns: Columns) -> list[dict[str, Any]]:
    """Return the data of all columns in the order of their names, so that equal columns are equal bytes."""
    return [pack(name, columns[name]) for name in sorted(columns)]


def unpack_columns(data: Iterable[dict[str, Any]]) -> Columns:
    """Return the columns by name; raises ValueError as `unpack`, and where a name comes twice."""
    columns: Columns = {}
    for datum in data:
        if datum["name"] in columns:
            raise ValueError(f"column {datum['name']!r} comes twice")
        columns[datum["name"]] = unpack(datum)
    return columns


def pack_ids(name: str, ids: IntArray) -> dict[str, Any]:
    """Return the datum of [N] non-negative integers in the narrowest width that holds the largest."""
    if ids.ndim != 1 or ids.dtype != _INT64:
        raise EncodeError(f"{name} must be one row of int64, not {ids.dtype} of shape {ids.shape}")
    if not ids.size:
        return pack(name, ids.astype(np.uint8))
    if ids.min() < 0:
        raise EncodeError(f"{name} holds a negative number")
    return pack(name, ids.astype(narrowest(int(ids.max()))))


def unpack_ids(name: str, datum: dict[str, Any]) -> IntArray:
    """Return [N] int64, writable; raises ValueError as `unpack`, and where the column is no row of IDs."""
    ids = unpack(datum)
    if ids.ndim != 1 or ids.dtype not in _IDS:
        raise ValueError(f"{name} is {ids.dtype} of shape {ids.shape}, not one row of IDs")
    if ids.dtype == _INT64 and ids.size and ids.min() < 0:
        raise ValueError(f"{name} holds a negative number")
    return ids.astype(np.int64)


def pack_sha256(text: str) -> bytes:
    """Return the 32 bytes of 64 lower-case hex digits; anything else raises EncodeError."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32 or digest.hex() != text:
        raise EncodeError(f"a SHA-256 is 64 lower-case hex digits, not {text!r}")
    return digest
