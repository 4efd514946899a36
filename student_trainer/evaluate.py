"""How good a student is, on a dataset of its own, and how near to its teacher: feeds the metrics of scores/.

Letters: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import chance
from pipeline.datasets import open_dataset
from pipeline.fault_limit import FaultLimit
from pipeline.onnx_runtime import open_session
from pipeline.user_code import said
from pipeline.views import evaluation_view, view_spec
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import ConfigError, DistillogError
from schemas.names import did_you_mean
from schemas.records import ViewSpec
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.student_outputs import ONLY, StudentOutputs
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.run.settings import RunSettings
from student_trainer.scores.metrics import Metrics, default_metrics
from student_trainer.scores.seen import Outputs, Seen

_OUTPUT_BYTES = 256 << 20
"""Of what a student gives for the samples that it is shown at once; of one sample at least."""

Inputs = dict[str, NDArray[Any]]
Predict = Callable[[Inputs], Outputs]
"""Field -> [N, ...] to output -> [N, ...]; classes may be log-probabilities as well as logits."""
Model = nn.Module | StudentOutputs | Path | Callable[[Inputs], Outputs | NDArray[Any]]
"""A PyTorch module, one with its inner values, the path of an ONNX file, or a function of what `Predict` takes, which
may give an array alone for `logits`."""


def predictor(model: Model, fields: tuple[str, ...] = ()) -> Predict:
    """Return what gives a model's outputs by their names for the dataset's fields.

    Args:
        model: its only output is called `logits` where it has no name, or is an ONNX file's.
        fields: which of the fields a PyTorch module takes; (): the only one. The inputs of an ONNX file are named as
            the fields.
    """
    if isinstance(model, nn.Module):
        model = StudentOutputs(model, {})
    if isinstance(model, StudentOutputs):
        return _of_module(model, fields)
    if isinstance(model, Path):
        return _of_file(model)
    function = model

    def call(inputs: Inputs) -> Outputs:
        given = function(inputs)
        return given if isinstance(given, Mapping) else {ONLY: given}

    return call


def _of_module(model: StudentOutputs, fields: tuple[str, ...]) -> Predict:
    device = next(model.module.parameters()).device

    def forward(inputs: Inputs) -> Outputs:
        given = StudentInputs(model.module, fields or (sole_field(inputs),))
        # Not inference_mode: its tensors do not say whether they are changed in place, as inner values may be.
        try:
            with torch.no_grad():
                values = {name: torch.tensor(inputs[name], device=device) for name in given.fields}
                return _Arrays(given.hand(values, model))
        except (DistillogError, MemoryError):
            raise
        except Exception as error:  # a student may be of the user's own
            raise ConfigError(f"the student fails on samples to evaluate it on: {said(error)}") from error

    return forward


def _of_file(path: Path) -> Predict:
    session = open_session(path, threads=1)
    fields = [each.name for each in session.get_inputs()]
    names = [each.name for each in session.get_outputs()]

    def run(inputs: Inputs) -> Outputs:
        for field in fields:
            if field not in inputs:
                raise ConfigError(f"{path} takes {field!r}, which is no field: {did_you_mean(field, inputs)}")
        answers = session.run(names, {field: inputs[field] for field in fields})
        outputs = dict(zip([ONLY] if len(names) == 1 else names, answers, strict=True))
        return {name: values for name, values in outputs.items() if isinstance(values, np.ndarray)}

    return run


def rows_at_once(predict: Predict, inputs: Inputs, most: int, models: int = 1) -> int:
    """Return how many samples may go through a model at once: `most`, or fewer where its outputs are large.

    All logits of a vocabulary of 50,000 at each of 128 tokens are 26 MB a sample. What the first two samples give says
    it.

    Args:
        predict: the model.
        inputs: [N, ...] samples, N >= 1.
        most: how many there may be.
        models: how many give such outputs side by side.
    """
    few = {field: values[:2] for field, values in inputs.items()}
    num_rows = len(next(iter(few.values())))
    row_bytes = sum(values.nbytes for values in predict(few).values()) // num_rows
    return max(1, min(most, _OUTPUT_BYTES // max(1, models * row_bytes)))


def part_of(fetched: Fetched, rows: slice) -> Fetched:
    """Return what was fetched of some of the kept rows."""
    inputs = {field: values[rows] for field, values in fetched.inputs.items()}
    return replace(fetched, inputs=inputs, labels=fetched.labels[rows], kept_rows=fetched.kept_rows[rows])


class _Arrays(Mapping[str, NDArray[Any]]):
    """Tensors as arrays; each leaves its device when somebody asks for it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._arrays: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            tensor = self._tensors[name].detach()
            # NumPy knows no bfloat16, and computes with halves slowly.
            self._arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def sole_field(inputs: Inputs) -> str:
    """Return the only field.

    Raises:
        ConfigError: there are several.
    """
    if len(inputs) != 1:
        raise ConfigError(f"[student] inputs is missing; the dataset has the fields {', '.join(sorted(inputs))}")
    return next(iter(inputs))


