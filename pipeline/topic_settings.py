"""What a stream's topics are set to, and making them.

All that keeps data is set outright. A cluster's defaults may delete labels after a week, compact them away, let an
out-of-date replica lead, or count a record's age by the clock of whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_error
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.kafka.needs import Refused, Right, refuse_hidden
from schemas.errors import BrokerUnavailable, ConfigError, StreamConflict

KEEP_FOR_EVER = -1

DEFAULT_MAX_MESSAGE = 1_048_588
"""`message.max.bytes` of a default broker"""

_FIXED = {
    "cleanup.policy": "delete",
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    # A producer's clock may be years behind, and retention would take its records at once, or hours ahead, and the
    # broker would refuse them. Nothing of ours reads the time.
    "message.timestamp.type": "LogAppendTime",
    # The second record of every partition waits until the broker has made two index files of this size; with the
    # default of 10 MiB that took 20 to 40 ms a partition (measured), 2 s of silence at the start of a stream of 64. One
    # MiB serves 357 MB of the smallest records, and a whole segment of larger ones.
    "segment.index.bytes": str(1 << 20),
}

_INHERITED = ("retention.ms", "retention.bytes", "max.message.bytes", "min.insync.replicas")
"""What a teacher's topic takes over from the work orders', where somebody may have chosen it."""


def retention_ms(hours: float | None) -> int:
    """Return how long records are kept in Kafka's unit; None: for ever. Raises ConfigError for what is no time."""
    if hours is None:
        return KEEP_FOR_EVER
    if not 0 < hours < 1e9:
        raise ConfigError(f"--retention-hours {hours:g}: give a positive number, or leave it out for ever")
    return int(hours * 3_600_000)


def stream_settings(
    cluster: Mapping[str, str], retention_ms: int, max_record_bytes: int, copies: int
) -> dict[str, str]:
    """Settings of a new stream's topics.

    Args:
        cluster: as `cluster_settings` read them.
        retention_ms: how long records are kept; KEEP_FOR_EVER.
        max_record_bytes: of the largest record.
        copies: of each record; -1: as many as the cluster makes by default.
    """
    settings = {
        **_FIXED,
        "retention.ms": str(retention_ms),
        "max.message.bytes": str(max(DEFAULT_MAX_MESSAGE, max_record_bytes)),
    }
    if copies < 1:
        copies = int(cluster.get("default.replication.factor", 0))
    if copies and "min.insync.replicas" in cluster:
        # More than there are copies would refuse every record.
        settings["min.insync.replicas"] = str(min(copies, int(cluster["min.insync.replicas"])))
    return settings


def inherited_settings(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    """Settings of a topic that is to be kept as long and as safely as `topic`.

    Raises:
        Refused: they may not be read.
    """
    there = _topic_settings(admin, topic)
    return {**_FIXED, **{name: there[name] for name in _INHERITED}}


def num_copies(admin: KafkaAdminClient, topic: str) -> int:
    """Replicas of each partition of a topic."""
    return min(len(partition["replica_nodes"]) for partition in _described(admin, topic)["partitions"])


def cluster_settings(admin: KafkaAdminClient) -> dict[str, str]:
    """The brokers' settings, as any of them says that answers; {} for a user without the right to read them.

    Raises:
        BrokerUnavailable: none answers.
    """
    brokers = admin.describe_cluster()["brokers"]
    trouble = "none is registered"
    for broker in sorted(brokers, key=lambda broker: bool(broker.get("is_fenced"))):  # those that are down come last
        resource = ConfigResource(ConfigResourceType.BROKER, str(broker["broker_id"]))
        try:
            return _values(admin.describe_configs([resource], config_filter="all"))
        except kafka_error.KafkaError as error:
            trouble = f"{type(error).__name__}"
    raise BrokerUnavailable(f"no broker of {len(brokers)} says how it is set up ({trouble}); try again")


def make_topic(admin: KafkaAdminClient, topic: str, partitions: int, copies: int, settings: Mapping[str, str]) -> None:
    """Make a topic, or accept the one that is there if it is the same.

    Raises:
        StreamConflict: it exists with another number of partitions or other settings.
        ConfigError: the cluster has fewer brokers than copies are wanted.
        Refused: it may not be made, or not be seen.
    """
    refuse_hidden(admin, [topic])  # before it is made: who may make it need not see it
    spec = {"num_partitions": partitions, "replication_factor": copies, "configs": dict(settings)}
    (answer,) = admin.create_topics({topic: spec}, raise_errors=False)["topics"]  # its own text is the whole request
    error = kafka_error.for_code(answer["error_code"])
    if error is kafka_error.TopicAlreadyExistsError:
        _refuse_difference(admin, topic, partitions, settings)
    elif error is kafka_error.InvalidReplicationFactorError:
        there = len(admin.describe_cluster()["brokers"])
        wanted = f"{copies} copies" if copies > 0 else "as many copies as default.replication.factor says"
        raise ConfigError(
            f"topic {topic}: {wanted} of each record are wanted, and {there} broker{'s are' if there != 1 else ' is'} "
            f"there; use --replication-factor {there} or less, or start more"
        )
    elif error is kafka_error.TopicAuthorizationFailedError:
        raise Refused(Right("CREATE", "topic", topic))
    elif error is not kafka_error.NoError:
        raise error(f"topic {topic}: {answer.get('error_message') or error.description}")
    admin.wait_for_topics([topic])


def _refuse_difference(admin: KafkaAdminClient, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
    """What was made before, by a call that was cut short or by somebody else, has to be what would be made now."""
    num_partitions = len(_described(admin, topic)["partitions"])
    if num_partitions != partitions:
        raise StreamConflict(
            f"topic {topic} exists with {num_partitions} partitions, not {partitions}; "
            "delete it, or choose another stream name"
        )
    there = _topic_settings(admin, topic)
    unlike = [f"{name}={there.get(name)}, not {value}" for name, value in settings.items() if there.get(name) != value]
    if unlike:
        raise StreamConflict(f"topic {topic} exists with {'; '.join(unlike)}; delete it, or choose another stream name")


def _topic_settings(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    """All settings of a topic, the cluster's defaults where it has none. Refused: not for this user."""
    values = _values(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all"))
    missing = [name for name in (*_INHERITED, *_FIXED) if name not in values]
    if missing:  # Kafka refuses with an empty answer, which the client hands on without a word
        raise Refused(Right("DESCRIBE_CONFIGS", "topic", topic))
    return values


def _described(admin: KafkaAdminClient, topic: str) -> dict[str, Any]:
    refuse_hidden(admin, [topic])
    (there,) = admin.describe_topics([topic])
    if there["error_code"]:
        raise BrokerUnavailable(f"topic {topic}: {kafka_error.for_code(there['error_code']).__name__}")
    described: dict[str, Any] = there
    return described


def _values(described: Any) -> dict[str, str]:
    """Names and values of one described resource."""
    values: dict[str, str] = {}
    for by_name in described.values():
        for configs in by_name.values():
            values |= {name: str(config["value"]) for name, config in configs.items()}
    return values
