"""One output of a teacher: what the ONNX graph gives, and what is published of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from schemas.codecs import CODECS, CodecSpec

CLASS_KINDS = ("logits", "probabilities", "log_probabilities")
"""What a teacher's output over classes may be."""
KINDS = (*CLASS_KINDS, "features", "values")
"""What a teacher's output may be."""

Datum = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """One output of a teacher's ONNX graph and what is published of it."""

    name: str
    """Its name in the soft targets."""
    output: str
    """The ONNX graph's name of it."""
    kind: str
    """One of KINDS."""
    shape: tuple[int, ...]
    """Of a row."""
    class_axis: int | None
    """Which dimension of a row counts classes."""
    num_classes: int
    """0 where there are no classes."""
    codec: CodecSpec | None = None
    """How it is stored; None = as the manifest says, which only classes may be."""
    per: str = "sample"
    """What a row of the soft targets is of: `sample` or `position`."""
    positions: str = ""
    """The view's field that chooses which positions are stored: those where it is not 0; "" per sample."""
    class_map: tuple[int, ...] = ()
    """The dataset's class of each of its classes; () = the same."""
    reduction: str = ""
    """What is done to it before it is stored."""
    cut: str = "numpy"
    """Where labels are made of it: `numpy` or `graph`."""
    head_sha256: str | None = None
    """Of a head that is applied to it."""

    @classmethod
    def of_classes(cls, output: str, kind: str, num_classes: int) -> Self:
        """Return what most teachers have: an output `logits`, a row of classes for each sample."""
        return cls("logits", output, kind, (num_classes,), 0, num_classes)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a row in the soft targets, of a sample or a position: the class axis is the last one there."""
        return self._classes_last[-1:] if self.per == "position" else self._classes_last

    @property
    def places(self) -> tuple[int, ...]:
        """Of the field that chooses positions: all axes of a row but the classes, or the last; () per sample."""
        return self._classes_last[:-1] if self.per == "position" else ()

    @property
    def _classes_last(self) -> tuple[int, ...]:
        if self.class_axis is None:
            return self.shape
        return (*self.shape[: self.class_axis], *self.shape[self.class_axis + 1 :], self.num_classes)

    def stored_as(self, manifest_codec: CodecSpec) -> CodecSpec:
        """Return how it is stored in a stream of that codec."""
        return self.codec or manifest_codec

    def __str__(self) -> str:
        shape = ", ".join(map(str, ("N", *self.shape)))
        size = f"[{shape}]"
        if self.class_axis is not None:
            size = f"{self.num_classes} classes" + (f", axis {self.class_axis + 1} of {size}" if self.shape[1:] else "")
        chosen = f", at positions by {self.positions}" if self.positions else ""
        stored = f", as {self.codec}" if self.codec else ""
        return f"{self.name} = {self.output}: {self.kind}, {size}{chosen}{stored}"

    def problem(self) -> str:
        """Return what of it does not fit together, "" if nothing; a codec that does not fit raises ConfigError."""
        shape, axis, num_classes, codec = self.shape, self.class_axis, self.num_classes, self.codec
        if any(size < 1 for size in shape):
            return f"has rows of shape {shape}"
        if self.kind not in CLASS_KINDS:
            if (axis, num_classes) != (None, 0):
                return f"holds {self.kind}, which are of no classes"
            if codec is None:
                return f"holds {self.kind}, and names no codec"
        elif axis is None or not 0 <= axis < len(shape) or shape[axis] != num_classes:
            return f"has rows of shape {shape}, of which {axis} is no axis of {num_classes} classes"
        if (self.per == "position") != bool(self.positions):
            return f"is per {self.per}, and field {self.positions!r} chooses positions"
        if self.per == "position" and len(shape) < 2:
            return f"has rows of shape {shape}, which are no positions of something"
        if codec is not None:
            codec.refuse_classes(num_classes)
        return ""

    @classmethod
    def of_datum(cls, datum: Datum) -> Self:
        """Return what a record says."""
        codec = datum["codec"] and CodecSpec(**tuples(datum["codec"]))
        return cls(**{**tuples(datum), "codec": codec})


_BUILT: Datum = {
    "class_map": [],
    "reduction": "",
    "cut": "numpy",
    "head_sha256": None,
}
"""What each output says today."""


def not_built(output: Datum) -> str:
    """Return what an output's record says that is not built yet, "" if nothing."""
    if output["kind"] not in KINDS:
        return f"its output {output['name']!r} holds {output['kind']}, not one of {', '.join(KINDS)}"
    if output["codec"] is not None and output["codec"]["name"] not in CODECS:
        return f"its output {output['name']!r} has codec {output['codec']['name']!r}"
    found = {field: list(value) if isinstance(value, tuple) else value for field, value in output.items()}
    for field, value in _BUILT.items():
        if found[field] != value:
            return f"its output {output['name']!r} has {field} {found[field]!r}"
    return ""


def tuples(datum: Datum) -> Datum:
    """Return the fields of a part of a record, lists as tuples."""
    return {field: tuple(value) if isinstance(value, list) else value for field, value in datum.items()}
