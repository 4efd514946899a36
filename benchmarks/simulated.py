"""A SIMULATION of an accelerator, and a real worker around it: `python -m benchmarks.simulated STREAM MODEL.onnx ...`.

The worker is that of `distillog teach` in all it does: the same checks, the same loop. Only the session that its model
calls is a stand-in: it looks the logits up in a table, and then sleeps for as long as the accelerator that it stands
for would take. So there may be more of them than cores; what they label is right, and can be checked.

Of a model that is a table itself (`write_table_model`) it is found by samples' numbers, of any other by what the
samples are: `--known` names a folder of samples and what the model gives for them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.service_times import ServiceTimes
from pipeline.kafka.settings import KafkaSettings
from pipeline.onnx_runtime import open_session
from pipeline.stop_signals import on_stop
from schemas.errors import DistillogError
from schemas.records import Teacher
from teacher_service.models.session import OnnxTeacher
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions


def logits_table(num_samples: int, num_classes: int) -> npt.NDArray[np.float32]:
    """[n, C] logits of samples 0 to n - 1; each is surest of class ID % C."""
    table = np.random.default_rng(0).standard_normal((num_samples, num_classes), dtype=np.float32)
    table[np.arange(num_samples), np.arange(num_samples) % num_classes] += 4
    return table


def write_table_model(path: Path, table: npt.NDArray[np.float32]) -> Path:
    """Write the model that the simulated ones stand for: samples' numbers [N] int64 in, their rows of the table out."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "number"], ["logits"], axis=0)],
        "table",
        [helper.make_tensor_value_info("number", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # what every ONNX Runtime that we allow can read
    onnx.save(model, str(path))
    return path


Answer = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""What the model is fed, [N, ...], to what it gives, [N, C]: in no time."""


def from_table(path: Path) -> Answer:
    """Answer as the model of `write_table_model` does."""
    (table,) = onnx.load(path).graph.initializer
    rows: npt.NDArray[np.float32] = numpy_helper.to_array(table)
    return lambda numbers: rows[numbers]


class KnownSamples:
    """Answers what a model gave for these samples, found by their bytes; what it does not know, the model computes."""

    SAMPLES, ANSWERS = "samples.npy", "answers.npy"

    def __init__(self, path: Path, folder: Path) -> None:
        samples = np.load(folder / self.SAMPLES)
        self._answers: npt.NDArray[np.float32] = np.load(folder / self.ANSWERS)
        self._rows = {sample.tobytes(): row for row, sample in enumerate(samples)}
        self._session = open_session(path, "cpu", threads=1)

    @classmethod
    def write(cls, folder: Path, samples: npt.NDArray[Any], answers: npt.NDArray[np.float32]) -> Path:
        """Write samples [n, ...] and what a model gives for them [n, C] where workers find them."""
        folder.mkdir()
        np.save(folder / cls.SAMPLES, samples)
        np.save(folder / cls.ANSWERS, answers)
        return folder

    def __call__(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[N, ...] to [N, C]; the check before a worker joins asks for rows that are in no dataset."""
        try:
            return self._answers[[self._rows[sample.tobytes()] for sample in samples]]
        except KeyError:
            (fed,) = self._session.get_inputs()
            computed: npt.NDArray[np.float32] = self._session.run(None, {fed.name: samples})[0]
            return computed


class SimulatedSession:
    """Stands in for an ONNX session: the model's answer, after the time that an accelerator would take."""

    def __init__(self, answer: Answer, order_size: int, service: ServiceTimes, began: float) -> None:
        self._answer = answer
        self._order_size = order_size
        self._service = service
        self._began = began

    def get_providers(self) -> list[str]:
        """Return what an order runs on that has to run in a child process: the real model, in no time."""
        return ["CPUExecutionProvider"]

    def run(self, outputs: list[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """Answer a call of some rows, which takes its share of an order's time; for ever, where that is its time."""
        begin = time.time() - self._began
        (fed,) = feeds.values()
        answer = self._answer(fed)
        end = self._service.ends(begin, len(fed) / self._order_size)
        if isinf(end):
            threading.Event().wait()
        time.sleep(max(0.0, self._began + end - time.time()))
        return [answer]


class SimulatedTeacher(OnnxTeacher):
    """A teacher whose session is simulated; all else is the real one's."""

    def __init__(self, path: Path, teacher: Teacher, session: SimulatedSession) -> None:
        self.teacher = teacher
        self.path = path
        self.threads = 1
        self.heads = {}
        self._given = {one.name: one.output for one in teacher.outputs}
        self._session = session


def main() -> int:
    """Work until SIGTERM, as `distillog teach` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated", description=__doc__)
    parser.add_argument("stream")
    parser.add_argument("model", type=Path)
    parser.add_argument("--worker", required=True, metavar="NAME")
    parser.add_argument("--order-size", type=int, required=True, help="rows that take the service time together")
    parser.add_argument("--service", type=ServiceTimes.parse, required=True, metavar="SINCE:SECONDS,...")
    parser.add_argument("--began", type=float, required=True, metavar="SECONDS", help="wall clock as the run began")
    parser.add_argument("--known", type=Path, metavar="FOLDER", help="samples and answers of a model that is no table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)

    def open_model(path: Path, teacher: Teacher, provider: str, threads: int) -> OnnxTeacher:
        answer = KnownSamples(path, arguments.known) if arguments.known else from_table(path)
        session = SimulatedSession(answer, arguments.order_size, arguments.service, arguments.began)
        return SimulatedTeacher(path, teacher, session)

    print(f"SIMULATION of an accelerator, {arguments.service} s for an order", file=sys.stderr)
    try:
        worker = prepare_worker(
            KafkaSettings(os.environ["KAFKA_BOOTSTRAP_SERVERS"]),
            arguments.stream,
            arguments.model,
            TeachOptions(worker=WorkerOptions(name=arguments.worker)),
            open_model=open_model,
        )
        with on_stop(worker.stop):
            report = worker.run()
    except DistillogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
