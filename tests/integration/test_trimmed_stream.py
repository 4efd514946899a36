"""A stream whose old labels are deleted: who needs only newer ones goes on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, run_file, weights

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.mark.faults
@pytest.mark.short
def test_a_stopped_run_and_a_new_worker_go_on_where_older_labels_are_gone(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    name, runs, model = fresh_name("trimmed"), tmp_path / "runs", classifier(tmp_path / "m.onnx")
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--partitions", 4, "--order-size", 50)
    distillog.succeed(*create, "--epochs", 4)
    distillog.succeed("topics", "add-teacher", name, "t", model)
    distillog.succeed("feed", name)
    distillog.start("teach", name, model, "--threads", 1, "--until-idle").succeed()
    train = {"batch_size": 2}
    whole, late = (run_file(tmp_path, name, run, train=train, checkpoint={"every": 50}) for run in ("whole", "late"))
    distillog.succeed("runs", "start", whole, "--folder", runs)
    stopped = distillog.start("runs", "start", late, "--folder", runs, "--quiet")
    eventually(lambda: len(checkpoints(runs, "late")) > 2, 90, "some checkpoints")
    stopped.terminate()
    stopped.succeed()

    trimmed = json.loads(distillog.succeed("topics", "trim", name, "--keep-epochs", 1, "--yes", "--json"))
    assert trimmed["records"] > 0
    assert set(trimmed["held_by"]) <= {"late"}  # not at all where it came to the last epoch
    distillog.start("teach", name, model, "--threads", 1, "--until-idle").succeed()  # there is nothing left to label
    distillog.succeed("runs", "resume", "late", "--folder", runs)
    assert weights(runs, "late") == weights(runs, "whole")

    new = run_file(tmp_path, name, "new", train=train)
    refused = distillog.call("runs", "start", str(new), "--folder", str(runs))
    assert refused.exit_code == 1
    assert "retention removed all records below" in refused.stderr
