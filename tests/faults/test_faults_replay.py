"""A replay that is killed again and again ends in the stream that one without a kill makes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.captures import captured
from support.models import classifier
from support.processes import Distillog
from support.streams import fetcher, num_orders, records, stream_with_teacher
from support.written_labels import Labelling

from pipeline.kafka.settings import KafkaSettings
from pipeline.names import REPLAY_OF, soft_targets_topic, work_orders_topic
from pipeline.streams import delete_stream
from schemas.records import SoftTargets, WorkOrder
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]

DATASET = "mnist1d?split=train&n=1600"
KILLS = 5


def test_a_replay_that_is_killed_again_and_again_leaves_no_hole_and_goes_on(
    kafka_settings: KafkaSettings, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    """At any moment every partition is a chain, and no order is fed whose label is not there; `teach` then has nothing
    to do, and `verify` finds the teacher's own labels."""
    model, again = classifier(tmp_path / "t.onnx", (1, 40)), fresh_name("again")
    stream = stream_with_teacher(kafka_settings, fresh_name("first"), model, DATASET, {"order_size": 4})
    name, total = stream.manifest.stream, num_orders(stream)
    distillog.succeed("feed", name, "--quiet")
    distillog.start("teach", name, model, "--until-idle").succeed()
    folder, third = tmp_path / "labels", tmp_path / "third"
    distillog.succeed("capture", name, folder, "--quiet")
    random.seed(5)
    num_cut = 0
    for _ in range(KILLS):
        child = distillog.start("replay", folder, "--to", again, "--rate", "150", "--partitions", "3")
        child.wait_for("orders_per_s|order ")
        time.sleep(random.uniform(0.0, 0.6))
        child.kill()
        labels = chains(kafka_settings, soft_targets_topic(again, "t"), SoftTargets)
        assert chains(kafka_settings, work_orders_topic(again), WorkOrder) <= labels
        num_cut += 0 < len(labels) < total
    assert num_cut >= 2
    done = json.loads(distillog.succeed("replay", folder, "--to", again, "--json", "--quiet"))
    assert (done["reached"], done["created"]) == (total, False)
    assert chains(kafka_settings, soft_targets_topic(again, "t"), SoftTargets) == set(range(total))
    assert chains(kafka_settings, work_orders_topic(again), WorkOrder) == set(range(total))
    before = sum(map(len, records(kafka_settings, soft_targets_topic(again, "t")).values()))
    distillog.start("teach", again, model, "--until-idle").succeed()
    assert sum(map(len, records(kafka_settings, soft_targets_topic(again, "t")).values())) == before
    verdict = json.loads(distillog.succeed("verify", again, model, "--json", "--quiet"))
    assert (verdict["differ"], verdict["same_bits"], verdict["verified"]) == (0, total, total)
    distillog.succeed("capture", again, third, "--quiet")
    distillog.succeed("verify", third, model, "--quiet")
    delete_stream(kafka_settings, again)


def chains(
    settings: KafkaSettings, topic: str, kind: type[SoftTargets] | type[WorkOrder], partitions: int = 3
) -> set[int]:
    """Sequences that a reader takes; every record is the one that is expected, or one that was there."""
    taken: set[int] = set()
    for number, found in records(settings, topic).items():
        expected = number
        for record in found:
            sequence = kind.decode(record.value, "").sequence
            assert sequence <= expected
            if sequence == expected:
                taken.add(sequence)
                expected += partitions
    return taken


def test_feeder_and_workers_go_on_behind_a_replay_of_a_part(
    kafka_settings: KafkaSettings, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    model, again = classifier(tmp_path / "t.onnx", (1, 40)), fresh_name("again")
    stream = stream_with_teacher(kafka_settings, fresh_name("first"), model, DATASET, {"order_size": 40})
    labelling = Labelling(stream, fetcher(DATASET), OnnxTeacher(model, stream.teacher("t"), "cpu", 1))
    folder = captured(tmp_path / "labels", stream, map(labelling.record, range(13)))
    said = distillog.succeed("replay", folder, "--to", again, "--quiet")
    assert "orders 13 to 39 are not captured: capture on and replay again, or let" in said
    distillog.succeed("feed", again, "--quiet")
    worker = distillog.start("teach", again, model, "--until-idle")
    worker.succeed()
    assert "agrees with order" in worker.stderr + worker.stdout
    copied, made = 0, 0
    for found in records(kafka_settings, soft_targets_topic(again, "t")).values():
        copied += sum(REPLAY_OF in dict(each.headers) for each in found)
        made += sum("worker" in dict(each.headers) for each in found)
    assert (copied, made) == (13, 27)
    verdict = json.loads(distillog.succeed("verify", again, model, "--json", "--quiet"))
    assert (verdict["same_bits"], verdict["verified"], verdict["missing"]) == (40, 40, 0)
    delete_stream(kafka_settings, again)
