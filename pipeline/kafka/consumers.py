"""Reading the log with kafka-python's consumer: alone, and as a member of a group."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_error

from pipeline.kafka.assignor import Forgetting, SharesBySpeed
from pipeline.kafka.bids import Bid
from pipeline.kafka.clients import new_consumer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Commit, Membership, Polled
from pipeline.kafka.needs import Right, describing, needing
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds import forgotten_join, parked_partitions
from pipeline.kafka.workarounds.deaf_calls import undisturbed
from pipeline.names import log_name
from schemas.errors import BrokerUnavailable, ConfigError, PositionOutOfRange

log = logging.getLogger(__name__)

OFFSETS_TIMEOUT = 10.0
"""seconds for the ends of partitions: a worker's polling thread asks, which is to heed a stop"""

CLOSE_TIMEOUT = 5.0
"""seconds in which a member may tell its group that it leaves"""

_ALL_THAT_CAME = 100_000
"""Records of one poll: a poll that takes less leaves one partition half read, which the next fetch passes over."""


class _Positioned:
    """What reader and member share."""

    def __init__(self, settings: KafkaSettings, consumer: KafkaConsumer) -> None:
        self._settings = settings
        self._consumer = consumer
        self._reading: tuple[Right, ...] = ()
        """what a poll needs"""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from an offset; see `Positioned`."""
        try:
            self._consumer.seek(partition, offset)
        except (KeyError, kafka_error.IllegalStateError):  # revoked while it was looked up
            raise ValueError(f"{log_name(partition)} is not assigned") from None

    def position(self, partition: TopicPartition) -> int | None:
        """The offset that is read next; see `Positioned`."""
        # Not the client's own `position`, which asks the coordinator wherever one is missing.
        state = self._consumer._subscription.assignment.get(partition)
        return None if state is None or state.position is None else int(state.position.offset)

    def known_end(self, partition: TopicPartition) -> int | None:
        """Offset behind its last record; see `Positioned`."""
        state = self._consumer._subscription.assignment.get(partition)
        return None if state is None else state.highwater

    def poll(self, timeout: float) -> Polled:
        """Return records that follow the positions; see `Positioned`."""
        with kafka_errors("reading", self._settings), needing(*self._reading):
            try:
                return parked_partitions.poll(self._consumer, int(timeout * 1000))
            except kafka_error.NoOffsetForPartitionError:
                return {}  # no position yet: whoever owns it sets one by hand
            except (kafka_error.OffsetOutOfRangeError, kafka_error.LogTruncationError) as error:
                raise PositionOutOfRange(_out_of_range(error)) from None

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Hand out nothing of these; see `Positioned`."""
        self._consumer.pause(*self._mine(partitions))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Undo `pause`."""
        self._consumer.resume(*self._mine(partitions))

    def _mine(self, partitions: Collection[TopicPartition]) -> set[TopicPartition]:
        return set(partitions) & self._consumer.assignment()  # type: ignore[no-any-return]

    def begins(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset of the first record left of each."""
        return self._offsets(self._consumer.beginning_offsets, "first", partitions)

    def ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""
        return self._offsets(self._consumer.end_offsets, "last", partitions)

    def _offsets(
        self, ask: Callable[..., Any], which: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        topics = sorted({partition.topic for partition in partitions})
        what = f"asking for the {which} offsets of {', '.join(topics)}"
        with kafka_errors(what, self._settings), needing(*describing(topics)):
            found = ask(list(partitions), timeout_ms=int(OFFSETS_TIMEOUT * 1000))
        return {partition: int(offset) for partition, offset in found.items()}

    def close(self) -> None:
        """Close it; a member leaves its group at once."""
        undisturbed(self._consumer)
        self._consumer.close(autocommit=False, timeout_ms=int(CLOSE_TIMEOUT * 1000))


class KafkaReader(_Positioned):
    """A Reader over a consumer without a group."""

    def __init__(self, settings: KafkaSettings, stopped: Callable[[], bool] | None, fetch_bytes: int) -> None:
        consumer = new_consumer(
            settings, stopped, group_id=None, max_poll_records=_ALL_THAT_CAME, **_fetching(fetch_bytes)
        )
        super().__init__(settings, consumer)

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Read these from now on, and no others; see `Reader`."""
        self._consumer.assign(list(partitions))
        self._reading = tuple(Right("READ", "topic", topic) for topic in {each.topic for each in partitions})

    def partitions(self, topic: str) -> set[int]:
        """The topic's partitions; empty if it does not exist."""
        with kafka_errors(f"asking for the partitions of {topic}", self._settings):
            return set(self._consumer.partitions_for_topic(topic) or ())


class KafkaMember(_Positioned):
    """A Member over a consumer of a classic group, with the project's own assignor."""

    def __init__(
        self,
        settings: KafkaSettings,
        stopped: Callable[[], bool] | None,
        group: str,
        topic: str,
        name: str,
        session_timeout: float,
        fetch_bytes: int,
        bid: Callable[[], Bid] = Bid,
    ) -> None:
        assignor = SharesBySpeed(bid)
        session_ms = int(session_timeout * 1000)
        self._group = group
        self._session_timeout = session_timeout
        self._joining = False
        consumer = new_consumer(
            settings,
            stopped,
            group_id=group,
            client_id=name,
            partition_assignment_strategy=[assignor],
            session_timeout_ms=session_ms,
            # A cooperative move takes two rounds of at most one heartbeat each.
            heartbeat_interval_ms=min(500, session_ms // 3),
            max_poll_interval_ms=max(60_000, 2 * session_ms),
            max_poll_records=_ALL_THAT_CAME,
            **_fetching(fetch_bytes),
        )
        super().__init__(settings, consumer)
        self._reading = (Right("READ", "group", group), Right("READ", "topic", topic))
        consumer.subscribe([topic], listener=Forgetting(assignor))

    @property
    def membership(self) -> Membership | None:
        """None while it is no member, or a rebalance is under way."""
        standing = self._consumer.group_metadata()
        if self._joining or standing.generation_id < 0 or not standing.member_id:
            return None
        return Membership(standing.generation_id, standing.member_id)

    def assignment(self) -> set[TopicPartition]:
        """What it owns, as far as it knows."""
        return set(self._consumer.assignment())

    def poll(self, timeout: float) -> Polled:
        """Return records that follow the positions; see `Positioned`."""
        forgotten_join.before_poll(self._consumer)
        try:
            return super().poll(timeout)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, kafka_error.InvalidSessionTimeoutError):
                raise ConfigError(
                    f"this cluster allows no session time-out of {self._session_timeout:g} s (a default broker "
                    "takes 6 s or more, see its group.min.session.timeout.ms): set --session-timeout"
                ) from None
            if isinstance(error.__cause__, kafka_error.InconsistentGroupProtocolError):
                raise ConfigError(
                    f"group {self._group}: its members are of another version of Distillog, which shares partitions "
                    "out in another way; stop them all before the first worker of this version starts"
                ) from None
            raise
        except (struct.error, ValueError, TypeError) as error:  # kafka-python's decoding of what each member sent
            raise BrokerUnavailable(
                f"group {self._group}: a member that is no worker of Distillog sent what nobody can read ({error}); no "
                "partitions are shared out while it is there: stop it"
            ) from error
        finally:
            self._joining = forgotten_join.is_joining(self._consumer)

    def rejoin(self) -> None:
        """Ask for the partitions to be shared out anew; see `Member`."""
        # There is no public call for it; a follower's changed bid makes the broker rebalance, too.
        self._consumer._coordinator.request_rejoin()

    def commit(self, commits: Mapping[TopicPartition, Commit], timeout: float) -> bool:
        """Commit as this member; False: not taken, or nobody knows."""
        if not commits:
            return True
        offsets = {
            partition: OffsetAndMetadata(commit.offset, commit.metadata, -1) for partition, commit in commits.items()
        }
        with kafka_errors("committing", self._settings), needing(*self._reading):
            try:
                self._consumer.commit(offsets, timeout_ms=int(timeout * 1000))
            except kafka_error.AuthorizationError:
                raise
            except (kafka_error.KafkaError, AssertionError) as error:
                log.debug("commit not taken (%s)", error)
                return False
        return True


def _fetching(fetch_bytes: int) -> dict[str, int]:
    return {"max_partition_fetch_bytes": fetch_bytes} if fetch_bytes else {}


def _out_of_range(error: BaseException) -> str:
    """One line that names the partitions: kafka-python's two errors carry a dict of them."""
    where = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    addresses = ", ".join(f"{log_name(partition)}@{offset}" for partition, offset in where.items())
    return f"no such offset in the log (any more): {addresses or ' '.join(str(error).split())}"
