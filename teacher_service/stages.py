"""Loading the next order, running the model on this one, publishing the last: threads beside the polling thread.

The lowest sequence goes first, since a student waits for the lowest. A job whose lease has ended is dropped at the
next stage.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.datasets.base import Ints
from pipeline.sequence import Sequence
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.codecs import CodecSpec
from schemas.errors import DecodeError, ModelFailed
from schemas.records import Manifest, Teacher, WorkOrder
from teacher_service.clock import Clock
from teacher_service.leases.chain import Job, Parcel
from teacher_service.models.labels import Asked, Labels, label
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels

log = logging.getLogger(__name__)

DATA_RETRY = 60.0
"""Seconds for which a dataset that cannot be read is tried again, if not said."""
DATA_ADVICE = "nothing of it was committed, start the worker again when the data are back"

MEASURE_EVERY = 30.0
"""Seconds without work after which the speed is measured again."""
MEASURE_SHARE = 0.05
"""Of its time that an idle worker spends on that, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Views to measure with."""

    sample_ids: Ints
    """[N] int64: as many as one call of the model takes"""
    view_seed: int

    @classmethod
    def of(cls, manifest: Manifest, teacher: Teacher) -> Sample:
        """The first samples of the first order."""
        sequence = Sequence.of(manifest)
        return cls(sequence.sample_ids(0)[: teacher.inference_batch], sequence.view_seed(0))


class Stages:
    """Two threads: one loads, one infers and encodes; results go to `publish`."""

    def __init__(
        self,
        fetcher: Fetcher,
        model: OnnxTeacher,
        parcels: Parcels,
        publish: Callable[[Parcel], None],
        data_retry: float | None = None,
        sample: Sample | None = None,
    ) -> None:
        self.failure: BaseException | None = None
        self.loading = Clock()
        self.inferring = Clock()
        self.waited = 0.0
        """seconds in which inference had nothing to do"""
        self.model = model
        """who labels the next order: a newer generation may take its place at any time, from any thread"""
        self._fetcher = fetcher
        self._parcels = parcels
        self._publish = publish
        self._data_retry = DATA_RETRY if data_retry is None else data_retry
        self._sample = sample
        """measured with while there is nothing to do"""
        self._measure_at = time.monotonic() + MEASURE_EVERY
        self._loads: Job | None = None
        self._infers: Job | None = None
        self._heap: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._ready = threading.Condition()
        self._loaded: queue.Queue[tuple[Job | None, Fetched | None]] = queue.Queue(maxsize=1)
        """without a job: a measurement"""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(target,), name=name, daemon=True)
            for name, target in (("loader", self._load_all), ("inference", self._infer_all))
        ]

    @property
    def speed(self) -> float:
        """Samples per second, by the slower of both; 0 while that is not known."""
        slowness = max(self.loading.seconds_per_sample(), self.inferring.seconds_per_sample())
        return 1 / slowness if slowness else 0.0

    def stuck(self) -> set[int]:
        """Partitions of which an order takes so much longer than usual that it may never end."""
        busy = ((self._loads, self.loading), (self._infers, self.inferring))
        return {job.chain.partition for job, clock in busy if job is not None and clock.overdue}

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def add(self, jobs: list[Job]) -> None:
        """Queue jobs; within a partition in the log's order."""
        with self._ready:
            for job in jobs:
                # The number keeps a partition's jobs in their order where two have one sequence.
                heapq.heappush(self._heap, (job.sequence, next(self._numbers), job))
            self._ready.notify()

    def clear(self) -> list[Job]:
        """Take back what was not begun."""
        with self._ready:
            jobs = [entry[-1] for entry in self._heap]
            self._heap.clear()
        return jobs

    def stop(self) -> None:
        """Let both threads end after the order in hand; waits 2 s for them."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self.failure = self.failure or error
            self._stop.set()

    def _next(self) -> Job | None:
        with self._ready:
            if not self._heap:
                self._ready.wait(0.2)
            return heapq.heappop(self._heap)[-1] if self._heap else None

    def _load_all(self) -> None:
        while not self._stop.is_set():
            job = self._next()
            if job is None:
                self._measure()
                continue
            if job.chain.over:
                continue
            fetched = None
            if isinstance(job.order, WorkOrder):
                self._loads = job
                self.loading.start(len(job.order.sample_ids))
                fetched = self._fetch(job.order)
                self.loading.stop()
                self._loads = None
            self._hand_over(job, fetched)

    def _measure(self) -> None:
        """Now and then, while there is nothing to do: a machine that others use may be faster or slower by now."""
        now = time.monotonic()
        if self._loaded.qsize() or self.inferring.since is not None:
            self._measure_at = now + MEASURE_EVERY
        if self._sample is None or now < self._measure_at:
            return
        self.loading.start(len(self._sample.sample_ids))
        try:
            fetched = self._fetcher.fetch(self._sample.sample_ids, self._sample.view_seed, self.model.size)
        except Exception as error:  # nothing depends on it: an order will say what is wrong
            log.debug("measuring: %s", error)
            fetched = None
        self.loading.stop(whole_order=False)
        took = time.monotonic() - now
        self._measure_at = now + max(MEASURE_EVERY, took / MEASURE_SHARE)
        if fetched is not None and len(fetched.kept_rows):
            self._hand_over(None, fetched)

    def _hand_over(self, job: Job | None, fetched: Fetched | None) -> None:
        while not self._stop.is_set():
            try:
                return self._loaded.put((job, fetched), timeout=0.2)
            except queue.Full:
                continue

    def _fetch(self, order: WorkOrder) -> Fetched:
        return fetch_patiently(
            self._fetcher,
            order.sample_ids,
            order.view_seed,
            self.model.size,
            self._stop,
            seconds=self._data_retry,
            what=f"order {order.sequence}",
            advice=DATA_ADVICE,
            alive=self.loading.alive,
        )

    def _infer_all(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                job, fetched = self._loaded.get(timeout=0.2)
            except queue.Empty:
                continue
            finally:
                self.waited += time.monotonic() - began
            if job is None:
                self._measure_model(fetched)
                continue
            if job.chain.over:
                continue
            if isinstance(job.order, DecodeError):
                parcel = self._parcels.of_no_order(job, job.order)
            else:
                assert fetched is not None  # an order was fetched
                self._infers = job
                self.inferring.start(len(job.order.sample_ids))
                asked = Asked(job.order.sample_ids, job.order.view_seed)
                model = self.model
                labels = patient_labels(model, fetched, self._parcels.codec, job.sequence, asked)
                parcel = self._parcels.of_labels(job, job.order, labels, by=model.teacher)
                self.inferring.stop()
                self._infers = None
            self._publish(parcel)

    def _measure_model(self, fetched: Fetched | None) -> None:
        assert fetched is not None  # a measurement has views
        assert self._sample is not None  # it was of these
        began = time.monotonic()
        self.inferring.start(len(fetched.kept_rows))
        try:
            asked = Asked(self._sample.sample_ids, self._sample.view_seed)
            label(self.model, fetched, self._parcels.codec, asked)
        except Exception as error:
            log.debug("measuring: %s", error)
        self.inferring.stop(whole_order=False)
        self._measure_at += (time.monotonic() - began) / MEASURE_SHARE


def patient_labels(
    model: OnnxTeacher, fetched: Fetched, codec: CodecSpec, sequence: int, asked: Asked | None = None
) -> Labels:
    """Label an order's views; a failure is no fault of the data (memory, a device), so all of them are tried once more.

    Raises:
        ModelFailed: it failed twice.
    """
    try:
        return label(model, fetched, codec, asked)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        log.warning("order %d: the model failed (%s); trying again", sequence, error)
    try:
        return label(model, fetched, codec, asked)
    except Exception as error:
        raise ModelFailed(
            f"{model.path}: fails on order {sequence} ({' '.join(str(error).split())[:300]}); nothing "
            "of it was committed, start the worker again where the model can run"
        ) from error
