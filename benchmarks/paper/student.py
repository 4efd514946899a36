"""One student as a process, metered from outside: `python -m benchmarks.paper.student ORDERS.json`.

From a stream or a dataset it trains as `distillog runs start` does, by `train`. With the teacher in its loop (in
PyTorch or ONNX Runtime) or behind a socket it has the same batches, prepared by the same background thread, and takes
the same steps in the barest loop. What it comes to after some steps (weights and evaluation) it writes to a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.meter import Meter
from benchmarks.paper.orders import FIELD, TEACHER, Orders
from benchmarks.paper.rpc import connect, labelled
from pipeline.datasets import open_dataset
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.onnx_runtime import open_session
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.records import Teacher, TeacherInput, TeacherOutput
from student_trainer.batches import Batch
from student_trainer.evaluate import evaluate
from student_trainer.learning.targets import DenseTarget, target_name, target_specs
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.prefetch import Prefetcher
from student_trainer.preparation import inspect_network, plan, set_threads
from student_trainer.reporter import RunReporter
from student_trainer.run.folder import RunFolder, checkpoint_of
from student_trainer.run.settings import run_settings
from student_trainer.sources.base import Cursor, OrderSource, Reporter
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.supply import supply
from student_trainer.train import train

_DEPTH = 8
"""Answers of a teacher behind a socket that lie ready, as batches do."""


class CountingReporter:
    """A `Reporter` that publishes each step, and writes what the run came to at its checkpoint of some step."""

    def __init__(self, meter: Meter, orders: Orders, inner: Reporter | None) -> None:
        self._meter = meter
        self._orders = orders
        self._inner = inner
        self._cursor: Cursor | None = None
        self.scores: dict[str, float] = {}
        """the last evaluation"""

    def trained(self, cursor: Cursor) -> None:
        """Publish, but where it is asked again while it waits."""
        if cursor != self._cursor:
            self._cursor = cursor
            self._meter.step()
        if self._inner is not None:
            self._inner.trained(cursor)

    def checkpointed(self, cursor: Cursor) -> None:
        """Write what the run came to, if it is the step."""
        if self._inner is not None:
            self._inner.checkpointed(cursor)
        # After the last step the cursor behind it was published already.
        if self._meter.steps in (self._orders.equal_steps - 1, self._orders.equal_steps):
            saved = checkpoint_of(Path(self._orders.folder) / "checkpoints", self._orders.equal_steps)
            state = torch.load(saved / "state.pt", weights_only=True)["model"]
            write_outcome(self._orders, state, self.scores)

    def state(self, state: str) -> None:
        """Hand it on."""
        if self._inner is not None:
            self._inner.state(state)

    def progress(self, line: dict[str, Any]) -> None:
        """Keep an evaluation."""
        self.scores = line.get("evaluation", self.scores)


def write_outcome(orders: Orders, state: dict[str, torch.Tensor], scores: dict[str, float]) -> None:
    """Write weights, as a digest, and evaluation."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    outcome = {"steps": orders.equal_steps, "weights_sha256": digest.hexdigest(), "evaluation": scores}
    fresh = Path(orders.outcome).with_suffix(".new")
    fresh.write_text(json.dumps(outcome), encoding="utf-8")
    fresh.rename(orders.outcome)


def watch_waits(meter: Meter) -> None:
    """Let the training thread's waits for a batch count."""
    get, training = Prefetcher.get, threading.current_thread()

    def watched(self: Prefetcher[Any], interrupted: Callable[[], bool] = lambda: False) -> Any:
        if threading.current_thread() is not training:
            return get(self, interrupted)
        with meter.waiting():
            return get(self, interrupted)

    Prefetcher.get = watched  # type: ignore[method-assign]


