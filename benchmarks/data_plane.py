"""Decoded soft targets against a raw kafka-python consumer over the same topic, in MB/s of record values.

Ours: the student's reader, with the reader's rule, the checks of each record's identity, and the values decoded. Raw:
`KafkaConsumer.poll` of kafka-python as it comes, with the same settings, and nothing done with what it gives; beside it
the same with the project's network client, which is what our reader leans on. All three stay connected and read the
topic in turns, each from its start; a read is timed from the seek to the last record. Each figure is a whole read of
half a second, so there are many pairs, and the interval of their median counts. 10^6 bytes are an MB.

`read_three_teachers`: the same reader over the zip of three teachers' logs, against over one of them, in MB/s of what
each reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from kafka import TopicPartition
from kafka.net.compat import KafkaNetClient

from benchmarks.pairs import Measure, Pairs, Spread, interleave, median_interval
from benchmarks.streams import ORDER_SIZE, ORDERS_PER_EPOCH, Bench
from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_consumer, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.kafka.workarounds.wide_receive import WideClient
from pipeline.names import soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.codecs import CodecSpec
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput
from student_trainer.sources.reader import _MIN_FETCH_BYTES, _RECORDS_IN_A_FETCH, SoftTargetReader

SIZES = {"64 KiB": (128, 2_000), "1 MiB": (2_048, 150)}
"""name -> (classes, records): 256 rows of float16 are 512 bytes a class"""
TEACHER = "t"
TEACHERS = ("t", "u", "v")
"""Of a stream that several label."""
OF_THREE = (128, 1_000)
"""(classes, orders): records of 64 KiB, three of each order."""
READS = 9
"""pairs of reads for one that is asked for: each takes half a second, of which a broker on the same cores takes what it
likes, so one alone says little"""


def fill(bench: Bench, name: str, num_classes: int, num_orders: int, teachers: tuple[str, ...] = (TEACHER,)) -> Stream:
    """Make a stream whose soft targets are random numbers of models that there are not."""
    fetcher = Fetcher(open_dataset(bench.unlabelled), view_spec("none", {}))
    options = StreamOptions(
        order_size=ORDER_SIZE,
        epochs=num_orders // ORDERS_PER_EPOCH,
        num_classes=num_classes,
        codec=CodecSpec("float16"),
    )
    stream, _ = create_stream(bench.kafka, name, fetcher, bench.unlabelled, options)
    manifest = stream.manifest
    image = TeacherInput("image", "image", "float32", "nchw", 1.0, ())
    output = TeacherOutput.of_classes("y", "logits", num_classes)
    for each in teachers:
        record = Teacher(manifest.stream_id, each, "0" * 64, "none.onnx", (image,), (output,), ORDER_SIZE)
        stream = bench.add_teacher(stream, record)
    sequence = Sequence.of(manifest)
    logits = np.random.default_rng(0).standard_normal((ORDER_SIZE, num_classes), dtype=np.float32)
    outputs = (Output.of("logits", logits, manifest.codec),)
    producer = new_producer(bench.kafka, max_request_size=manifest.max_record_bytes + 65_536)
    try:
        for number, each in ((number, each) for number in range(num_orders) for each in teachers):
            epoch = sequence.epoch_of(number)
            value = SoftTargets(
                manifest.stream_id,
                number,
                epoch,
                sequence.sample_ids(number),
                sequence.view_seed(epoch),
                None,
                each,
                "0" * 64,
                outputs,
            ).encode()
            future = producer.send(soft_targets_topic(name, each), value=value, partition=sequence.partition(number))
            if number % 32 == 31:
                future.get(timeout=60)  # send() itself bounds nothing
        producer.flush(timeout=60)
    finally:
        close_producer(producer, 5)
    return stream


@contextmanager
def decoded(bench: Bench, stream: Stream, num_orders: int, teachers: tuple[str, ...] = (TEACHER,)) -> Iterator[Measure]:
    """Give what reads the topics with the student's reader, values decoded, in MB/s."""
    reader = SoftTargetReader(KafkaCluster(bench.kafka), stream, teachers)

    def read_all() -> int:
        num_bytes = 0
        reader.seek(0, ())
        for number in range(num_orders):
            held = reader.next(number)
            assert held is not None
            for each in held:
                each.value.output("logits").values()
                num_bytes += each.num_bytes
        return num_bytes

    with closing(reader):
        yield lambda: _speed(read_all)


