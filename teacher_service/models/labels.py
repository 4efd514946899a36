"""A teacher's labels as they are stored, encoded call by call: no more than one call's outputs are there in float32.

Letters: N samples asked for, M of them with labels, m of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from pipeline.datasets.base import Faults, Ints
from pipeline.hashing import hash64, tag
from pipeline.views.fetch import Fetched
from pipeline.views.positions import choosers
from schemas.codecs import CodecSpec, storable
from schemas.columns import FloatArray
from schemas.hashing import UInt64s
from schemas.positions import Chosen
from schemas.records import Output, Teacher, TeacherOutput
from schemas.topk import Kept
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs


class Asked(NamedTuple):
    """Of what views are: a codec that draws at random does so by it."""

    sample_ids: Ints
    """[N] int64"""
    view_seed: int | Ints
    """Of all, or [N] of each."""

    def take(self, rows: Ints) -> Asked:
        """Return that of the rows at [K] places."""
        seed = self.view_seed
        return Asked(self.sample_ids[rows], seed if isinstance(seed, int) else seed[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What became of N samples."""

    kept: Ints
    """[M] int64, rising: which rows of the N have labels"""
    faults: Faults
    """(row, reason) of the others, rising"""
    outputs: tuple[Output, ...]
    """of the M rows, in the teacher's order"""

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """Return one of the rows of several, one or more, that come one behind the other."""
        return cls(
            np.concatenate([piece.kept for piece in pieces]),
            tuple(fault for piece in pieces for fault in piece.faults),
            tuple(map(Output.joined, zip(*(piece.outputs for piece in pieces), strict=True))),
        )


def label(
    model: OnnxTeacher,
    fetched: Fetched,
    codec: CodecSpec,
    asked: Asked | None = None,
    also: Callable[[Outputs], None] = lambda values: None,
) -> Labels:
    """Label views; `codec` is the stream's. A codec that draws does so by `asked`, and raises EncodeError without.

    A row is left out where one of its outputs, or one of its positions, cannot be stored, and where a field that
    chooses positions holds a negative number. `also` gets what is encoded of each call, as `OnnxTeacher.in_calls` gives
    it, but for those rows. Raises as `OnnxTeacher.in_calls`.
    """
    chosen = model.what_is_chosen(fetched.inputs)
    misled = _misled(model.teacher, fetched.inputs) if len(fetched.kept_rows) else {}
    unfit: dict[int, str] = {}
    kept = None if asked is None else asked.take(fetched.kept_rows)

    def encode(rows: slice, values: Outputs) -> tuple[Output, ...]:
        of_call = {name: each.take(rows) for name, each in chosen.items()}
        reasons = unstorable(model.teacher, codec, values, {name: each.counts for name, each in of_call.items()})
        reasons |= {row - rows.start: why for row, why in misled.items() if rows.start <= row < rows.stop}
        unfit.update({rows.start + row: why for row, why in reasons.items()})
        fit, chosen_of_fit = _without(model.teacher, values, of_call, list(reasons))
        also(fit)
        of_fit = None if kept is None else kept.take(np.delete(np.arange(len(fetched.kept_rows))[rows], list(reasons)))
        return _encoded(model.teacher, codec, fit, chosen_of_fit, of_fit, model.cut)

    parts = model.in_calls(fetched.inputs, encode) or [nothing(model.teacher, codec)]
    faults = [*fetched.faults, *((int(fetched.kept_rows[row]), why) for row, why in unfit.items())]
    outputs = tuple(map(Output.joined, zip(*parts, strict=True)))
    return Labels(np.delete(fetched.kept_rows, list(unfit)), tuple(sorted(faults)), outputs)


def nothing(teacher: Teacher, codec: CodecSpec) -> tuple[Output, ...]:
    """Return the outputs of no row."""
    empty = {one.name: np.empty((0, *one.encoded_shape), np.float32) for one in teacher.outputs}
    no_position = np.empty(0, np.int64)
    none = {one.name: Chosen(no_position, no_position) for one in teacher.outputs if one.per == "position"}
    return _encoded(teacher, codec, empty, none, Asked(no_position, 0))


