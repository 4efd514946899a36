"""The feeder: publishes a stream's work orders in the order of their sequence, and goes on from the topic itself.

Nothing is remembered between two feeders. Each partition's chain in the topic says which order comes next, so a feeder
that was killed is resumed exactly, and two feeders at once publish the same orders twice, which readers drop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass

from kafka import TopicPartition

from pipeline.chain_ends import implied_order, implied_orders, work_orders_end
from pipeline.feed_metrics import Feeding
from pipeline.follow import PACES, REFRESH, Followers, Lead
from pipeline.kafka.log import Appender, Cluster
from pipeline.names import manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.progress import Progress
from pipeline.reports import read_report
from pipeline.sequence import Sequence
from pipeline.streams import Stream, TopicGuard
from pipeline.wait import Deadline
from schemas.columns import narrowest
from schemas.errors import BrokerUnavailable, ConfigError, DeliveryFailed, PositionOutOfRange, StreamChanged
from schemas.names import check_name, did_you_mean
from schemas.records import Manifest

log = logging.getLogger(__name__)

WINDOW = 1024
"""orders on their way at most: what kafka-python itself does not bound"""

SEND_TIMEOUT = 125.0
"""seconds: a little more than the client's own delivery time-out, which says more about the cause"""

RETRY_FOR = 300.0
"""seconds without a single acknowledged order after which the feeder gives up"""

RETRY_PAUSE = 1.0
"""seconds between a failure and the next look at the topic"""

FAREWELL = 1.0
"""seconds in which a feeder that was stopped hears of the orders on their way; the next one finds them in the topic"""

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
    next_sequence: int | None
    """the lowest sequence that is not in the topic; None: stopped before the topic was read"""
    total: int
    """orders of the whole stream"""
    why: str
    """why it ended, in words"""


def feed(
    cluster: Cluster,
    stream: Stream,
    follow: tuple[str, ...] = (),
    lead: tuple[int, int] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    *,
    pace: str = "fastest",
    follow_timeout: float = 60.0,
    appear_timeout: float = 600.0,
    feeding: Feeding | None = None,
) -> Fed:
    """Publish work orders until all are fed, nobody is left to follow, or `stop` is set.

    Args:
        cluster: where to; one that looks at `stop` too ends its waits for a broker with it.
        stream: the stream, as opened just now.
        follow: runs whose progress gives credit; none: the whole stream is published.
        lead: (low, high) orders ahead of a followed run.
        pace: of which of several: one of PACES.
        progress: shows what happens.
        stop: ends the feeder at the next order.
        follow_timeout: seconds without a new report after which a run is no longer followed.
        appear_timeout: seconds to wait for a run that has not reported yet.
        feeding: is kept true for others to look at.

    Raises:
        ConfigError: a lead without a run to follow, or one that cannot work.
        NotAuthorized: orders may not be written, or reports of the runs not be seen.
        StreamNotFound: none of the runs to follow appeared.
        StreamChanged: the stream was deleted or made again meanwhile.
        BrokerUnavailable, DeliveryFailed: no order could be published for 300 s.
    """
    if lead and not follow:
        raise ConfigError("--lead needs a run to stay ahead of: give --follow RUN")
    if pace not in PACES:
        raise ConfigError(f"pace {pace!r}: {did_you_mean(pace, PACES)}")
    feeding = feeding or Feeding(Sequence.of(stream.manifest).num_orders)
    feeder = _Feeder(cluster, stream, progress or Progress(quiet=True), stop or threading.Event(), feeding)
    try:
        with ExitStack() as closing_all:
            feeder.begin(closing_all)
            if follow:
                thresholds = Lead.of(lead, stream.manifest.partitions)
                runs = tuple(dict.fromkeys(follow))
                feeder.follow(runs, thresholds, pace, follow_timeout, appear_timeout, closing_all)
            return feeder.run()
    except (BrokerUnavailable, DeliveryFailed):
        if feeder.stopped:  # what was given up for that reason is no failure
            return feeder.fed("stopped")
        raise
    finally:
        feeding.end()


