"""A stream that is labelled while students read it: a feeder, and teachers here or, simulated, elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

from kafka import TopicPartition

from benchmarks.paper.costly import Costly
from benchmarks.paper.orders import TEACHER
from benchmarks.service_times import ServiceTimes
from benchmarks.streams import ORDER_SIZE, Bench
from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_consumer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.names import soft_targets_topic, teacher_group, work_orders_topic
from pipeline.processes import DISTILLOG, Process, stop
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable
from teacher_service.models.describe import describe_model

ROOT = Path(__file__).parents[2]
"""Of the repository."""
EPOCHS = 2_000
"""so that no stream ends: 10,000 orders"""
JOIN = 240.0
"""seconds for a teacher to start, check itself and join, at most"""
_START_PAUSE = 1.0
"""seconds between the starts of two teachers: each takes a core for as long"""


def place(process: Process, cores: Collection[int]) -> None:
    """Let a process that has just begun run on these cores; on none: wherever it does."""
    if cores:
        os.sched_setaffinity(process.pid, cores)


class Live:
    """A stream, its feeder and its teachers; a context manager, which ends the processes."""

    def __init__(self, bench: Bench, name: str, model: Costly, run: str) -> None:
        """Make the stream of a teacher, and a feeder that follows a run."""
        self.name = name
        self.teachers: list[Process] = []
        self._bench = bench
        self._model = model
        self._folder = bench.folder / f"live-{name}"
        self._folder.mkdir()
        fetcher = Fetcher(open_dataset(bench.dataset), view_spec("none", {}))
        options = StreamOptions(order_size=ORDER_SIZE, epochs=EPOCHS)
        stream, _ = create_stream(bench.kafka, name, fetcher, bench.dataset, options)
        self.stream = bench.add_teacher(stream, describe_model(model.path, TEACHER, stream.manifest, fetcher))
        self.environment = environment(bench)
        self._admin = KafkaCluster(bench.kafka).admin(5.0)
        feed: list[str | Path] = [DISTILLOG, "feed", name, "--follow", run, "--quiet"]
        self._feeder = Process("feeder", feed, self._folder / "feeder.log", environment=self.environment)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End feeder and teachers; the log stays."""
        stop([*self.teachers, self._feeder], timeout=10.0)
        self._admin.close()

    def teach_here(self, cores: Collection[int]) -> None:
        """Start the teacher itself, on these cores, with one thread."""
        teach: list[str | Path] = [DISTILLOG, "teach", self.name, self._model.path, "--threads", "1", "--quiet"]
        self._add(teach, cores)
        self._join()

    def teach_elsewhere(self, count: int, known: Path, seconds: float) -> None:
        """Start simulated teachers until there are as many; an order takes each of them `seconds`."""
        while len(self.teachers) < count:
            command: list[str | Path] = [sys.executable, "-m", "benchmarks.simulated", self.name, self._model.path]
            command += ["--worker", f"w{len(self.teachers):02d}", "--order-size", str(ORDER_SIZE), "--known", known]
            command += ["--service", str(ServiceTimes.constant(seconds)), "--began", repr(time.time())]
            self._add(command, ())
        self._join()

    def log_bytes(self, orders: int) -> float:
        """Bytes of a sample in the log, of its order and its soft targets: keys and values of that many records."""
        topics = (work_orders_topic(self.name), soft_targets_topic(self.name, TEACHER))
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in range(self.stream.manifest.partitions)
        ]
        counts, sizes = dict.fromkeys(topics, 0), dict.fromkeys(topics, 0)
        with closing(new_consumer(self._bench.kafka, group_id=None)) as consumer:
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            deadline = Deadline(60.0)
            while min(counts.values()) < orders:
                if deadline.over:
                    raise RuntimeError(f"{self.name} holds {counts} records, not {orders} of each")
                for partition, records in consumer.poll(timeout_ms=200).items():
                    counts[partition.topic] += len(records)
                    sizes[partition.topic] += sum(len(each.key or b"") + len(each.value) for each in records)
        return sum(sizes[topic] / counts[topic] for topic in topics) / ORDER_SIZE

    def _add(self, command: list[str | Path], cores: Collection[int]) -> None:
        name = f"teacher {len(self.teachers)}"
        log = self._folder / f"teacher-{len(self.teachers):02d}.log"
        process = Process(name, command, log, environment=self.environment)
        place(process, cores)
        self.teachers.append(process)
        time.sleep(_START_PAUSE)

    def _join(self) -> None:
        group, deadline = teacher_group(self.stream.manifest, TEACHER), Deadline(JOIN)
        while True:
            for process in self.teachers:
                if not process.running:
                    raise RuntimeError(f"{self.name}: {process.name} has ended: {process.last_words()}")
            try:
                members = self._admin.num_members([group]).get(group, 0)
            except BrokerUnavailable:
                members = 0
            if members >= len(self.teachers):
                return
            if deadline.over:
                raise RuntimeError(f"{self.name}: {members} of {len(self.teachers)} teachers joined in {JOIN:.0f} s")
            time.sleep(0.2)


def environment(bench: Bench) -> Mapping[str, str]:
    """What the processes of a benchmark start with."""
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": bench.kafka.bootstrap_servers,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
