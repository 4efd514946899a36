from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from kafka import TopicPartition
from small_streams import accepted, read_orders, small_stream
from support.memory_log import MemoryCluster
from support.streams import bare_manifest

from pipeline.broker.local import LocalBroker
from pipeline.feed import Fed, feed
from pipeline.kafka.clients import new_admin, new_consumer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream, delete_stream, open_stream
from schemas.errors import BrokerUnavailable, ConfigError, StreamChanged

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]


def whole(stream: Stream) -> dict[int, list[int]]:
    sequence = Sequence.of(stream.manifest)
    return {p: list(range(p, sequence.num_orders, sequence.partitions)) for p in range(sequence.partitions)}


def numbers(settings: KafkaSettings, stream: Stream) -> dict[int, list[int]]:
    return {p: [order.sequence for order in orders] for p, orders in read_orders(settings, stream).items()}


def end(settings: KafkaSettings, stream: Stream) -> int:
    consumer = new_consumer(settings, group_id=None)
    try:
        topic = work_orders_topic(stream.manifest.stream)
        return sum(consumer.end_offsets([TopicPartition(topic, p) for p in range(stream.manifest.partitions)]).values())
    finally:
        consumer.close()


def start_feeder(settings: KafkaSettings, stream: Stream) -> subprocess.Popen[str]:
    command = "from pipeline.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "feed", stream.manifest.stream],
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_order_is_published_once_to_its_partition_in_order(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"), epochs=3)
    fed = feed(KafkaCluster(kafka_settings), stream)
    assert (fed.published, fed.next_sequence, fed.total, fed.why) == (60, 60, 60, "all orders are fed")
    assert numbers(kafka_settings, stream) == whole(stream)


def test_orders_hold_what_the_sequence_says(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"), epochs=2)
    feed(KafkaCluster(kafka_settings), stream)
    sequence = Sequence.of(stream.manifest)
    for orders in read_orders(kafka_settings, stream).values():
        for order in orders:
            assert order.stream_id == stream.manifest.stream_id
            assert order.epoch == sequence.epoch_of(order.sequence)
            assert order.view_seed == sequence.view_seed(order.epoch)
            np.testing.assert_array_equal(order.sample_ids, sequence.sample_ids(order.sequence))


def test_feeding_a_fed_stream_publishes_nothing(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"))
    feed(KafkaCluster(kafka_settings), stream)
    assert feed(KafkaCluster(kafka_settings), stream).published == 0
    assert numbers(kafka_settings, stream) == whole(stream)


def test_a_feeder_that_is_stopped_before_it_has_read_the_topic_says_so() -> None:
    cluster = MemoryCluster()
    stream = Stream(bare_manifest(num_samples=8, order_size=1), {})
    cluster.create_topic("s.work-orders", 4)
    cluster.create_topic("s.manifest")
    stop = threading.Event()

    def fault(call: str) -> None:
        if call == "ends":
            stop.set()
            raise BrokerUnavailable("away")

    cluster.faults = fault
    assert feed(cluster, stream, stop=stop) == Fed(0, None, 8, "stopped")


def test_a_stopped_feeder_publishes_nothing_more(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"))
    stop = threading.Event()
    stop.set()
    assert feed(KafkaCluster(kafka_settings), stream, stop=stop).why == "stopped"
    assert end(kafka_settings, stream) == 0


def test_a_killed_feeder_is_resumed_at_the_exact_next_order(
    kafka_settings: KafkaSettings, fresh_name: Name, eventually: Callable[..., object]
) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"), epochs=600)
    process = start_feeder(kafka_settings, stream)
    try:
        eventually(lambda: end(kafka_settings, stream) > 500, 30.0, "the first orders")
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    killed_at = end(kafka_settings, stream)
    assert killed_at < 12_000
    fed = feed(KafkaCluster(kafka_settings), stream)
    # The killed one's last requests may still land after we looked, as repetitions.
    assert fed.next_sequence == fed.total == 12_000
    found = read_orders(kafka_settings, stream)
    assert {p: accepted(orders, p, 4) for p, orders in found.items()} == whole(stream)
    assert sum(map(len, found.values())) - 12_000 <= 1024


def test_two_feeders_at_once_make_only_duplicates(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"), epochs=200)
    feeders = [start_feeder(kafka_settings, stream) for _ in range(2)]
    for process in feeders:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    for partition, orders in read_orders(kafka_settings, stream).items():
        highest = partition - 4
        for order in orders:
            assert order.sequence <= highest + 4, "an order came before its predecessor"
            highest = max(highest, order.sequence)
        assert accepted(orders, partition, 4) == whole(stream)[partition]


def test_sigterm_ends_the_feeder_with_exit_code_0(
    kafka_settings: KafkaSettings, fresh_name: Name, eventually: Callable[..., object]
) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"), epochs=5000)
    process = start_feeder(kafka_settings, stream)
    eventually(lambda: end(kafka_settings, stream) > 100, 30.0, "the first orders")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output.startswith(f"{stream.manifest.stream}: stopped; published ")
    found = read_orders(kafka_settings, stream)
    assert {p: accepted(orders, p, 4) for p, orders in found.items()} == {
        p: [order.sequence for order in orders] for p, orders in found.items()
    }


@pytest.mark.faults
def test_sigterm_ends_a_feeder_within_seconds_while_kafka_is_away(
    own_broker: LocalBroker, fresh_name: Name, eventually: Callable[..., object]
) -> None:
    settings = KafkaSettings(own_broker.bootstrap_servers)
    streams = [small_stream(settings, fresh_name("feed"), epochs=20_000) for _ in range(2)]
    feeders = [start_feeder(settings, stream) for stream in streams]
    eventually(lambda: all(end(settings, stream) > 100 for stream in streams), 30.0, "the first orders")
    own_broker.kill()
    # It waits for acknowledgements, then for a connection, then for the guard's answer.
    for seconds, stream, process in zip((0.0, 5.0), streams, feeders, strict=True):
        time.sleep(seconds)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
        assert time.monotonic() - begun < 5.0
        assert process.returncode == 0, errors
        assert output.startswith(f"{stream.manifest.stream}: stopped; published ")


AGAIN = {"deleted": "was deleted while", "deleted and made again": "was deleted and made again"}


@pytest.mark.parametrize("case", AGAIN)
def test_a_stream_taken_away_under_a_feeder_stops_it(
    case: str, kafka_settings: KafkaSettings, fresh_name: Name, eventually: Callable[..., object]
) -> None:
    name = fresh_name("feed")
    stream = small_stream(kafka_settings, name)
    failed: list[BaseException] = []

    def follow_nobody() -> None:
        try:
            feed(KafkaCluster(kafka_settings), stream, ("nobody",), (8, 16))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=follow_nobody)
    thread.start()
    eventually(lambda: end(kafka_settings, stream) == 16, 20.0, "the credit of a run that did not report yet")
    delete_stream(kafka_settings, name)
    if case == "deleted and made again":
        small_stream(kafka_settings, name)
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in failed] == [StreamChanged]
    assert AGAIN[case] in str(failed[0])


def test_partitions_added_by_somebody_are_refused(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"))
    topic = work_orders_topic(stream.manifest.stream)
    admin = new_admin(kafka_settings)
    try:
        admin.create_partitions({topic: 5})
    finally:
        admin.close()
    with pytest.raises(StreamChanged, match=f"topic {topic} has 5 partitions, its manifest 4"):
        feed(KafkaCluster(kafka_settings), open_stream(kafka_settings, stream.manifest.stream))


LEADS = {
    "LOW below 1": ((0, 16), "LOW must be at least 1 and less than HIGH"),
    "LOW not below HIGH": ((16, 16), "LOW must be at least 1 and less than HIGH"),
    "HIGH below two orders a partition": ((1, 7), "HIGH must be at least 8, two orders for each of the stream's 4"),
}


@pytest.mark.parametrize("case", LEADS)
def test_a_lead_that_cannot_work_is_refused(case: str, kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"))
    lead, text = LEADS[case]
    with pytest.raises(ConfigError, match=text):
        feed(KafkaCluster(kafka_settings), stream, ("run",), lead)


def test_a_lead_without_a_run_is_refused(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("feed"))
    with pytest.raises(ConfigError, match="give --follow RUN"):
        feed(KafkaCluster(kafka_settings), stream, (), (8, 16))
