"""Codecs: how a teacher's output [M, C] travels. Letters: M rows, C classes, k kept classes, T temperature.

| name | columns | bytes a row |
|---|---|---|
| float32 | values [M, C] float32 | 4 C |
| float16 | values [M, C] float16, each row less its maximum | 2 C |
| topk | see topk.py | k * (2 + width of a class ID) + 4 for each T |

float16 ends at 65,504, and logits may not: each row is stored less its maximum, which no softmax and no centred loss
can see, and what is still below -65,504 becomes that. The first dimension of every column is M. A variation is one
`Codec` and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from schemas.columns import Array, Columns, FloatArray, IntArray
from schemas.errors import ConfigError, EncodeError
from schemas.finite import all_finite, bad_rows, to_float16
from schemas.names import did_you_mean
from schemas.topk import TopK, bytes_per_row, check_topk, decode_topk, encode_topk

__all__ = ["CODECS", "Codec", "CodecSpec", "Dense", "SoftRows", "TopK", "encode_values", "storable"]


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which codec, with its settings; the text form is `float16` or `topk:k=10,temperatures=1|2|4`."""

    name: str = "float32"
    k: int = 0
    """Kept classes of topk; 0 for the other codecs."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which topk stores the exact tail; (1.0,) for the other codecs, which serve every temperature."""

    def __post_init__(self) -> None:
        if self.name not in CODECS:
            raise ConfigError(f"unknown codec {self.name!r}: {did_you_mean(self.name, CODECS)}")
        if self.name != "topk":
            if self.k or self.temperatures != (1.0,):
                raise ConfigError(f"codec {self.name} takes no settings; k and temperatures are those of topk")
            return
        if self.k < 1:
            raise ConfigError("codec topk needs k, at least 1, as in topk:k=10,temperatures=1|2|4")
        temperatures = self.temperatures
        if not temperatures or len(set(temperatures)) < len(temperatures):
            raise ConfigError("codec topk needs one or more temperatures, none twice, as in topk:k=10,temperatures=1|2")
        if not all(1e-3 <= temperature <= 1e3 for temperature in temperatures):
            raise ConfigError(f"codec topk: temperatures lie between 0.001 and 1000, not {temperatures}")

    @classmethod
    def parse(cls, text: str) -> CodecSpec:
        """Return the spec of a text form; a bad one raises ConfigError."""
        name, _, settings = text.partition(":")
        values: dict[str, Any] = {}
        for setting in filter(None, settings.split(",")):
            key, _, value = setting.partition("=")
            if key not in ("k", "temperatures") or key in values:
                what = "twice" if key in values else did_you_mean(key, ("k", "temperatures"))
                raise ConfigError(f"codec {text!r}: setting {key!r}: {what}")
            try:
                values[key] = int(value) if key == "k" else tuple(sorted(float(part) for part in value.split("|")))
            except ValueError:
                example = "k=10" if key == "k" else "temperatures=1|2|4"
                raise ConfigError(f"codec {text!r}: cannot read {setting!r}; write it as in {example}") from None
        return cls(name, **values)

    def refuse_classes(self, num_classes: int) -> None:
        """Raise ConfigError where outputs of so many classes cannot travel by it."""
        if self.k > num_classes:
            raise ConfigError(f"codec {self} keeps k={self.k} of only {num_classes} classes: use k <= {num_classes}")

    def __str__(self) -> str:
        if self.name != "topk":
            return self.name
        return f"topk:k={self.k},temperatures={'|'.join(repr(float(t)).removesuffix('.0') for t in self.temperatures)}"


class SoftRows(Protocol):
    """M rows of a teacher's output as `Codec.decode` gives them; whoever hands them on knows no more of them."""

    @property
    def columns(self) -> Columns:
        """Name -> array whose first dimension is M; equal names in an equal order for all rows of a stream."""

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """The temperatures at which they can be softened, rising; None: any."""

    def take(self, rows: IntArray) -> Self:
        """Return the rows at [K] places."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """All of a teacher's outputs."""

    logits: Array
    """[M, C] float32, or float16 with each row's maximum at 0, as stored: a read-only view of the record's bytes.
    Widening it is left to whoever computes with it: PyTorch does it twenty times as fast as NumPy, and on a GPU half
    the bytes cross the bus."""

    @property
    def columns(self) -> Columns:
        """The logits."""
        return {"logits": self.logits}

    @property
    def temperatures(self) -> None:
        """All classes are there: any temperature will do."""

    def take(self, rows: IntArray) -> Dense:
        """Return the rows at [K] places."""
        return Dense(self.logits[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """One way for outputs to travel; all functions are pure."""

    encode: Callable[[FloatArray, CodecSpec], Columns]
    """([M, C] float32, spec) -> columns; values that do not fit raise EncodeError."""
    check: Callable[[Columns, int, int], None]
    """(columns, num_classes, num_rows): raises ValueError where `decode` could not be trusted with the columns."""
    decode: Callable[[Columns, int], SoftRows]
    """(columns, num_classes) -> rows."""
    bytes_per_row: Callable[[CodecSpec, int], int]
    """(spec, num_classes) -> bytes of one row on the wire, without headers."""


def storable(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Return [M] bool: the rows of [M, C] float32 that every codec stores, which are those without NaN and infinity."""
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
    return finite


def encode_values(values: FloatArray, spec: CodecSpec) -> Columns:
    """Return the columns of [M, C] float32.

    Raises EncodeError for rows that are not `storable`, and for what is no fault of a row: another shape or dtype, or a
    codec that does not fit C classes.
    """
    if values.ndim != 2 or values.dtype != np.float32 or not values.shape[1]:
        raise EncodeError(f"outputs must be float32 of shape [M, C], not {values.dtype} of shape {values.shape}")
    if not all_finite(values):
        raise EncodeError(f"the outputs hold NaN or infinity in {bad_rows(values)}")
    return CODECS[spec.name].encode(values, spec)


def _encode_float32(values: FloatArray, spec: CodecSpec) -> Columns:
    return {"values": values}


def _encode_float16(values: FloatArray, spec: CodecSpec) -> Columns:
    with np.errstate(over="ignore"):  # a row may reach from one end of float32 to the other
        return {"values": to_float16(values - values.max(axis=1, keepdims=True))}


def _check_dense(dtype: str) -> Callable[[Columns, int, int], None]:
    expected = np.dtype(dtype)

    def check(columns: Columns, num_classes: int, num_rows: int) -> None:
        if columns.keys() != {"values"}:
            raise ValueError(f"columns {sorted(columns)}, not only 'values'")
        values = columns["values"]
        if values.dtype != expected or values.shape != (num_rows, num_classes):
            raise ValueError(
                f"values are {values.dtype} of shape {values.shape}, not {dtype} of {(num_rows, num_classes)}"
            )
        if not all_finite(values):
            raise ValueError("values hold NaN or infinity")

    return check


def _decode_dense(columns: Columns, num_classes: int) -> Dense:
    return Dense(columns["values"])


CODECS: dict[str, Codec] = {
    "float32": Codec(_encode_float32, _check_dense("float32"), _decode_dense, lambda spec, classes: 4 * classes),
    "float16": Codec(_encode_float16, _check_dense("float16"), _decode_dense, lambda spec, classes: 2 * classes),
    "topk": Codec(
        lambda values, spec: encode_topk(values, spec.k, spec.temperatures),
        check_topk,
        decode_topk,
        lambda spec, classes: bytes_per_row(spec.k, len(spec.temperatures), classes),
    ),
}
