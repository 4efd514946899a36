"""Publishing beside the polling thread: what the chains say is next, dead letters first.

A producer that failed once is poisoned, so it is closed and another one takes its place, under a generation of its own.
A chain belongs to one generation: whoever opens chains compares (leases.py), and whatever else comes here is dropped.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from pipeline.kafka.log import DELIVERY_TIMEOUT, RECORD_SLACK, Appender
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, ConfigError, DeliveryFailed, DistillogError, RecordTooLarge
from teacher_service.leases.chain import Chain, Parcel

log = logging.getLogger(__name__)

MAX_FAILED_DELIVERIES = 3
"""Producers in a row that failed before anything was acknowledged."""

CONNECT_PATIENCE = 300.0
"""Seconds without a producer after which the publisher gives up."""

_GRACE = 15.0
_PAUSE = 0.5
"""Seconds between two tries to make a producer."""


@dataclass(slots=True, eq=False)
class _Sent:
    """A parcel on its way: so many of its records are not acknowledged yet."""

    parcel: Parcel
    missing: int
    letters: bool
    since: float


@dataclass(frozen=True, slots=True, eq=False)
class _News:
    """What happened to a record of a parcel, under which generation."""

    generation: int
    parcel: Parcel
    error: BaseException | None


class Publisher:
    """Sends parcels in their chains' order, and tells each chain what was acknowledged.

    `submit` blocks while `max_parcels` are in hand, since a producer itself never does.
    """

    def __init__(
        self,
        connect: Callable[[], Appender],
        soft_targets: str,
        dead_letters: str,
        headers: list[tuple[str, bytes]],
        max_record_bytes: int,
        max_parcels: int,
        published: Callable[[Parcel], None] = lambda parcel: None,
    ) -> None:
        self.failure: DistillogError | None = None
        """why it has given up"""
        self.generation: int | None = None
        """of the producer in place; None while there is none"""
        self.unacknowledged_seconds = 0.0
        """from sending soft targets to their acknowledgement, over all orders"""
        self._connect = connect
        self._soft_targets = soft_targets
        self._dead_letters = dead_letters
        self._headers = headers
        self._max_record_bytes = max_record_bytes
        self._max_parcels = max_parcels
        self._published = published
        self._generations = 0
        self._failed_in_a_row = 0
        self._appender: Appender | None = None
        self._patience = Deadline(CONNECT_PATIENCE)
        self._inbox: queue.SimpleQueue[Parcel | _News | None] = queue.SimpleQueue()
        self._in_hand: set[Parcel] = set()
        self._room = threading.Condition()
        self._sent: dict[Chain, _Sent] = {}
        self._looked = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins by making a producer."""
        self._thread.start()

    def submit(self, parcel: Parcel) -> None:
        """Take a labelled job; blocks while there is no room. One whose lease has ended is dropped."""
        with self._room:
            while len(self._live()) >= self._max_parcels and not self._useless(parcel):
                self._room.wait(0.2)
            if self._useless(parcel):
                return
            self._in_hand.add(parcel)
        self._inbox.put(parcel)

    def close(self) -> None:
        """Stop sending; what is unacknowledged is given up."""
        self._closed.set()
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self._drop_producer()

    def turn(self, timeout: float) -> None:
        """Make a producer if there is none, else handle the next thing that happened: one step of the thread."""
        if self._appender is None:
            self._make_producer()
            return
        try:
            self._refuse_overdue()
            self._handle(self._inbox.get(timeout=timeout))
        except queue.Empty:
            pass
        except (RecordTooLarge, ConfigError) as error:
            self._give_up(error)
        except DistillogError as error:
            self._replace(error)

    def _run(self) -> None:
        try:
            while not self._closed.is_set() and self.failure is None:
                self.turn(1.0)
                if self._appender is None:
                    self._closed.wait(_PAUSE)
        except BaseException as error:  # a bug, and the worker is to end with it
            log.exception("publishing failed")
            self._give_up(DeliveryFailed(f"publishing failed: {type(error).__name__}: {error}"))

    def _live(self) -> set[Parcel]:
        self._in_hand = {parcel for parcel in self._in_hand if not parcel.job.chain.over}
        return self._in_hand

    def _useless(self, parcel: Parcel) -> bool:
        return parcel.job.chain.over or self._closed.is_set() or self.failure is not None

    def _make_producer(self) -> None:
        try:
            self._appender = self._connect()
        except BrokerUnavailable as error:
            if self._patience.over:
                self._give_up(BrokerUnavailable(f"{error}; no producer for {CONNECT_PATIENCE:.0f} s, giving up"))
            else:
                log.warning("no producer for soft targets: %s; trying again", error)
            return
        except DistillogError as error:
            self._give_up(error)
            return
        if self._closed.is_set():  # it took longer than whoever closed would wait
            self._drop_producer()
            return
        self._generations += 1
        self.generation = self._generations

    def _replace(self, error: DistillogError) -> None:
        self._drop_producer()
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_DELIVERIES:
            self._give_up(
                DeliveryFailed(
                    f"Kafka did not acknowledge soft targets {MAX_FAILED_DELIVERIES} times in a row ({error}); nothing "
                    "of them was committed, start the worker again when Kafka is well"
                )
            )
            return
        log.warning("soft targets not acknowledged (%s): going back to the committed offsets", error)

    def _drop_producer(self) -> None:
        """First the generation, so that no chain is opened for a producer that is being closed."""
        self.generation = None
        appender, self._appender = self._appender, None
        self._sent.clear()
        self._patience = Deadline(CONNECT_PATIENCE)
        if appender is not None:
            try:
                appender.close()
            except DistillogError as error:  # what it still sends is a zombie's: chains of its generation are over
                log.warning("closing a producer: %s", error)

    def _give_up(self, error: DistillogError) -> None:
        self._drop_producer()
        self.failure = error

    def _handle(self, what: Parcel | _News | None) -> None:
        if isinstance(what, Parcel):
            what.job.chain.labelled(what)
            self._send_next(what.job.chain)
        elif what is not None and what.generation == self.generation:
            if what.error is not None:
                raise _delivery_error(what.error)
            self._acknowledged(what.parcel)

    def _send_next(self, chain: Chain) -> None:
        """Send what is next in a chain, if it is one of this producer's."""
        if chain.producer != self.generation:
            return
        parcel = chain.to_send()
        if parcel is None:
            return
        if parcel.letters:
            self._send(parcel, self._dead_letters, 0, parcel.letters, letters=True)
        else:
            self._send_value(parcel)

    def _send_value(self, parcel: Parcel) -> None:
        if parcel.value is None:
            self._finish(parcel)
        else:
            self._send(parcel, self._soft_targets, parcel.job.chain.partition, (parcel.value,), letters=False)

    def _send(self, parcel: Parcel, topic: str, partition: int, values: tuple[bytes, ...], *, letters: bool) -> None:
        assert self._appender is not None  # nothing is handled without one
        assert self.generation is not None
        generation = self.generation
        self._sent[parcel.job.chain] = _Sent(parcel, len(values), letters, time.monotonic())

        def done(future: Future[int]) -> None:
            # On the client's thread, which must not wait: it only leaves a note.
            self._inbox.put(_News(generation, parcel, future.exception()))

        for value in values:
            if len(value) > self._max_record_bytes + RECORD_SLACK:
                raise RecordTooLarge(
                    f"{topic}: a record of {len(value)} bytes is over the stream's limit of {self._max_record_bytes}; "
                    "create the stream with a smaller --order-size or a topk codec"
                )
            self._appender.append(topic, partition, value, headers=self._headers).add_done_callback(done)

    def _acknowledged(self, parcel: Parcel) -> None:
        sent = self._sent[parcel.job.chain]
        sent.missing -= 1
        if sent.missing:
            return
        if sent.letters:
            self._send_value(parcel)
        else:
            self._finish(parcel)

    def _finish(self, parcel: Parcel) -> None:
        chain = parcel.job.chain
        if sent := self._sent.pop(chain, None):
            self.unacknowledged_seconds += time.monotonic() - sent.since
        self._failed_in_a_row = 0
        if chain.acknowledged(parcel.job):
            self._published(parcel)
        with self._room:
            self._in_hand.discard(parcel)
            self._room.notify_all()
        self._send_next(chain)

    def _refuse_overdue(self) -> None:
        now = time.monotonic()
        if now - self._looked < 1.0:
            return
        self._looked = now
        for chain, sent in self._sent.items():
            if now - sent.since > DELIVERY_TIMEOUT + _GRACE:
                raise DeliveryFailed(f"partition {chain.partition}: not acknowledged within {DELIVERY_TIMEOUT:.0f} s")


def _delivery_error(error: BaseException) -> DistillogError:
    return error if isinstance(error, DistillogError) else DeliveryFailed(f"{type(error).__name__}: {error}")
