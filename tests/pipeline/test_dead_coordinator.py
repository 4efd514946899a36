"""The broker that coordinates a group dies and does not come back, under clients that live long."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka import TopicPartition
from small_streams import small_stream
from support.three_brokers import three_brokers

from pipeline.feed import Fed, feed
from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.log import Commit
from pipeline.names import run_group, work_orders_topic
from schemas.commits import RunReport

WITHIN = 15.0
"""seconds: the dead broker's session (2 s), an election, and time-outs of 5 s on a busy machine"""


pytestmark = [
    pytest.mark.kafka,
    pytest.mark.faults,  # three brokers for one test
]


@pytest.fixture(autouse=True)
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "kafka")  # what it logs of a refused connection would keep the socket
    yield
    gc.collect()  # here, where the warning is expected, and not in somebody else's test


def test_the_new_coordinator_is_found_within_seconds(tmp_path: Path, eventually: Callable[..., object]) -> None:
    with ExitStack() as closing, three_brokers(tmp_path) as three:
        stream = small_stream(three.settings, "s", epochs=10)  # 200 orders
        cluster = KafkaCluster(three.settings)
        group = run_group(stream.manifest, "run")
        long_lived = cluster.admin()
        closing.callback(long_lived.close)
        reporter = new_admin(three.settings, request_timeout_ms=5_000)
        closing.callback(reporter.close)
        orders = [TopicPartition(work_orders_topic("s"), partition) for partition in range(4)]
        place = orders[0]

        def report(sequence: int) -> None:
            text = RunReport(0, sequence, 0, float(sequence), "a1", "here", "training").encode()
            long_lived.commit(group, {place: Commit(0, text)})

        def answered() -> bool:
            try:
                return bool(ask_coordinator(lambda: reporter.list_group_offsets(group), timeout=0.0))
            except Exception:
                return False

        report(9)
        assert answered()
        stop = threading.Event()
        fed: list[Fed] = []
        follow = threading.Thread(target=lambda: fed.append(feed(cluster, stream, ("run",), (8, 16), stop=stop)))
        follow.start()
        closing.callback(follow.join, 30)
        closing.callback(stop.set)
        eventually(lambda: sum(long_lived.ends(orders).values()) == 25, 30.0, "orders up to 16 ahead of 9")

        three.kill_coordinator(group)
        begun = time.monotonic()
        report(50)
        eventually(lambda: sum(long_lived.ends(orders).values()) >= 66, WITHIN, "orders up to 16 ahead of 50")
        eventually(answered, WITHIN, "an answer to a client without patience")
        took = time.monotonic() - begun
        assert took < WITHIN
