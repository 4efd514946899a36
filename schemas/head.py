"""A teacher's last linear layer, as a stream stores it once: its own bytes, and the records that carry these.

Letters: M rows, C classes, H numbers of a hidden row. The bytes are a safetensors file (8 bytes of length, a header of
JSON, the tensors' little-endian bytes) with `weight` [C, H] and, where there is one, `bias` [C], each F32 or F16. Equal
layers are equal bytes, and their SHA-256 stands in the teacher's record.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from schemas.avro import NEWEST, REGISTRY, Datum
from schemas.columns import DTYPES, Array, FloatArray, pack_sha256
from schemas.errors import DecodeError, EncodeError
from schemas.finite import all_finite

CHUNK_BYTES = 512 << 10
"""Of a layer in one record: half of what a broker takes by default."""

_LENGTH = struct.Struct("<Q")
_ALIGNED = 8
_MOST_HEADER = 4_096
_DTYPES = {"F32": DTYPES["float32"], "F16": DTYPES["float16"]}
"""safetensors' names."""
_NAME_OF = {dtype: name for name, dtype in _DTYPES.items()}
_NAMES = ("weight", "bias")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Head:
    """A linear layer: logits = hidden @ weight.T + bias."""

    weight: Array
    """[C, H] float32 or float16."""
    bias: Array | None
    """[C] float32 or float16; None: there is none."""
    sha256: str
    """Of its bytes, 64 hex digits."""

    @classmethod
    def of(cls, weight: Array, bias: Array | None) -> Self:
        """Return the layer of these; EncodeError where they are no such layer."""
        return cls(weight, bias, hashlib.sha256(_encoded(weight, bias)).hexdigest())

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        """H."""
        return int(self.weight.shape[1])

    def logits(self, hidden: Array) -> FloatArray:
        """Return [M, ..., C] float32 of hidden rows [M, ..., H], computed in float32."""
        logits: FloatArray = hidden.astype(np.float32) @ self.weight.astype(np.float32).T
        return logits if self.bias is None else logits + self.bias.astype(np.float32)

    def encode(self) -> bytes:
        """Return its bytes, of which `sha256` is."""
        return _encoded(self.weight, self.bias)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Undo `encode`; anything else raises DecodeError with `address`. The arrays are views of the bytes."""
        try:
            tensors = _decoded(raw)
            weight, bias = tensors["weight"], tensors.get("bias")
            if problem := _problem(weight, bias):
                raise ValueError(problem)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            reason = f"misses {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise DecodeError(address, f"is no last layer in the form of safetensors ({reason})") from error
        return cls(weight, bias, hashlib.sha256(raw).hexdigest())


def _problem(weight: Array, bias: Array | None) -> str:
    if weight.ndim != 2 or not all(weight.shape):
        return f"weight has shape {weight.shape}, not (C, H)"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"bias has shape {bias.shape}, not {weight.shape[:1]}"
    both = [weight] if bias is None else [weight, bias]
    if not all(each.dtype in _NAME_OF for each in both):
        return f"it is {', '.join(str(each.dtype) for each in both)}, not float32 or float16"
    return "" if all(map(all_finite, both)) else "it holds NaN or infinity"


def _encoded(weight: Array, bias: Array | None) -> bytes:
    if problem := _problem(weight, bias):
        raise EncodeError(f"the last layer: {problem}")
    said: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, array in zip(_NAMES, (weight, bias), strict=True):
        if array is None:
            continue
        parts.append(np.ascontiguousarray(array, _DTYPES[_NAME_OF[array.dtype]]).tobytes())
        start, end = end, end + len(parts[-1])
        said[name] = {"dtype": _NAME_OF[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    header = json.dumps(said, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    return b"".join([_LENGTH.pack(len(header)), header, *parts])


def _decoded(raw: bytes) -> dict[str, Array]:
    (length,) = _LENGTH.unpack_from(raw)
    if length > min(_MOST_HEADER, len(raw) - _LENGTH.size):
        raise ValueError(f"its header has {length} bytes")
    start = _LENGTH.size + length
    said = json.loads(raw[_LENGTH.size : start])
    if not set(said) <= set(_NAMES):
        raise ValueError(f"it holds {', '.join(sorted(said))}")
    tensors: dict[str, Array] = {}
    for name, each in said.items():
        dtype, shape, (begin, end) = _DTYPES[each["dtype"]], tuple(each["shape"]), each["data_offsets"]
        if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
            raise ValueError(f"{name} has shape {shape} from {begin} to {end}")
        if end > len(raw) - start or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} lies from {begin} to {end}")
        tensors[name] = np.ndarray(shape, dtype, raw, start + begin)
    return tensors


@dataclass(frozen=True, slots=True, eq=False)
class HeadChunk:
    """One of the records that carry a layer, in its teacher's topic of heads."""

    stream_id: str
    teacher: str
    head_sha256: str
    """64 lower-case hex digits, of the whole layer's bytes."""
    index: int
    """Which of them, from 0 on."""
    count: int
    """How many they are."""
    data: bytes

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := self._problem():
            raise EncodeError(problem)
        datum = {name: getattr(self, name) for name in self.__slots__}
        return REGISTRY.encode("head_chunk", datum | {"head_sha256": pack_sha256(self.head_sha256)}, pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the chunk; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("head_chunk", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        chunk = cls(**{**datum, "head_sha256": datum["head_sha256"].hex()})
        if problem := chunk._problem():
            raise ValueError(problem)
        return chunk

    def _problem(self) -> str:
        if not 0 <= self.index < self.count:
            return f"is part {self.index} of {self.count}"
        return "" if self.data else "holds no byte"


def chunks(stream_id: str, teacher: str, raw: bytes) -> Iterator[HeadChunk]:
    """Yield the records that carry a layer's bytes, in their order."""
    sha256 = hashlib.sha256(raw).hexdigest()
    count = -(-len(raw) // CHUNK_BYTES)
    for index in range(count):
        part = raw[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        yield HeadChunk(stream_id, teacher, sha256, index, count, part)


class Assembly:
    """Puts layers together of chunks as they lie in a log.

    A chunk that does not follow is left out, as is one that is there already; one that is not what is in its place
    takes it, and those behind go. So writings of the same layer may lie among one another and be cut short anywhere,
    and a whole one makes good whatever lies before it.
    """

    def __init__(self, stream_id: str, teacher: str) -> None:
        self._stream_id, self._teacher = stream_id, teacher
        self._parts: dict[tuple[str, int], list[bytes]] = {}
        """(SHA-256, how many parts there are) -> those that came in a row."""
        self.found: dict[str, bytes] = {}
        """SHA-256 -> the layer's bytes, which have it."""
        self.seen: dict[str, tuple[int, int]] = {}
        """SHA-256 of what is not found -> how many parts came in a row, of how many."""

    def take(self, chunk: HeadChunk) -> None:
        """Take the next chunk; one of another stream or teacher is none of theirs."""
        sha256 = chunk.head_sha256
        if (chunk.stream_id, chunk.teacher) != (self._stream_id, self._teacher) or sha256 in self.found:
            return
        parts = self._parts.setdefault((sha256, chunk.count), [])
        if chunk.index < len(parts) and parts[chunk.index] != chunk.data:
            del parts[chunk.index :]
        if chunk.index == len(parts):
            parts.append(chunk.data)
        self.seen[sha256] = (len(parts), chunk.count)
        if len(parts) == chunk.count:
            raw = b"".join(self._parts.pop((sha256, chunk.count)))
            if hashlib.sha256(raw).hexdigest() == sha256:
                self.found[sha256] = raw
                del self.seen[sha256]
