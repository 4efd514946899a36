"""What keeps a stream's records does not hang on the cluster's defaults, on rights, or on anybody's clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    OffsetSpec,
    ResourcePattern,
    ResourceType,
)
from small_streams import small_stream
from support.streams import records

from pipeline.broker.local import LocalBroker
from pipeline.create import add_teacher
from pipeline.feed import feed
from pipeline.kafka.clients import admin_client, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.streams import Stream, open_stream
from schemas.errors import ConfigError, StreamConflict
from schemas.records import Teacher, TeacherInput, TeacherOutput

pytestmark = pytest.mark.kafka
Eventually = Callable[..., object]

HOUR = 3_600_000
WEEK = 168 * HOUR

CARELESS = {
    "log.cleanup.policy": "compact",
    "log.retention.ms": str(WEEK),
    "log.retention.bytes": "1000000",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "true",
    # Retention is looked at often, and from the start.
    "log.retention.check.interval.ms": "200",
    "log.initial.task.delay.ms": "200",
}
"""Defaults of a cluster on which no label would last."""

OURS = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "min.insync.replicas": "1",
    "unclean.leader.election.enable": "false",
    "message.timestamp.type": "LogAppendTime",
    "segment.index.bytes": "1048576",
    "max.message.bytes": "1048588",
}


def teacher_of(stream: Stream) -> Teacher:
    signal = TeacherInput("x", "signal", "float32", "", 1.0, ())
    output = TeacherOutput.of_classes("logits", "logits", 10)
    return Teacher(stream.manifest.stream_id, "cnn", "ab" * 32, "m.onnx", (signal,), (output,), 8)


def set_outright(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """What the topic itself says, without the cluster's defaults."""
    with admin_client(settings) as admin:
        (found,) = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]).values()
    return {
        name: config["value"]
        for name, config in found[topic].items()
        if config["config_source"] == "DYNAMIC_TOPIC_CONFIG"
    }


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    broker = LocalBroker(tmp_path_factory.mktemp("careless"), settings=CARELESS)
    broker.start()
    yield KafkaSettings(broker.bootstrap_servers)
    broker.kill()


def test_nothing_that_keeps_records_is_left_to_the_clusters_defaults(careless: KafkaSettings) -> None:
    stream = small_stream(careless, "s", retention_ms=24 * HOUR)
    add_teacher(careless, stream, teacher_of(stream))
    assert set_outright(careless, manifest_topic("s")) == OURS
    kept_a_day = {**OURS, "retention.ms": str(24 * HOUR)}
    for topic in (work_orders_topic("s"), dead_letters_topic("s"), soft_targets_topic("s", "cnn")):
        assert set_outright(careless, topic) == kept_a_day
    assert feed(KafkaCluster(careless), open_stream(careless, "s")).published == 20  # one copy is enough for one broker


def test_a_topic_that_was_made_with_other_settings_is_not_taken_over(careless: KafkaSettings) -> None:
    with admin_client(careless) as admin:
        admin.create_topics({work_orders_topic("auto"): {"num_partitions": 4}}, wait_for_metadata=True)
    with pytest.raises(StreamConflict, match=r"auto\.work-orders exists with cleanup\.policy=compact, not delete"):
        small_stream(careless, "auto")


def send_at(settings: KafkaSettings, topic: str, milliseconds: int) -> None:
    """Write a record as a machine with that clock does."""
    producer = new_producer(settings, delivery_timeout_ms=10_000, request_timeout_ms=5_000)
    try:
        with kafka_errors("publishing", settings):
            producer.send(topic, b"x" * 1000, partition=0, timestamp_ms=milliseconds).get(timeout=20)
    finally:
        producer.close(timeout=5)


def test_retention_goes_by_the_brokers_clock(careless: KafkaSettings, eventually: Eventually) -> None:
    stream = small_stream(careless, "clocks", retention_ms=24 * HOUR)
    by_producer = "by-producer"
    old = {"cleanup.policy": "delete", "retention.ms": str(24 * HOUR), "min.insync.replicas": "1"}
    with admin_client(careless) as admin:
        spec = {"num_partitions": 1, "configs": {**old, "message.timestamp.type": "CreateTime"}}
        admin.create_topics({by_producer: spec}, wait_for_metadata=True)
    years_behind = int(time.time() * 1000) - 5 * 365 * 24 * HOUR
    for topic in (work_orders_topic("clocks"), by_producer):
        send_at(careless, topic, years_behind)

    def begin() -> int:
        place = TopicPartition(by_producer, 0)
        with admin_client(careless) as admin:
            return int(admin.list_partition_offsets({place: OffsetSpec.EARLIEST})[place].offset)

    eventually(lambda: begin() == 1, 60.0, "the end of a record that goes by its producer's clock")
    (kept,) = records(careless, work_orders_topic(stream.manifest.stream))[0]
    assert abs(kept.timestamp - time.time() * 1000) < HOUR


def test_a_machine_that_is_hours_ahead_can_write(careless: KafkaSettings) -> None:
    small_stream(careless, "ahead")
    send_at(careless, work_orders_topic("ahead"), int(time.time() * 1000) + 2 * HOUR)
    assert len(records(careless, work_orders_topic("ahead"))[0]) == 1


