"""The log of `log.py` over kafka-python: a cluster that exists."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.kafka.admin import KafkaAdmin
from pipeline.kafka.appender import KafkaAppender
from pipeline.kafka.bids import Bid
from pipeline.kafka.consumers import KafkaMember, KafkaReader
from pipeline.kafka.settings import KafkaSettings


class KafkaCluster:
    """A Cluster that exists; see `pipeline.kafka.log`.

    Args:
        settings: where it is and how to be let in.
        stopped: whether the process is to end. Whatever waits for a broker then ends within about a second, with
            BrokerUnavailable; without it, only with its own deadline.
    """

    def __init__(self, settings: KafkaSettings, stopped: Callable[[], bool] | None = None) -> None:
        self._settings = settings
        self._stopped = stopped

    @property
    def address(self) -> str:
        """Where it is, for messages."""
        return self._settings.bootstrap_servers

    def appender(self, *, max_record_bytes: int, batch_bytes: int = 0) -> KafkaAppender:
        """A new writer; see `Cluster`."""
        return KafkaAppender(self._settings, self._stopped, max_record_bytes, batch_bytes)

    def reader(self, *, fetch_bytes: int = 0) -> KafkaReader:
        """A new reader; see `Cluster`."""
        return KafkaReader(self._settings, self._stopped, fetch_bytes)

    def member(
        self,
        group: str,
        topic: str,
        *,
        name: str,
        session_timeout: float,
        fetch_bytes: int = 0,
        bid: Callable[[], Bid] = Bid,
    ) -> KafkaMember:
        """Join a group that shares a topic's partitions out; see `Cluster`."""
        return KafkaMember(self._settings, self._stopped, group, topic, name, session_timeout, fetch_bytes, bid)

    def admin(self, patience: float = 30.0) -> KafkaAdmin:
        """A new admin; see `Cluster`."""
        return KafkaAdmin(self._settings, self._stopped, patience)
