"""A real cluster whose producers fail when they are told to: what is refused never reached a broker."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from pipeline.kafka.log import Appender, Cluster
from schemas.errors import BrokerUnavailable, DeliveryFailed


class FaultyCluster:
    """Everything is the real cluster's, but for `appender`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._failing_deliveries = 0
        self._failing_constructors = 0
        self.num_appenders = 0
        """made so far"""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def fail(self, deliveries: int, constructors: int = 0) -> None:
        """Let so many of the next records fail, and after that so many tries to make a new producer."""
        with self._lock:
            self._failing_deliveries += deliveries
            self._failing_constructors += constructors

    def appender(self, **options: Any) -> Appender:
        with self._lock:
            if self.num_appenders and self._failing_constructors:
                self._failing_constructors -= 1
                raise BrokerUnavailable("injected: no producer")
            self.num_appenders += 1
        return _Appender(self, self._cluster.appender(**options))

    def takes(self) -> bool:
        with self._lock:
            if not self._failing_deliveries:
                return True
            self._failing_deliveries -= 1
            return False


class _Appender:
    def __init__(self, cluster: FaultyCluster, appender: Appender) -> None:
        self._cluster = cluster
        self._appender = appender
        self._poisoned = False

    def append(self, topic: str, partition: int, value: bytes, **more: Any) -> Future[int]:
        self._poisoned = self._poisoned or not self._cluster.takes()
        if not self._poisoned:
            return self._appender.append(topic, partition, value, **more)
        failed: Future[int] = Future()
        failed.set_exception(DeliveryFailed("injected: not acknowledged"))
        return failed

    def close(self, timeout: float = 0.0) -> None:
        self._appender.close(timeout)
