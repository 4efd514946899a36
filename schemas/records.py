"""Records of the log: work orders, soft targets, dead letters. Letters: N samples of an order, M kept rows, C classes.

Each knows its bytes: `encode(manifest.schema_fingerprints)` writes the versions that its stream pins and refuses wrong
values with EncodeError, `decode(raw, address)` reads every version and refuses with DecodeError. Equal values are equal
bytes, so times and worker names travel in Kafka's headers. The manifest's topic has those of manifest.py and
teacher.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from schemas.avro import NEWEST, REGISTRY, Datum
from schemas.codecs import CODECS, CodecSpec, SoftRows, encode_values
from schemas.columns import (
    Columns,
    FloatArray,
    IntArray,
    pack_columns,
    pack_ids,
    pack_sha256,
    unpack_columns,
    unpack_ids,
)
from schemas.errors import ConfigError, EncodeError
from schemas.generation import Generation, Lineage, Publisher
from schemas.hashing import UInt64s
from schemas.manifest import Manifest, Origin, Probe, ViewSpec
from schemas.names import did_you_mean
from schemas.positions import Chosen, Positions
from schemas.teacher import Teacher, TeacherInput
from schemas.teacher_output import TeacherOutput
from schemas.topk import Kept, TopKCodec

__all__ = [
    "DeadLetter",
    "Generation",
    "Lineage",
    "Manifest",
    "Origin",
    "Output",
    "Probe",
    "Publisher",
    "SoftTargets",
    "Teacher",
    "TeacherInput",
    "TeacherOutput",
    "ViewSpec",
    "WorkOrder",
]


_COUNTS, _MARKS = "counts", "marks"
"""The columns of outputs per position that no codec has."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkOrder:
    """N samples that the teachers are asked to label."""

    stream_id: str
    sequence: int
    epoch: int
    sample_ids: IntArray
    """[N] int64"""
    view_seed: int
    """In [0, 2^63)."""

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := _order_problem(self.sequence, self.epoch, self.view_seed):
            raise EncodeError(problem)
        return REGISTRY.encode("work_order", _order_datum(self), pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the work order; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("work_order", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        return cls(**_order_fields(datum))


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One named output of a teacher for the kept rows of an order, as its codec stores it."""

    name: str
    codec: str
    num_classes: int
    """C; 0 where it has no classes."""
    columns: Columns
    """The codec's; their first dimension is M, or P, all positions of the M, but where rows are of unequal length."""
    chosen: Chosen | None = None
    """Which positions the kept rows have; None: its rows are of samples."""

    @classmethod
    def of(
        cls,
        name: str,
        values: FloatArray,
        spec: CodecSpec,
        *,
        classes: bool = True,
        num_classes: int = 0,
        chosen: Chosen | None = None,
        seeds: UInt64s | None = None,
    ) -> Self:
        """Return the output that stores [M, ..., C] float32, or without classes [M, ...], by `spec`.

        With `chosen` the first dimension of `values` is P. A codec that draws needs `seeds`, a hash for each of M,
        or P, of what it is. Of head the values are [M, ..., H], and `num_classes` is C. Unfit values raise EncodeError.
        """
        num_classes = num_classes or (values.shape[-1] if classes and values.shape else 0)
        try:
            columns = encode_values(values, spec, num_classes, seeds)
        except EncodeError as error:
            raise EncodeError(f"output {name!r}: {error}") from None
        return cls(name, spec.name, num_classes, columns, chosen)

    @classmethod
    def of_kept(cls, name: str, kept: Kept, spec: CodecSpec, chosen: Chosen | None = None) -> Self:
        """Return the output that stores what was kept of [M, ..., C], or of [P, C] with `chosen`, by topk or topk8."""
        codec = CODECS[spec.name]
        assert isinstance(codec, TopKCodec)  # no other keeps classes
        return cls(name, spec.name, kept.num_classes, codec.columns(kept, spec), chosen)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return one output of the rows of several, one or more, all of one kind."""
        first = parts[0]
        if len(parts) == 1:
            return first
        columns = CODECS[first.codec].joined([part.columns for part in parts])
        chosen = [part.chosen for part in parts if part.chosen is not None]
        return cls(first.name, first.codec, first.num_classes, columns, Chosen.joined(chosen) if chosen else None)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of a row; classes are its last axis."""
        return CODECS[self.codec].row_shape(self.columns, self.num_classes)

    def values(self) -> SoftRows:
        """Return what the M samples have, decoded; arrays may be read-only views of the record's bytes."""
        rows = CODECS[self.codec].decode(self.columns, self.num_classes)
        return rows if self.chosen is None else Positions(rows, self.chosen)

    def datum(self) -> Datum:
        """Return the Avro datum: what is said of positions are columns beside the codec's."""
        columns = pack_columns(self.columns)
        if self.chosen is not None:
            columns += [pack_ids(_COUNTS, self.chosen.counts), pack_ids(_MARKS, self.chosen.marks)]
            columns.sort(key=lambda column: str(column["name"]))
        return {"name": self.name, "codec": self.codec, "num_classes": self.num_classes, "columns": columns}

    @classmethod
    def of_datum(cls, datum: Datum) -> Self:
        """Undo `datum`; raises ValueError as `unpack_columns`."""
        columns = [column for column in datum["columns"] if column["name"] not in (_COUNTS, _MARKS)]
        ours = [column for column in datum["columns"] if column["name"] in (_COUNTS, _MARKS)]
        said = {column["name"]: unpack_ids(column["name"], column) for column in ours}
        if len(ours) not in (0, 2) or len(said) != len(ours):
            raise ValueError(f"columns {sorted(column['name'] for column in ours)}, not both of positions, each once")
        chosen = Chosen(said[_COUNTS], said[_MARKS]) if said else None
        return cls(datum["name"], datum["codec"], datum["num_classes"], unpack_columns(columns), chosen)

    def check(self, num_kept: int) -> None:
        """Raise ValueError where `values` could not be trusted with the columns, of M = `num_kept`."""
        codec = CODECS.get(self.codec)
        if codec is None:
            raise ValueError(f"has the unknown codec {self.codec!r}")
        if self.num_classes < 0:
            raise ValueError(f"has {self.num_classes} classes")
        num_rows = num_kept
        if self.chosen is not None:
            for each in (self.chosen.counts, self.chosen.marks):
                if len(each) != num_kept:
                    raise ValueError(f"tells positions of {len(each)} rows, not of {num_kept}")
            # As Python's numbers, which do not overflow.
            num_rows = sum(self.chosen.counts.tolist())
        codec.check(self.columns, self.num_classes, num_rows)


@dataclass(frozen=True, slots=True, eq=False)
class SoftTargets:
    """A teacher's outputs for one work order."""

    stream_id: str
    sequence: int
    epoch: int
    sample_ids: IntArray
    """[N] int64: all samples of the order, also those left out."""
    view_seed: int
    kept_rows: IntArray | None
    """[M] int64, strictly increasing rows of `sample_ids` that the outputs are of; None: all N."""
    teacher: str
    teacher_sha256: str
    """64 lower-case hex digits; of the generation's model."""
    outputs: tuple[Output, ...]
    generation: int = 0
    """Which of the teacher's models; 0 is that of its record."""

    @property
    def num_kept(self) -> int:
        """M."""
        return len(self.sample_ids) if self.kept_rows is None else len(self.kept_rows)

    @property
    def kept_sample_ids(self) -> IntArray:
        """[M] int64."""
        return self.sample_ids if self.kept_rows is None else self.sample_ids[self.kept_rows]

    def output(self, name: str) -> Output:
        """Return the output of that name; a missing one raises ConfigError."""
        for output in self.outputs:
            if output.name == name:
                return output
        known = [output.name for output in self.outputs]
        raise ConfigError(f"teacher {self.teacher!r} has no output {name!r}: {did_you_mean(name, known)}")

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := _order_problem(self.sequence, self.epoch, self.view_seed) or self._problem():
            raise EncodeError(problem)
        kept = self.kept_rows
        datum = _order_datum(self)
        # All rows have one form on the wire, or equal records would differ.
        datum["kept_rows"] = None if kept is None or len(kept) == len(self.sample_ids) else pack_ids("kept_rows", kept)
        datum["teacher"] = self.teacher
        datum["teacher_sha256"] = pack_sha256(self.teacher_sha256)
        datum["outputs"] = [output.datum() for output in self.outputs]
        datum["generation"] = self.generation
        return REGISTRY.encode("soft_targets", datum, pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the soft targets; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("soft_targets", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        kept = datum["kept_rows"]
        targets = cls(
            **_order_fields(datum),
            kept_rows=None if kept is None else unpack_ids("kept_rows", kept),
            teacher=datum["teacher"],
            teacher_sha256=datum["teacher_sha256"].hex(),
            outputs=tuple(map(Output.of_datum, datum["outputs"])),
            generation=datum["generation"],
        )
        if problem := targets._problem():
            raise ValueError(problem)
        return targets

    def _problem(self) -> str:
        kept, num_samples = self.kept_rows, len(self.sample_ids)
        if kept is not None and len(kept):
            if kept[0] < 0 or kept[-1] >= num_samples:
                return f"kept rows reach beyond the {num_samples} of the order"
            if not (kept[1:] > kept[:-1]).all():
                return "kept rows are not strictly increasing"
        if self.generation < 0:
            return f"generation {self.generation} must not be negative"
        if len({output.name for output in self.outputs}) < len(self.outputs):
            return "two outputs have one name"
        for output in self.outputs:
            try:
                output.check(self.num_kept)
            except ValueError as error:
                return f"output {output.name!r} {error}"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A copy of what could not be labelled: one row of an order, or a record that is no work order at all."""

    stream_id: str
    teacher: str
    topic: str
    partition: int
    offset: int
    """Address of the record that the letter is about."""
    sequence: int | None
    row: int | None
    sample_id: int | None
    reason: str
    raw: bytes | None
    """The record itself, where it is none of ours."""

    def encode(self, pinned: Mapping[str, str] = NEWEST) -> bytes:
        """Return the record's bytes in the schema version `pinned`; EncodeError where a value does not fit."""
        if problem := self._problem():
            raise EncodeError(problem)
        return REGISTRY.encode("dead_letter", {name: getattr(self, name) for name in self.__slots__}, pinned)

    @classmethod
    def decode(cls, raw: bytes, address: str) -> Self:
        """Return the dead letter; anything else raises DecodeError with `address`."""
        return REGISTRY.decode_as("dead_letter", cls._of, raw, address)

    @classmethod
    def _of(cls, datum: Datum) -> Self:
        letter = cls(**datum)
        if problem := letter._problem():
            raise ValueError(problem)
        return letter

    def _problem(self) -> str:
        numbers = (self.partition, self.offset, self.sequence, self.row, self.sample_id)
        return "a number is negative" if any(number is not None and number < 0 for number in numbers) else ""


def _order_datum(order: WorkOrder | SoftTargets) -> Datum:
    return {
        "stream_id": order.stream_id,
        "sequence": order.sequence,
        "epoch": order.epoch,
        "sample_ids": pack_ids("sample_ids", order.sample_ids),
        "view_seed": order.view_seed,
    }


def _order_fields(datum: Datum) -> dict[str, Any]:
    sequence, epoch, view_seed = datum["sequence"], datum["epoch"], datum["view_seed"]
    if problem := _order_problem(sequence, epoch, view_seed):
        raise ValueError(problem)
    return {
        "stream_id": datum["stream_id"],
        "sequence": sequence,
        "epoch": epoch,
        "sample_ids": unpack_ids("sample_ids", datum["sample_ids"]),
        "view_seed": view_seed,
    }


def _order_problem(sequence: int, epoch: int, view_seed: int) -> str:
    if sequence < 0 or epoch < 0 or view_seed < 0:
        return f"sequence {sequence}, epoch {epoch} and view seed {view_seed} must not be negative"
    return ""
