"""Teachers that move, on small streams: a student's file as their first model, and what their logs say of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.log_checker import check_labels
from support.processes import Distillog
from support.small_runs import run_file
from support.streams import fetcher, soft_targets, stream_with_teacher

from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream, open_stream
from schemas.records import SoftTargets
from student_trainer.export import export_student
from student_trainer.learning.students import Network, build_student
from student_trainer.run.student_settings import StudentSettings
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions

OPTIONS = {"partitions": 2, "order_size": 16, "epochs": 2}
"""162 orders of the digits."""


@cache
def _content(seed: int, hidden: int) -> bytes:
    """An export takes a second or more."""
    settings = StudentSettings("mlp", params={"hidden": [hidden]})
    student = build_student(settings, Network.of("image", (1, 8, 8), 10), seed)
    with TemporaryDirectory() as folder:
        return export_student(student, {"image": images()}, Path(folder) / "student.onnx").path.read_bytes()


def student_model(path: Path, seed: int = 5, hidden: int = 16) -> Path:
    """Write an untrained student's file: another one than any run here begins with."""
    path.write_bytes(_content(seed, hidden))
    return path


def images() -> NDArray[np.float32]:
    """[8, 1, 8, 8]: the first digits."""
    return fetcher().fetch(np.arange(8), 0).inputs["image"]


def moving_stream(settings: KafkaSettings, name: str, model: Path, **options: Any) -> Stream:
    """A stream of the digits with a teacher "t" that begins as `model`."""
    return stream_with_teacher(settings, name, model, options=OPTIONS | options)


def publishing(folder: Path, stream: str, name: str = "student", every: int = 40, **sections: Any) -> Path:
    """Write a run file of a run that publishes itself as its teacher's next generations, into `generations/`."""
    publish = {"teacher": "t", "every": every, "to": str(folder / "generations")} | sections.pop("publish", {})
    return run_file(folder, stream, name, publish=publish, **sections)


def label_all(distillog: Distillog, stream: str, model: Path) -> None:
    """Feed a stream whole, and label it as generation 0."""
    distillog.succeed("feed", stream, "--quiet")
    prepare_worker(
        distillog.settings, stream, model, TeachOptions(threads=1, worker=WorkerOptions("first", until_idle=True))
    ).run()


def generations_in_log(settings: KafkaSettings, stream: str, teacher: str = "t") -> set[int]:
    """The generations of all labels that are there by now."""
    there = soft_targets(settings, soft_targets_topic(stream, teacher))
    return {each.generation for labels in there.values() for each in labels}


def labelled_by(settings: KafkaSettings, stream: str, teacher: str = "t") -> list[int]:
    """The generation of each order's label as a reader takes it, in sequence; none is lost.

    A repetition may be of a later generation: only the first record of a sequence counts.
    """
    report = check_labels(settings, open_stream(settings, stream), teacher)
    assert not report.lost
    found = [report.accepted[sequence].record for sequence in sorted(report.accepted)]
    return [each.generation for each in found if isinstance(each, SoftTargets)]
