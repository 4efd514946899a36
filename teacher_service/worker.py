"""The work loop of a teacher: poll, label, publish, commit, in that order and never another.

The main thread polls and commits at least every 100 ms, so a rebalance never waits for an order; loading, inference
and publishing run beside it (stages.py, publisher.py). What may be committed is decided by the ledgers (ledger.py),
whose partitions are whose by membership.py.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_error

from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.parked_partitions import poll
from pipeline.names import dead_letters_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.streams import Stream, TopicGuard
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.errors import (
    BrokerUnavailable,
    ConfigError,
    DeliveryFailed,
    LogTrimmed,
    RecordTooLarge,
    WorkerHung,
)
from teacher_service.fault_limit import FaultLimit
from teacher_service.intake import Intake
from teacher_service.membership import Membership, join_group
from teacher_service.model import OnnxTeacher
from teacher_service.publisher import DELIVERY_TIMEOUT, Job, Publisher
from teacher_service.stages import DATA_RETRY, Stages
from teacher_service.watchdog import Watchdog

log = logging.getLogger(__name__)

POLL_MS = 100
IN_HAND_HIGH = 512
"""work orders taken before polling pauses; they are small"""
IN_HAND_LOW = 128
COMMIT_EVERY = 0.1
"""seconds between commits"""
BYTES_IN_FLIGHT = 32 << 20
JOIN_PATIENCE = 300.0
"""seconds without a settled membership after which a worker gives up: longer than a rebalance may take"""
MAX_FAILED_DELIVERIES = 3
"""producers in a row that failed before anything was acknowledged"""
IDLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker behaves; what it labels is the manifest's business."""

    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """shown in group listings and written into the headers of what it publishes"""
    session_timeout: float = 6.0
    """seconds until a frozen or dead worker is replaced; 6 is the lowest that a default broker allows"""
    until_idle: bool = False
    """end when every work order that there is has been labelled"""
    data_retry: float = DATA_RETRY
    """seconds for which a data set that cannot be read is tried again"""


@dataclass(slots=True)
class WorkerReport:
    """What a worker did."""

    orders: int = 0
    samples: int = 0
    faults: int = 0
    """rows that went to the dead letters"""
    not_orders: int = 0
    """records that went there whole"""
    repetitions: int = 0
    rebalances: int = 0


