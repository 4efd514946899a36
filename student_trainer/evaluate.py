"""How good a student is, on a dataset of its own, and how near to its teacher.

Letters: N samples, C classes. Accuracy alone misleads (a student of the teacher's argmax has the best accuracy and the
worst probabilities), so NLL and calibration stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import chance
from pipeline.datasets import open_dataset
from pipeline.fault_limit import FaultLimit
from pipeline.onnx_runtime import open_session
from pipeline.views import evaluation_view, view_spec
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.class_maps import mapped_labels
from schemas.errors import ConfigError, NotFinite
from schemas.records import ViewSpec
from schemas.softmax import log_softmax, logsumexp
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.student_outputs import named, pick
from student_trainer.run.settings import RunSettings

Inputs = dict[str, NDArray[Any]]
Predict = Callable[[Inputs], NDArray[np.float32]]
"""Field -> [N, ...] to logits [N, C] (log-probabilities do as well)."""

NUM_BINS = 15
"""Equal-width bins of confidence of the expected calibration error (Guo et al. 2017)."""


def predictor(model: nn.Module | Path | Predict, fields: Sequence[str] = ()) -> Predict:
    """Return what gives logits for the dataset's fields.

    Args:
        model: a PyTorch module, the path of an ONNX file whose inputs are named as the fields, or a function.
        fields: which fields a PyTorch module takes; (): the only one.
    """
    if isinstance(model, nn.Module):
        module, device = model, next(model.parameters()).device

        def forward(inputs: Inputs) -> NDArray[np.float32]:
            given = StudentInputs(module, fields or [sole_field(inputs)])
            values = {name: torch.tensor(inputs[name], device=device) for name in given.fields}
            with torch.inference_mode():
                logits = pick(named(given.hand(values, module)))
            return logits.float().cpu().numpy()

        return forward
    if isinstance(model, Path):
        session = open_session(model, threads=1)
        names = [each.name for each in session.get_inputs()]
        return lambda inputs: session.run(["logits"], {name: inputs[name] for name in names})[0]
    return model


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
    model: nn.Module | Path | Predict,
    fetcher: Fetcher,
    batch_size: int,
    teacher_logits: Predict | None = None,
    *,
    fields: Sequence[str] = (),
    size: tuple[int, ...] = (),
    teacher_size: tuple[int, ...] = (),
    teacher_classes: tuple[int, ...] = (),
    first: Fetched | None = None,
) -> dict[str, float]:
    """Run a student over a whole dataset.

    Args:
        model: as `predictor`'s; a module is set to evaluation mode meanwhile.
        fetcher: the dataset under a view without randomness (`evaluation_view`).
        batch_size: samples at once.
        teacher_logits: the teacher, on the same samples.
        fields: which fields a PyTorch module takes.
        size: the spatial size that the student asks of the view.
        teacher_size: the one that the teacher asks for.
        teacher_classes: the student's classes that the teacher's are, rising; (): all. Given some alone, the student's
            distribution among them is compared, and labels of others say nothing about the teacher.
        first: the first `batch_size` samples, where they were fetched already.

    Returns:
        num_samples; where there are labels: num_labelled, num_commonest (of the commonest class), accuracy, nll
        (natural log), ece; with a teacher:
        agreement_top1 (same likeliest class), agreement_top5 (the teacher's likeliest class is among the student's
        five), kl (mean KL(teacher || student) at T = 1, natural log), teacher_accuracy.

    Raises:
        ConfigError: the student's class count differs from the dataset's or the teacher's.
        NotFinite: the student or the teacher gives NaN or infinity; names the sample.
    """
    predict = predictor(model, fields)
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        return _evaluate(predict, fetcher, batch_size, teacher_logits, size, teacher_size, teacher_classes, first)
    finally:
        if was_training and isinstance(model, nn.Module):
            model.train()


def _evaluate(
    predict: Predict,
    fetcher: Fetcher,
    batch_size: int,
    teacher_logits: Predict | None,
    size: tuple[int, ...],
    teacher_size: tuple[int, ...],
    teacher_classes: tuple[int, ...],
    first: Fetched | None,
) -> dict[str, float]:
    dataset = fetcher.dataset
    sums: dict[str, float] = {}
    bins = np.zeros((3, NUM_BINS))  # count, sum of confidence, sum of hits
    num_samples = num_labelled = num_known = 0
    of_class = np.zeros(1, np.int64)  # [C] from the first batch on
    faults = FaultLimit("decoded")

    def add(name: str, values: NDArray[Any]) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.sum(dtype=np.float64))

    for start in range(0, dataset.num_samples, batch_size):
        sample_ids = np.arange(start, min(start + batch_size, dataset.num_samples))
        fetched = first if first and not start else fetch_patiently(fetcher, sample_ids, 0, size)
        faults.leave_out(dataset.uri, None, sample_ids, fetched.faults)
        if not len(fetched.kept_rows):
            continue
        seen_ids = sample_ids[fetched.kept_rows]
        log_probs = log_softmax(_checked(predict(fetched.inputs), "student", dataset.uri, seen_ids))
        num_samples += len(log_probs)
        best = log_probs.argmax(axis=1)
        labels = fetched.labels
        rows = np.flatnonzero(labels >= 0)
        if len(rows):
            num_classes = max(dataset.num_classes, int(labels.max()) + 1)
            if num_classes > log_probs.shape[1]:
                raise ConfigError(
                    f"dataset {dataset.uri} has {num_classes} classes, the student {log_probs.shape[1]}; "
                    "evaluate on a dataset of the same classes"
                )
            num_labelled += len(rows)
            of_class = of_class + np.bincount(labels[rows], minlength=log_probs.shape[1])
            hits = best[rows] == labels[rows]
            add("accuracy", hits)
            add("nll", -log_probs[rows, labels[rows]])
            confidence = np.exp(log_probs[rows, best[rows]])
            place = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
            for row, weights in enumerate((np.ones(len(rows)), confidence, hits)):
                bins[row] += np.bincount(place, weights, NUM_BINS)
        if teacher_logits is not None:
            seen = fetched if size == teacher_size else fetch_patiently(fetcher, sample_ids, 0, teacher_size)
            teacher = log_softmax(_checked(teacher_logits(seen.inputs), "teacher", dataset.uri, seen_ids))
            compared = _among(log_probs, teacher_classes)
            if teacher.shape != compared.shape:
                raise ConfigError(
                    f"the teacher gives {teacher.shape[1]} classes, the student {compared.shape[1]}; "
                    "compare those of one task"
                )
            teacher_best = teacher.argmax(axis=1)
            likeliest = np.argsort(-compared, axis=1, kind="stable")[:, :5]
            add("agreement_top1", likeliest[:, 0] == teacher_best)
            add("agreement_top5", (likeliest == teacher_best[:, None]).any(axis=1))
            add("kl", (np.exp(teacher) * (teacher - compared)).sum(axis=1))
            known = mapped_labels(labels, teacher_classes)
            num_known += int((known >= 0).sum())
            add("teacher_accuracy", (teacher_best == known)[known >= 0])
    result: dict[str, float] = {"num_samples": num_samples, "num_labelled": num_labelled}
    counts = {"accuracy": num_labelled, "nll": num_labelled, "teacher_accuracy": num_known}
    for name, total in sums.items():
        if count := counts.get(name, num_samples):
            result[name] = total / count
    if num_labelled:
        result["ece"] = float(np.abs(bins[1] - bins[2]).sum() / num_labelled)
        result["num_commonest"] = int(of_class.max())
    return result


def _among(log_probs: NDArray[np.float64], classes: tuple[int, ...]) -> NDArray[np.float64]:
    """Return [N, K] log-probabilities of [N, C] given that it is one of K classes; () = all."""
    if not classes:
        return log_probs
    if classes[-1] >= log_probs.shape[1]:
        raise ConfigError(
            f"the teacher's class map has class {classes[-1]}, the student {log_probs.shape[1]} classes; compare those "
            "of one task"
        )
    some = log_probs[:, classes]
    among: NDArray[np.float64] = some - logsumexp(some)[:, None]
    return among


def chance_level(scores: Mapping[str, float]) -> str:
    """Say where a student is no better than always naming the commonest class (`pipeline.chance`); else ""."""
    if not scores.get("num_labelled"):
        return ""
    return chance.chance_level(scores["accuracy"], int(scores["num_commonest"]), int(scores["num_labelled"]))


def _checked(logits: NDArray[np.float32], who: str, uri: str, sample_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits [N, C]; -inf is a class that cannot be, unless none can."""
    bad = np.flatnonzero(~np.isfinite(logits.max(axis=1)))
    if len(bad):
        raise NotFinite(
            f"dataset {uri}: the {who} gives NaN or infinity for {len(bad)} of {len(logits)} samples, the first is "
            f"sample {sample_ids[bad[0]]}; there is nothing to evaluate, go back to an older {who}"
        )
    return logits
