"""Loops of one's own over captured files: the batches of the stream, bit by bit, and states that fit both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_loops import hand_written, opened, same, threads
from reader_logs import Logs

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import ConfigError, Starved
from student_trainer.capture import capture
from student_trainer.own_loop.iterable import LabelledBatches
from student_trainer.own_loop.labelled_batches import labelled_batches

pytestmark = pytest.mark.kafka

LOOP = """
import hashlib, sys
import distillog

labels = distillog.labelled_batches(files=sys.argv[1], teachers="cnn", batch_size=16, device="cpu")
digest = hashlib.sha256()
for batch in labels:
    digest.update(batch.targets["cnn"]["logits"].logits.numpy().tobytes())
assert not [name for name in sys.modules if name.partition(".")[0] == "kafka"]
print(len(labels), digest.hexdigest())
"""


@pytest.fixture(scope="module")
def logs(kafka_settings: KafkaSettings) -> Iterator[Logs]:
    with hand_written(kafka_settings, ("cnn", "resnet")) as written:
        yield written


def captured(logs: Logs, folder: Path) -> Path:
    capture(KafkaCluster(logs.settings), logs.stream, folder)
    return folder


def from_files(folder: Path, **arguments: Any) -> LabelledBatches:
    known: dict[str, Any] = {"teachers": ["cnn", "resnet"], "batch_size": 16, "device": "cpu"}
    return labelled_batches(files=folder, **known | arguments)


def test_files_give_the_batches_of_the_stream_and_a_state_of_the_one_is_one_of_the_other(
    logs: Logs, tmp_path: Path
) -> None:
    folder = captured(logs, tmp_path / "labels")
    before = threads()
    whole = list(opened(logs, passes=2))
    assert same(from_files(folder, passes=2), whole)
    for taken, goes_on in (
        (opened(logs, passes=2), from_files(folder, passes=2)),
        (from_files(folder, passes=2), None),
    ):
        for _ in zip(range(14), taken, strict=False):  # behind the first pass
            pass
        after = goes_on or opened(logs, passes=2)
        after.load_state_dict(json.loads(json.dumps(taken.state_dict())))
        assert same(after, whole[14:])
    assert same(from_files(folder, passes=2, rank=1, world=2), opened(logs, passes=2, rank=1, world=2))
    del taken, after, goes_on
    assert threads() <= before


@pytest.mark.faults
@pytest.mark.short
def test_a_loop_over_files_needs_no_kafka(logs: Logs, tmp_path: Path) -> None:
    folder = captured(logs, tmp_path / "labels")
    environment = {key: value for key, value in os.environ.items() if "KAFKA" not in key and "DISTILLOG" not in key}
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 ")


def test_what_files_do_not_have_is_refused_in_one_line(logs: Logs, tmp_path: Path) -> None:
    folder = captured(logs, tmp_path / "labels")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"run": "own"}, "nobody hears of a run"),
        ({"bootstrap_servers": "x:1"}, "leave out run, bootstrap_servers"),
        ({"stream": "birds"}, "is captured from stream"),
        ({"files": tmp_path / "none"}, "holds no captured soft targets"),
        ({"files": None}, "the name of a stream, or files=FOLDER"),
    ]
    for arguments, words in bad:
        known: dict[str, Any] = {"files": folder, "teachers": "cnn", "batch_size": 16, "device": "cpu"}
        with pytest.raises(ConfigError, match=words) as refused:
            labelled_batches(**known | arguments)
        assert "\n" not in str(refused.value)


def test_files_that_end_early_starve_a_loop(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    with hand_written(kafka_settings, orders=4) as short:
        folder = captured(short, tmp_path / "labels")
    batches = iter(from_files(folder, teachers=["cnn"]))
    with pytest.raises(Starved, match="holds 4 of 12 orders"):
        list(batches)
