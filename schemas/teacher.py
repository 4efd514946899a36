"""A teacher of a stream: which ONNX file, how its inputs are fed, and what its outputs hold.

The record is of generation 0; what a run published since then has records of its own (generation.py). What it says
beyond that, or beyond what is built today, is refused as a newer Distillog's, whichever way it goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from schemas.avro import NEWEST, REGISTRY, Datum
from schemas.columns import pack_sha256
from schemas.errors import ConfigError, EncodeError, NeedsNewer
from schemas.names import check_name, did_you_mean
from schemas.teacher_output import TeacherOutput, not_built, tuples

LAYOUTS = ("", "nchw", "nhwc")
"""How an ONNX input wants images; "" for everything that is no image."""
CHANNEL_ORDERS = ("", "bgr")
"""As the field has its channels, or reversed."""


@dataclass(frozen=True, slots=True)
class TeacherInput:
    """One input of a teacher's ONNX graph and the field of the view that feeds it: (value * scale - mean) / std."""

    input: str
    """The ONNX graph's name of it."""
    field: str
    """The dataset's name of it."""
    dtype: str
    """NumPy name of what ONNX wants, such as `float32` or `int32`."""
    layout: str
    """One of LAYOUTS."""
    scale: float
    """Factor on the view's values before they become `dtype`."""
    size: tuple[int, ...]
    """Spatial size asked of the view; () = as it comes."""
    mean: tuple[float, ...] = ()
    """One number, or one for each of the field's channels; () = 0."""
    std: tuple[float, ...] = ()
    """One number, or one for each of the field's channels; () = 1."""
    channel_order: str = ""
    """One of CHANNEL_ORDERS; mean and std go along with their channels."""

    @property
    def formula(self) -> str:
        """The arithmetic as a user writes it: `*1/255-0.5/0.25`."""
        text = f"*{number_text(self.scale)}"
        if self.mean or self.std:
            text += f"-{numbers_text(self.mean or (0.0,))}"
        return text + (f"/{numbers_text(self.std)}" if self.std else "")

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        facts = (self.dtype, self.layout, self.formula, self.channel_order, size and f"at {size}")
        return f"{self.field} -> {self.input}: {', '.join(filter(None, facts))}"


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A teacher of a stream: which ONNX file, and how it is fed and read."""

    stream_id: str
    name: str
    sha256: str
    """64 lower-case hex digits, over the ONNX file and its external data."""
    model_file: str
    """Base name."""
    inputs: tuple[TeacherInput, ...]
    outputs: tuple[TeacherOutput, ...]
    """One or more, each of a name of its own."""
    inference_batch: int
    """Rows in each call of the model."""
    generation: int = 0
    """Which of several models under this name, one after the other; a record is of the first, 0 (see generation.py)."""

    @property
    def class_output(self) -> TeacherOutput | None:
        """The first output that gives a sample one row of classes, which labels are compared with; None: no such."""
        return next((output for output in self.outputs if output.codec_classes and len(output.shape) == 1), None)

    @property
    def heads(self) -> dict[str, str]:
        """SHA-256 -> the first output by the codec head that needs it, of the last layers that labels need."""
        found: dict[str, str] = {}
        for output in self.outputs:
            if output.head_sha256 is not None:
                found.setdefault(output.head_sha256, output.name)
        return found

    def output(self, name: str) -> TeacherOutput:
        """Return the output of that name; a missing one raises ConfigError."""
        for output in self.outputs:
            if output.name == name:
                return output
        known = [output.name for output in self.outputs]
        raise ConfigError(f"teacher {self.name!r} has no output {name!r}: {did_you_mean(name, known)}")

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        datum = asdict(self) | {"sha256": pack_sha256(self.sha256)}
        for output in datum["outputs"]:
            if output["head_sha256"] is not None:
                output["head_sha256"] = pack_sha256(output["head_sha256"])
        if problem := _not_built(datum) or self._problem():
            raise EncodeError(f"teacher {self.name!r}: {problem}")
        return REGISTRY.encode("teacher", datum, pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the teacher; anything else raises DecodeError, what only a newer Distillog can do NeedsNewer."""
        return REGISTRY.decode_as("teacher", lambda datum: cls._of(datum, raw, address), raw, address)

    @classmethod
    def _of(cls, datum: Datum, raw: bytes, address: str) -> Self:
        if ahead := _not_built(datum):
            raise NeedsNewer(
                address,
                f"teacher {datum['name']!r} was added by a newer Distillog: {ahead}; install the version that added "
                "it, or a later one",
                raw,
            )
        inputs = tuple(TeacherInput(**tuples(one)) for one in datum["inputs"])
        outputs = tuple(map(TeacherOutput.of_datum, datum["outputs"]))
        teacher = cls(**{**datum, "inputs": inputs, "outputs": outputs, "sha256": datum["sha256"].hex()})
        if problem := teacher._problem():
            raise ValueError(problem)
        return teacher

    def _problem(self) -> str:
        check_name("teacher", self.name)
        if not self.model_file or self.model_file in (".", "..") or {"/", "\\", "\0"} & set(self.model_file):
            return f"model file {self.model_file!r} is no base name"
        if not self.inputs or not self.outputs or self.inference_batch < 1:
            return "it needs inputs, outputs and an inference batch, each at least 1"
        names = [output.name for output in self.outputs]
        for output in self.outputs:
            check_name("output", output.name)
            if names.count(output.name) > 1:
                return f"it has two outputs {output.name!r}"
            if problem := output.problem():
                return f"output {output.name!r} {problem}"
        for one in self.inputs:
            if one.layout not in LAYOUTS or not math.isfinite(one.scale) or any(size < 1 for size in one.size):
                return f"input {one.input!r} has layout {one.layout!r}, scale {one.scale}, size {one.size}"
            if one.channel_order not in CHANNEL_ORDERS:
                return f"input {one.input!r} has channel order {one.channel_order!r}"
            if not all(map(math.isfinite, one.mean)) or not all(0 < each < math.inf for each in one.std):
                return f"input {one.input!r} has mean {one.mean} and std {one.std}"
        return ""


def _not_built(datum: Datum) -> str:
    """Return what of a record is not built yet, "" if nothing."""
    if datum["generation"] != 0:
        return f"it has generation {datum['generation']}"
    return next(filter(None, map(not_built, datum["outputs"])), "")


def number_text(number: float) -> str:
    """Return a number that reads as the same one: 1/255 rather than its many digits."""
    if 0 < abs(number) < 1 and (1 / number).is_integer() and 1 / (1 / number) == number:
        return f"1/{1 / number:.0f}"
    return _decimal(number)


def numbers_text(numbers: tuple[float, ...]) -> str:
    """Return numbers joined by commas."""
    return ",".join(map(_decimal, numbers))


def _decimal(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
