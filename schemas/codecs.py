"""Codecs: how a teacher's output travels. Letters: M rows, C classes, k kept classes, T temperature.

Of an output per position the rows are positions: what a codec sees is [P, C], or without classes [P, ...].

| name | of classes [M, ..., C] | of anything else [M, ...] | in |
|---|---|---|---|
| float32 | as they are | as it is | plain.py |
| float16 | less the maximum over C | as it is | plain.py |
| int8, int4 | in 255, or 15, steps down from the maximum over C | in as many up from a row's minimum | steps.py |
| topk | the k likeliest of C, and the exact mass of the others | - | topk.py |
| topk8 | the same in about half the bytes; written `topk:k=10,bits=8` | - | topk8.py |
| sampled | n of C, drawn at random from their probabilities | - | sampled.py |
| head | what the last, linear layer is given, [M, ..., H]; the layer lies in the stream once | - | hidden.py |

The first dimension of every column is M, but for those of sampled. A variation is one class and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from schemas.columns import Columns, FloatArray, IntArray
from schemas.errors import ConfigError, EncodeError
from schemas.finite import all_finite, bad_rows, finite_rows
from schemas.hashing import UInt64s
from schemas.hidden import Hidden, HiddenCodec
from schemas.names import did_you_mean
from schemas.plain import Dense, Features, Plain
from schemas.positions import Chosen
from schemas.sampled import Sampled, SampledCodec
from schemas.steps import Steps, StepsCodec
from schemas.topk import TopK, TopKCodec
from schemas.topk8 import TopK8Codec

__all__ = [
    "CODECS",
    "Codec",
    "CodecSpec",
    "Dense",
    "Features",
    "Hidden",
    "Sampled",
    "SoftRows",
    "Steps",
    "TopK",
    "encode_values",
    "storable",
]


_SETTINGS = {"topk": ("k", "bits", "temperatures"), "topk8": ("k", "temperatures"), "sampled": ("n",), "head": ("h",)}
"""Codec -> its settings in the text form; the others have none."""
_EXAMPLES = {"k": "k=10", "n": "n=50", "h": "h=384", "bits": "bits=8", "temperatures": "temperatures=1|2|4"}
_MOST_DRAWS = 255


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which codec, with its settings; its text is `float16`, `topk:k=10,bits=8,temperatures=1|2|4` or `sampled:n=50`.

    Manifests and teachers' records have these three fields and no others. So topk in 8 bits, which the text has as a
    setting, is a codec of another name there, which whoever does not know it refuses; and k is n, too, or of head the h
    hidden numbers.
    """

    name: str = "float32"
    k: int = 0
    """Kept classes of topk and topk8, draws of sampled, hidden numbers of head (0: the model tells); 0 for the
    others."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which topk stores the exact tail; (1.0,) for the other codecs, which serve every temperature, but
    for sampled, which serves that one."""

    def __post_init__(self) -> None:
        if self.name not in CODECS:
            raise ConfigError(f"unknown codec {self.name!r}: {did_you_mean(self.name, CODECS)}")
        if self.name not in _SETTINGS:
            if self.k or self.temperatures != (1.0,):
                raise ConfigError(f"codec {self.name} takes no settings; k and temperatures are those of topk")
            return
        if self.of_hidden:
            if self.k < 0 or self.temperatures != (1.0,):
                raise ConfigError("codec head takes no settings: how wide the hidden row is the model tells")
            return
        if self.name == "sampled":
            if not 1 <= self.k <= _MOST_DRAWS or self.temperatures != (1.0,):
                raise ConfigError(f"codec sampled needs n, 1 to {_MOST_DRAWS}, and draws at T = 1, as in sampled:n=50")
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
        known = _SETTINGS.get(name, () if name in CODECS else tuple(_EXAMPLES))
        for setting in filter(None, settings.split(",")):
            key, _, value = setting.partition("=")
            if key not in known or key in values:
                what = "twice" if key in values else did_you_mean(key, known) if known else f"{name} takes no settings"
                raise ConfigError(f"codec {text!r}: setting {key!r}: {what}")
            try:
                values[key] = tuple(sorted(map(float, value.split("|")))) if key == "temperatures" else int(value)
            except ValueError:
                raise ConfigError(f"codec {text!r}: cannot read {setting!r}; write it as in {_EXAMPLES[key]}") from None
        for setting in ("n", "h"):
            if setting in values:
                values["k"] = values.pop(setting)
        if "bits" in values:
            if values.pop("bits") != 8:
                raise ConfigError(f"codec {text!r}: bits are 8, or left out: log-probabilities are float16 then")
            name = "topk8" if name == "topk" else name
        return cls(name, **values)

    @property
    def keeps_all(self) -> bool:
        """Whether all classes can be had from it."""
        return not self.k or self.of_hidden

    @property
    def of_hidden(self) -> bool:
        """Whether it keeps what a last layer is given: only with that layer is it of classes."""
        return self.name == "head"

    @property
    def draws(self) -> bool:
        """Whether it keeps classes that were drawn at random: what is encoded depends on seeds, too."""
        return self.name == "sampled"

    def serves(self, temperature: float) -> bool:
        """Whether soft targets can be softened at a temperature."""
        return self.keeps_all or temperature in self.temperatures

    def refuse_classes(self, num_classes: int) -> None:
        """Raise ConfigError where outputs of so many classes, 0 for those of none, cannot travel by it."""
        if self.k and not num_classes and not self.of_hidden:
            raise ConfigError(f"codec {self} keeps classes, and this output has none: use float16 or float32")
        if self.of_hidden and not num_classes:
            raise ConfigError("codec head rebuilds logits of classes, and this output has none: use float16 or float32")
        if self.k > num_classes and not self.draws and not self.of_hidden:
            raise ConfigError(f"codec {self} keeps k={self.k} of only {num_classes} classes: use k <= {num_classes}")

    def no_cut(self, num_classes: int) -> str:
        """Say why rows of so many classes cannot be cut down to the likeliest by ONNX Runtime, "" where they can."""
        if self.keeps_all or self.draws:
            return f"codec {self} does not keep the likeliest classes"
        return f"codec {self} keeps all {num_classes} of its classes" if self.k == num_classes else ""

    def __str__(self) -> str:
        if self.name not in _SETTINGS:
            return self.name
        if self.draws:
            return f"sampled:n={self.k}"
        if self.of_hidden:
            return f"head:h={self.k}" if self.k else "head"
        bits = ",bits=8" if self.name == "topk8" else ""
        temperatures = "|".join(repr(float(each)).removesuffix(".0") for each in self.temperatures)
        return f"topk:k={self.k}{bits},temperatures={temperatures}"


