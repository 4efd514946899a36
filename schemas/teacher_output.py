"""One output of a teacher: what the ONNX graph gives, and what is published of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from schemas.class_maps import map_problem, mapped_classes
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import ConfigError
from schemas.reductions import Reduction, is_reduction

SOFTMAX_KINDS = ("logits", "probabilities", "log_probabilities")
"""What a teacher's output over classes that exclude one another may be."""
CLASS_KINDS = (*SOFTMAX_KINDS, "multilabel")
"""What a teacher's output over classes may be; multilabel: logits of a sigmoid for each of them."""
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
    """The model's; 0 where there are no classes."""
    codec: CodecSpec | None = None
    """How it is stored; None = as the manifest says, which only classes that exclude one another may be."""
    per: str = "sample"
    """What a row of the soft targets is of: `sample` or `position`."""
    positions: str = ""
    """The view's field that chooses which positions are stored: those where it is not 0; "" per sample."""
    class_map: tuple[int, ...] = ()
    """The dataset's class of each of its classes, -1 for one that the dataset does not have; () = the same."""
    reduction: str = ""
    """What is done to it before it is stored, such as `mean@1`."""
    cut: str = "numpy"
    """Who keeps the likeliest of its classes, of topk and topk8: `numpy`, or `graph`: ONNX Runtime. Bits differ."""
    head_sha256: str | None = None
    """Of the last layer, where the codec is head: 64 hex digits over its bytes (`schemas.head`), whose rows are the
    stored classes."""

    @classmethod
    def of_classes(cls, output: str, kind: str, num_classes: int) -> Self:
        """Return what most teachers have: an output `logits`, a row of classes for each sample."""
        return cls("logits", output, kind, (num_classes,), 0, num_classes)

    @property
    def classes(self) -> tuple[int, ...]:
        """The dataset's classes of the stored columns, rising; () = all, or none."""
        return mapped_classes(self.class_map)

    @property
    def codec_classes(self) -> int:
        """How many classes a row of the soft targets shares one probability among; 0 where it does not."""
        return (len(self.classes) or self.num_classes) if self.kind in SOFTMAX_KINDS else 0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a row in the soft targets, of a sample or a position: the class axis is the last one there."""
        return self._classes_last[-1:] if self.per == "position" else self._classes_last

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Of a row as its codec gets it: as it is stored, but of head the hidden row."""
        shape = self.stored_shape
        return shape if self.head_sha256 is None or self.codec is None else (*shape[:-1], self.codec.k)

    @property
    def places(self) -> tuple[int, ...]:
        """Of the field that chooses positions: all axes of a row but the classes, or the last; () per sample."""
        return self._classes_last[:-1] if self.per == "position" else ()

    @property
    def _classes_last(self) -> tuple[int, ...]:
        if self.class_axis is None:
            return Reduction.parse(self.reduction).row(self.shape) if self.reduction else self.shape
        last = len(self.classes) or self.num_classes
        return (*self.shape[: self.class_axis], *self.shape[self.class_axis + 1 :], last)

    def stored_as(self, manifest_codec: CodecSpec) -> CodecSpec:
        """Return how it is stored in a stream of that codec."""
        return self.codec or manifest_codec

    def refuse_codec(self, codec: CodecSpec) -> None:
        """Raise ConfigError where it cannot travel by a codec."""
        if codec.of_hidden and self.kind != "logits":
            raise ConfigError(
                f"output {self.name!r}: codec head rebuilds logits, and this output is declared as {self.kind}: take "
                "the model's output before that as logits, or use float16 or float32"
            )
        if self.kind == "multilabel" and not codec.keeps_all:
            raise ConfigError(
                f"output {self.name!r}: codec {codec} keeps the likeliest of classes that exclude one another, and "
                "those of multilabel do not: use float16 or float32"
            )
        codec.refuse_classes(self.codec_classes)
        if self.cut == "graph" and (problem := codec.no_cut(self.codec_classes)):
            raise ConfigError(f"output {self.name!r} cannot be cut in the graph: {problem}")

    def __str__(self) -> str:
        shape = ", ".join(map(str, ("N", *self.shape)))
        size = f"[{shape}]"
        if self.class_axis is not None:
            size = f"{self.num_classes} classes" + (f", axis {self.class_axis + 1} of {size}" if self.shape[1:] else "")
            size += f", {len(self.classes)} of them the dataset's" if self.class_map else ""
        elif self.reduction:
            size = f"{self.reduction} of {size}"
        chosen = f", at positions by {self.positions}" if self.positions else ""
        stored = f", as {self.codec}" if self.codec else ""
        cut = ", cut in the graph" if self.cut == "graph" else ""
        return f"{self.name} = {self.output}: {self.kind}, {size}{chosen}{stored}{cut}"

    def problem(self) -> str:
        """Return what of it does not fit together, "" if nothing; a codec that does not fit raises ConfigError."""
        shape, axis, num_classes, codec = self.shape, self.class_axis, self.num_classes, self.codec
        if any(size < 1 for size in shape):
            return f"has rows of shape {shape}"
        if self.kind not in CLASS_KINDS:
            if (axis, num_classes) != (None, 0):
                return f"holds {self.kind}, which are of no classes"
            if self.class_map:
                return f"holds {self.kind}, and has a class map"
            if self.reduction and Reduction.parse(self.reduction).axis > len(shape):
                return f"has rows of shape {shape}, and no axis for {self.reduction}"
        elif axis is None or not 0 <= axis < len(shape) or shape[axis] != num_classes:
            return f"has rows of shape {shape}, of which {axis} is no axis of {num_classes} classes"
        elif self.reduction:
            return f"holds {self.kind}, and is reduced by {self.reduction}"
        elif problem := map_problem(self.class_map, num_classes):
            return problem
        if self.kind not in SOFTMAX_KINDS and codec is None:
            return f"holds {self.kind}, and names no codec"
        if (self.per == "position") != bool(self.positions):
            return f"is per {self.per}, and field {self.positions!r} chooses positions"
        if self.per == "position" and len(self._classes_last) < 2:
            return f"has rows of shape {shape}, which are no positions of something"
        if codec is not None:
            self.refuse_codec(codec)
        of_hidden = codec is not None and codec.of_hidden
        if of_hidden != (self.head_sha256 is not None) or (codec is not None and of_hidden and codec.k < 1):
            return f"has codec {codec}, and {'a' if self.head_sha256 else 'no'} last layer"
        return ""

    @classmethod
    def of_datum(cls, datum: Datum) -> Self:
        """Return what a record says."""
        codec = datum["codec"] and CodecSpec(**tuples(datum["codec"]))
        head = datum["head_sha256"] and datum["head_sha256"].hex()
        return cls(**{**tuples(datum), "codec": codec, "head_sha256": head})


def not_built(output: Datum) -> str:
    """Return what an output's record says that is not built yet, "" if nothing."""
    if output["kind"] not in KINDS:
        return f"its output {output['name']!r} holds {output['kind']}, not one of {', '.join(KINDS)}"
    if output["codec"] is not None and output["codec"]["name"] not in CODECS:
        return f"its output {output['name']!r} has codec {output['codec']['name']!r}"
    if output["reduction"] and not is_reduction(output["reduction"]):
        return f"its output {output['name']!r} has reduction {output['reduction']!r}"
    if output["per"] == "position" and not output["positions"]:  # "all", the schema says
        return f"its output {output['name']!r} is of all positions"
    return ""


def tuples(datum: Datum) -> Datum:
    """Return the fields of a part of a record, lists as tuples."""
    return {field: tuple(value) if isinstance(value, list) else value for field, value in datum.items()}
