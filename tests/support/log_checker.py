"""What is in a stream's topics after a fault, found in the manner of Jepsen: read everything, count, compare.

Applies the reader's rule: accept the sequence expected next in its partition, drop every other record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from support.streams import records

from pipeline.kafka.settings import KafkaSettings
from pipeline.names import address_of, soft_targets_topic, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.records import SoftTargets, WorkOrder


@dataclass(slots=True)
class Label:
    """The accepted record of a sequence."""

    record: SoftTargets | WorkOrder
    worker: str
    time: float
    """seconds since 1970, as its writer's clock said"""


@dataclass(slots=True)
class LogReport:
    """What a reader makes of one topic."""

    accepted: dict[int, Label] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    """sequences of the stream that a reader never gets"""
    duplicates: int = 0
    early: int = 0
    """records higher than expected: they come again"""
    differing: int = 0
    """duplicates whose bytes are not those of the accepted record"""

    def __str__(self) -> str:
        return (
            f"{len(self.accepted)} sequences accepted, lost {self.lost or 'none'}, {self.duplicates} duplicates "
            f"({self.differing} of other bytes), {self.early} early"
        )


def check_labels(settings: KafkaSettings, stream: Stream, teacher: str = "t") -> LogReport:
    """Read a teacher's whole log."""
    return _check(settings, stream, soft_targets_topic(stream.manifest.stream, teacher), SoftTargets.decode)


def check_orders(settings: KafkaSettings, stream: Stream) -> LogReport:
    """Read all work orders."""
    return _check(settings, stream, work_orders_topic(stream.manifest.stream), WorkOrder.decode)


def assert_nothing_lost(report: LogReport, what: str = "log") -> None:
    """Print the counts, and fail where a sequence is missing or two workers disagree."""
    print(f"{what}: {report}")
    assert not report.lost
    assert not report.differing


def _check(
    settings: KafkaSettings, stream: Stream, topic: str, decode: Callable[[bytes, str], SoftTargets | WorkOrder]
) -> LogReport:
    report = LogReport()
    sequence = Sequence.of(stream.manifest)
    for partition, found in records(settings, topic).items():
        expected = partition
        values: dict[int, bytes] = {}
        for one in found:
            record = decode(one.value, address_of(one))
            assert record.stream_id == stream.manifest.stream_id
            if record.sequence == expected:
                worker = dict(one.headers).get("worker", b"").decode()
                report.accepted[expected] = Label(record, worker, one.timestamp / 1000)
                values[expected] = one.value
                expected += stream.manifest.partitions
            elif record.sequence < expected:
                report.duplicates += 1
                report.differing += one.value != values[record.sequence]
            else:
                report.early += 1
    report.lost = [number for number in range(sequence.num_orders) if number not in report.accepted]
    return report