class SoftRows(Protocol):
    """A teacher's output for M samples as `Output.values` gives it; whoever hands it on knows no more of it."""

    @property
    def columns(self) -> Columns:
        """Name -> array whose first dimension is M, or where positions are `chosen` how many those are.

        Equal names in an equal order for all rows of a stream.
        """

    @property
    def chosen(self) -> Chosen | None:
        """What is said of the positions that the rows are of; None: they are of samples."""

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """The temperatures at which they can be softened, rising; None: any."""

    def take(self, rows: IntArray) -> Self:
        """Return the rows at [K] places."""


class Codec(Protocol):
    """One way for outputs to travel; all of it is pure.

    Values are [M, ...] float32. `num_classes` is C, the last axis of the values (but of head, where that is H), or 0
    where none counts classes.
    """

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: which rows, all of them finite, it can hold."""

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the columns of rows that are `storable`; a setting that does not fit C raises EncodeError.

        `seeds` are [M] hashes of what a row is of, for codecs that draw; the others ignore them.
        """

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several, one or more, of one spec."""

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError where `decode` could not be trusted with the columns."""

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of a spec's settings; its name is the codec's."""

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row of the values, with C last, of columns that passed `check`."""

    def decode(self, columns: Columns, num_classes: int) -> SoftRows:
        """Return the rows of columns that passed `check`."""

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes on the wire, without headers, of one row of a shape with C last."""


def storable(values: FloatArray, spec: CodecSpec, num_classes: int) -> npt.NDArray[np.bool_]:
    """Return [M] bool: the rows of [M, ...] float32 that a codec stores; never those with NaN or infinity."""
    return finite_rows(values) & CODECS[spec.name].storable(values, num_classes)


def encode_values(values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
    """Return the columns of [M, ...] float32, whose last axis is C classes unless `num_classes` is 0; of head, H.

    A codec that `draws` needs `seeds`, [M] hashes of what a row is of. Raises EncodeError for rows that are not
    `storable`, and for what is no fault of a row: another shape or dtype, or a codec that does not fit C classes.
    """
    wanted = ("[M, ..., H]" if spec.of_hidden else "[M, ..., C]") if num_classes else "[M, ...]"
    last = spec.k if spec.of_hidden else num_classes
    fits = values.ndim >= 1 and all(values.shape[1:]) and (not num_classes or values.shape[1:][-1:] == (last,))
    if values.dtype != np.float32 or not fits:
        raise EncodeError(f"outputs must be float32 of shape {wanted}, not {values.dtype} of shape {values.shape}")
    if not all_finite(values):
        raise EncodeError(f"the outputs hold NaN or infinity in {bad_rows(values)}")
    if not (held := CODECS[spec.name].storable(values, num_classes)).all():
        raise EncodeError(f"the outputs are beyond what {spec} holds in row {np.flatnonzero(~held)[0]}: use float32")
    return CODECS[spec.name].encode(values, spec, num_classes, seeds)


CODECS: dict[str, Codec] = {
    "float32": Plain("float32"),
    "float16": Plain("float16"),
    "int8": StepsCodec(8),
    "int4": StepsCodec(4),
    "topk": TopKCodec(),
    "topk8": TopK8Codec(),
    "sampled": SampledCodec(),
    "head": HiddenCodec(),
}
