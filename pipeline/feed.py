"""The feeder: publishes a stream's work orders in the order of their sequence, and goes on from the topic itself.

Nothing is remembered between two feeders. Each partition's chain in the topic says which order comes next, so a feeder
that was killed is resumed exactly, and two feeders at once publish the same orders twice, which readers drop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from pipeline.chain import chain_end, implied_order, implied_orders
from pipeline.follow import REFRESH, Followers, Lead
from pipeline.kafka.clients import new_admin, new_consumer, new_producer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.names import manifest_topic, work_orders_topic
from pipeline.positions import read_position
from pipeline.progress import Progress
from pipeline.sequence import Sequence
from pipeline.streams import Stream, TopicGuard
from pipeline.wait import Deadline
from schemas.columns import narrowest
from schemas.errors import BrokerUnavailable, ConfigError, DeliveryFailed, StreamChanged
from schemas.names import check_name
from schemas.records import Manifest

log = logging.getLogger(__name__)

WINDOW = 1024
"""orders on their way at most: what kafka-python itself does not bound"""

SEND_TIMEOUT = 125.0
"""seconds: a little more than the client's own delivery time-out, which says more about the cause"""

RETRY_FOR = 300.0
"""seconds without a single acknowledged order after which the feeder gives up"""


ORDERS_IN_A_BATCH = 4
"""Orders of one partition that go together at most. A worker takes its orders batch by batch, and a partition whose
next batch is larger than its fetch waits until it comes first in one: with batches of any size most partitions waited
for a few (measured: of 6,400 orders over 64 partitions, the first 64 were all labelled after 90 % of the time)."""


def batch_bytes(manifest: Manifest) -> int:
    """Size of such a batch in bytes."""
    width = narrowest(manifest.num_samples - 1).itemsize
    return ORDERS_IN_A_BATCH * (width * manifest.order_size + 128)


@dataclass(frozen=True, slots=True)
class Fed:
    """What a feeder did."""

    published: int
    """orders acknowledged, repetitions after a failure included"""
    next_sequence: int
    """the lowest sequence that is not in the topic"""
    total: int
    """orders of the whole stream"""
    why: str
    """why it ended, in words"""


def feed(
    settings: KafkaSettings,
    stream: Stream,
    follow: tuple[str, ...] = (),
    lead: tuple[int, int] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    *,
    follow_timeout: float = 60.0,
    appear_timeout: float = 600.0,
) -> Fed:
    """Publish work orders until all are fed, nobody is left to follow, or `stop` is set.

    Args:
        settings: the cluster.
        stream: the stream, as opened just now.
        follow: runs whose progress gives credit; none: the whole stream is published.
        lead: (low, high) orders ahead of the fastest followed run.
        progress: shows what happens.
        stop: ends the feeder at the next order.
        follow_timeout: seconds without a new report after which a run is no longer followed.
        appear_timeout: seconds to wait for a run that has not reported yet.

    Raises:
        ConfigError: a lead without a run to follow, or one that cannot work.
        StreamNotFound: none of the runs to follow appeared.
        StreamChanged: the stream was deleted or made again meanwhile.
        BrokerUnavailable, DeliveryFailed: no order could be published for 300 s.
    """
    if lead and not follow:
        raise ConfigError("--lead needs a run to stay ahead of: give --follow RUN")
    feeder = _Feeder(settings, stream.manifest, progress or Progress(quiet=True), stop or threading.Event())
    try:
        if follow:
            thresholds = Lead.of(lead, stream.manifest.partitions)
            feeder.follow(tuple(dict.fromkeys(follow)), thresholds, follow_timeout, appear_timeout)
        return feeder.run()
    finally:
        feeder.close()


