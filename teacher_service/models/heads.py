"""Outputs by the codec head: their last layers are found, cut off, and what is rebuilt is held against the whole graph.

Letters: M rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.codecs import CodecSpec
from schemas.errors import TeacherRejected
from schemas.finite import finite_rows
from schemas.records import Teacher
from teacher_service.models.heads_cut import HeadsCut
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs, as_stored, pick

COMPARED_ROWS = 64
"""Samples that are looked at, at most."""
_LIMITS = {np.dtype("float32"): 1e-4, np.dtype("float16"): 4e-3}
"""Dtype of the weights -> the largest change, as a share of the output's range: float32 in another order of sums, and
logits that the model itself rounds to half precision. A wrong layer is off by its whole range."""


def with_heads(path: Path, teacher: Teacher, samples: Mapping[str, npt.NDArray[Any]], answers: Outputs) -> Teacher:
    """Return a teacher whose outputs by head say which layer theirs is; as it is without any.

    Args:
        path: the model.
        teacher: complete but for that.
        samples: field -> [M, ...], the views.
        answers: the whole graph's, as `OnnxTeacher.answers` gives them of these.

    Raises:
        TeacherRejected: an output has no linear layer at its end, or what is rebuilt is not what the whole graph gives.
        ConfigError: an output that is of no classes, or none of logits.
    """
    by_head = [one for one in teacher.outputs if one.codec is not None and one.codec.of_hidden]
    if not by_head:
        return teacher
    for one in by_head:
        one.refuse_codec(CodecSpec("head"))
    cut = HeadsCut(path, teacher.outputs)
    outputs = []
    for one in teacher.outputs:
        if one.name in cut.heads:
            head = cut.heads[one.name]
            if one.codec is not None and one.codec.k not in (0, head.width):
                raise TeacherRejected(
                    f"{path}: the last layer of output {one.output!r} takes {head.width} numbers, and the codec is "
                    f"{one.codec}: say head"
                )
            one = replace(one, codec=CodecSpec("head", head.width), head_sha256=head.sha256)
        outputs.append(one)
    described = replace(teacher, outputs=tuple(outputs))
    _refuse_unlike(OnnxTeacher(path, described), samples, answers)
    return described


def _refuse_unlike(model: OnnxTeacher, samples: Inputs, answers: Outputs) -> None:
    """Raise TeacherRejected unless the cut graph with its layers gives what the whole graph gave."""
    rows = slice(0, min(COMPARED_ROWS, model.teacher.inference_batch))
    first = {field: values[rows] for field, values in samples.items()}
    rebuilt = model.rebuilt(model.label(first))
    masks = model.masks(first)
    for one in model.teacher.outputs:
        if one.head_sha256 is None:
            continue
        whole = as_stored(pick(answers[one.output][rows], one, masks.get(one.name)), replace(one, head_sha256=None))
        change, limit = _change(whole, rebuilt[one.name]), _LIMITS[model.heads[one.name].weight.dtype]
        if not change <= limit:
            raise TeacherRejected(
                f"{model.path}: the logits that are rebuilt of output {one.output!r}, by its last layer, are off by "
                f"{change:.1e} of its range (at most {limit:g}): use another codec, such as float16"
            )


def _change(whole: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32]) -> float:
    """The largest change of the rows that are finite, as a share of their range."""
    fit = finite_rows(whole)
    exact = whole[fit].astype(np.float64)
    spread = float(np.ptp(exact)) if exact.size else 0.0
    return float(np.abs(rebuilt[fit] - exact).max(initial=0.0)) / (spread or 1.0)


def layers_of(model: OnnxTeacher) -> dict[str, bytes]:
    """Return SHA-256 -> bytes of the layers of a teacher's outputs, for its stream."""
    return {head.sha256: head.encode() for head in model.heads.values()}
