"""Publishing beside the polling thread: one unacknowledged order per partition, dead letters first.

A producer that failed once is poisoned, so a publisher that failed is thrown away with its producer; whoever owns it
makes a new one and goes back to the committed offsets.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer

from pipeline.kafka.clients import new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from schemas.errors import DecodeError, RecordTooLarge
from schemas.records import WorkOrder

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT = 120.0
"""Seconds until an unacknowledged record counts as failed; less turns slow brokers into storms of republishing."""

_GRACE = 15.0


@dataclass(slots=True, eq=False)
class Job:
    """One record of the work orders on its way through the stages."""

    partition: int
    lease: int
    offset: int
    sequence: int
    """for a record that is no work order: the sequence expected in its place"""
    order: WorkOrder | DecodeError
    """the error for a record that is no work order: it carries the bytes and the reason"""
    letters: list[bytes] = field(default_factory=list)
    """encoded dead letters that go out before the soft targets"""
    value: bytes | None = None
    """encoded soft targets"""
    num_rows: int = 0
    num_faults: int = 0


class Publisher:
    """Sends finished jobs and reports each when all its records are acknowledged.

    Bytes in flight are bounded by `max_jobs`, since `send` itself never blocks: `submit` does.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        soft_targets: str,
        dead_letters: str,
        headers: list[tuple[str, bytes]],
        max_record_bytes: int,
        max_jobs: int,
        is_current: Callable[[Job], bool],
        finished: queue.SimpleQueue[Job],
    ) -> None:
        self.failure: Exception | None = None
        self._soft_targets = soft_targets
        self._dead_letters = dead_letters
        self._headers = headers
        self._max_record_bytes = max_record_bytes
        self._is_current = is_current
        self._finished = finished
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._slots = threading.Semaphore(max_jobs)
        self._closed = threading.Event()
        self._waiting: dict[int, deque[Job]] = {}
        self._unacknowledged: dict[int, tuple[int, float]] = {}
        """partition -> (records of its first job not acknowledged yet, when they were sent)"""
        self._producer: KafkaProducer = new_producer(
            settings, max_request_size=max_record_bytes + 65_536, delivery_timeout_ms=int(DELIVERY_TIMEOUT * 1000)
        )
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a finished job; blocks while `max_jobs` are unacknowledged. After a failure jobs are dropped."""
        while not self._slots.acquire(timeout=0.5):
            if self._closed.is_set():
                return
        self._inbox.put(("job", job))

    def close(self, timeout: float = 0.0) -> None:
        """Stop sending. What is unacknowledged after `timeout` seconds is given up."""
        self._closed.set()
        self._inbox.put(("stop", None))
        self._thread.join(5.0)
        close_producer(self._producer, timeout)

    def _run(self) -> None:
        checked = time.monotonic()
        try:
            while not self._closed.is_set():
                if time.monotonic() - checked >= 1.0:
                    checked = time.monotonic()
                    self._check_overdue()
                try:
                    kind, what = self._inbox.get(timeout=1.0)
                except queue.Empty:
                    continue
                if kind == "job":
                    waiting = self._waiting.setdefault(what.partition, deque())
                    waiting.append(what)
                    if len(waiting) == 1:
                        self._start(what)
                elif kind == "acknowledged":
                    self._acknowledged(what)
                elif kind == "failed":
                    raise what
        except Exception as error:
            log.warning("publishing failed: %s", error)
            self.failure = error
            self._closed.set()

    def _start(self, job: Job) -> None:
        if not self._is_current(job):
            self._finish(job, report=False)
        elif job.letters:
            self._send(job, self._dead_letters, 0, job.letters)
        else:
            self._send_value(job)

    def _send_value(self, job: Job) -> None:
        if job.value is None:
            self._finish(job)
        else:
            self._send(job, self._soft_targets, job.partition, [job.value])

    def _send(self, job: Job, topic: str, partition: int, values: list[bytes]) -> None:
        self._unacknowledged[job.partition] = (len(values), time.monotonic())
        for value in values:
            if len(value) > self._max_record_bytes + 65_536:
                raise RecordTooLarge(
                    f"{topic}: a record of {len(value)} bytes is over the stream's limit of {self._max_record_bytes}"
                )
            future = self._producer.send(topic, value=value, partition=partition, headers=self._headers)
            # The callbacks run on the client's IO thread, which must not wait: they only leave a note.
            future.add_callback(lambda _: self._inbox.put(("acknowledged", job)))
            future.add_errback(lambda error: self._inbox.put(("failed", error)))

    def _acknowledged(self, job: Job) -> None:
        left, since = self._unacknowledged[job.partition]
        if left > 1:
            self._unacknowledged[job.partition] = (left - 1, since)
        elif job.letters and job.value is not None:
            job.letters = []
            self._send_value(job)
        else:
            self._finish(job)

    def _finish(self, job: Job, *, report: bool = True) -> None:
        self._unacknowledged.pop(job.partition, None)
        waiting = self._waiting[job.partition]
        waiting.popleft()
        self._slots.release()
        if report:
            self._finished.put(job)
        if waiting:
            self._start(waiting[0])

    def _check_overdue(self) -> None:
        for partition, (_, since) in self._unacknowledged.items():
            if time.monotonic() - since > DELIVERY_TIMEOUT + _GRACE:
                raise TimeoutError(f"partition {partition}: not acknowledged within {DELIVERY_TIMEOUT:.0f} s")
