from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_error

from pipeline.kafka.clients import new_admin, new_consumer, new_producer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.kafka.workarounds.parked_partitions import poll
from schemas.errors import BrokerUnavailable, ConfigError, NotAdmitted

CLIENTS = {"admin": new_admin, "producer": new_producer, "consumer": new_consumer}
CLOSED = "127.0.0.1:9"  # the discard service, which nobody runs


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()  # here, where the warning is expected, and not in somebody else's test


def properties(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "kafka.properties"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", CLIENTS)
def test_no_broker_is_one_clear_line_in_the_time_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", "0.3")
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        CLIENTS[name](KafkaSettings(CLOSED))
    assert time.monotonic() - begun < 5
    assert str(caught.value) == (
        f"connecting: no answer from Kafka at {CLOSED}; is it running? (`distillog broker status`)"
    )


@pytest.mark.parametrize("name", CLIENTS)
def test_what_goes_wrong_before_a_broker_could_answer_is_told_at_once_as_what_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's resolver raises no OSError for a name that is none, and kafka-python tries any error again."""
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", "60")
    begun = time.monotonic()
    with pytest.raises(NotAdmitted, match=r"Kafka at kafka\.\.example:9092 cannot be asked: UnicodeError: "):
        CLIENTS[name](KafkaSettings("kafka..example:9092"))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_bad_bootstrap_timeout_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", text)
    with pytest.raises(ConfigError, match="must be a positive number of seconds"):
        new_admin(KafkaSettings(CLOSED))


@pytest.mark.kafka
@pytest.mark.parametrize("name", CLIENTS)
def test_each_client_can_be_made(name: str, kafka_settings: KafkaSettings) -> None:
    CLIENTS[name](kafka_settings).close()


@pytest.mark.parametrize("address", ["localhost", "localhost:x", "a:1,", ":9092", "a:0", "a:70000"])
def test_a_bad_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT, several separated by commas"):
        new_admin(KafkaSettings(address))


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_found_no_broker_leaves_no_thread_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", "0.2")
    before = set(threading.enumerate())
    with pytest.raises(BrokerUnavailable):
        CLIENTS[name](KafkaSettings(CLOSED))
    assert set(threading.enumerate()) <= before


def test_properties_are_read_with_dots_underscores_and_other_clients_names(tmp_path: Path) -> None:
    text = """
    # a comment
    ! another
    bootstrap.servers=a:1,b:2
    security.protocol = sasl_ssl
    sasl.mechanisms=PLAIN
    sasl_username=user
    sasl.password=a=b
    request.timeout.ms=1000
    ssl.check.hostname=false
    """
    settings = KafkaSettings.load(None, properties(tmp_path, text))
    assert settings.bootstrap_servers == "a:1,b:2"
    assert settings.options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "user",
        "sasl_plain_password": "a=b",
        "request_timeout_ms": 1000,
        "ssl_check_hostname": False,
    }


def test_the_address_given_beats_the_file_and_the_file_beats_the_local_broker(tmp_path: Path) -> None:
    file = properties(tmp_path, "bootstrap.servers=file:1")
    assert KafkaSettings.load("given:1", file, lambda: "local:1").bootstrap_servers == "given:1"
    assert KafkaSettings.load(None, file, lambda: "local:1").bootstrap_servers == "file:1"
    assert KafkaSettings.load(None, None, lambda: "local:1").bootstrap_servers == "local:1"


def test_no_address_at_all_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="give --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS, or start"):
        KafkaSettings.load(None)


