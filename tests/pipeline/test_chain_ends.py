"""Where a log's chain ends, also where its beginning was removed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, order

from pipeline.chain_ends import sequence_at, soft_targets_end, work_orders_end
from schemas.errors import DecodeError, SequenceGap

STREAM = "0123456789abcdef"


def sequence_of(value: bytes, address: str) -> tuple[str, int]:
    owner, colon, sequence = value.decode().partition(":")
    if not colon:
        raise DecodeError(address, "no record of ours", value)
    return owner, int(sequence)


def end_of(values: list[int | str], partition: int = 0, stride: int = 1, trimmed: int = 0, **orders: Any) -> int:
    """Where a log of soft targets ends, or one of work orders if their options are given.

    Numbers are sequences of this stream, and texts are anything else.
    """
    cluster = MemoryCluster()
    cluster.create_topic("log", stride)
    at = TopicPartition("log", partition)
    for value in values:
        cluster.write("log", partition, (value if isinstance(value, str) else f"{STREAM}:{value}").encode())
    cluster.delete_records(at, trimmed)
    if orders:
        return work_orders_end(cluster.reader(), at, STREAM, stride, sequence_of, **orders)
    return soft_targets_end(cluster.reader(), at, STREAM, stride, sequence_of)


LOGS: dict[str, tuple[list[int | str], int, int]] = {
    "nothing": ([], 0, 0),
    "a whole chain": ([0, 1, 2], 0, 3),
    "a repetition at its end": ([0, 1, 0], 0, 2),
    "an order that came too early": ([0, 2, 1], 0, 2),
    "junk and another stream's records": (["junk", 0, "f" * 16 + ":1", 1, "junk"], 0, 2),
    "trimmed to a repetition and what follows it": ([*range(8), 3, 8, 9], 8, 10),
    "trimmed to repetitions, of which the highest is taken": ([*range(8), 3, 5], 8, 6),
    "trimmed in the middle of a whole chain": ([0, 1, 2, 3], 2, 4),
    "trimmed to a record that lies too high for its place": ([0, 1, 2, 9, 3], 2, 4),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_chain_ends_behind_what_a_reader_has_accepted(case: str) -> None:
    values, trimmed, expected = LOGS[case]
    assert end_of(values, trimmed=trimmed) == expected


@pytest.mark.parametrize(("values", "trimmed"), [([0, 1], 2), ([0, "junk", "junk"], 1), ([0, 7], 1)])
def test_a_log_that_no_longer_says_where_its_chain_stood_is_refused(values: list[int | str], trimmed: int) -> None:
    with pytest.raises(SequenceGap, match=r"log/0: retention removed the records before offset .* rewind the group"):
        end_of(values, trimmed=trimmed)


@st.composite
def written_logs(draw: st.DrawFn) -> tuple[list[int | str], list[bool], int, int]:
    """A log by writers that repeat, as zombies and resumed ones do; which records are new; its partition, of how many.

    A writer begins anywhere in what is there, or right behind it, and goes on for a while.
    """
    stride = draw(st.integers(1, 5))
    partition = draw(st.integers(0, stride - 1))
    values: list[int | str] = []
    new: list[bool] = []
    expected = partition
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            values.append(draw(st.sampled_from(["junk", f"{'f' * 16}:{expected + stride}"])))
            new.append(False)
        back = draw(st.one_of(st.just(0), st.integers(0, (expected - partition) // stride)))
        sequence = expected - stride * back
        for _ in range(draw(st.integers(0, 6))):
            values.append(sequence)
            new.append(sequence == expected)
            sequence += stride
            expected = max(expected, sequence)
    return values, new, partition, stride


@given(written_logs(), st.data())
def test_a_trimmed_log_never_ends_too_high_and_is_exact_while_one_new_record_is_left(
    log: tuple[list[int | str], list[bool], int, int], data: st.DataObject
) -> None:
    values, new, partition, stride = log
    whole = partition + stride * sum(new)
    assert end_of(values, partition, stride) == whole
    trimmed = data.draw(st.integers(0, len(values)), label="trimmed")
    ours = [value for value in values[trimmed:] if isinstance(value, int)]
    if trimmed and not ours:
        with pytest.raises(SequenceGap):
            end_of(values, partition, stride, trimmed)
        return
    found = end_of(values, partition, stride, trimmed)
    assert found <= whole
    if any(new[trimmed:]):
        assert found == whole


EARLY: dict[str, tuple[list[int | str], int, int]] = {
    "an order that came too early, and nothing behind it": ([0, 1, 2, 8], 2, 3),
    "one that came too early, and the missing ones": ([0, 1, 2, 8, 3, 4], 2, 5),
    "an early one alone, before what comes first": ([0, 1, 8, 2, 3], 2, 4),
    "a repetition, behind which nobody knows what is missing": ([*range(8), 3, 8, 9], 8, 4),
    "a whole chain": ([0, 1, 2, 3], 2, 4),
    "nothing removed": ([0, 1, 2, 8, 3], 0, 4),
    "a repetition that makes up for a missing one": ([0, 0, 2], 0, 1),
    "repetitions that make up for many": ([0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11], 0, 4),
    "the same in a trimmed log": ([0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11], 2, 4),
    "more records than are looked at, all of them right": (list(range(20)), 0, 20),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_feeder_goes_on_at_the_first_order_that_may_be_missing(case: str) -> None:
    values, trimmed, expected = EARLY[case]
    assert end_of(values, trimmed=trimmed, early=6) == expected


def test_what_lies_behind_an_offset_does_not_count() -> None:
    assert [end_of([0, 1, 0, 1, 2, 3], early=1, until=offset) for offset in range(7)] == [0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(("trimmed", "offset", "expected"), [(0, 3, 2), (0, 5, 3), (3, 3, 6), (3, 5, 3)])
def test_the_sequence_at_an_offset_is_the_one_that_a_worker_expects_there(
    trimmed: int, offset: int, expected: int
) -> None:
    manifest = bare_manifest(num_samples=9, order_size=1, partitions=1)
    cluster = MemoryCluster()
    cluster.create_topic("log")
    at = TopicPartition("log", 0)
    for sequence in (0, 1, 0, 6, 2, 3):  # a repetition, and one that came too early
        cluster.write("log", 0, order(manifest, sequence).encode())
    cluster.delete_records(at, trimmed)
    assert sequence_at(cluster.reader(), at, manifest.stream_id, 1, offset) == expected