def run_with_train(orders: Orders, meter: Meter) -> None:
    """Train as a run does, from a dataset or a stream."""
    settings = run_settings(orders.document)
    with RunFolder.create(Path(orders.folder), settings) as folder:
        if orders.teacher == "none":
            counting = CountingReporter(meter, orders, None)
            train(settings, folder, DatasetSource(settings), counting, counting.progress)
            return
        kafka = KafkaSettings(os.environ["KAFKA_BOOTSTRAP_SERVERS"])
        source = StreamSource(kafka, StreamSettings.of(settings))
        cluster = KafkaCluster(kafka)
        with RunReporter(cluster, source.stream, settings.name, [TEACHER], lambda: source.starving) as reporter:
            counting = CountingReporter(meter, orders, reporter)
            train(settings, folder, source, counting, counting.progress)


def run_with_teacher(orders: Orders, meter: Meter) -> None:
    """Train with a teacher in the loop, or behind sockets."""
    settings = run_settings(orders.document)
    source: OrderSource = DatasetSource(settings)
    set_threads(settings.train.threads)
    steps, _ = plan(settings, source)
    network = inspect_network(settings, source)
    image = TeacherInput(FIELD, FIELD, "float32", "nchw", 1.0, ())
    output = TeacherOutput.of_classes("logits", "logits", orders.num_classes)
    record = Teacher("0" * 32, TEACHER, "0" * 64, "teacher.onnx", (image,), (output,), settings.train.batch_size)
    terms = resolve(settings, target_specs(record, CodecSpec("float32")))
    trainee = Trainee(settings, network, steps, source.labelled_fraction, torch.device("cpu"), terms)
    name = target_name(TEACHER, output.name)
    seen = Fetcher(open_dataset(settings.evaluation.dataset), view_spec("none", {}))
    with supply(source, Cursor.start(), settings.train.batch_size, (), settings.train.prefetch) as ready:
        for step, (batch, logits) in enumerate(_answered(orders, meter, ready)):
            trainee.take_step(replace(batch, targets={name: DenseTarget(logits)}), step)
            if step + 1 == orders.equal_steps:
                scores = evaluate(trainee.model, seen, settings.evaluation.batch_size)
                write_outcome(orders, trainee.model.state_dict(), scores)
            if step + 1 == steps:
                break
            meter.step()


def _answered(
    orders: Orders, meter: Meter, ready: Prefetcher[tuple[Batch, Cursor]]
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches and what the teacher says of them, [B, C] float32."""

    def batches() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            yield item[0]

    meter.step()
    if orders.teacher == "torch":
        from benchmarks.paper.costly import in_torch

        network = in_torch(Path(orders.model))
        for batch in batches():
            with torch.inference_mode():
                logits = network(batch.inputs[FIELD])
            yield batch, logits.clone()
    elif orders.teacher == "onnx":
        session = open_session(Path(orders.model), "cpu", threads=1)
        for batch in batches():
            yield batch, torch.from_numpy(session.run(None, {FIELD: batch.inputs[FIELD].numpy()})[0])
    else:
        connections = [connect(port, (orders.num_classes,)) for port in orders.ports]

        def answers() -> Iterator[tuple[Batch, np.ndarray[Any, Any]]]:
            for answer in labelled(batches(), lambda batch: batch.inputs[FIELD].numpy(), connections):
                meter.sent = sum(each.num_bytes for each in connections)
                yield answer

        def stop() -> None:
            for each in connections:
                each.close()

        with Prefetcher(answers, _DEPTH, stop) as labels:
            while (item := labels.get()) is not None:
                yield item[0], torch.from_numpy(item[1])


def main() -> None:
    """Train until the end or killed."""
    orders = Orders.read(Path(sys.argv[1]))
    if orders.cores:
        os.sched_setaffinity(0, orders.cores)
    meter = Meter(Path(orders.page))
    watch_waits(meter)
    if orders.teacher in ("none", "stream"):
        run_with_train(orders, meter)
    else:
        run_with_teacher(orders, meter)


if __name__ == "__main__":
    main()
