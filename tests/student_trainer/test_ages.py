"""Labels that are too old leave their rows out: which they are, and that a run counts them, is a matter of the log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from captured_streams import NUM_ORDERS, digits_logs, labels
from reader_logs import Logs
from support.generations import EVERY, by, generation, publisher
from support.processes import Distillog
from support.small_runs import report, run_file, weights

from pipeline.generations import claim_teacher, publish_generation
from schemas.errors import BrokerUnavailable, ConfigError, Starved
from schemas.records import Lineage, Publisher
from student_trainer.run.settings import StarveSettings, load_run
from student_trainer.sources.ages import Ages
from student_trainer.sources.base import Cursor
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

NEWEST = (NUM_ORDERS - 1) // EVERY
MAX_AGE = 1


def number(sequence: int) -> int:
    """By which generation an order is labelled here: what is due, and up to three before that."""
    return max(0, sequence // EVERY - sequence % 4)


LEFT_OUT = [sequence for sequence in range(NUM_ORDERS) if sequence // EVERY - number(sequence) > MAX_AGE]


@pytest.fixture
def logs(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[Logs]:
    with digits_logs(distillog.settings, fresh_name("aged")) as made:
        yield made


def publish(logs: Logs) -> None:
    claim_teacher(logs.settings, logs.stream, publisher(logs.stream, "t"))
    for one in range(1, NEWEST + 1):
        publish_generation(logs.settings, logs.stream, generation(logs.stream, "t", one))


def test_orders_whose_label_is_too_old_have_no_rows_and_say_how_many_they_would_have(
    logs: Logs, tmp_path: Path
) -> None:
    name = logs.stream.manifest.stream
    file = run_file(tmp_path, name, teachers=[{"name": "t", "max_age": MAX_AGE}, {"name": "u"}])
    with pytest.raises(ConfigError, match=r"\[\[teachers\]\] t: max_age counts generations, and no run publishes"):
        StreamSource(logs.settings, StreamSettings.of(load_run(file)))
    publish(logs)
    for teacher in ("t", "u"):
        made = labels(logs, teacher, *range(NUM_ORDERS))
        if teacher == "t":
            made = [by(each, logs.stream, number(each.sequence)) for each in made]
        logs.write(teacher, *made)
    source = StreamSource(logs.settings, StreamSettings.of(load_run(file)))
    orders = list(source.orders(Cursor.start()))
    assert [each.sequence for each in orders if not len(each.sample_ids)] == LEFT_OUT
    assert LEFT_OUT
    assert all((each.too_old > 0) == (each.sequence in LEFT_OUT) for each in orders)
    assert sum(each.too_old + len(each.sample_ids) for each in orders) == source.sequence.num_samples
    assert [each.generations["t"] for each in orders] == [number(sequence) for sequence in range(NUM_ORDERS)]


def test_a_run_counts_what_it_left_out_and_learns_the_same_after_a_stop_and_from_files(
    logs: Logs, distillog: Distillog, tmp_path: Path
) -> None:
    name, runs, folder = logs.stream.manifest.stream, tmp_path / "runs", tmp_path / "labels"
    publish(logs)
    logs.write("t", *(by(each, logs.stream, number(each.sequence)) for each in labels(logs, "t", *range(NUM_ORDERS))))
    distillog.succeed("capture", name, folder, "--teacher", "t", "--quiet")

    def file(run: str, **sections: Any) -> Path:
        # Its batches need not end where orders do; a checkpoint stands before orders that are left out.
        train = {"batch_size": 12, "log_every": 1, "trace": True}
        teachers = [{"name": "t", "max_age": MAX_AGE}]
        return run_file(tmp_path, name, run, teachers=teachers, train=train, **sections)

    distillog.succeed("runs", "start", file("whole"), "--folder", runs, "--quiet")
    whole = report(runs, "whole")
    left = sum(len(each.sample_ids) for each in labels(logs, "t", *LEFT_OUT))
    assert whole["too_old_rows"] == left
    traced = [json.loads(line) for line in (runs / "whole" / "trace.jsonl").read_text().splitlines()]
    learned = {sequence for line in traced for _, sequence, _, _ in line["orders"]}
    assert learned == set(range(NUM_ORDERS)) - set(LEFT_OUT)

    distillog.succeed("runs", "start", file("parted"), "--set", "train.steps=31", "--folder", runs, "--quiet")
    then = ("--set", "train.steps=0", "--set", "source=files", "--set", f"data.files={folder}")
    distillog.succeed("runs", "resume", "parted", *then, "--folder", runs, "--quiet")
    assert weights(runs, "parted") == whole["weights_sha256"]
    assert report(runs, "parted")["too_old_rows"] == left
    shown = json.loads(distillog.succeed("runs", "show", "parted", "--folder", runs, "--json"))
    assert shown["too_old_rows"] == left
    # Of any age, it is another run.
    other = run_file(tmp_path, name, "any")
    distillog.succeed("runs", "start", other, "--folder", runs, "--quiet")
    assert weights(runs, "any") != whole["weights_sha256"]


def test_rows_that_are_too_old_behind_the_last_batch_are_counted_and_said(
    logs: Logs, distillog: Distillog, tmp_path: Path
) -> None:
    name, runs = logs.stream.manifest.stream, tmp_path / "runs"
    claim_teacher(logs.settings, logs.stream, publisher(logs.stream, "t"))
    made = labels(logs, "t", *range(NUM_ORDERS))
    logs.write("t", *made)  # all by the teacher's own model
    left = sum(len(each.sample_ids) for each in made if each.sequence // EVERY > MAX_AGE)
    file = run_file(tmp_path, name, teachers=[{"name": "t", "max_age": MAX_AGE}])
    said = distillog.call("runs", "start", file, "--folder", runs, "--quiet")
    assert f"left rows out, {left:,} of them since their labels were older than max_age" in said.output
    assert report(runs)["too_old_rows"] == left
    assert json.loads(distillog.succeed("runs", "show", "student", "--folder", runs, "--json"))["too_old_rows"] == left
    # Once more from its last checkpoint: none counts twice.
    distillog.call("runs", "resume", "student", "--folder", runs, "--quiet")
    assert report(runs)["too_old_rows"] == left


def test_who_publishes_may_come_later_where_two_teach_each_other_and_is_waited_for_no_longer_than_labels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = iter([BrokerUnavailable("away"), None, Publisher("id", "t", "r", "i", 5)])

    def lineage(teacher: str) -> Lineage | None:
        assert teacher == "t"
        answer = next(asked)
        if isinstance(answer, BrokerUnavailable):
            raise answer
        return Lineage(None, answer)  # type: ignore[arg-type]

    ages = Ages({"t": 1}, {}, {"own": 3}, waits=True)
    with caplog.at_level(logging.WARNING):
        ages.wait(lineage, threading.Event(), StarveSettings(0.5, 60.0))
    assert "waits for a run that publishes for teacher 't'" in caplog.text
    with pytest.raises(Starved, match=r"none for .* start it, and resume this run"):
        Ages({"t": 1}, {}, {}, waits=True).wait(lambda teacher: None, threading.Event(), StarveSettings(0.1, 0.2))
    over = threading.Event()
    over.set()
    Ages({"t": 1}, {}, {}, waits=True).wait(lambda teacher: None, over, StarveSettings(0.1, 0.2))
    own = Ages({"own": 0}, {}, {"own": 3}, waits=False)
    own.wait(lambda teacher: None, threading.Event(), StarveSettings(0.1, 0.2))
