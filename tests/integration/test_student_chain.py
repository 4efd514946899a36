"""A chain of students over a real Kafka: each teaches the next, and a chain that is killed goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.small_runs import report, run_file

from pipeline.streams import open_stream

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.short, pytest.mark.timeout(300)]

STEPS = """
[[chain]]
name = "middle"
student = {hidden = [24]}
[[chain]]
name = "small"
student = {hidden = [8]}
"""


def test_a_killed_chain_goes_on_and_each_student_teaches_the_next(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    stream, model = fresh_name("chain"), classifier(tmp_path / "m.onnx")
    create = ("topics", "create", stream, "--dataset", "digits?split=train", "--partitions", 4, "--order-size", 25)
    distillog.succeed(*create)
    distillog.succeed("topics", "add-teacher", stream, "t", model)
    distillog.succeed("feed", stream)
    distillog.start("teach", stream, model, "--threads", 1, "--until-idle").succeed()
    file = run_file(tmp_path, stream, "chain", evaluation={"dataset": "digits?split=test"}, checkpoint={"every": 5})
    file.write_text(file.read_text() + STEPS)
    folder = tmp_path / "runs"
    words = ("runs", "chain", file, "--folder", folder, "--threads", 1, "--quiet")

    killed = distillog.start(*words)
    deadline = time.monotonic() + 60
    while not list((folder / "middle" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    shutil.rmtree(folder / "middle" / "lock", ignore_errors=True)
    rows = json.loads(distillog.start(*words, "--json").succeed())
    assert [(row["name"], row["teachers"]) for row in rows] == [("middle", ["t"]), ("small", ["middle"])]
    assert rows[0]["parameters"] > rows[1]["parameters"] > 0
    assert rows[0]["labelled_s"] > 0
    assert rows[1]["labelled_s"] is None
    assert rows[1]["kept"] == pytest.approx(rows[1]["accuracy"] / rows[0]["accuracy"])
    assert_nothing_lost(check_labels(distillog.settings, open_stream(distillog.settings, stream), "middle"))

    before = {name: report(folder, name)["weights_sha256"] for name in ("middle", "small")}
    again = distillog.succeed(*words)  # all is done: nothing is trained or labelled again
    assert "already there, the same: teacher middle" in again
    assert [row["name"] for row in json.loads(distillog.succeed(*words, "--json"))] == ["middle", "small"]
    assert [each.split()[0] for each in again.splitlines()[-2:]] == ["middle", "small"]
    shutil.rmtree(folder)
    distillog.succeed(*words)
    assert {name: report(folder, name)["weights_sha256"] for name in ("middle", "small")} == before
    distillog.refuse(*words, "--set", "optimizer.lr=0.5", words=("is trained, but with other settings", "optimizer.lr"))
