"""An ONNX session that answers as its manifest says, whatever the file calls its inputs and outputs.

Letters: M rows asked for, m of one call, P and p positions of theirs that are labelled, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Ints
from pipeline.onnx_runtime import open_session
from pipeline.views.positions import chosen, num_chosen, what_is_chosen
from schemas.class_maps import mapped_columns
from schemas.codecs import CodecSpec
from schemas.errors import ManifestMismatch, TeacherRejected
from schemas.head import Head
from schemas.positions import Chosen
from schemas.records import Teacher, TeacherInput, TeacherOutput
from schemas.reductions import Reduction
from schemas.topk import Kept
from teacher_service.models.files import refuse_another
from teacher_service.models.heads_cut import HeadsCut
from teacher_service.models.topk_graph import GraphCut

T = TypeVar("T")

Inputs = Mapping[str, npt.NDArray[Any]]
"""field of the view -> [M, ...]"""

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""output -> [M, ...] float32, or [P, ...] of one per position"""

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
    """A teacher ready to label: fixed batches in, all of its outputs out."""

    def __init__(self, path: Path, teacher: Teacher, provider: str = "cpu", threads: int = 0) -> None:
        """Open the file.

        Raises:
            TeacherRejected: ONNX Runtime cannot load it.
            ManifestMismatch: it is another model than the teacher's, or has another last layer.
            ConfigError: no such provider here.
        """
        self.teacher = teacher
        self.path = path
        self.threads = threads
        by_head = any(one.head_sha256 for one in teacher.outputs)
        cut = HeadsCut(path, teacher.outputs) if by_head else None
        self.heads: Mapping[str, Head] = cut.heads if cut else {}
        """Output by head -> its last layer, of the stored classes: the model ends before it."""
        self._given = {one.name: one.output for one in teacher.outputs} | (cut.given if cut else {})
        self._session = open_session(path, provider, threads, refusal=TeacherRejected, graph=cut.graph if cut else None)
        self._cuts: dict[tuple[CodecSpec, int], GraphCut] = {}
        refuse_another(path, teacher)  # looked at when it is open: it may have been replaced since anybody looked
        for name, head in self.heads.items():
            if head.sha256 != (pinned := teacher.output(name).head_sha256):
                raise ManifestMismatch(
                    f"{path}: the last layer of output {name!r} is {head.sha256[:12]}, teacher {teacher.name!r} says "
                    f"{pinned}; workers need the version of Distillog that added it, or a later one"
                )

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

    def answers(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the model as it is: ONNX output -> [M, ...] float32, of every output that the teacher has; {} for M = 0.

        Raises:
            TeacherRejected: an output is not one row for each sample, each of one shape.
        """
        parts = self._run(inputs, lambda rows, answers: answers)
        return {name: _joined([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def raw(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the model: output -> [M, ..., C], or [P, C] of the positions that are labelled, of the declared kind.

        Of an output by head they are rebuilt, and of the stored classes.

        Raises:
            TeacherRejected: as `in_calls`.
        """
        return self.rebuilt(self._whole(self._in_calls(inputs, lambda rows, raw: raw)))

    def rebuilt(self, values: Outputs) -> dict[str, npt.NDArray[np.float32]]:
        """Return what `in_calls` or `label` gives with logits, [..., C] as a student has them, for hidden rows."""
        return {name: self.heads[name].logits(given) if name in self.heads else given for name, given in values.items()}

    def label(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Label rows, all at once: output -> as `in_calls` gives it, of all M samples."""
        return self._whole(self.in_calls(inputs, lambda rows, labels: labels))

    def in_calls(self, inputs: Inputs, work: Callable[[slice, Outputs], T]) -> list[T]:
        """Label M rows call by call, and return what `work` makes of each call's: no other call's are there meanwhile.

        Args:
            inputs: the views.
            work: gets which of the M rows these m are, and output -> [m, ...] float32 as it is stored (`as_stored`). Of
                an output per position these are the [p, ...] positions that its field chooses, sample after sample,
                `num_positions` of each; of one by head the hidden rows, [..., H].

        Raises:
            TeacherRejected: as `answers`, and where an output has rows of another shape than its record says, or the
                view's field has another than its positions.
        """
        outputs = self.teacher.outputs
        return self._in_calls(
            inputs, lambda rows, raw: work(rows, {one.name: as_stored(raw[one.name], one) for one in outputs})
        )

    def cut(self, output: TeacherOutput, spec: CodecSpec, values: npt.NDArray[np.float32]) -> Kept:
        """Return what of an output [M, ..., C], as it is stored, a topk codec keeps, by ONNX Runtime.

        Raises:
            TeacherRejected: the codec keeps no classes, or all of them.
        """
        key = (spec, output.codec_classes)
        if key not in self._cuts:
            self._cuts[key] = GraphCut(spec, output.codec_classes, self.threads)
        return self._cuts[key](values)

    def what_is_chosen(self, inputs: Inputs) -> dict[str, Chosen]:
        """Return for each output per position what its labels say of the M samples' positions."""
        return {name: what_is_chosen(mask) for name, mask in self.masks(inputs).items()}

    def num_positions(self, inputs: Inputs) -> dict[str, Ints]:
        """Return for each output per position [M] int64: how many positions of each sample are labelled."""
        return {name: num_chosen(mask) for name, mask in self.masks(inputs).items()}

    def _in_calls(self, inputs: Inputs, work: Callable[[slice, dict[str, npt.NDArray[np.float32]]], T]) -> list[T]:
        masks = self.masks(inputs)

        def picked(rows: slice, answers: Outputs) -> dict[str, npt.NDArray[np.float32]]:
            found = {}
            for output in self.teacher.outputs:
                values, shape = answers[self._given[output.name]], self._shape(output)
                if values.shape[1:] != shape:
                    raise TeacherRejected(
                        f"{self.path}: output {output.output!r} gives rows of shape {show(values.shape[1:])}, its "
                        f"record says {show(shape)}"
                    )
                mask = masks.get(output.name)
                found[output.name] = pick(values, output, None if mask is None else mask[rows])
            return found

        return self._run(inputs, lambda rows, answers: work(rows, picked(rows, answers)))

    def _shape(self, output: TeacherOutput) -> tuple[int, ...]:
        """Of a row of the model's output: of one by head with H where the classes are."""
        if output.name not in self.heads or output.class_axis is None:
            return output.shape
        axis = output.class_axis
        return (*output.shape[:axis], self.heads[output.name].width, *output.shape[axis + 1 :])

    def masks(self, inputs: Inputs) -> dict[str, npt.NDArray[np.bool_]]:
        """Output per position -> [M, *places]: which positions of each sample are labelled."""
        masks = {}
        for output in self.teacher.outputs:
            if output.per != "position":
                continue
            if not len(next(iter(inputs.values()))):
                masks[output.name] = np.zeros((0, *output.places), np.bool_)
                continue
            values = inputs.get(output.positions)
            if values is None or values.shape[1:] != output.places:
                there = "is not there" if values is None else f"has shape {show(values.shape[1:])}"
                raise TeacherRejected(
                    f"{self.path}: the view's field {output.positions!r} {there}, and chooses of the "
                    f"{show(output.places)} positions of output {output.name!r}"
                )
            masks[output.name] = chosen(values)
        return masks

    def _run(self, inputs: Inputs, work: Callable[[slice, dict[str, npt.NDArray[np.float32]]], T]) -> list[T]:
        """Run the model in calls of `inference_batch` rows, and return what `work` makes of each call's own rows.

        The last call is padded with its own last row: another shape may give other bits.
        """
        if not len(next(iter(inputs.values()))):
            return []  # a view that refused every sample leaves fields that may be fed to nothing
        batch = self.teacher.inference_batch
        feeds = {spec.input: prepare_input(inputs[spec.field], spec) for spec in self.teacher.inputs}
        num_rows = len(next(iter(feeds.values())))
        names = list(dict.fromkeys(self._given.values()))
        shapes: dict[str, tuple[int, ...]] = {}

        def called(start: int) -> dict[str, npt.NDArray[np.float32]]:
            part = {name: _padded(values[start : start + batch], batch) for name, values in feeds.items()}
            found = {}
            for name, answer in zip(names, self._session.run(names, part), strict=True):
                values = np.asarray(answer, dtype=np.float32)
                if not values.ndim or len(values) != batch or values.shape != shapes.setdefault(name, values.shape):
                    raise TeacherRejected(
                        f"{self.path}: output {name!r} has shape {show(values.shape)} for {batch} samples: it has to "
                        "give each sample one row, all of one shape; what depends on the data, as detections after NMS "
                        "do, cannot be stored: take an output before that"
                    )
                found[name] = values[: num_rows - start]
            return found

        # Nothing here knows a call's answer but `work`, so that it is gone before the next call.
        return [work(slice(start, start + batch), called(start)) for start in range(0, num_rows, batch)]

    def _whole(self, parts: Sequence[Outputs]) -> dict[str, npt.NDArray[np.float32]]:
        empty = [{output.name: np.empty((0, *output.encoded_shape), np.float32) for output in self.teacher.outputs}]
        return {one.name: _joined([part[one.name] for part in parts or empty]) for one in self.teacher.outputs}


def pick(
    values: npt.NDArray[np.float32], output: TeacherOutput, mask: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """Return of an output [M, *shape] what is labelled: [M, ..., C], or the [P, C] positions where `mask` says so.

    What has no classes is reduced as its record says.
    """
    if output.reduction:
        values = Reduction.parse(output.reduction)(values)
    elif output.class_axis is not None and output.class_axis != len(output.shape) - 1:
        values = np.moveaxis(values, 1 + output.class_axis, -1)
    return np.ascontiguousarray(values if mask is None else values[mask])


def as_stored(picked: npt.NDArray[np.float32], output: TeacherOutput) -> npt.NDArray[np.float32]:
    """Return [M, ...] that `pick` gave as it is stored: of classes those that the dataset has, in its order.

    None are probabilities, which become `log(max(p, 1e-12))`, p being the probability given that it is one of these
    classes: a softmax over them is that distribution. Where a sample gives none of these any probability, they are NaN.
    """
    if output.head_sha256 is not None:
        return picked  # the layer is of the stored classes alone
    columns = mapped_columns(picked, output.class_map)
    if output.class_map and output.kind == "probabilities":
        # Before the least probability is put in: all that these classes have together may be less.
        with np.errstate(invalid="ignore"):
            given = columns.astype(np.float64)
            columns = (given / given.sum(axis=-1, keepdims=True)).astype(np.float32)
    return to_log_space(columns, output.kind)


def to_log_space(raw: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float32]:
    """[M, ..., C] float32 of a declared kind -> what a softmax over C turns into the teacher's probabilities."""
    if kind == "probabilities":
        return np.log(np.maximum(raw, np.float32(_MIN_PROBABILITY)))
    return raw


def _joined(parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(values: npt.NDArray[Any], batch: int) -> npt.NDArray[Any]:
    missing = batch - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def static_shape(shape: Sequence[Any]) -> tuple[int | None, ...]:
    """ONNX shape with None for every symbolic or unknown dimension."""
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def show(shape: Iterable[int | None]) -> str:
    """Return a shape as text: 3x?x8."""
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
