"""Clusters of three: the broker that coordinates a group dies for good."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import TopicPartition
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import distillog_commands
from support.streams import num_orders, publish, stream_with_teacher
from support.three_brokers import three_brokers

from pipeline.kafka.cluster import KafkaCluster
from pipeline.names import soft_targets_topic, teacher_group

# kafka-python 3.0.12 leaves the socket of each refused connection to the garbage collector.
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

DATASET = "mnist1d?split=train&n=320"


@pytest.fixture(autouse=True)
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL", "kafka")  # what it logs of a refused connection would keep the socket
    yield
    gc.collect()


def test_workers_label_on_when_another_one_joins_after_their_coordinator_died(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    with three_brokers(tmp_path / "brokers") as three, distillog_commands(three.settings, tmp_path) as distillog:
        model = classifier(tmp_path / "teacher.onnx", (1, 40))
        stream = stream_with_teacher(three.settings, "s", model, DATASET, {"order_size": 8})
        half = num_orders(stream) // 2
        labels = [TopicPartition(soft_targets_topic("s", "t"), partition) for partition in range(4)]
        with closing(KafkaCluster(three.settings).admin()) as admin:

            def labelled() -> int:
                return sum(admin.ends(labels).values())

            distillog.start("teach", "s", model)
            publish(three.settings, stream, range(half))
            eventually(lambda: labelled() >= half, 60.0, "the first labels")
            three.kill_coordinator(teacher_group(stream.manifest, "t"))
            distillog.start("teach", "s", model)
            publish(three.settings, stream, range(half, num_orders(stream)))
            eventually(lambda: labelled() >= num_orders(stream), 60.0, "the other labels")
        assert_nothing_lost(check_labels(three.settings, stream))
