"""docker/feed.py ends with 0 only when there is nothing left to feed, as a job asks."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import classifier
from support.processes import Distillog
from support.streams import stream_with_teacher

from pipeline.names import teacher_group
from pipeline.processes import Process

pytestmark = pytest.mark.kafka

FEED = Path(__file__).parents[2] / "docker" / "feed.py"


def test_a_stopped_feeder_is_no_complete_job_and_one_that_is_through_is(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    name = fresh_name("job")
    stream_with_teacher(distillog.settings, name, classifier(tmp_path / "teacher.onnx"))
    environment = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": distillog.settings.bootstrap_servers}

    def job(*options: str) -> Process:
        command = [sys.executable, FEED, name, *options]
        return Process("feed.py", command, tmp_path / "feed.log", environment=environment)

    stopped = job("--follow", "nobody")
    try:
        eventually(lambda: "has not reported yet" in stopped.log.read_text(), timeout=60)
        stopped.send(signal.SIGTERM)
        assert stopped.popen.wait(60) == 143
    finally:
        stopped.kill()
    whole = job()
    try:
        assert whole.popen.wait(60) == 0
    finally:
        whole.kill()
    wrong = job("--folow", "nobody")
    try:
        assert wrong.popen.wait(60) == 2
    finally:
        wrong.kill()


def test_describe_prints_the_group_that_keda_is_told(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    stream = stream_with_teacher(distillog.settings, fresh_name("group"), classifier(tmp_path / "teacher.onnx"))
    printed = distillog.succeed("topics", "describe", stream.manifest.stream)
    assert re.findall(r"consumer group (\S+)", printed) == [teacher_group(stream.manifest, "t")]
