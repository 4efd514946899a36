"""Runs: damaged checkpoints, two processes for one run, no labels at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, report, run_file, weights
from support.streams import stream_with_teacher

from pipeline.kafka.clients import new_admin
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import teacher_group, work_orders_topic
from pipeline.streams import Stream

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]

DATASET = "mnist1d?split=train&n=320"


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path) -> Stream:
    """40 orders of 8, nothing fed."""
    model = classifier(tmp_path / "teacher.onnx", (1, 40))
    return stream_with_teacher(kafka_settings, fresh_name("run"), model, DATASET, {"order_size": 8})


@pytest.fixture
def labelled(distillog: Distillog, stream: Stream, tmp_path: Path) -> Stream:
    """The same with all its labels."""
    distillog.succeed("feed", stream.manifest.stream)
    distillog.start("teach", stream.manifest.stream, tmp_path / "teacher.onnx", "--until-idle").succeed()
    return stream


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut short": lambda place: cut(place / "state.pt"),
    "a bit of the weights flipped": lambda place: flip(place / "state.pt"),
    "weights gone": lambda place: (place / "state.pt").unlink(),
    "a bit of the cursor flipped": lambda place: flip(place / "checkpoint.json"),
    "cursor empty": lambda place: (place / "checkpoint.json").write_bytes(b""),
}


@pytest.mark.short
def test_a_damaged_checkpoint_costs_a_few_steps_and_the_last_one_the_run(
    distillog: Distillog, labelled: Stream, tmp_path: Path
) -> None:
    name, runs = labelled.manifest.stream, tmp_path / "runs"
    distillog.succeed("runs", "start", run_file(tmp_path, name, "whole"), "--folder", runs, "--quiet")
    for number, (damage, do) in enumerate(DAMAGES.items()):
        run = f"damaged-{number}"
        file = run_file(tmp_path, name, run, train={"steps": 20})
        distillog.succeed("runs", "start", file, "--folder", runs, "--quiet")
        do(checkpoints(runs, run)[-1])
        resume = ("runs", "resume", run, "--folder", runs, "--set", "train.steps=26", "--quiet")
        result = distillog.call(*resume)
        assert result.exit_code == 0, (damage, result.output)
        assert "step-00000020 is damaged and passed over" in result.stderr, damage
        assert weights(runs, run) == weights(runs, "whole"), damage

    for place in checkpoints(runs, "damaged-0"):
        flip(place / "state.pt")
    words = ("all 3 checkpoints are damaged", "start the run anew")
    distillog.refuse("runs", "resume", "damaged-0", "--folder", runs, words=words)
    distillog.refuse("runs", "evaluate", "damaged-0", "--folder", runs, "--dataset", DATASET, words=words)


@pytest.mark.short
def test_a_second_student_in_a_run_folder_is_refused_and_the_first_goes_on(
    distillog: Distillog, stream: Stream, tmp_path: Path, eventually: Any
) -> None:
    name, runs = stream.manifest.stream, tmp_path / "runs"
    file = run_file(tmp_path, name, starve={"warning": 0.5})
    first = distillog.start("runs", "start", file, "--folder", runs)
    said = first.wait_for(r"warning: no soft targets.*teacher 't' has 0 workers.*")
    assert f"{name}.soft-targets.t/0" in said
    assert f"distillog teach {name} MODEL.onnx" in said
    for command in (("start", file), ("resume", "student")):
        words = (f"process {first.pid} trains in this run folder",)
        distillog.refuse("runs", *command, "--folder", runs, words=words)
    distillog.succeed("feed", name)
    distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle").succeed()
    first.succeed()
    assert report(runs)["steps"] == 26
    distillog.refuse("runs", "start", file, "--folder", runs, words=("there is a run of this name",))


def test_two_students_of_one_name_in_two_folders_both_stop(
    distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    name = stream.manifest.stream
    file = run_file(tmp_path, name, starve={"warning": 0.5})
    students = [distillog.start("runs", "start", file, "--folder", tmp_path / place) for place in ("here", "there")]
    for student in students:
        student.refuse("run 'student' of stream", "both stop", "give one of them another name")
    # Whoever is resumed alone trains.
    distillog.succeed("feed", name)
    distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle").succeed()
    distillog.succeed("runs", "resume", "student", "--folder", tmp_path / "here", "--quiet")
    assert report(tmp_path / "here")["steps"] == 26


@pytest.mark.short
def test_a_mistyped_stream_burns_no_name(distillog: Distillog, labelled: Stream, tmp_path: Path) -> None:
    name, runs = labelled.manifest.stream, tmp_path / "runs"
    words = (f"no stream '{name}x'",)
    distillog.refuse("runs", "start", run_file(tmp_path, f"{name}x"), "--folder", runs, words=words)
    distillog.refuse("runs", "resume", "student", "--folder", runs, words=("there is no run",))
    assert list(runs.iterdir()) == []
    distillog.refuse(
        "runs", "start", run_file(tmp_path, name, teachers={"name": "tt"}), "--folder", runs, words=("no teacher 'tt'",)
    )
    distillog.succeed("runs", "start", run_file(tmp_path, name), "--folder", runs, "--quiet")
    assert report(runs)["steps"] == 26


@pytest.mark.short
def test_a_student_without_labels_says_what_it_waits_for_and_can_be_resumed(
    distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    name, runs = stream.manifest.stream, tmp_path / "runs"
    file = run_file(tmp_path, name, starve={"warning": 0.5, "timeout": 2.0})
    words = (f"{name}.soft-targets.t/0", "since", "teacher 't' has 0 workers", f"distillog teach {name} MODEL.onnx")
    distillog.refuse("runs", "start", file, "--folder", runs, words=words, code=3)
    assert not checkpoints(runs)  # nothing was learned yet, and the run goes on all the same
    distillog.succeed("feed", name)
    distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle").succeed()
    distillog.succeed("runs", "resume", "student", "--folder", runs, "--quiet")
    distillog.succeed("runs", "start", run_file(tmp_path, name, "whole"), "--folder", runs, "--quiet")
    assert weights(runs) == weights(runs, "whole")


def test_a_planted_loss_is_proven_and_repaired_with_the_command_that_the_error_names(
    distillog: Distillog, stream: Stream, tmp_path: Path
) -> None:
    name, settings, runs = stream.manifest.stream, distillog.settings, tmp_path / "runs"
    distillog.succeed("feed", name)
    # As a worker would that commits before its labels are acknowledged: orders 1, 5 and 9 are never labelled.
    admin = new_admin(settings)
    commit = OffsetAndMetadata(3, json.dumps({"next_sequence": 13}), -1)
    commits = {TopicPartition(work_orders_topic(name), 1): commit}
    ask_coordinator(lambda: admin.alter_group_offsets(teacher_group(stream.manifest, "t"), commits))
    admin.close()
    distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle").succeed()
    file = run_file(tmp_path, name)
    repair = f"`distillog topics rewind {name} t 1`"
    error = distillog.refuse("runs", "start", file, "--folder", runs, words=("sequence 1 of teacher 't'", repair))
    distillog.succeed(*error[error.index(repair) + 1 :].partition("`")[0].split()[1:])
    distillog.start("teach", name, tmp_path / "teacher.onnx", "--until-idle").succeed()
    distillog.succeed("runs", "resume", "student", "--folder", runs, "--quiet")
    assert report(runs)["steps"] == 26
    assert_nothing_lost(check_labels(settings, stream))
