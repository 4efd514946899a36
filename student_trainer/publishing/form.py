"""Whether a student's file is to a teacher's record what the teacher's own file is: fed and read in the same way.

Letters: M rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.onnx_runtime import ONNX_DTYPES, open_session
from schemas.errors import ConfigError, TeacherRejected
from schemas.kinds import check_kind
from schemas.records import Teacher, TeacherOutput

_ROWS = 2


def refuse_unlike(teacher: Teacher, file: bytes, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Hold a student's ONNX file against the record of the teacher whose next generation it is to be.

    Args:
        teacher: as its record says.
        file: the student's.
        inputs: field of the view -> [M, ...], as the teacher asks for it.

    Raises:
        ConfigError: the file takes or gives something else; it names the first difference.
    """
    session = open_session(Path("student.onnx"), threads=1, graph=file)
    taken = {each.name: ONNX_DTYPES.get(each.type, each.type) for each in session.get_inputs()}
    given = [each.name for each in session.get_outputs()]
    of_teacher = {each.input: each for each in teacher.inputs}
    if set(taken) != set(of_teacher):
        raise unlike(teacher, f"it takes {_list(of_teacher)}, and the student {_list(taken)}")
    feeds = {}
    for name, each in of_teacher.items():
        if (each.formula, each.channel_order) != ("*1", "") or each.layout == "nhwc":
            raise unlike(teacher, f"it is not fed the view as it is ({each}), and the student is")
        if each.dtype != taken[name]:
            raise unlike(teacher, f"its input {name!r} is {each.dtype}, and the student's {taken[name]}")
        feeds[name] = inputs[each.field][:_ROWS]
    for output in teacher.outputs:
        if output.output not in given:
            raise unlike(teacher, f"its output {output.name!r} is {output.output!r} in ONNX; the student has none")
        if output.class_map and output.class_map != tuple(range(len(output.class_map))):
            raise unlike(
                teacher,
                f"a class map brings the classes of its output {output.name!r} into the dataset's order, which the "
                "student's have already",
            )
    try:
        answers = session.run([each.output for each in teacher.outputs], feeds)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise unlike(teacher, f"the student cannot take what it is fed ({reason})") from None
    for output, answer in zip(teacher.outputs, answers, strict=True):
        values = np.asarray(answer, np.float32)
        if values.shape[1:] != output.shape:
            there = list(values.shape[1:])
            raise unlike(
                teacher, f"its output {output.name!r} has rows of {list(output.shape)}, and the student's of {there}"
            )
        _check_kind(teacher, output, values)


def _check_kind(teacher: Teacher, output: TeacherOutput, values: NDArray[np.float32]) -> None:
    if output.kind == "multilabel":
        return  # of a student that has not learned yet all may lie between 0 and 1
    if output.class_axis is not None:
        values = np.moveaxis(values, 1 + output.class_axis, -1)
    try:
        check_kind(values, output)
    except TeacherRejected as error:
        raise unlike(teacher, f"of the student, {error}") from None


def unlike(teacher: Teacher, what: str) -> ConfigError:
    """Return what to raise where a student is not what a teacher's record says."""
    return ConfigError(
        f"[publish] the student cannot be a generation of teacher {teacher.name!r}: {what}; add an export of such a "
        "student as a teacher of its own, and publish for that"
    )


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, sorted(names)))
