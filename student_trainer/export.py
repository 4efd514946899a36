"""A student as one ONNX file that can be served, or teach in turn, and its weights as safetensors."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.bench.times import time_calls
from pipeline.onnx_runtime import open_session
from pipeline.user_code import said
from pipeline.whole_files import replace_file
from schemas.errors import ConfigError
from student_trainer.learning.alignment import Alignment
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.student_outputs import ONLY, StudentOutputs, pick
from student_trainer.learning.students import num_parameters

BATCH = "batch"
"""What files call their free dimension."""
_SERVED = "served."
"""Before the names of outputs, as long as the exporter names values."""
_REMARKS = (
    "torch.onnx._internal.exporter._registration",  # on operators of a torchvision that is not installed
    "torch.onnx._internal.exporter._compat",  # on opsets older than the exporter's own; whether one came is looked at
    "onnxscript.version_converter",
)
"""Loggers of the exporter whose warnings are nobody's business."""
TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime's and PyTorch's values of an output, as a share of its range."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    sha256: str
    file_bytes: int
    parameters: int
    difference: float
    """Largest difference from PyTorch's outputs on the inputs given, as a share of an output's range."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """The layer of a loss, from what the student gives to the teacher's width."""

    on: str
    """The student's output; "": `logits`, or the only one."""
    layer: nn.Module
    aligned: tuple[Alignment, ...] = ()
    """What is done to that first, as in training; several where its teachers were reduced, or have classes, each so."""


def export_student(
    model: nn.Module,
    inputs: Mapping[str, NDArray[Any]],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    outputs: Sequence[str] = (),
    inner: Mapping[str, str] | None = None,
    projections: Mapping[str, Projection] | None = None,
    opset: int | None = None,
    batch: int | None = None,
) -> Exported:
    """Write a student to ONNX, in one file, after checking it against PyTorch.

    Args:
        model: on any device; exported in evaluation mode.
        inputs: the fields that it takes, in order: name -> [N, ...] real samples, N >= 2, to compare on. The ONNX
            inputs have their names and dtypes; the batch is dynamic.
        path: replaced only by a file that passed.
        metadata: what the file is to say of itself beside that (ONNX's `metadata_props`).
        outputs: which of its outputs the file has; (): `logits`, or the only one under that name.
        inner: its inner values that are outputs beside its own, as `StudentOutputs` takes them.
        projections: further outputs: name -> of what.
        opset: the version of ONNX's operators; None: PyTorch's choice.
        batch: the one batch that the file takes; None: any.

    Raises:
        ConfigError: no such output, two of one name, or a projection before which each teacher has something else done;
            the student cannot be exported, or the file's outputs differ by more than TOLERANCE of their range.
    """
    for name, each in (projections or {}).items():
        if len(each.aligned) > 1:
            raise ConfigError(
                f"{path}: not written: what the projection {name!r} is of is reduced, or has classes, as each of its "
                "teachers has: leave projections out"
            )
    names = [*(outputs or (ONLY,)), *(projections or {})]
    was_training, device = model.training, next(model.parameters()).device
    model.eval().to("cpu")
    served = _Served(model, list(inputs), inner or {}, outputs or ("",), projections or {}).eval()
    samples = {name: torch.tensor(values) for name, values in inputs.items()}
    with torch.no_grad():  # not inference_mode, whose tensors do not say whether they are changed in place
        expected = [values.numpy() for values in served(*samples.values())]
    for name in names:
        if [*names, *inputs].count(name) != 1:
            raise ConfigError(f"{path}: not written: two of its inputs and outputs would be called {name!r}")
    difference = 0.0

    def write(fresh: Path) -> None:
        nonlocal difference
        made = _export(served, {name: values[:2] for name, values in samples.items()}, names, fresh, opset)
        if opset not in (None, made):  # the exporter leaves a file as it is where it cannot convert it
            raise ConfigError(f"{path}: not written: this student cannot be had in opset {opset}, only in {made}")
        describe(fresh, metadata or {})
        session = open_session(fresh, threads=1)
        taken = {each.name: inputs[each.name] for each in session.get_inputs()}
        actual = session.run(names, taken)
        single = session.run(names, {name: values[:1] for name, values in taken.items()})  # a baked in batch shows here
        for name, wanted, one, all_rows in zip(names, expected, single, actual, strict=True):
            off = max(np.abs(all_rows - wanted).max(), np.abs(one - wanted[:1]).max()) / (float(np.ptp(wanted)) or 1.0)
            if not off <= TOLERANCE:
                raise ConfigError(
                    f"{path}: not written: ONNX Runtime's {name} differ from PyTorch's by {off:.2g} of their range, "
                    f"more than {TOLERANCE:g}; look for operations that PyTorch does not export faithfully"
                )
            difference = max(difference, float(off))
        if batch is not None:
            fix_batch(fresh, batch)
            open_session(fresh, threads=1).run(names, rows_of(taken, batch))

    try:
        replace_file(path, write)
    finally:
        model.train(was_training).to(device)
    content = path.read_bytes()
    return Exported(path, hashlib.sha256(content).hexdigest(), len(content), num_parameters(model), difference)