def evaluation_data(settings: RunSettings, training: ViewSpec, uri: str) -> Fetcher:
    """Open a dataset as a run's evaluation sees it: under [evaluation] view, else the training view's own.

    Args:
        settings: the run's.
        training: the view that it trains under.
        uri: the dataset.

    Raises:
        ConfigError: it cannot be opened, or a user's view does not say how it looks in an evaluation.
        DataUnavailable: it cannot be read now.
    """
    view = settings.evaluation.view
    spec = view_spec(view.name, view.params) if view else evaluation_view(training)
    return Fetcher(open_dataset(uri), spec, settings.train.loaders, settings.train.loader_processes)


def evaluate(
    model: Model,
    fetcher: Fetcher,
    batch_size: int,
    teacher: Model | None = None,
    *,
    metrics: Sequence[MetricSettings] = (),
    fields: tuple[str, ...] = (),
    size: tuple[int, ...] = (),
    teacher_size: tuple[int, ...] = (),
    teacher_classes: Mapping[str, tuple[int, ...]] | None = None,
    first: Fetched | None = None,
) -> dict[str, float]:
    """Run a student over a whole dataset.

    Args:
        model: as `predictor`'s; a module is set to evaluation mode meanwhile.
        fetcher: the dataset under a view without randomness (`evaluation_view`).
        batch_size: samples at once; fewer of a PyTorch module whose outputs are large (`rows_at_once`).
        teacher: on the same samples.
        metrics: what is measured; (): of a student of classes `classes`, and against a teacher's `agreement`.
        fields: which of the fields a PyTorch module takes.
        size: the spatial size that the student asks of the view.
        teacher_size: the one that the teacher asks for.
        teacher_classes: output of the teacher's -> the student's classes that its are, rising; (), and None for all
            outputs: all of them, or it has none.
        first: the first `batch_size` samples, where they were fetched already.

    Returns:
        num_samples, and the figures of each metric.

    Raises:
        ConfigError: a metric that does not fit what the student, the teacher or the view gives.
        NotFinite: the student or the teacher gives NaN or infinity; names the sample.
    """
    measured = Metrics(metrics or default_metrics(teacher is not None))
    if measured.compare and teacher is None:
        raise ConfigError("these metrics compare with a teacher, and there is none")
    predict = predictor(model, fields)
    taught = predictor(teacher) if teacher is not None and measured.compare else None
    module = model.module if isinstance(model, StudentOutputs) else model
    was_training = isinstance(module, nn.Module) and module.training
    if isinstance(module, nn.Module):
        module.eval()
    num_samples, faults, dataset = 0, FaultLimit("decoded"), fetcher.dataset
    at_once = 0 if isinstance(module, nn.Module) else batch_size
    try:
        for start in range(0, dataset.num_samples, batch_size):
            sample_ids = np.arange(start, min(start + batch_size, dataset.num_samples))
            fetched = first if first and not start else fetch_patiently(fetcher, sample_ids, 0, size)
            faults.leave_out(dataset.uri, None, sample_ids, fetched.faults)
            if not len(fetched.kept_rows):
                continue
            at_once = at_once or rows_at_once(predict, fetched.inputs, batch_size, 1 if taught is None else 2)
            shown = fetched  # to the teacher
            if taught is not None and size != teacher_size:
                shown = fetch_patiently(fetcher, sample_ids, 0, teacher_size)
            for begin in range(0, len(fetched.kept_rows), at_once):
                rows = slice(begin, begin + at_once)
                part = part_of(fetched, rows)
                of_teacher = {} if taught is None else taught(part_of(shown, rows).inputs)
                measured.update(seen(fetcher, sample_ids, part, predict(part.inputs), of_teacher, teacher_classes))
            num_samples += len(fetched.kept_rows)
    finally:
        if was_training and isinstance(module, nn.Module):
            module.train()
    return {"num_samples": num_samples, **measured.compute()}


def seen(
    fetcher: Fetcher,
    sample_ids: NDArray[np.int64],
    fetched: Fetched,
    outputs: Outputs,
    taught: Outputs | None = None,
    teacher_classes: Mapping[str, tuple[int, ...]] | None = None,
) -> Seen:
    """Return a batch as metrics see it, of what was fetched of these samples and what came of it."""
    kept = sample_ids[fetched.kept_rows]
    classes = teacher_classes or dict.fromkeys(taught or {}, ())
    return Seen(fetcher.dataset, kept, fetched.inputs, fetched.labels, outputs, taught or {}, classes)


def chance_level(scores: Mapping[str, float]) -> str:
    """Say where a student is no better than always naming the commonest class (`pipeline.chance`); else ""."""
    if not scores.get("num_labelled"):
        return ""
    return chance.chance_level(scores["accuracy"], int(scores["num_commonest"]), int(scores["num_labelled"]))
