"""What only the log in memory can do: lose answers, and let records land late."""

from __future__ import annotations

import pytest
from support.memory_log import MemoryCluster

from schemas.errors import BrokerUnavailable, DeliveryFailed


@pytest.fixture
def cluster() -> MemoryCluster:
    made = MemoryCluster()
    made.create_topic("log", 1)
    return made


def values(cluster: MemoryCluster) -> list[bytes | None]:
    return [record.value for record in cluster.records("log", 0)]


def test_a_held_record_is_written_and_acknowledged_when_the_test_says_so(cluster: MemoryCluster) -> None:
    cluster.holding = True
    appender = cluster.appender(max_record_bytes=100)
    first, second = appender.append("log", 0, b"a"), appender.append("log", 0, b"b")
    assert not first.done()
    assert values(cluster) == []
    cluster.flights[1].acknowledge()
    cluster.flights[0].acknowledge()
    assert (first.result(0), second.result(0)) == (1, 0)
    assert values(cluster) == [b"b", b"a"]


def test_a_failed_record_may_be_in_the_log_and_its_appender_takes_no_other(cluster: MemoryCluster) -> None:
    cluster.holding = True
    appender = cluster.appender(max_record_bytes=100)
    answer = appender.append("log", 0, b"a")
    cluster.flights[0].land()
    cluster.flights[0].fail()
    with pytest.raises(DeliveryFailed):
        answer.result(0)
    with pytest.raises(BrokerUnavailable):
        appender.append("log", 0, b"b").result(0)
    assert values(cluster) == [b"a"]


def test_a_record_lands_after_its_appender_was_closed(cluster: MemoryCluster) -> None:
    cluster.holding = True
    appender = cluster.appender(max_record_bytes=100)
    answer = appender.append("log", 0, b"zombie")
    appender.close()
    assert isinstance(answer.exception(0), BrokerUnavailable)
    cluster.flights[0].acknowledge()
    assert values(cluster) == [b"zombie"]


@pytest.mark.parametrize(("call", "written"), [("append", []), ("acknowledge", [b"a"])])
def test_a_fault_is_before_or_behind_the_write(call: str, written: list[bytes], cluster: MemoryCluster) -> None:
    def fault(name: str) -> None:
        if name == call:
            raise BrokerUnavailable("a fault")

    appender = cluster.appender(max_record_bytes=100)
    cluster.faults = fault
    assert isinstance(appender.append("log", 0, b"a").exception(0), BrokerUnavailable)
    assert values(cluster) == written