class Worker:
    """One member of a teacher's consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        stream: Stream,
        fetcher: Fetcher,
        model: OnnxTeacher,
        options: WorkerOptions,
        progress: Callable[[WorkerReport, int], None] = lambda report, partitions: None,
    ) -> None:
        manifest = stream.manifest
        self.report = WorkerReport()
        self._settings = settings
        self._manifest = manifest
        self._teacher = model.teacher
        self._options = options
        self._progress = progress
        self._orders = work_orders_topic(manifest.stream)
        self._stop = threading.Event()
        self._finished: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._jobs_in_flight = max(2, min(32, BYTES_IN_FLIGHT // manifest.max_record_bytes))
        self._faults = FaultLimit()
        self._joining = Deadline(JOIN_PATIENCE)
        self._failed_deliveries = 0
        self._given_up: Publisher | None = None
        """the failed publisher for which no new one could be made yet"""
        self._stages = Stages(
            fetcher, model, manifest.codec, self._orders, self._is_current, self._publish, options.data_retry
        )

    def stop(self) -> None:
        """Finish the order in hand, commit, leave; callable from a signal handler."""
        self._stop.set()

    def run(self) -> WorkerReport:
        """Work until stopped, idle (if asked to), or failed.

        Raises:
            StreamChanged, LogTrimmed, SequenceGap, BadSamples, DataUnavailable, DeliveryFailed, WorkerHung,
            BrokerUnavailable: as their names say; what was acknowledged is committed, the rest is not.
        """
        topics = [
            self._orders,
            soft_targets_topic(self._manifest.stream, self._teacher.name),
            dead_letters_topic(self._manifest.stream),
        ]
        watchdog = Watchdog(self._stages)
        with ExitStack() as closing:
            closing.callback(watchdog.release)
            guard = TopicGuard(self._settings, topics)
            closing.callback(guard.close)
            self._publisher = self._new_publisher()
            closing.callback(lambda: self._publisher.close())
            consumer = join_group(
                self._settings,
                self._manifest,
                self._teacher,
                self._options.name,
                self._options.session_timeout,
            )
            closing.callback(consumer.close, autocommit=False, timeout_ms=5_000)
            self._membership = Membership(self._settings, consumer, self._manifest, self._teacher, watchdog.disarmed)
            closing.callback(self._membership.close)
            self._stages.start()
            try:
                with watchdog:
                    self._loop(consumer, guard, watchdog)
                    self._finish(consumer, watchdog)
            except WorkerHung:
                raise  # at once, and nothing else: the others wait for its partitions
            except BaseException:
                self._leave()
                raise
            self._leave()
        return self.report

    def _leave(self) -> None:
        """Commit what is acknowledged, also after a failure, so that nobody repeats it."""
        self._stages.stop()
        self._settle_finished()
        self._membership.commit(5.0, wait=True)

    def _loop(self, consumer: KafkaConsumer, guard: TopicGuard, watchdog: Watchdog) -> None:
        intake = Intake(self._manifest, self._membership, guard, self._stages.add)
        committed = shown = time.monotonic()
        idle_since: float | None = None
        paused = False
        while not self._stop.is_set():
            watchdog.check()
            if self._stages.failure is not None:
                raise self._stages.failure
            paused = self._balance(consumer, paused)
            try:
                intake.take(self._poll(consumer))
                self.report.repetitions = intake.repetitions
                self._settle_finished()
                if time.monotonic() - committed >= COMMIT_EVERY:
                    committed = time.monotonic()
                    self._membership.commit(1.0)
                self._replace_failed_publisher()
            except BrokerUnavailable as error:
                log.warning("%s; trying again", error)
                self._stop.wait(0.5)
            guard.check()
            if self._joining.over:
                group = teacher_group(self._manifest, self._teacher.name)
                raise BrokerUnavailable(f"not taken into consumer group {group} within {JOIN_PATIENCE:.0f} s; leaving")
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                self._progress(self.report, len(self._membership.ledgers))
                if self._options.until_idle:
                    if not self._is_idle():
                        idle_since = None
                    elif idle_since is None:
                        idle_since = shown
                    elif shown - idle_since >= IDLE_SECONDS:
                        return

    def _poll(self, consumer: KafkaConsumer) -> dict[TopicPartition, list[Any]]:
        """Poll, and return records only where they continue what the ledgers know."""
        records: dict[TopicPartition, list[Any]] = {}
        try:
            records = poll(consumer, POLL_MS)
        except kafka_error.NoOffsetForPartitionError:
            pass  # a partition of a group without offsets: `settled` gives it a position
        except kafka_error.OffsetOutOfRangeError as error:
            raise LogTrimmed(
                f"{self._orders}: work orders that were not labelled yet were removed by retention ({error}); "
                "the stream has lost them: make it again"
            ) from None
        except kafka_error.InvalidSessionTimeoutError:
            raise ConfigError(
                f"this cluster allows no session time-out of {self._options.session_timeout:g} s (a default broker "
                "takes 6 s or more, see its group.min.session.timeout.ms): set --session-timeout"
            ) from None
        except kafka_error.KafkaError as error:
            with kafka_errors("polling work orders", self._settings):
                raise error
        generation = self._membership.generation
        if self._membership.settled():
            self._joining = Deadline(JOIN_PATIENCE)
            return records
        self.report.rebalances += self._membership.generation != generation
        return {}

    def _settle_finished(self) -> None:
        """Count what was acknowledged, so that it may be committed."""
        while not self._finished.empty():
            job = self._finished.get()
            self._failed_deliveries = 0
            if not self._is_current(job):
                continue
            self._membership.ledgers[job.partition].settle()
            if job.value is None:
                self.report.not_orders += 1
            else:
                self.report.orders += 1
                self.report.samples += job.num_rows - job.num_faults
                self.report.faults += job.num_faults

    def _publish(self, job: Job) -> None:
        """Hand a labelled job to the present publisher; runs in the inference thread."""
        if job.num_rows:
            self._faults.add(job.sequence, job.num_rows, job.num_faults)
        self._publisher.submit(job)

    def _is_current(self, job: Job) -> bool:
        return self._membership.is_current(job.partition, job.lease)

    def _balance(self, consumer: KafkaConsumer, paused: bool) -> bool:
        """Pause all partitions at once while the hands are full; the poll itself goes on."""
        in_hand = sum(ledger.num_flying for ledger in self._membership.ledgers.values())
        if paused and in_hand <= IN_HAND_LOW:
            consumer.resume(*consumer.paused())
            return False
        if in_hand >= IN_HAND_HIGH:
            consumer.pause(*consumer.assignment())
            return True
        return paused

    def _replace_failed_publisher(self) -> None:
        """After a failed delivery: a new producer, and back to the committed offsets.

        Raises:
            BrokerUnavailable: no new producer yet; call again.
        """
        error = self._publisher.failure
        if error is None:
            return
        if isinstance(error, (RecordTooLarge, kafka_error.MessageSizeTooLargeError)):
            raise RecordTooLarge(f"{error}; create the stream with a smaller --order-size or a topk codec")
        if self._publisher is not self._given_up:
            self._given_up = self._publisher
            self._failed_deliveries += 1
            if self._failed_deliveries >= MAX_FAILED_DELIVERIES:
                raise DeliveryFailed(
                    f"Kafka at {self._settings.bootstrap_servers} did not acknowledge soft targets "
                    f"{MAX_FAILED_DELIVERIES} times within {DELIVERY_TIMEOUT:.0f} s each ({error}); nothing of them "
                    "was committed, start the worker again when Kafka is well"
                )
            log.warning("soft targets not acknowledged (%s): going back to the committed offsets", error)
            # First of all: no job of these leases may reach the new publisher behind one that was lost.
            self._membership.rewind(self._membership.ledgers)
            self._publisher.close()
        self._publisher = self._new_publisher()

    def _new_publisher(self) -> Publisher:
        return Publisher(
            self._settings,
            soft_targets_topic(self._manifest.stream, self._teacher.name),
            dead_letters_topic(self._manifest.stream),
            [("worker", self._options.name.encode())],
            self._manifest.max_record_bytes,
            self._jobs_in_flight,
            self._is_current,
            self._finished,
        )

    def _is_idle(self) -> bool:
        ledgers = self._membership.ledgers.values()
        if any(ledger.num_flying or ledger.dirty for ledger in ledgers):
            return False
        try:
            return self._membership.group_is_done(lambda: range(self._manifest.partitions))
        except BrokerUnavailable:
            return False

    def _finish(self, consumer: KafkaConsumer, watchdog: Watchdog) -> None:
        """Let the orders that were begun end, so that nobody needs to repeat them."""
        num_left = sum(map(self._is_current, self._stages.clear()))
        deadline = Deadline(30.0)

        def waiting() -> bool:
            flying = sum(ledger.num_flying for ledger in self._membership.ledgers.values())
            return flying > num_left

        while waiting() and not deadline.over and self._stages.failure is None and self._publisher.failure is None:
            watchdog.check()
            self._settle_finished()
            self._poll_quietly(consumer)
        self._settle_finished()

    def _poll_quietly(self, consumer: KafkaConsumer) -> None:
        """Stay a member while the last orders end; what comes meanwhile is for others."""
        try:
            consumer.pause(*consumer.assignment())
            consumer.poll(timeout_ms=20)
        except kafka_error.KafkaError as error:
            log.debug("polling while leaving: %s", error)
        self._membership.drop_lost()  # its new owner commits now