BAD = {
    "unknown key": ("sasl.pasword=hunter2", "unknown Kafka property 'sasl.pasword': did you mean 'sasl_password'?"),
    "no value": ("sasl.password hunter2", "expected `name=value`"),
    "bad number": ("request.timeout.ms=hunter2", "request.timeout.ms must be a whole number of milliseconds"),
    "unknown protocol": (
        "security.protocol=hunter2",
        "security.protocol must be one of PLAINTEXT, SSL",
    ),
    "of Java, login": (
        'sasl.jaas.config=... ScramLoginModule required username="ann" password="hunter2";',
        "unknown Kafka property 'sasl.jaas.config': it is for Java clients, set sasl.username and sasl.password",
    ),
    "of Java, authority": (
        "ssl.truststore.location=/t.jks",
        "unknown Kafka property 'ssl.truststore.location': it is for Java clients, set ssl.ca.location, a PEM file",
    ),
    "of Java, certificate": (
        "ssl.keystore.password=hunter2",
        "unknown Kafka property 'ssl.keystore.password': it is for Java clients, set ssl.certificate.location and",
    ),
    "missing file": ("ssl.cafile=/not/there.pem", "ssl.cafile: no such file: /not/there.pem"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_property_is_named_with_its_line_and_never_with_a_secret(case: str, tmp_path: Path) -> None:
    line, text = BAD[case]
    file = properties(tmp_path, f"bootstrap.servers=a:1\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        KafkaSettings.load(None, file)
    assert str(caught.value).startswith(f"{file}:2: {text}")
    assert "hunter2" not in str(caught.value)


def test_the_properties_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As a shell's `<(print-secret)` gives them, so that they are on no disk."""
    pipe = tmp_path / "pipe.properties"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("bootstrap.servers=there:9092\n",))
    writer.start()
    assert KafkaSettings.load(None, pipe).bootstrap_servers == "there:9092"
    writer.join()


def test_a_folder_in_place_of_the_properties_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot read the Kafka properties: Is a directory"):
        KafkaSettings.load(None, tmp_path)


def test_a_missing_properties_file_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigError) as caught:
        KafkaSettings.load("a:1", missing)
    assert str(caught.value) == f"{missing}: cannot read the Kafka properties: No such file or directory"


def test_a_properties_file_of_another_encoding_is_told_without_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_bytes("sasl.password=hunter2é".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        KafkaSettings.load("a:1", file)
    assert str(caught.value) == f"{file}: cannot read the Kafka properties: not UTF-8 text"


def test_a_mark_that_an_editor_put_in_front_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_bytes(b"\xef\xbb\xbfbootstrap.servers=a:1\r\nsasl.password=pw\r\n")
    settings = KafkaSettings.load(None, file)
    assert (settings.bootstrap_servers, settings.options) == ("a:1", {"sasl_plain_password": "pw"})


def test_a_password_does_not_show_when_settings_are_printed(tmp_path: Path) -> None:
    settings = KafkaSettings.load("a:1", properties(tmp_path, "sasl.password=hunter2"))
    assert "hunter2" not in repr(settings)


def test_a_partition_that_was_paused_comes_again_beside_one_that_was_read_to_its_end(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], eventually: Callable[..., Any]
) -> None:
    topic = fresh_name("paused")
    admin = new_admin(kafka_settings)
    admin.create_topics({topic: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    producer = new_producer(kafka_settings)
    for partition, count in ((0, 3), (1, 1)):
        for number in range(count):
            producer.send(topic, value=b"%d" % number, partition=partition).get(timeout=30)
    close_producer(producer, 5)
    busy, short = TopicPartition(topic, 0), TopicPartition(topic, 1)
    consumer = new_consumer(kafka_settings, group_id=None)
    try:
        consumer.assign([busy, short])
        consumer.pause(short)
        consumer.seek(busy, 0)
        consumer.seek(short, 0)
        eventually(lambda: poll(consumer, 100, max_records=1), 30.0, "the first record")
        consumer.pause(busy)  # with two of its records in the client's hands
        consumer.resume(short)
        assert [r.value for r in eventually(lambda: poll(consumer, 100), 30.0, "the other partition")[short]] == [b"0"]
        consumer.resume(busy)
        left = eventually(lambda: poll(consumer, 100), 30.0, "the records that were parked")
        assert [record.value for record in left[busy]] == [b"1", b"2"]
    finally:
        consumer.close()


def test_an_error_that_holds_a_brokers_whole_answer_is_cut() -> None:
    with pytest.raises(BrokerUnavailable) as caught, kafka_errors("asking", KafkaSettings("here:9092")):
        raise kafka_error.KafkaError("topics=[" + "partition, " * 10_000)
    assert str(caught.value).startswith("asking: Kafka at here:9092 answered KafkaError: topics=[partition, ")
    assert len(str(caught.value)) < 400
