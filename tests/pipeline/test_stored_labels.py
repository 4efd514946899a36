"""A teacher's labels as they lie in its topic: each order once, whatever else is there, and what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, order, teacher_record

from pipeline.logged_labels import LoggedLabels
from pipeline.names import manifest_topic, soft_targets_topic
from pipeline.stored_labels import Dropped
from pipeline.streams import Stream
from schemas.errors import BrokerUnavailable, StreamChanged
from schemas.records import SoftTargets

P = 3
ORDERS = 20
TOPIC = soft_targets_topic("s", "t")
STREAM = Stream(bare_manifest(num_samples=ORDERS, order_size=1, partitions=P), {"t": teacher_record()})


def record(sequence: int) -> SoftTargets:
    told = order(STREAM.manifest, sequence)
    rows = (told.stream_id, sequence, told.epoch, told.sample_ids, told.view_seed)
    return SoftTargets(*rows, None, "t", "0" * 64, ())


def cluster(*values: int | bytes | SoftTargets) -> MemoryCluster:
    """Records in this order: numbers are whole orders, each in its partition."""
    made = MemoryCluster()
    made.create_topic(manifest_topic("s"))
    made.create_topic(TOPIC, P)
    for value in values:
        given = record(value) if isinstance(value, int) else value
        number = given.sequence % P if isinstance(given, SoftTargets) else 0
        raw = given.encode() if isinstance(given, SoftTargets) else given
        made.write(TOPIC, number, raw, headers=[("worker", b"w")])
    return made


def labels(of: MemoryCluster, begin: int = 0, until: int = ORDERS) -> LoggedLabels:
    return LoggedLabels(of, STREAM, "t", begin, until)


def read(found: LoggedLabels) -> list[int]:
    return sorted(each.value.sequence for each in found.read())


@given(st.lists(st.integers(0, ORDERS - 1), max_size=60), st.integers(0, ORDERS - 1), st.integers(1, ORDERS))
def test_each_order_comes_once_in_a_chain_and_all_else_is_counted(written: list[int], begin: int, width: int) -> None:
    until = min(ORDERS, begin + width)
    found = labels(cluster(*written), begin, until)
    sequences = read(found)
    for number in range(P):
        # A chain: no order behind one that is missing.
        wanted = [each for each in range(begin, until) if each % P == number]
        there = [each for each in sequences if each % P == number]
        assert there == wanted[: len(there)]
        of_partition = [each for each in written if each % P == number]
        expected = wanted[0] if wanted else until
        offset = (expected - number) // P
        for each in of_partition[offset:]:
            expected += P * (each == expected)
        assert len(there) == len([each for each in wanted if each < expected])
    missing = sorted(set(range(begin, until)) - set(sequences))
    assert found.first_missing == (missing[0] if missing else None)


def test_what_no_reader_takes_is_counted_by_why() -> None:
    foreign = replace(record(3), stream_id="f" * 16)
    found = labels(cluster(0, b"junk", foreign, 3, 0, 9, 6, 1))
    assert read(found) == [0, 1, 3, 6]
    assert found.dropped == Dropped(repetitions=1, early=1, foreign=1, undecodable=1)
    assert found.first_missing == 2


def test_a_record_says_where_it_lies_and_who_wrote_it() -> None:
    (one,) = labels(cluster(1, 4), 4, 5).read()
    assert (one.address, one.worker) == (f"{TOPIC}/1@1", "w")


def test_where_retention_removed_the_beginning_what_is_left_is_read_and_the_rest_is_missing() -> None:
    made = cluster(*range(ORDERS), 6, 18)
    made.delete_records(TopicPartition(TOPIC, 0), 3)
    found = labels(made)
    assert read(found) == [each for each in range(ORDERS) if each % P or each >= 9]
    assert found.first_missing == 0


def test_a_range_that_ends_before_the_log_does_reads_no_further() -> None:
    found = labels(cluster(*range(ORDERS)), 5, 11)
    assert read(found) == list(range(5, 11))
    assert found.first_missing is None


def test_a_topic_that_is_gone_is_no_silence() -> None:
    made = cluster(0)
    made.delete_topic(TOPIC)
    with pytest.raises(StreamChanged, match="does not exist"):
        read(labels(made))


def test_a_poll_without_an_answer_is_asked_again() -> None:
    calls = []

    def fail_once(call: str) -> None:
        calls.append(call)
        if call == "poll" and calls.count("poll") == 1:
            raise BrokerUnavailable("away")

    made = cluster(0, 1)
    answering = MemoryCluster(fail_once)
    answering.create_topic(manifest_topic("s"))
    answering.create_topic(TOPIC, P)
    for number in (0, 1):
        for each in made.records(TOPIC, number):
            answering.write(TOPIC, number, each.value or b"", headers=each.headers)
    assert read(labels(answering)) == [0, 1]
    assert calls.count("poll") > 1
