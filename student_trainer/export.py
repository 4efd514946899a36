"""A student as one ONNX file that can be served, or teach in turn."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.onnx_runtime import open_session
from schemas.errors import ConfigError
from student_trainer.learning.student_outputs import named, pick
from student_trainer.learning.students import num_parameters
from student_trainer.run.whole_files import replace_file

TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime's and PyTorch's logits, as a share of the logits' range."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    sha256: str
    file_bytes: int
    parameters: int
    difference: float
    """Largest difference from PyTorch's logits on the inputs given, as a share of their range."""


def export_student(
    model: nn.Module, inputs: NDArray[Any], field: str, path: Path, metadata: Mapping[str, str] | None = None
) -> Exported:
    """Write a student to ONNX, in one file, after checking it against PyTorch.

    Args:
        model: on any device; exported in evaluation mode.
        inputs: [N, ...] real samples, N >= 2, to compare on; the ONNX input has their dtype.
        field: the dataset's field: the ONNX input's name. The output is `logits`, or the student's only one under that
            name; the batch is dynamic.
        path: replaced only by a file that passed.
        metadata: what the file is to say of itself beside that (ONNX's `metadata_props`).

    Raises:
        ConfigError: the student cannot be exported, or the file's logits differ by more than TOLERANCE of their range.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval().to("cpu")
    samples, exported = torch.tensor(inputs), model
    with torch.inference_mode():
        if not isinstance(given := model(samples), torch.Tensor):
            exported = _OneOutput(model).eval()
        expected = pick(named(given)).numpy()
    difference = 0.0

    def write(fresh: Path) -> None:
        nonlocal difference
        _export(exported, samples[:2], field, fresh)
        _describe(fresh, metadata or {})
        session = open_session(fresh, threads=1)
        actual = session.run(["logits"], {field: inputs})[0]
        single = session.run(["logits"], {field: inputs[:1]})[0]  # a batch that was baked in shows here
        span = float(np.ptp(expected)) or 1.0
        difference = float(max(np.abs(actual - expected).max(), np.abs(single - expected[:1]).max())) / span
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{path}: not written: ONNX Runtime's logits differ from PyTorch's by {difference:.2g} of their range, "
                f"more than {TOLERANCE:g}; look for operations that PyTorch does not export faithfully"
            )

    try:
        replace_file(path, write)
    finally:
        model.train(was_training).to(device)
    content = path.read_bytes()
    return Exported(path, hashlib.sha256(content).hexdigest(), len(content), num_parameters(model), difference)


class _OneOutput(nn.Module):
    """Of a student that gives several, the one that a file has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return pick(named(self.model(samples)))


def _export(model: nn.Module, samples: torch.Tensor, field: str, path: Path) -> None:
    # The exporter's remarks on operators of a torchvision that is not installed are nobody's business.
    remarks = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            model,
            (samples,),
            path,
            dynamo=True,
            input_names=[field],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,  # else large weights land in a second file that gets lost
            verbose=False,
        )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ConfigError(f"{path}: the student cannot be exported: {str(error).splitlines()[0]}") from error
    finally:
        remarks.setLevel(level)


def _describe(path: Path, metadata: Mapping[str, str]) -> None:
    """Say that of a file, and nothing else: the exporter leaves stack traces in it, with this machine's paths."""
    import onnx

    written = onnx.load(path)
    graph = written.graph
    for each in (written, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.ClearField("doc_string")
        del each.metadata_props[:]
    onnx.helper.set_model_props(written, dict(metadata))
    onnx.save(written, path)


@dataclass(frozen=True, slots=True)
class Latency:
    """How fast an ONNX file runs on this machine's CPU."""

    p50_ms: float
    """Median milliseconds at batch 1."""
    p95_ms: float
    samples_per_s: float
    """At the batch of the inputs given."""
    threads: int


def latency(path: Path, inputs: dict[str, NDArray[Any]], threads: int = 1, seconds: float = 1.0) -> Latency:
    """Measure an ONNX file: half of the time at batch 1, half at the inputs' own batch."""
    session = open_session(path, threads=threads, spinning=True)
    names = [each.name for each in session.get_inputs()]
    whole = {name: inputs[name] for name in names}
    one = {name: values[:1] for name, values in whole.items()}
    num_rows = len(next(iter(whole.values())))

    def times(feed: dict[str, NDArray[Any]]) -> list[float]:
        for _ in range(3):  # the first calls allocate
            session.run(None, feed)
        taken: list[float] = []
        end = time.perf_counter() + seconds / 2
        while len(taken) < 20 or time.perf_counter() < end:
            since = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - since)
        return taken

    p50, p95 = np.percentile(times(one), [50, 95]) * 1000
    return Latency(float(p50), float(p95), num_rows / float(np.median(times(whole))), threads)
