"""Writing to the log with kafka-python's producer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from kafka import errors as kafka_error

from pipeline.kafka.clients import new_producer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import DELIVERY_TIMEOUT, RECORD_SLACK, Headers
from pipeline.kafka.needs import Right, needing
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.wait import Deadline
from schemas.errors import DeliveryFailed, DistillogError

METADATA_TIMEOUT = 15.0
"""seconds that the first record of a topic may wait until the client knows the topic"""

_METADATA_SLICE_MS = 1_000
"""`send` cannot be interrupted while it waits for them, so it waits in pieces"""


class KafkaAppender:
    """An Appender over an idempotent producer."""

    def __init__(
        self, settings: KafkaSettings, stopped: Callable[[], bool] | None, max_record_bytes: int, batch_bytes: int
    ) -> None:
        self._settings = settings
        self._stopped = stopped or (lambda: False)
        together = {"linger_ms": 5, "batch_size": batch_bytes} if batch_bytes else {}
        self._producer = new_producer(
            settings,
            stopped,
            max_request_size=max_record_bytes + RECORD_SLACK,
            max_block_ms=_METADATA_SLICE_MS,
            delivery_timeout_ms=int(DELIVERY_TIMEOUT * 1000),
            **together,
        )

    def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()
    ) -> Future[int]:
        """Send a record; see `Appender`."""
        answer: Future[int] = Future()
        answer.set_running_or_notify_cancel()
        place = f"{topic}/{partition}"
        try:
            with kafka_errors(f"writing to {place}", self._settings), needing(Right("WRITE", "topic", topic)):
                sent = self._send(topic, partition, value, key, headers)
        except DistillogError as error:
            answer.set_exception(error)
            return answer
        except ValueError as error:  # a partition that the topic does not have
            answer.set_exception(DeliveryFailed(f"writing to {place}: {error}"))
            return answer
        sent.add_callback(lambda metadata: answer.set_result(int(metadata.offset)))
        sent.add_errback(lambda error: answer.set_exception(self._ours(topic, place, error)))
        return answer

    def _send(self, topic: str, partition: int, value: bytes, key: bytes | None, headers: Headers) -> Any:
        deadline = Deadline(METADATA_TIMEOUT)
        while True:
            try:
                return self._producer.send(topic, value=value, key=key, headers=list(headers), partition=partition)
            except kafka_error.KafkaTimeoutError:
                if deadline.over or self._stopped() or self._settings.standing.refusal:
                    raise

    def _ours(self, topic: str, place: str, error: BaseException) -> DistillogError:
        """One of our errors for what kafka-python put into a future: errors of any kind."""
        if isinstance(error, kafka_error.KafkaTimeoutError):
            where = self._settings.bootstrap_servers
            return DeliveryFailed(f"writing to {place}: Kafka at {where} did not acknowledge a record in time")
        if isinstance(error, kafka_error.KafkaError):
            try:
                with kafka_errors(f"writing to {place}", self._settings), needing(Right("WRITE", "topic", topic)):
                    raise error
            except DistillogError as ours:
                return ours
        return DeliveryFailed(f"writing to {place}: {type(error).__name__}: {error}")

    def close(self, timeout: float = 0.0) -> None:
        """Stop for good; see `Appender`."""
        close_producer(self._producer, timeout)
