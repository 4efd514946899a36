"""Models of a teacher that moves: a generation's file, wherever it lies, opened beside the teacher's own."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.captured.storage import read_file
from pipeline.onnx_runtime import PROVIDERS
from schemas.codecs import CodecSpec
from schemas.errors import DataUnavailable, DistillogError
from schemas.records import Lineage, Teacher
from teacher_service.models.checks import check_model
from teacher_service.models.choosing import check_cuts
from teacher_service.models.session import Inputs, OnnxTeacher

Open = Callable[[Path, Teacher, str, int], OnnxTeacher]
"""Gets a file, the teacher that it is of, the execution provider and the number of threads."""


def open_generation(
    base: OnnxTeacher, lineage: Lineage, number: int, folder: Path, open_model: Open = OnnxTeacher
) -> OnnxTeacher:
    """Open a generation's model, where and as the teacher's own runs; its `teacher` is the lineage's of that number.

    Args:
        base: any generation's model that is open; returned as it is where it is the one.
        lineage: the teacher's.
        number: 0, which is `base`'s own business, or one that the lineage has.
        folder: where its file is copied to, so that nobody changes it under a session, or under a process that opens
            it again; the copy goes with the model.
        open_model: what opens it.

    Raises:
        DataUnavailable: the file cannot be read now, or is not what its record says; it may come right.
        ConfigError: there is no such file, or it may not be read.
        TeacherRejected: ONNX Runtime cannot load it.
    """
    if number == base.teacher.generation:
        return base
    teacher = lineage.at(number)
    assert teacher is not None  # the caller's lineage has it
    assert number  # generation 0 is a file of the user's own
    address = lineage.generations[number - 1].model
    content = read_file(address)
    if (there := hashlib.sha256(content).hexdigest()) != teacher.sha256:
        raise DataUnavailable(
            f"{address}: is another file ({there[:12]}) than generation {number} of teacher {teacher.name!r} "
            f"({teacher.sha256[:12]}); bring that back"
        )
    path = folder / f"{teacher.name}-{number}-{os.urandom(4).hex()}.onnx"
    path.write_bytes(content)
    try:
        provider = next(name for name, each in PROVIDERS.items() if each == base.provider)
        model = open_model(path, teacher, provider, base.threads)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    weakref.finalize(model, _remove, path)
    return model


def unfit(model: OnnxTeacher, codec: CodecSpec, inputs: Inputs) -> str:
    """Return why a generation cannot label as its teacher does, by one call's rows; "" where it can.

    It takes or gives something else than the teacher's record says, its labels depend on their neighbours, or are not
    finite.

    Args:
        model: the generation's.
        codec: the stream's.
        inputs: field of the view -> [M, ...], samples that the teacher itself labels well.
    """
    inputs = {field: values[: model.teacher.inference_batch] for field, values in inputs.items()}
    try:
        for name, values in model.label(inputs).items():
            if not np.isfinite(values).all():
                return f"{model.path}: output {name!r} is not finite on the stream's first samples"
        check_model(model, inputs)
        check_cuts(model, codec, inputs)
    except DistillogError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        return f"{model.path}: fails on the stream's first samples ({' '.join(str(error).split())[:300]})"
    return ""


def _remove(path: Path) -> None:
    with suppress(OSError):  # its folder may be gone already
        path.unlink(missing_ok=True)