class _Feeder:
    def __init__(self, settings: KafkaSettings, manifest: Manifest, progress: Progress, stop: threading.Event) -> None:
        self._settings = settings
        self._manifest = manifest
        self._progress = progress
        self._stop = stop
        self._topic = work_orders_topic(manifest.stream)
        self._sequence = Sequence.of(manifest)
        self._sent: deque[tuple[int, Any, Deadline]] = deque()
        self._published = 0
        self._next = 0
        self._there: list[int] = []
        self._patience = Deadline(RETRY_FOR)
        self._followers: Followers | None = None
        self._admin: Any = None
        self._guard = TopicGuard(settings, [self._topic, manifest_topic(manifest.stream)])
        partitions = self._guard.num_partitions(self._topic)
        if partitions != manifest.partitions:
            self._guard.close()
            raise StreamChanged(f"topic {self._topic} has {partitions} partitions, its manifest {manifest.partitions}")

    def close(self) -> None:
        self._guard.close()
        if self._admin is not None:
            self._admin.close()

    def follow(self, runs: tuple[str, ...], lead: Lead, follow_timeout: float, appear_timeout: float) -> None:
        admin = self._admin = new_admin(self._settings)

        def read(run: str) -> Any:
            with kafka_errors(f"reading the position of run {run!r}", self._settings):
                return read_position(admin, self._manifest, run)

        for run in runs:
            check_name("run", run)
        self._followers = Followers(
            runs, lead, self._sequence.num_orders, read, follow_timeout, appear_timeout, self._progress.message
        )

    def run(self) -> Fed:
        """Publish, and after a failure look at the topic again and go on."""
        while True:
            try:
                why = self._publish(self._expected())
                return Fed(self._published, self._next, self._sequence.num_orders, why)
            except (BrokerUnavailable, DeliveryFailed) as error:
                self._guard.check(now=True)
                if self._patience.over:
                    raise
                log.warning("%s; reading the topic again to go on", error)
                self._stop.wait(1.0)

    def _expected(self) -> list[int]:
        """[P] the sequence that comes next in each partition."""
        partitions = self._manifest.partitions
        # An order that workers take for none would leave a hole that no feeder fills.
        sequence_of = implied_orders(self._manifest)
        consumer = new_consumer(self._settings, group_id=None)
        try:
            with kafka_errors(f"reading {self._topic}", self._settings):
                return [
                    chain_end(
                        consumer,
                        TopicPartition(self._topic, partition),
                        self._manifest.stream_id,
                        partitions,
                        sequence_of,
                    )
                    for partition in range(partitions)
                ]
        finally:
            consumer.close()

    def _publish(self, expected: list[int]) -> str:
        """Publish from the lowest expected sequence on.

        Returns:
            Why it ended.

        Raises:
            BrokerUnavailable, DeliveryFailed: what is in flight may or may not be in the topic.
        """
        self._sent.clear()
        self._there = expected
        num_orders = self._sequence.num_orders
        self._next = min(min(expected), num_orders)
        # Orders are small: unlike soft targets they gain from going together.
        producer = new_producer(
            self._settings,
            linger_ms=5,
            batch_size=batch_bytes(self._manifest),
            max_block_ms=30_000,
            max_request_size=max(1 << 20, self._manifest.max_record_bytes),
        )
        clean = False
        try:
            for sequence in range(self._next, num_orders):
                if self._is_there(sequence):
                    continue  # it was acknowledged before its neighbours
                if why := self._wait_for_credit(sequence):
                    break
                self._send(producer, sequence)
            else:
                why = "all orders are fed"
            while self._sent and not self._stop.is_set():
                self._settle()
            clean = True
            return "stopped" if self._stop.is_set() and self._sent else why
        finally:
            # What failed poisons its producer: nothing more may leave it.
            close_producer(producer, timeout=5 if clean else 0)

    def _is_there(self, sequence: int) -> bool:
        """Whether an order was in the topic when publishing began."""
        return sequence < self._there[sequence % self._manifest.partitions]

    def _wait_for_credit(self, sequence: int) -> str:
        """Return when the order may be published; not empty: publish no more, for this reason."""
        while not self._stop.is_set():
            self._guard.check()
            if self._followers is None or self._followers.allow(sequence):
                return ""
            if gone := self._followers.gone:
                return f"nobody is left to follow: {gone}"
            if self._sent:
                self._settle()
            else:
                self._patience = Deadline(RETRY_FOR)  # waiting for credit is no failure
                self._show(waiting_for="credit")
                self._stop.wait(REFRESH / 2)
        return "stopped"

    def _send(self, producer: KafkaProducer, sequence: int) -> None:
        order = implied_order(self._manifest.stream_id, self._sequence, sequence)
        with kafka_errors(f"publishing order {sequence}", self._settings):
            future = producer.send(self._topic, value=order.encode(), partition=self._sequence.partition(sequence))
        self._sent.append((sequence, future, Deadline(SEND_TIMEOUT)))
        while len(self._sent) >= WINDOW and not self._stop.is_set():
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest order on its way, half a second at most, and take off what is acknowledged.

        Raises:
            BrokerUnavailable, DeliveryFailed: it was refused, or not acknowledged in time.
        """
        sequence, future, deadline = self._sent[0]
        try:
            future.get(timeout=0.5)
        except Exception as error:  # kafka-python puts errors of any kind into a future
            if future.failed():
                with kafka_errors(f"publishing order {sequence}", self._settings):
                    if isinstance(error, KafkaError):
                        raise
                raise DeliveryFailed(f"order {sequence} was not published: {type(error).__name__}: {error}") from error
            if deadline.over:
                raise DeliveryFailed(f"order {sequence} was not acknowledged in {SEND_TIMEOUT:.0f} s") from None
            self._guard.check()
            return
        while self._sent and self._sent[0][1].succeeded():
            self._next = self._sent.popleft()[0] + 1
            self._published += 1
        while self._next < self._sequence.num_orders and self._is_there(self._next):
            self._next += 1
        self._patience = Deadline(RETRY_FOR)
        self._show(waiting_for=None)

    def _show(self, **fields: object) -> None:
        fastest = self._followers.fastest if self._followers else None
        self._progress.update(
            order=self._next,
            of=self._sequence.num_orders,
            ahead=None if fastest is None else self._next - fastest,
            **fields,
        )
