"""Soft targets as columns of a table, one row a sample. Letters: M rows, C classes, k kept classes, T temperature.

Of an output NAME there are

| stored as | columns |
|---|---|
| float32, float16, int8, int4 | `NAME`: the list of its numbers, in C order; of classes logits, less a constant |
| head | `NAME`: the logits that the last layer makes of the hidden row, in C order |
| topk | `NAME_classes` and `NAME_probabilities`: lists of k, likeliest first; `NAME_tail`: the mass of all others |
| sampled | `NAME_classes` and `NAME_probabilities`: the classes that were drawn, and how often of all draws |

with `@T` behind probabilities and tail of each declared temperature but 1. A codec more is a function and a line in
`TABLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.codecs import CodecSpec, Dense, Features, Sampled, SoftRows, Steps, TopK
from schemas.errors import ConfigError
from schemas.hidden import Hidden
from schemas.records import Teacher
from schemas.teacher_output import TeacherOutput

Array = npt.NDArray[Any]

FIXED = ("sequence", "epoch", "sample_id", "view_seed", "label", "teacher", "generation")
"""The columns of every table; label where a dataset tells it."""


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A column of lists of M rows."""

    values: Array
    """[sum of lengths]: row after row."""
    lengths: npt.NDArray[np.int64]
    """[M]."""

    @classmethod
    def of(cls, rows: Array) -> Lists:
        """Return [M, ...] as lists, in C order."""
        return cls(rows.reshape(-1), np.full(len(rows), math.prod(rows.shape[1:]), np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Lists]) -> Lists:
        """Return the rows of several, one or more."""
        return cls(np.concatenate([each.values for each in parts]), np.concatenate([each.lengths for each in parts]))


Column = Array | Lists
"""[M] numbers, or a list for each of M rows."""
Columns = Iterator[tuple[str, Column]]
"""What follows an output's name in a column's, and the column."""


def _every_number(rows: SoftRows, classes: Array) -> Columns:
    """Of a dense output the classes are those of its record, in its metadata."""
    if isinstance(rows, Steps):
        values = rows.values()
    else:
        assert isinstance(rows, Dense | Features)
        values = rows.logits if isinstance(rows, Dense) else rows.values
    yield "", Lists.of(values.astype(np.float32))


def _rebuilt(rows: SoftRows, classes: Array) -> Columns:
    assert isinstance(rows, Hidden)
    assert rows.head is not None
    yield "", Lists.of(rows.head.logits(rows.hidden))


def _likeliest(rows: SoftRows, classes: Array) -> Columns:
    assert isinstance(rows, TopK)
    yield "_classes", Lists.of(classes[rows.indices].astype(np.int32))
    for temperature in rows.temperatures:
        at = _at(temperature)
        yield f"_probabilities{at}", Lists.of(np.exp(rows.log_probs_at(temperature)))
        yield f"_tail{at}", np.exp(rows.log_tails[temperature])


def _drawn(rows: SoftRows, classes: Array) -> Columns:
    """The draws of a row are rising: equal ones stand together."""
    assert isinstance(rows, Sampled)
    draws = rows.draws
    first = np.ones(draws.shape, np.bool_)
    np.not_equal(draws[:, 1:], draws[:, :-1], out=first[:, 1:])
    places = np.flatnonzero(first)
    lengths = first.sum(axis=1, dtype=np.int64)
    counts = np.diff(places, append=draws.size)
    yield "_classes", Lists(classes[draws.reshape(-1)[places]].astype(np.int32), lengths)
    yield "_probabilities", Lists((counts / draws.shape[1]).astype(np.float32), lengths)


TABLES: Mapping[str, Callable[[SoftRows, Array], Columns]] = {
    "float32": _every_number,
    "float16": _every_number,
    "int8": _every_number,
    "int4": _every_number,
    "topk": _likeliest,
    "topk8": _likeliest,
    "sampled": _drawn,
    "head": _rebuilt,
}
"""Codec -> the columns of rows that it decoded, of head with their layer; class c is the dataset's `classes[c]`."""


def _at(temperature: float) -> str:
    return "" if temperature == 1 else f"@{temperature!r}"


@dataclass(frozen=True, slots=True)
class OutputTable:
    """How an output becomes columns."""

    name: str
    codec: CodecSpec
    kind: str
    shape: tuple[int, ...]
    """Of a row."""
    classes: tuple[int, ...]
    """The dataset's classes of its own, rising; () = all, or none."""
    columns: tuple[tuple[str, str], ...]
    """Name and kind, in the table's order: `numbers` and `classes` are lists of float32 and int32, `mass` a float32."""

    def of(self, rows: SoftRows) -> dict[str, Column]:
        """Return the columns of M rows, by name."""
        classes = np.array(self.classes or range(self.shape[-1] if self.shape else 0))
        return {self.name + rest: column for rest, column in TABLES[self.codec.name](rows, classes)}

    def described(self) -> dict[str, Any]:
        """Return what a reader needs to know of the columns beside their names."""
        said = {
            "codec": str(self.codec),
            "kind": self.kind,
            "shape": self.shape,
            "columns": [name for name, _ in self.columns],
        }
        return said | ({"classes": self.classes} if self.classes else {})


def tables_of(teacher: Teacher, manifest_codec: CodecSpec) -> list[OutputTable]:
    """Return how each output of a teacher becomes columns.

    Raises:
        ConfigError: one of them does not, by its name and the reason.
    """
    tables: list[OutputTable] = []
    taken = {name: "every table" for name in FIXED}
    for output in teacher.outputs:
        codec = output.stored_as(manifest_codec)
        if reason := _reason(output, codec):
            raise ConfigError(
                f"output {output.name!r} of teacher {teacher.name!r} {reason}; read the Avro files, or name other "
                "teachers"
            )
        columns = tuple((output.name + rest, kind) for rest, kind in _kinds(codec))
        for name, _ in columns:
            if name in taken:
                raise ConfigError(
                    f"output {output.name!r} of teacher {teacher.name!r} gives a column {name!r}, as does "
                    f"{taken[name]}; read the Avro files, or name other teachers"
                )
            taken[name] = f"output {output.name!r}"
        tables.append(OutputTable(output.name, codec, output.kind, output.stored_shape, output.classes, columns))
    return tables


def _reason(output: TeacherOutput, codec: CodecSpec) -> str:
    """Say why an output has no place in a table; "" where it has."""
    if output.positions:
        return "has a row for each position, and a table one for each sample"
    if codec.name not in TABLES:
        return f"is stored as {codec}, which has no columns"
    if not codec.keeps_all and len(output.stored_shape) > 1:
        return f"has a list of classes for each of several places, rows of {list(output.stored_shape)}"
    return ""


def _kinds(codec: CodecSpec) -> list[tuple[str, str]]:
    """What follows an output's name in those of its columns, and their kinds."""
    if codec.draws:
        return [("_classes", "classes"), ("_probabilities", "numbers")]
    if codec.keeps_all:
        return [("", "numbers")]
    at = [_at(temperature) for temperature in sorted(codec.temperatures)]
    of_each = [(name + each, kind) for each in at for name, kind in (("_probabilities", "numbers"), ("_tail", "mass"))]
    return [("_classes", "classes"), *of_each]
