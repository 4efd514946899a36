"""A stream with a feeder, workers on simulated accelerators, and a student that takes their labels.

Feeder and workers are processes, one for each accelerator, in one group on a real Kafka, as a user runs them. The
clock of a stand begins as its workers are started.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.service_times import ServiceTimes, ideal_orders
from benchmarks.simulated import logits_table, write_table_model
from benchmarks.streams import ORDER_SIZE, Bench
from benchmarks.taker import RUN, Taker
from benchmarks.usage import cpu_seconds
from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.cluster import KafkaCluster
from pipeline.names import teacher_group
from pipeline.processes import DISTILLOG, Process, stop
from pipeline.status import lag
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable
from teacher_service.models.describe import describe_model

NUM_CLASSES = 10
NUM_SAMPLES = 64 * ORDER_SIZE
EPOCHS = 2_000
"""so that no stream ends: 128,000 orders"""
TEACHER = "table"
START_PAUSE = 1.5
"""seconds between the starts of two processes, of all stands: each takes a core for as long, from those that work"""
STARTING = 4
"""workers of a stand that start at a time"""
JOIN = 900.0
"""seconds for all to join: the self-check of a worker takes the time of seven orders"""

_starting = threading.Lock()


class Stand:
    """Starts all of it with the block, and ends all of it with the block."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        teachers: Sequence[ServiceTimes],
        seconds_per_order: float = 0.0,
        ready_orders: int = 0,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Make the stream; `Taker` says what a student is. A stand whose `cancelled` is set ends its waits."""
        self.workers: list[Process] = []
        self.began = 0.0
        """wall clock"""
        self._bench = bench
        self._name = name
        self._teachers = teachers
        self._cancelled = cancelled or threading.Event()
        self._folder = bench.folder / f"stand-{name}"
        self._folder.mkdir()
        table = logits_table(NUM_SAMPLES, NUM_CLASSES)
        self._model = write_table_model(self._folder / "table.onnx", table)
        data = self._folder / "numbers"
        data.mkdir()
        np.save(data / "number.npy", np.arange(NUM_SAMPLES))
        np.save(data / "labels.npy", np.arange(NUM_SAMPLES) % NUM_CLASSES)
        uri = f"npy:{data}"
        fetcher = Fetcher(open_dataset(uri), view_spec("none", {}))
        options = StreamOptions(order_size=ORDER_SIZE, epochs=EPOCHS)
        stream, _ = create_stream(bench.kafka, name, fetcher, uri, options)
        teacher = describe_model(self._model, TEACHER, stream.manifest, fetcher)
        self.stream = bench.add_teacher(stream, teacher)
        self.partitions = stream.manifest.partitions
        self._feeder: Process | None = None
        self._admin = KafkaCluster(bench.kafka).admin(5.0)
        self._taker_of = (table, seconds_per_order, ready_orders)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end()

    @property
    def now(self) -> float:
        """Seconds since the workers began."""
        return time.time() - self.began

    def ideal(self, begin: float, end: float) -> float:
        """Orders that all teachers can do between two times."""
        return ideal_orders(self._teachers, begin, end)

    def wait(self, until: float, may_end: Sequence[Process] = ()) -> None:
        """Wait until that time.

        Raises:
            RuntimeError: something ended that should run, a label is wrong, or it was cancelled.
        """
        while self.now < until:
            self._check(may_end)
            time.sleep(min(0.2, max(0.0, until - self.now)))
        self._check(may_end)

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far, by who took them; the student is this process, with whatever else it does."""
        pids = {
            "workers": [worker.pid for worker in self.workers],
            "feeder": [self._feeder.pid] if self._feeder else [],
            "student": [os.getpid()],
            "broker": [self._bench.broker] if self._bench.broker else [],
        }
        seconds = {who: cpu_seconds(of) for who, of in pids.items()}
        return {who: taken for who, taken in seconds.items() if taken is not None}

    def num_members(self) -> int:
        """Workers in the group."""
        group = teacher_group(self.stream.manifest, TEACHER)
        try:
            return self._admin.num_members([group]).get(group, 0)
        except BrokerUnavailable:
            return 0

    def shares(self) -> dict[str, int]:
        """Return how many partitions each worker has."""
        workers = lag(self._bench.kafka, self.stream).teacher(TEACHER).workers
        return {name: worker.partitions for name, worker in workers.items()}

    def _start(self) -> None:
        environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self._bench.kafka.bootstrap_servers,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        table, seconds_per_order, ready_orders = self._taker_of
        self.began = time.time()
        self.taker = Taker(self._bench.kafka, self.stream, table, self.began, seconds_per_order, ready_orders)
        self.taker.start()
        feed: list[str | Path] = [DISTILLOG, "feed", self._name, "--follow", RUN, "--quiet"]
        self._feeder = Process("feeder", feed, self._folder / "feeder.log", environment=environment)
        deadline = Deadline(JOIN)
        for number, service in enumerate(self._teachers):
            while number - self.num_members() >= STARTING:
                self._wait_to_join(deadline)
            command: list[str] = [sys.executable, "-m", "benchmarks.simulated", self._name, str(self._model)]
            command += ["--worker", f"w{number:02d}", "--order-size", str(ORDER_SIZE)]
            command += ["--service", str(service), "--began", repr(self.began)]
            log = self._folder / f"worker-{number:02d}.log"
            with _starting:
                self.workers.append(Process(f"worker {number}", command, log, environment=environment))
                time.sleep(START_PAUSE)
        while self.num_members() < len(self._teachers):
            self._wait_to_join(deadline)

    def _wait_to_join(self, deadline: Deadline) -> None:
        if deadline.over:
            raise RuntimeError(f"{self.num_members()} of {len(self._teachers)} workers joined in {JOIN:.0f} s")
        self._check(())
        time.sleep(0.5)

    def _check(self, may_end: Sequence[Process]) -> None:
        if self._cancelled.is_set():
            raise RuntimeError(f"{self._name}: cancelled")
        for process in [*self.workers, *([self._feeder] if self._feeder else [])]:
            if not process.running and process not in may_end:
                raise RuntimeError(f"{self._name}: {process.name} has ended: {process.last_words()}")
        if self.taker.failure is not None:
            raise RuntimeError(f"{self._name}: taking labels failed: {self.taker.failure}") from self.taker.failure

    def _end(self) -> None:
        self.taker.close()
        stop([*self.workers, *([self._feeder] if self._feeder else [])], timeout=20.0)
        self._admin.close()


def cpu_between(before: dict[str, float], after: dict[str, float], seconds: float) -> dict[str, Any]:
    """Cores taken, by who took them."""
    return {who: (after[who] - before[who]) / seconds for who in before}
