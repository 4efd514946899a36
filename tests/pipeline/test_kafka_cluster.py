"""What the real cluster does beyond the contract: errors of ours alone, and waits that end when they are told to."""

from __future__ import annotations

import gc
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kafka import TopicPartition

from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import BrokerUnavailable, ConfigError

CLOSED = KafkaSettings("127.0.0.1:9")  # the discard service, which nobody runs

MAKE: dict[str, Callable[[KafkaCluster], object]] = {
    "appender": lambda cluster: cluster.appender(max_record_bytes=1000),
    "reader": lambda cluster: cluster.reader(),
    "member": lambda cluster: cluster.member("g", "t", name="m", session_timeout=6.0),
    "admin": lambda cluster: cluster.admin(),
}


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()  # here, where the warning is expected, and not in somebody else's test


@pytest.mark.parametrize("name", MAKE)
def test_connecting_ends_when_the_process_is_told_to_stop(name: str) -> None:
    stop = threading.Event()
    threads = set(threading.enumerate())
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        MAKE[name](KafkaCluster(CLOSED, stop.is_set))
    assert time.monotonic() - begun < 3.0  # of the 15 s that it would look for a broker
    timer.join()
    assert set(threading.enumerate()) <= threads


@pytest.mark.kafka
def test_a_question_ends_when_the_process_is_told_to_stop_and_its_client_closes(kafka_settings: KafkaSettings) -> None:
    stop = threading.Event()
    cluster = KafkaCluster(kafka_settings, stop.is_set)
    threads = set(threading.enumerate())
    admin, reader = cluster.admin(), cluster.reader()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        reader.ends([TopicPartition("nowhere", 0)])
    with pytest.raises(BrokerUnavailable):
        admin.identities(["nowhere"])
    reader.close()
    admin.close()
    assert time.monotonic() - begun < 5.0
    timer.join()
    assert set(threading.enumerate()) <= threads


@pytest.mark.kafka
def test_a_session_time_out_that_the_cluster_refuses_is_said_in_one_line(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]
) -> None:
    topic = fresh_name("log")
    with admin_client(kafka_settings) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    member = KafkaCluster(kafka_settings).member(fresh_name("group"), topic, name="m", session_timeout=0.3)

    def poll() -> None:
        for _ in range(100):
            member.poll(0.1)

    with pytest.raises(ConfigError, match=r"no session time-out of 0\.3 s .* set --session-timeout"):
        poll()
    member.close()


@pytest.mark.kafka
def test_a_foreign_member_that_says_what_nobody_can_read_is_told_in_one_line(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kafka-python raises in the group's leader, whose polls decode what all members sent."""
    topic, group = fresh_name("log"), fresh_name("group")
    with admin_client(kafka_settings) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    member = KafkaCluster(kafka_settings).member(group, topic, name="m", session_timeout=6.0)

    def decode(*_: object) -> None:
        struct.unpack(">h", b"")

    monkeypatch.setattr("pipeline.kafka.consumers.parked_partitions.poll", decode)
    with pytest.raises(BrokerUnavailable, match=f"group {group}: a member that is no worker of Distillog sent what"):
        member.poll(0.1)
    member.close()
