"""Data that are bad, and data that are away: the first are dead-lettered by row, the others are waited for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, report, run_file, weights
from support.streams import dead_letters, order, publish, stream_with_teacher

from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic
from pipeline.streams import Stream, delete_stream, open_stream
from schemas.records import DeadLetter, SoftTargets

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]

ORDERS = 40
Labels = Callable[[Stream], int]
Make = Callable[..., Stream]


@pytest.fixture
def make(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], steering: Path, tmp_path: Path) -> Make:
    """Streams of 40 orders of 10 samples; `broken=101` leaves every 101st sample undecodable."""
    model = classifier(tmp_path / "teacher.onnx")

    def made(broken: int = 0) -> Stream:
        dataset = f"support.fault_data:steered?folder={steering}&count={10 * ORDERS}&broken={broken}"
        return stream_with_teacher(kafka_settings, fresh_name("data"), model, dataset, {"order_size": 10})

    return made


def letters(settings: KafkaSettings, stream: Stream) -> list[DeadLetter]:
    return dead_letters(settings, dead_letters_topic(stream.manifest.stream))


@pytest.mark.short
def test_samples_that_cannot_be_decoded_and_records_that_are_no_orders_cost_nothing_but_themselves(
    distillog: Distillog, make: Make, tmp_path: Path
) -> None:
    stream, settings = make(broken=101), distillog.settings
    name, manifest = stream.manifest.stream, stream.manifest
    foreign = replace(order(manifest, 7), stream_id=secrets.token_hex(8)).encode()
    invented = replace(order(manifest, 6), sample_ids=np.arange(10)).encode()
    nonsense: list[int | tuple[int, bytes]] = [(1, b"not even Avro"), (3, foreign), (2, invented), (0, b"")]
    publish(settings, stream, [*range(5), *nonsense])
    distillog.succeed("feed", name)
    worker = distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle")
    assert worker.wait() == 0, repr(worker)
    assert f"to the dead letters: 4 samples, 4 records (see `distillog letters list {name}`)" in worker.stderr

    found = check_labels(settings, stream)
    assert_nothing_lost(found)
    bad = {5, 106, 207, 308}
    labelled: set[int] = set()
    for one in found.accepted.values():
        assert isinstance(one.record, SoftTargets)
        labelled |= set(one.record.kept_sample_ids.tolist())
    assert labelled == set(range(10 * ORDERS)) - bad
    there = letters(settings, stream)
    rows = [letter for letter in there if letter.row is not None]
    assert {letter.sample_id for letter in rows} == bad
    assert all("cut short" in letter.reason for letter in rows)
    for letter in rows:
        assert order(manifest, letter.sequence or 0).sample_ids[letter.row] == letter.sample_id
    whole = {letter.raw: letter.partition for letter in there if letter.row is None}
    assert whole == {b"not even Avro": 1, foreign: 3, invented: 2, b"": 0}
    counted = json.loads(distillog.succeed("letters", "list", name, "--json"))
    assert (counted["letters"], counted["of_records"], counted["foreign"]) == (8, 4, 0)
    assert {one["sample"] for one in counted["samples"]["commonest"]} == bad
    assert [one["letters"] for one in counted["workers"]["commonest"]] == [8]
    assert counted["reasons"]["commonest"][0]["reason"] == "sample * is cut short"

    runs = tmp_path / "runs"
    distillog.succeed("runs", "start", run_file(tmp_path, name), "--folder", runs, "--quiet")
    assert report(runs)["stream"]["rows_left_out"] == 4
    assert report(runs)["steps"] == (10 * ORDERS - 4) // 12


def test_a_file_that_pillow_finds_cut_short_costs_a_row_and_no_worker(
    distillog: Distillog, kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("cut"), classifier(tmp_path / "teacher.onnx")
    dataset = "support.user_data:files?count=1200&cut=700"
    distillog.succeed("topics", "create", name, "--dataset", dataset, "--order-size", 30, "--partitions", 4)
    distillog.succeed("topics", "add-teacher", name, "t", model)
    distillog.succeed("feed", name)
    worker = distillog.start("teach", name, model, "--until-idle", "--data-retry", 2)
    assert worker.wait() == 0, repr(worker)
    stream = open_stream(kafka_settings, name)
    assert_nothing_lost(check_labels(kafka_settings, stream))
    (letter,) = letters(kafka_settings, stream)
    assert letter.sample_id == 700
    assert "OSError: image file is truncated" in letter.reason or "SyntaxError" in letter.reason
    distillog.refuse(
        "topics", "create", fresh_name("away"), "--dataset", "support.user_data:away", words=("Stale file",)
    )
    delete_stream(kafka_settings, name)


def test_more_than_a_percent_of_bad_samples_stops_the_worker(distillog: Distillog, make: Make, tmp_path: Path) -> None:
    stream = make(broken=11)
    distillog.succeed("feed", stream.manifest.stream)
    worker = distillog.start("teach", stream.manifest.stream, tmp_path / "teacher.onnx", "--until-idle")
    worker.refuse("samples cannot be labelled", "broken mount")


@pytest.mark.short
def test_a_dataset_that_goes_away_and_comes_back_costs_no_sample(
    distillog: Distillog, make: Make, steering: Path, tmp_path: Path, num_labels: Labels, eventually: Any
) -> None:
    stream, settings = make(), distillog.settings
    publish(settings, stream, range(10))
    worker = distillog.start("teach", stream.manifest.stream, tmp_path / "teacher.onnx", "--until-idle")
    eventually(lambda: num_labels(stream) == 10, 60, "the first labels")
    (steering / "gone").touch()
    publish(settings, stream, range(10, ORDERS))
    worker.wait_for(r"warning: order \d+ cannot be read \(.*not connected\); trying again")
    (steering / "gone").unlink()
    worker.succeed()
    assert_nothing_lost(check_labels(settings, stream))
    assert not letters(settings, stream)


def test_a_dataset_that_stays_away_ends_the_worker_and_nothing_is_lost(
    distillog: Distillog, make: Make, steering: Path, tmp_path: Path, num_labels: Labels, eventually: Any
) -> None:
    stream, settings = make(), distillog.settings
    name, model = stream.manifest.stream, tmp_path / "teacher.onnx"
    publish(settings, stream, range(10))
    worker = distillog.start("teach", name, model, "--data-retry", 1)
    eventually(lambda: num_labels(stream) == 10, 60, "the first labels")
    (steering / "gone").touch()
    publish(settings, stream, range(10, ORDERS))
    worker.refuse("cannot be read", "not connected", "tried for 1 s", "nothing of it was committed")
    distillog.refuse("teach", name, model, words=("cannot be read", "not connected"))  # nor can another one start
    assert num_labels(stream) == 10
    (steering / "gone").unlink()
    distillog.start("teach", name, model, "--until-idle").succeed()
    assert_nothing_lost(check_labels(settings, stream))
    assert not letters(settings, stream)


def test_a_dataset_that_stays_away_stops_the_student_after_a_checkpoint(
    distillog: Distillog, make: Make, steering: Path, tmp_path: Path, eventually: Any
) -> None:
    stream, settings, runs = make(), distillog.settings, tmp_path / "runs"
    name, model, elsewhere = stream.manifest.stream, tmp_path / "teacher.onnx", tmp_path / "elsewhere"
    elsewhere.mkdir()
    publish(settings, stream, range(ORDERS // 2))
    same_data = stream.manifest.dataset.replace(str(steering), str(elsewhere))
    worker = distillog.start("teach", name, model, "--dataset", same_data)
    student = distillog.start("runs", "start", run_file(tmp_path, name), "--folder", runs)
    eventually(lambda: checkpoints(runs), 90, "a checkpoint")
    (steering / "gone").touch()
    publish(settings, stream, range(ORDERS // 2, ORDERS))
    words = ("cannot be read", "not connected")
    student.refuse(*words, "bring it back and resume the run")
    distillog.refuse("runs", "resume", "student", "--folder", runs, words=words)
    (steering / "gone").unlink()
    distillog.succeed("runs", "resume", "student", "--folder", runs, "--quiet")
    worker.terminate()
    worker.succeed()
    distillog.succeed("runs", "start", run_file(tmp_path, name, "replay"), "--folder", runs, "--quiet")
    assert weights(runs) == weights(runs, "replay")
