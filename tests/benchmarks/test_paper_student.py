"""The paper's students at the size of a test: live, from the log again, and with the teacher in the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import write_cnn
from benchmarks.paper.cores import Cores
from benchmarks.paper.costly import HIDDEN, Costly, Size, logits_of
from benchmarks.paper.live import Live
from benchmarks.paper.meter import Meter
from benchmarks.paper.plan import Plan
from benchmarks.paper.student import run_with_teacher, run_with_train
from benchmarks.paper.students import Students
from benchmarks.simulated import KnownSamples
from benchmarks.streams import ORDER_SIZE, Bench, write_digits
from pipeline.datasets import open_dataset
from pipeline.kafka.settings import KafkaSettings

pytestmark = pytest.mark.kafka

PLAN = Plan(equal_steps=3, student={"name": "mlp", "hidden": [16]})


def test_a_student_comes_to_the_same_live_and_from_the_log_and_with_its_teacher_in_the_loop(
    kafka_settings: KafkaSettings, tmp_path: Path, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_settings.bootstrap_servers)
    bench = Bench(kafka_settings, tmp_path, 1)
    write_digits(tmp_path)
    images = open_dataset(bench.dataset).read(np.arange(5 * ORDER_SIZE)).fields["image"]
    path = write_cnn(tmp_path / "teacher.onnx", (8,), HIDDEN)
    known = KnownSamples.write(tmp_path / "known", images, logits_of(path, images, ORDER_SIZE))
    students, name = Students(bench, PLAN, Cores()), fresh_name("paper")

    def outcome(teacher: str, **told: Any) -> dict[str, Any]:
        orders = students.orders(teacher, **told)
        orders.document["train"]["steps"] = PLAN.equal_steps + 1
        meter = Meter(Path(orders.page))
        (run_with_train if teacher in ("none", "stream") else run_with_teacher)(orders, meter)
        assert meter.steps >= PLAN.equal_steps
        found: dict[str, Any] = json.loads(Path(orders.outcome).read_text())
        return found

    with Live(bench, name, Costly(path, Size(1, 8), 0.0), run=name) as live:
        live.teach_elsewhere(1, known, 0.02)
        first = outcome("stream", stream=name, run=name)
        # IDs of two bytes, ten logits of two bytes, and a part of what names the record.
        assert 22 < live.log_bytes(PLAN.equal_steps) < 40
    replayed = outcome("stream", stream=name)
    assert replayed["weights_sha256"] == first["weights_sha256"]
    for runtime in ("onnx", "torch"):
        online = outcome(runtime, model=path)
        assert online["evaluation"]["accuracy"] == pytest.approx(replayed["evaluation"]["accuracy"], abs=0.02)


def test_orders_are_read_as_they_are_written(tmp_path: Path) -> None:
    students = Students(Bench(KafkaSettings("nowhere"), tmp_path, 1), PLAN, Cores((0,), (1,), (0, 1)))
    orders = students.orders("rpc", ports=(1, 2), seed=3)
    assert type(orders).read(orders.write(tmp_path / "orders.json")) == replace(orders)
    assert orders.cores == (0,)