@contextmanager
def raw(
    bench: Bench, stream: Stream, num_orders: int, client: type[KafkaNetClient] = KafkaNetClient
) -> Iterator[Measure]:
    """Give what reads the topic with a consumer alone, with the reader's settings, in MB/s."""
    topic = soft_targets_topic(stream.manifest.stream, TEACHER)
    partitions = [TopicPartition(topic, number) for number in range(stream.manifest.partitions)]
    fetch = max(_MIN_FETCH_BYTES, _RECORDS_IN_A_FETCH * stream.manifest.max_record_bytes)
    consumer = new_consumer(
        bench.kafka, group_id=None, max_partition_fetch_bytes=fetch, max_poll_records=10_000, kafka_client=client
    )

    def read_all() -> int:
        num_records = num_bytes = 0
        deadline = Deadline(120.0)
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        while num_records < num_orders:
            assert not deadline.over, f"{topic}: {num_records} of {num_orders} records came"
            for records in consumer.poll(timeout_ms=100).values():
                num_records += len(records)
                num_bytes += sum(len(record.value) for record in records)
        return num_bytes

    with closing(consumer):
        yield lambda: _speed(read_all)


def _speed(read_all: Callable[[], int]) -> float:
    """MB/s of a function that reads and counts bytes."""
    began = time.perf_counter()
    num_bytes = read_all()
    return num_bytes / (time.perf_counter() - began) / 1e6


def measure(bench: Bench, name: str, num_classes: int, num_orders: int) -> tuple[Pairs, Pairs]:
    """MB/s of one record size: our reader, and the bare consumer with our network client, both against the bare one."""
    stream = fill(bench, name, num_classes, num_orders)
    with (
        raw(bench, stream, num_orders) as bare,
        decoded(bench, stream, num_orders) as ours,
        raw(bench, stream, num_orders, WideClient) as wide,
    ):
        for warm_up in (bare, ours, wide) * 2:
            warm_up()
        of_ours, of_wide = interleave(READS * bench.pairs, bare, ours, wide)
    return of_ours, of_wide


def measure_three(bench: Bench, name: str = "data-plane-three") -> Pairs:
    """MB/s of our reader over three teachers' logs, against over the first alone."""
    num_classes, num_orders = OF_THREE
    stream = fill(bench, name, num_classes, num_orders, TEACHERS)
    with (
        decoded(bench, stream, num_orders, TEACHERS[:1]) as one,
        decoded(bench, stream, num_orders, TEACHERS) as three,
    ):
        for warm_up in (one, three) * 2:
            warm_up()
        (pairs,) = interleave(READS * bench.pairs, one, three)
    return pairs


def run(bench: Bench) -> dict[str, Any]:
    """Measure both sizes, of which the worse is the ratio, and three teachers."""
    readers, consumers = {}, {}
    for number, (size, (num_classes, num_orders)) in enumerate(SIZES.items()):
        ours, wide = measure(bench, f"data-plane-{number}", num_classes, num_orders)
        readers[size], consumers[size] = _figures(ours, size), _figures(wide, size)
    worse = min(readers.values(), key=lambda figures: figures["median"])
    better = {f"data_plane {size}": figures for size, figures in readers.items() if figures is not worse}
    bare = {f"bare, wide client {size}": figures for size, figures in consumers.items()}
    three = _figures(measure_three(bench), "64 KiB, of three teachers")
    return {"ratios": {"data_plane": worse, "read_three_teachers": three}, "more_ratios": better | bare}


def _figures(pairs: Pairs, size: str) -> dict[str, Any]:
    speeds = {"mb_per_s": Spread.of(pairs.ours).median, "raw_mb_per_s": Spread.of(pairs.bare).median}
    found = pairs.as_dict() | speeds | {"record": size}
    return found | {
        "interval": median_interval(pairs.ratios),
        "self_interval": median_interval(pairs.self_ratios),
    }
