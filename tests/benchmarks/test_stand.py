"""Workers on simulated accelerators over a real Kafka label what the table says, at their own pace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.service_times import ServiceTimes
from benchmarks.stand import Stand
from benchmarks.streams import Bench
from benchmarks.usage import cpu_seconds
from pipeline.kafka.settings import KafkaSettings

pytestmark = pytest.mark.kafka


def test_a_stand_takes_true_labels_in_sequence_and_notices_a_wrong_one(
    kafka_settings: KafkaSettings, tmp_path: Path, fresh_name: Callable[[str], str]
) -> None:
    bench = Bench(kafka_settings, tmp_path, 1)
    with Stand(bench, fresh_name("stand"), [ServiceTimes.constant(0.05), ServiceTimes.constant(0.1)]) as stand:
        assert stand.num_members() == 2
        stand.wait(stand.now + 4.0)
        arrivals = list(stand.taker.arrivals)
        assert len(arrivals) >= 20
        assert arrivals == sorted(arrivals)
        # Never faster than what they stand for.
        assert len(arrivals) <= stand.ideal(0.0, stand.now)
        assert cpu_seconds([worker.pid for worker in stand.workers]) not in (0.0,)
        stand.taker._table[:] = 0
        with pytest.raises(RuntimeError, match="not what the table says"):
            stand.wait(stand.now + 20.0)