class _Served(nn.Module):
    """A student as a file has it: its fields in order to the outputs asked for, in order."""

    def __init__(
        self,
        student: nn.Module,
        fields: Sequence[str],
        inner: Mapping[str, str],
        outputs: Sequence[str],
        projections: Mapping[str, Projection],
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(each.layer for each in projections.values())
        self._of = list(projections.values())
        self._inputs, self._given = StudentInputs(student, fields), StudentOutputs(student, inner)
        self._outputs = tuple(outputs)

    def forward(self, *fields: Tensor) -> tuple[Tensor, ...]:
        given = self._inputs.hand(dict(zip(self._inputs.fields, fields, strict=True)), self._given)
        projected = []
        for each in self._of:
            output = pick(given, each.on)
            for aligned in each.aligned:
                output = aligned(output)
            projected.append(each.layer(output))
        return (*(pick(given, name) for name in self._outputs), *projected)


def _export(
    model: nn.Module, samples: Mapping[str, Tensor], outputs: Sequence[str], path: Path, opset: int | None
) -> int:
    """Write the file, and return its opset."""

    loggers = [logging.getLogger(name) for name in _REMARKS]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    batch = torch.export.Dim(BATCH)
    try:
        with warnings.catch_warnings():
            # Nor is that several fields have one batch.
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            exported = torch.onnx.export(
                model,
                tuple(samples.values()),
                dynamo=True,
                input_names=list(samples),
                output_names=[_SERVED + name for name in outputs],
                dynamic_shapes=(tuple({0: batch} for _ in samples),),
                verbose=False,
                opset_version=opset,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        first: BaseException = error
        while first.__cause__ is not None:  # the last one says which step of the exporter it was, the first one why
            first = first.__cause__
        raise ConfigError(f"{path}: the student cannot be exported: {said(first)}") from error
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
    assert exported is not None  # what `dynamo` gives
    # Not saved by the exporter, which takes another format where the user's name ends in .json or .txt.
    written = exported.model_proto
    # The exporter calls values inside by their operators, `embedding` or `mean`, and looks at no output's name for it.
    _rename(written.graph, {name: f"{name}.inside" for name in outputs} | {_SERVED + name: name for name in outputs})
    path.write_bytes(written.SerializeToString(deterministic=True))
    return next(int(found.version) for found in written.opset_import if not found.domain)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Call values of a graph, and of those in its nodes, otherwise."""
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(each, each) for each in ends]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, names)


def fix_batch(path: Path, batch: int) -> None:
    """Have a file take one batch alone, where any would do."""
    import onnx

    file = onnx.load(path, format="protobuf")
    for value in (*file.graph.input, *file.graph.output, *file.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == BATCH:
                size.dim_value = batch
    path.write_bytes(file.SerializeToString(deterministic=True))


def rows_of(inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
    """Return a batch of that many rows of name -> [N, ...], again and again where there are fewer."""
    return {name: values[np.arange(batch) % len(values)] for name, values in inputs.items()}


def describe(path: Path, metadata: Mapping[str, str]) -> None:
    """Say that of a file, and nothing else: the exporter leaves stack traces in it, with this machine's paths."""
    import onnx

    written = onnx.load(path, format="protobuf")
    _clear(written)
    # "2.7.0+cpu": equal weights are to give equal files, whatever a machine computes on.
    written.producer_version = written.producer_version.partition("+")[0]
    onnx.helper.set_model_props(written, dict(metadata))
    path.write_bytes(written.SerializeToString(deterministic=True))


def _clear(message: Any) -> None:
    """Take remarks and metadata out of a message of ONNX and whatever lies in it: functions and inner graphs, too."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _clear(each)


def save_weights(model: nn.Module, projections: Mapping[str, Projection], path: Path) -> None:
    """Write weights and buffers, under their own names, as safetensors; of projections as `projections.KEY.weight`.

    Raises:
        CannotWrite: the disk refuses.
    """
    tensors = dict(model.state_dict())
    for key, each in projections.items():
        tensors |= {f"projections.{key}.{name}": values for name, values in each.layer.state_dict().items()}
    # Copies: the form has no tensors that share memory, as tied weights do.
    content = save({name: values.detach().cpu().clone() for name, values in tensors.items()}, {"format": "pt"})

    def write(fresh: Path) -> None:
        fresh.write_bytes(content)

    replace_file(path, write)


@dataclass(frozen=True, slots=True)
class Latency:
    """How fast an ONNX file runs on this machine's CPU."""

    p50_ms: float
    """Median milliseconds of a call at batch 1, or of the one batch that the file takes."""
    p95_ms: float
    samples_per_s: float
    """At the batch of the inputs given, by its median call: it is measured once, where neighbours may be busy."""
    threads: int


def latency(
    path: Path, inputs: dict[str, NDArray[Any]], threads: int = 1, seconds: float = 1.0, batch: int | None = None
) -> Latency:
    """Measure an ONNX file, in this process: half of the time at batch 1, half at the inputs' own batch.

    Where the file takes one `batch` alone, both are of that one.
    """
    session = open_session(path, threads=threads, spinning=True)
    whole = {each.name: inputs[each.name] for each in session.get_inputs()}
    if batch is not None:
        whole = rows_of(whole, batch)
    one = whole if batch is not None else {name: values[:1] for name, values in whole.items()}
    single = time_calls(session, one, batch or 1, seconds / 2)
    num_rows = len(next(iter(whole.values())))
    batched = time_calls(session, whole, num_rows, seconds / 2)
    return Latency(single.p50_ms, single.p95_ms, 1000 * num_rows / batched.p50_ms, threads)