class _Feeder:
    def __init__(
        self, cluster: Cluster, stream: Stream, progress: Progress, stop: threading.Event, now: Feeding
    ) -> None:
        manifest = stream.manifest
        self._cluster = cluster
        self._manifest = manifest
        self._reported_beside = [soft_targets_topic(manifest.stream, teacher) for teacher in stream.teachers]
        self._progress = progress
        self._stop = stop
        self._now = now
        self._topic = work_orders_topic(manifest.stream)
        self._sequence = Sequence.of(manifest)
        self._sent: deque[tuple[int, Future[int], Deadline]] = deque()
        self._next = 0
        self._there: list[int] = []
        """[P] what comes next in each partition, as the topic said; [] before it was read"""
        self._patience = Deadline(RETRY_FOR)
        self._followers: Followers | None = None

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def fed(self, why: str) -> Fed:
        return Fed(self._now.published, self._next if self._there else None, self._sequence.num_orders, why)

    def begin(self, closing_all: ExitStack) -> None:
        """Take note of what the topics are."""
        self._guard = TopicGuard(self._cluster, [self._topic, manifest_topic(self._manifest.stream)])
        closing_all.callback(self._guard.close)
        partitions = self._guard.num_partitions(self._topic)
        if partitions != self._manifest.partitions:
            raise StreamChanged(
                f"topic {self._topic} has {partitions} partitions, its manifest {self._manifest.partitions}"
            )

    def follow(
        self,
        runs: tuple[str, ...],
        lead: Lead,
        pace: str,
        follow_timeout: float,
        appear_timeout: float,
        closing_all: ExitStack,
    ) -> None:
        """Take credit from runs."""
        for run in runs:
            check_name("run", run)
        admin = closing_all.enter_context(closing(self._cluster.admin()))
        # Runs report beside offsets of soft targets, and Kafka leaves out of its answer what may not be seen.
        admin.identities(self._reported_beside)
        self._followers = Followers(
            runs,
            lead,
            pace,
            self._sequence.num_orders,
            lambda run: read_report(admin, self._manifest, run),
            follow_timeout,
            appear_timeout,
            self._progress.message,
            REFRESH,
        )

    def run(self) -> Fed:
        """Publish, and after a failure look at the topic again and go on."""
        while True:
            try:
                return self.fed(self._publish(self._expected()))
            except (BrokerUnavailable, DeliveryFailed, PositionOutOfRange) as error:
                if self.stopped:
                    return self.fed("stopped")
                self._guard.check(now=True)
                if self._patience.over:
                    raise
                log.warning("%s; reading the topic again to go on", error)
                self._now.heart.beat()
                self._stop.wait(RETRY_PAUSE)

    def _expected(self) -> list[int]:
        """[P] the sequence that comes next in each partition."""
        partitions = self._manifest.partitions
        # An order that workers take for none would leave a hole that no feeder fills.
        sequence_of = implied_orders(self._manifest)
        # What one that failed had on its way lies in the last WINDOW orders; twice that, where two of them failed.
        early = 2 * (WINDOW // partitions + 1)
        found = []
        with closing(self._cluster.reader()) as reader:
            for partition in range(partitions):
                self._now.heart.beat()
                topic_partition = TopicPartition(self._topic, partition)
                stream_id = self._manifest.stream_id
                found.append(work_orders_end(reader, topic_partition, stream_id, partitions, sequence_of, early))
        return found

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
        self._next = self._now.next_sequence = min(min(expected), num_orders)
        # Orders are small: unlike soft targets they gain from going together.
        appender = self._cluster.appender(
            max_record_bytes=max(1 << 20, self._manifest.max_record_bytes), batch_bytes=batch_bytes(self._manifest)
        )
        clean = False
        try:
            for sequence in range(self._next, num_orders):
                if self._is_there(sequence):
                    continue  # it was acknowledged before its neighbours
                if why := self._wait_for_credit(sequence):
                    break
                self._send(appender, sequence)
            else:
                why = "all orders are fed"
            while self._sent and not self._stop.is_set():
                self._settle()
            clean = True
            return "stopped" if self._stop.is_set() and self._sent else why
        finally:
            # What failed poisons its appender: nothing more may leave it.
            appender.close(FAREWELL if clean else 0.0)

    def _is_there(self, sequence: int) -> bool:
        """Whether an order was in the topic when publishing began."""
        return sequence < self._there[sequence % self._manifest.partitions]

    def _wait_for_credit(self, sequence: int) -> str:
        """Return when the order may be published; not empty: publish no more, for this reason."""
        while not self._stop.is_set():
            self._now.heart.beat()
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
                self._now.credit_seconds += REFRESH / 2
        return "stopped"

    def _send(self, appender: Appender, sequence: int) -> None:
        order = implied_order(self._manifest.stream_id, self._sequence, sequence)
        value = order.encode(self._manifest.schema_fingerprints)
        answer = appender.append(self._topic, self._sequence.partition(sequence), value)
        self._sent.append((sequence, answer, Deadline(SEND_TIMEOUT)))
        while len(self._sent) >= WINDOW and not self._stop.is_set():
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest order on its way, half a second at most, and take off what is acknowledged.

        Raises:
            BrokerUnavailable, DeliveryFailed: it was refused, or not acknowledged in time.
        """
        sequence, answer, deadline = self._sent[0]
        begun = time.monotonic()
        wait([answer], timeout=0.5)
        self._now.publishing_seconds += time.monotonic() - begun
        self._now.heart.beat()
        if not answer.done():
            if deadline.over:
                raise DeliveryFailed(f"order {sequence} was not acknowledged in {SEND_TIMEOUT:.0f} s")
            self._guard.check()
            return
        answer.result()
        while self._sent and self._sent[0][1].done() and self._sent[0][1].exception() is None:
            self._next = self._sent.popleft()[0] + 1
            self._now.published += 1
        while self._next < self._sequence.num_orders and self._is_there(self._next):
            self._next += 1
        self._patience = Deadline(RETRY_FOR)
        self._show(waiting_for=None)

    def _show(self, **fields: object) -> None:
        now = self._now
        now.next_sequence = self._next
        if self._followers is not None:
            now.position, now.followed = self._followers.position, self._followers.num_followed
        self._progress.update(order=self._next, of=now.orders, ahead=now.ahead, **fields)