def test_a_clock_that_a_topic_refuses_is_told_as_a_clock(careless: KafkaSettings) -> None:
    configs = {"message.timestamp.type": "CreateTime", "cleanup.policy": "delete", "min.insync.replicas": "1"}
    with admin_client(careless) as admin:
        admin.create_topics({"strict": {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
    with pytest.raises(ConfigError, match=r"refuses the record's time: this machine's clock or the broker's is wrong"):
        send_at(careless, "strict", int(time.time() * 1000) + 2 * HOUR)


JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="secret";'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaSettings, KafkaSettings]]:
    """A cluster with rights: an administrator who may do all, and alice, who may not read settings."""
    broker = LocalBroker(tmp_path_factory.mktemp("guarded"))
    broker.folder.path.mkdir(exist_ok=True)
    ports = broker.folder.choose_ports(None)
    users = LocalBroker(tmp_path_factory.mktemp("port")).folder.choose_ports(None).port
    inside, outside = f"PLAINTEXT://127.0.0.1:{ports.port}", f"USERS://127.0.0.1:{users}"
    broker.settings = {
        **CARELESS,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listeners": f"{inside},CONTROLLER://127.0.0.1:{ports.controller_port},{outside}",
        "advertised.listeners": f"{inside},{outside}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,USERS:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.users.plain.sasl.jaas.config": JAAS,
    }
    broker.start()
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
    login |= {"sasl_plain_username": "alice", "sasl_plain_password": "secret"}
    admin, alice = KafkaSettings(broker.bootstrap_servers), KafkaSettings(f"127.0.0.1:{users}", login)
    grant(admin, "READ", "WRITE", "CREATE", "DESCRIBE")
    yield admin, alice
    broker.kill()


def grant(settings: KafkaSettings, *operations: str, prefix: str = "") -> None:
    kind = ACLResourcePatternType.PREFIXED if prefix else ACLResourcePatternType.LITERAL
    topics = ResourcePattern(ResourceType.TOPIC, prefix or "*", kind)
    with admin_client(settings) as admin:
        answer = admin.create_acls(
            [ACL("User:alice", "*", ACLOperation[each], ACLPermissionType.ALLOW, topics) for each in operations]
        )
    assert len(answer["succeeded"]) == len(operations)


def test_a_user_who_may_not_read_settings_cannot_add_a_teacher_whose_labels_would_die(
    guarded: tuple[KafkaSettings, KafkaSettings],
) -> None:
    admin, alice = guarded
    stream = small_stream(admin, "made-by-admin")
    with pytest.raises(ConfigError, match=r"may not DESCRIBE_CONFIGS topic made-by-admin\.work-orders") as refused:
        add_teacher(alice, stream, teacher_of(stream))
    assert "DESCRIBE_CONFIGS" in str(refused.value)
    with admin_client(admin) as client:
        assert soft_targets_topic("made-by-admin", "cnn") not in client.list_topics()
    grant(admin, "DESCRIBE_CONFIGS", prefix="made-by-admin.")
    assert add_teacher(alice, stream, teacher_of(stream))
    assert set_outright(admin, soft_targets_topic("made-by-admin", "cnn")) == OURS


def test_a_user_who_may_not_read_the_brokers_settings_makes_a_stream_that_lasts(
    guarded: tuple[KafkaSettings, KafkaSettings],
) -> None:
    admin, alice = guarded
    small_stream(alice, "made-by-alice")
    known = {name: value for name, value in OURS.items() if name != "min.insync.replicas"}
    assert set_outright(admin, work_orders_topic("made-by-alice")) == known


@pytest.mark.faults
def test_a_stream_is_made_while_a_broker_is_down(tmp_path: Path, eventually: Eventually) -> None:
    alive, dead = LocalBroker(tmp_path / "alive"), LocalBroker(tmp_path / "dead")
    ports = {}
    for broker in (alive, dead):
        broker.folder.path.mkdir()
        ports[broker] = broker.folder.choose_ports(None)
    # The one that will be down has the lowest number, and no part in the controllers' vote.
    voters = {"controller.quorum.voters": f"2@127.0.0.1:{ports[alive].controller_port}"}
    alive.settings = {**voters, "node.id": "2"}
    listener = f"PLAINTEXT://127.0.0.1:{ports[dead].port}"
    dead.settings = {**voters, "node.id": "1", "process.roles": "broker", "listeners": listener}
    same_cluster = replace(ports[dead], cluster_id=ports[alive].cluster_id)
    state = {name: getattr(same_cluster, name) for name in same_cluster.__slots__}
    (dead.folder.path / "broker.json").write_text(json.dumps(state))
    settings = KafkaSettings(f"127.0.0.1:{ports[alive].port}")

    def fenced() -> list[bool]:
        with admin_client(settings) as admin:
            brokers = {broker["broker_id"]: broker["is_fenced"] for broker in admin.describe_cluster()["brokers"]}
        return [brokers[number] for number in sorted(brokers)]

    try:
        alive.start()
        dead.start()
        eventually(lambda: fenced() == [False, False], 30.0, "two brokers")
        dead.stop()
        assert fenced() == [True, False]
        stream = small_stream(settings, "s")
        assert add_teacher(settings, stream, teacher_of(stream))
        with pytest.raises(ConfigError, match="3 copies of each record are wanted, and 2 brokers are there"):
            small_stream(settings, "t", replication_factor=3)
    finally:
        dead.kill()
        alive.kill()