def unstorable(teacher: Teacher, codec: CodecSpec, values: Outputs, counts: Mapping[str, Ints]) -> dict[int, str]:
    """Return row -> why, of the rows that cannot be stored: the first output of each that cannot.

    Args:
        teacher: whose.
        codec: the stream's.
        values: of m rows, as `OnnxTeacher.in_calls` gives them.
        counts: output per position -> [m] how many each row has.
    """
    reasons: dict[int, str] = {}
    for one in teacher.outputs:
        given, spec = values[one.name], one.stored_as(codec)
        unfit = np.flatnonzero(~storable(given, spec, one.codec_classes))
        if not len(unfit):
            continue
        row_of = _row_of(counts.get(one.name), len(given))
        for row, first in zip(*np.unique(row_of[unfit], return_index=True), strict=True):
            why = f"is beyond what {spec} holds" if np.isfinite(given[unfit[first]]).all() else "is not finite"
            reasons.setdefault(int(row), f"the teacher's output {one.name!r} {why}")
    return reasons


def _row_of(counts: Ints | None, num_values: int) -> Ints:
    """Return of which row each value is."""
    rows = np.arange(num_values if counts is None else len(counts))
    return rows if counts is None else np.repeat(rows, counts)


def _without(
    teacher: Teacher, values: Outputs, chosen: Mapping[str, Chosen], left_out: list[int]
) -> tuple[Outputs, Mapping[str, Chosen]]:
    """Return what there is of all rows but those."""
    if not left_out:
        return values, chosen
    given = {}
    for one in teacher.outputs:
        own = chosen.get(one.name)
        rows = _row_of(None if own is None else own.counts, len(values[one.name]))
        given[one.name] = values[one.name][~np.isin(rows, left_out)]
    return given, {name: each.take(np.delete(np.arange(len(each)), left_out)) for name, each in chosen.items()}


def _encoded(
    teacher: Teacher,
    codec: CodecSpec,
    values: Outputs,
    chosen: Mapping[str, Chosen],
    asked: Asked | None,
    cut: Callable[[TeacherOutput, CodecSpec, FloatArray], Kept] | None = None,
) -> tuple[Output, ...]:
    """Return the outputs of rows that can be stored; `cut` is what keeps the likeliest classes in the graph."""
    outputs = []
    for one in teacher.outputs:
        given, own = values[one.name], chosen.get(one.name)
        spec, classes, seeds = one.stored_as(codec), bool(one.codec_classes), None
        if one.cut == "graph" and cut is not None:
            outputs.append(Output.of_kept(one.name, cut(one, spec, given), spec, own))
            continue
        if spec.draws and asked:
            row_of = _row_of(None if own is None else own.counts, len(given))
            seeds = _seeds(teacher.name, one.name, asked, row_of)
        num_classes = one.codec_classes if spec.of_hidden else 0
        made = Output.of(one.name, given, spec, classes=classes, num_classes=num_classes, chosen=own, seeds=seeds)
        outputs.append(made)
    return tuple(outputs)


def _seeds(teacher: str, output: str, asked: Asked, row_of: Ints) -> UInt64s:
    """Return the seed of each value: of the view, the teacher's output, the sample, and its how manieth value it is.

    So whoever labels a sample, in whatever company, draws the same of it.
    """
    of_row = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)
    of_value = asked.take(row_of)
    return hash64(of_value.view_seed, tag(teacher), tag(output), of_value.sample_ids, of_row)


def _misled(teacher: Teacher, inputs: Inputs) -> dict[int, str]:
    """Return row -> why, of the rows whose fields choose no positions."""
    reasons: dict[int, str] = {}
    for field in dict.fromkeys(one.positions for one in teacher.outputs if one.per == "position"):
        for row in np.flatnonzero(~choosers(inputs[field])).tolist():
            reasons.setdefault(row, f"the view's field {field!r} holds a negative number or NaN: it chooses positions")
    return reasons
