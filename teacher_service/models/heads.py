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

from schemas.codecs import CodecSpec, storable
from schemas.errors import TeacherRejected
from schemas.finite import finite_rows
from schemas.records import Teacher
from teacher_service.models.heads_cut import HeadsCut
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs, as_stored, pick

COMPARED_ROWS = 64
"""Samples that are looked at, at most."""
_LIMIT, _HALF_LIMIT = 1e-4, 4e-3
"""The largest change, as a share of the output's range: float32 in another order of sums, and logits that the model
itself rounds to half precision. A wrong layer is off by its whole range."""
_STORED_LIMIT = 1e-2
"""The same of what is stored, hidden rows in float16, as a share of the range within a row: between what int8 and int4
round. Ordinary layers are far below 1e-3, and numbers that are too small for float16 above 1e-1."""
_MASKED = 1e3
"""A class that lies further below its row's likeliest is masked: it is in no range, and counts as that far below."""


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
    labels = model.label(first)
    rebuilt = model.rebuilt(labels)
    masks = model.masks(first)
    for one in model.teacher.outputs:
        if one.head_sha256 is None or one.codec is None:
            continue
        whole = as_stored(pick(answers[one.output][rows], one, masks.get(one.name)), replace(one, head_sha256=None))
        halves = model.heads[one.name].weight.dtype == np.float16 or _are_halves(whole)
        change, limit = _change(whole, rebuilt[one.name]), _HALF_LIMIT if halves else _LIMIT
        if not change <= limit:
            raise TeacherRejected(
                f"{model.path}: the logits that are rebuilt of output {one.output!r}, by its last layer, are off by "
                f"{change:.1e} of its range (at most {limit:g}): use another codec, such as float16"
            )
        hidden = labels[one.name]
        held = storable(hidden, one.codec, one.codec_classes)
        stored = model.heads[one.name].logits(hidden[held].astype(np.float16))
        change = _change(_below_likeliest(whole[held]), _below_likeliest(stored))
        if not change <= _STORED_LIMIT:
            raise TeacherRejected(
                f"{model.path}: what the last layer of output {one.output!r} is given does not keep its digits in "
                f"float16, by which codec head stores it: the logits that are rebuilt are off by {change:.1e} of the "
                f"range of a row (at most {_STORED_LIMIT:g}): use another codec, such as float16"
            )


def _are_halves(numbers: npt.NDArray[np.float32]) -> bool:
    """Whether the model rounded them to float16 or bfloat16 at its end, a Cast behind the layer, say."""
    with np.errstate(over="ignore"):
        same = bool((numbers.astype(np.float16) == numbers).all())
    return same or not (np.ascontiguousarray(numbers).view(np.uint32) & 0xFFFF).any()


def _below_likeliest(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What a softmax sees of them: [..., C] less the row's largest."""
    numbers: npt.NDArray[np.float64] = logits.astype(np.float64)
    numbers -= numbers.max(axis=-1, keepdims=True)
    return numbers


def _change(whole: npt.NDArray[Any], rebuilt: npt.NDArray[Any]) -> float:
    """The largest change of the rows that are finite, as a share of their range."""
    fit = finite_rows(whole)
    exact, given = (each[fit].astype(np.float64) for each in (whole, rebuilt))
    if not exact.size:
        return 0.0
    least = exact.max(axis=-1, keepdims=True) - _MASKED
    spread = float(np.ptp(exact[exact > least]))
    return float(np.abs(np.maximum(given, least) - np.maximum(exact, least)).max()) / (spread or 1.0)


def layers_of(model: OnnxTeacher) -> dict[str, bytes]:
    """Return SHA-256 -> bytes of the layers of a teacher's outputs, for its stream."""
    return {head.sha256: head.encode() for head in model.heads.values()}
