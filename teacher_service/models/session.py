"""An ONNX session that answers as its manifest says, whatever the file calls its inputs and outputs.

Letters: M rows asked for, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.onnx_runtime import open_session
from schemas.errors import TeacherRejected
from schemas.records import Teacher, TeacherInput
from teacher_service.models.files import refuse_another

Inputs = Mapping[str, npt.NDArray[Any]]
"""field of the view -> [M, ...]"""

ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}

_MIN_PROBABILITY = 1e-12


def prepare_input(values: npt.NDArray[Any], spec: TeacherInput) -> npt.NDArray[Any]:
    """Bring a field [M, ...] into what an ONNX input takes: (value * scale - mean) / std, channel order, layout, dtype.

    Channels are the field's axis 1. Integers are rounded and clipped; a float that its dtype cannot hold is infinite.
    """
    with np.errstate(over="ignore"):  # the model's answer tells, and such a row is left out
        return _prepare_input(values, spec)


def _prepare_input(values: npt.NDArray[Any], spec: TeacherInput) -> npt.NDArray[Any]:
    working = np.result_type(values.dtype, np.float32)
    if spec.scale != 1.0 or spec.mean or spec.std:
        values = values.astype(working)  # the only copy
    if spec.scale != 1.0:
        values *= np.asarray(spec.scale, working)
    if spec.mean:
        values -= _by_channel(spec.mean, values.ndim, working)
    if spec.std:
        values /= _by_channel(spec.std, values.ndim, working)
    if spec.channel_order == "bgr":
        values = values[:, ::-1]
    if spec.layout == "nhwc":
        values = np.moveaxis(values, 1, -1)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values.astype(dtype, copy=False))


def _by_channel(numbers: tuple[float, ...], ndim: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """[1, C, 1, ...], C = 1 of one number"""
    shape = (1, -1, *[1] * (ndim - 2)) if ndim > 1 else (1,)
    return np.asarray(numbers, dtype).reshape(shape)


class OnnxTeacher:
    """A teacher ready to label: fixed batches in, logits or log-probabilities out."""

    def __init__(self, path: Path, teacher: Teacher, provider: str = "cpu", threads: int = 0) -> None:
        """Open the file.

        Raises:
            TeacherRejected: ONNX Runtime cannot load it.
            ManifestMismatch: it is another model than the teacher's.
            ConfigError: no such provider here.
        """
        self.teacher = teacher
        self.path = path
        self.threads = threads
        self._session = open_session(path, provider, threads, refusal=TeacherRejected)
        refuse_another(path, teacher)  # looked at when it is open: it may have been replaced since anybody looked

    def fed_as(self, inputs: tuple[TeacherInput, ...], batch: int) -> OnnxTeacher:
        """Return the same model in the same session, its inputs fed in another way and with other rows in a call."""
        other = copy(self)
        other.teacher = replace(self.teacher, inputs=inputs, inference_batch=self.fixed_batch or batch)
        return other

    @property
    def fixed_batch(self) -> int | None:
        """Rows in each call where the file fixes them."""
        fixed = {static_shape(one.shape)[0] for one in self._session.get_inputs() if one.shape} - {None}
        return next(iter(fixed), None)

    @property
    def provider(self) -> str:
        """Execution provider in use."""
        return str(self._session.get_providers()[0])

    @property
    def size(self) -> tuple[int, ...] | None:
        """Spatial size that it asks of the view; None: as it comes."""
        return self.teacher.inputs[0].size or None

    def raw(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Run the model as it is: [M, C] float32 of whatever kind the teacher declares.

        Every call of the session has `inference_batch` rows, the last padded with its own last row: another shape may
        give other bits.
        """
        batch = self.teacher.inference_batch
        feeds = {spec.input: prepare_input(inputs[spec.field], spec) for spec in self.teacher.inputs}
        num_rows = len(next(iter(feeds.values())))
        parts = []
        for start in range(0, num_rows, batch):
            part = {name: _padded(values[start : start + batch], batch) for name, values in feeds.items()}
            (answer,) = self._session.run([self.teacher.output.output], part)
            parts.append(np.asarray(answer, dtype=np.float32)[: num_rows - start])
        if not parts:
            return np.empty((0, self.teacher.output.num_classes), dtype=np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def logits(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Label rows: [M, C] float32 logits, or log-probabilities where that is what the teacher has.

        Probabilities become `log(max(p, 1e-12))`.
        """
        return to_log_space(self.raw(inputs), self.teacher.output.kind)


def to_log_space(raw: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float32]:
    """[M, C] float32 of a declared kind -> [M, C] float32 that a softmax turns into the teacher's probabilities."""
    if kind == "probabilities":
        return np.log(np.maximum(raw, np.float32(_MIN_PROBABILITY)))
    return raw


def _padded(values: npt.NDArray[Any], batch: int) -> npt.NDArray[Any]:
    missing = batch - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def static_shape(shape: Sequence[Any]) -> tuple[int | None, ...]:
    """ONNX shape with None for every symbolic or unknown dimension."""
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)
