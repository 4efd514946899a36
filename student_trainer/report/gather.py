"""What a run's report tells, of its folder, its evaluation's data and a teacher's file."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.inputs import MAX_ROWS, declared_inputs, random_inputs
from schemas.errors import ConfigError
from schemas.records import ViewSpec
from student_trainer.checkpoint import load_checkpoint
from student_trainer.evaluate import predictor
from student_trainer.export import Latency, latency
from student_trainer.launch import export_run, trained_data
from student_trainer.learning.student_outputs import pick
from student_trainer.learning.students import num_parameters
from student_trainer.report.samples import Looked, Teacher, look
from student_trainer.run.folder import read_settings
from student_trainer.run.metrics import Curves, curves, paces
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.settings import RunSettings
from student_trainer.run.summary import summary
from student_trainer.trained import Trained, load_student


@dataclass(frozen=True, slots=True)
class Speed:
    """A file, and how fast it is on this machine's CPU."""

    file_bytes: int
    latency: Latency | None
    """None: it takes what is not known here."""


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """All of a report."""

    settings: RunSettings
    """Under which the student learned: the run's own, unless it is one of its [[peers]]."""
    peer: str
    """Which of these it is; "": that of [student]."""
    run_file: RunSettings
    """The run's own."""
    summary: dict[str, Any]
    """As `runs show` has it."""
    report: dict[str, Any]
    """`report.json`; {} before the run's end, and where it went on behind that."""
    source: dict[str, Any]
    """What the run read, by content, as its checkpoint has it."""
    machine: dict[str, str]
    step: int
    """Of the checkpoint."""
    parameters: int
    curves: Curves
    paces: Curves
    looked: Looked | None
    why_not: str
    """Why there is none."""
    teacher: str
    """Its file's name; "": nobody gave one."""
    speeds: dict[str, Speed]
    """student, teacher; {}: nobody asked."""


def gather(
    path: Path,
    dataset: str | None = None,
    view: ViewSpec | None = None,
    teacher: Teacher | None = None,
    peer: str = "",
    *,
    examples: int = 24,
    speed: bool = True,
) -> Facts:
    """Gather what there is to tell of a run, which may be training meanwhile; no stream and no captured file is read.

    Args:
        path: the run's folder.
        dataset: to look at samples of; None: the run's evaluation's, else its training data.
        view: how these are seen; None: as the run sees them.
        teacher: to hold the student against; None: the labels alone are there.
        peer: which of the run's [[peers]]; "": the student of [student].
        examples: on which they differ, at most.
        speed: whether it is measured.

    Raises:
        ConfigError: no such run or peer, or the dataset that is asked for, or the teacher's classes, do not fit.
        CheckpointError: no whole checkpoint.
        NotFinite: the student or the teacher gives NaN or infinity.
        DataUnavailable: the dataset cannot be read now.
    """
    trained = load_student(path, peer)
    checkpoint, _ = load_checkpoint(path / "checkpoints")
    looked, why_not = None, ""
    if not (dataset or trained.settings.evaluation.dataset or trained.settings.data.dataset):
        why_not = "the run has no [evaluation] dataset, and none was given with --dataset"
    else:
        looked, why_not = _looked(trained, dataset, view, teacher, examples)
    speeds: dict[str, Speed] = {}
    if speed and looked is not None:
        speeds["student"] = _student_speed(path, dataset, view, peer)
        if teacher is not None:
            speeds["teacher"] = _teacher_speed(teacher)
    metrics = path / "metrics.jsonl"
    return Facts(
        trained.settings,
        peer if peer != FIRST else "",
        read_settings(path),
        summary(path),
        _report(path, trained.step),
        checkpoint.source,
        checkpoint.machine,
        trained.step,
        num_parameters(trained.model),
        curves(metrics),
        paces(metrics),
        looked,
        why_not,
        teacher.path.name if teacher else "",
        speeds,
    )


def _looked(
    trained: Trained, dataset: str | None, view: ViewSpec | None, teacher: Teacher | None, examples: int
) -> tuple[Looked | None, str]:
    settings = trained.settings
    fetcher, first = trained_data(trained, dataset, view, 2)
    try:
        predict = predictor(trained.outputs, trained.network.fields)
        own = {key: each for key, each in predict(first.inputs).items() if key not in settings.student.outputs}
        if ("logits" not in own and len(own) != 1) or pick(own).ndim != 2:
            return None, "the student does not give a sample one row of classes"
        return look(fetcher, predict, settings.student.size, settings.evaluation.batch_size, teacher, examples), ""
    finally:
        fetcher.close()


def _report(path: Path, step: int) -> dict[str, Any]:
    """Return `report.json` of the run's last end, unless it has gone on since: its weights are others then."""
    with suppress(OSError, ValueError):
        found = json.loads((path / "report.json").read_bytes())
        if isinstance(found, dict) and found.get("steps") == step:
            return found
    return {}


def _student_speed(path: Path, dataset: str | None, view: ViewSpec | None, peer: str) -> Speed:
    """Of what `runs export` would write now; nothing is written into the run's folder."""
    with tempfile.TemporaryDirectory(prefix="distillog-") as folder:
        found = export_run(path, Path(folder) / "student.onnx", dataset, view, peer=peer)
    names = ("p50_ms", "p95_ms", "samples_per_s", "threads")
    return Speed(found["file_bytes"], Latency(**{name: found[name] for name in names}))


def _teacher_speed(teacher: Teacher) -> Speed:
    """Of random values, as `runs bench` measures files; none is taken of one with free sizes, or a fixed batch."""
    with suppress(ConfigError):
        inputs = random_inputs(teacher.path, declared_inputs(teacher.path, "cpu"), {}, MAX_ROWS)
        if inputs.only is None and inputs.batched == set(inputs.arrays):
            return Speed(teacher.file_bytes, latency(teacher.path, dict(inputs.arrays)))
    return Speed(teacher.file_bytes, None)
