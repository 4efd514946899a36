"""One run on several processes, as torchrun starts them: the curve of one process, and bits of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, report, run_file, weights

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

STUDENT = {"name": "mlp", "hidden": [16], "dropout": 0.0}


@pytest.fixture
def stream(distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path) -> str:
    """Labelled, 52 orders of 25."""
    name, model = fresh_name("several"), classifier(tmp_path / "m.onnx")
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--partitions", 4, "--order-size", 25)
    distillog.succeed(*create, "--view", "affine", "--view-param", "rotation=10")
    distillog.succeed("topics", "add-teacher", name, "t", model)
    distillog.succeed("feed", name)
    distillog.start("teach", name, model, "--threads", 1, "--until-idle").succeed()
    return name


def losses(runs: Path, name: str) -> list[float]:
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.faults
@pytest.mark.short
def test_two_processes_learn_what_one_does_and_go_on_to_the_same_bits_wherever_they_were_killed(
    distillog: Distillog, stream: str, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    train = {"batch_size": 13, "micro_batch": 4, "trace": True}
    sections = {"student": STUDENT, "train": train, "optimizer": {"clip_norm": 1.0}}
    files = {name: run_file(tmp_path, stream, name, **sections) for name in ("one", "two", "killed")}
    distillog.succeed("runs", "start", files["one"], "--folder", runs)
    distillog.torchrun(2, "runs", "start", files["two"], "--folder", runs, "--quiet").succeed()
    assert losses(runs, "two") == pytest.approx(losses(runs, "one"), rel=1e-4)
    assert (runs / "two/trace.jsonl").read_bytes() == (runs / "one/trace.jsonl").read_bytes()
    assert report(runs, "two")["steps"] == report(runs, "one")["steps"]

    # torchrun starts both anew where one is killed, and they go on from the newest checkpoint.
    killed = distillog.torchrun(2, "runs", "start", files["killed"], "--folder", runs, "--quiet", restarts=2)
    eventually(lambda: checkpoints(runs, "killed"), 90, "a checkpoint")
    victim = next(each for each in children_of(killed.popen.pid) if environment_of(each).get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    assert killed.wait() == 0, killed
    assert weights(runs, "killed") == weights(runs, "two")

    # As many processes as there are now: the curve goes on, and a warning says that the bits may not.
    shutil.rmtree(checkpoints(runs, "two")[-1])
    alone = distillog.call("runs", "resume", "two", "--folder", str(runs))
    assert alone.exit_code == 0, alone.output
    assert "processes was '2', is '1'" in alone.stderr
    assert losses(runs, "two") == pytest.approx(losses(runs, "one"), rel=1e-4)


@pytest.mark.faults
@pytest.mark.short
def test_a_signal_ends_all_of_them_at_one_step_and_a_refusal_is_one_line(
    distillog: Distillog, stream: str, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    endless = run_file(tmp_path, stream, "endless", student=STUDENT, train={"passes": 1000, "batch_size": 13})
    stopped = distillog.torchrun(2, "runs", "start", endless, "--folder", runs, "--quiet")
    eventually(lambda: checkpoints(runs, "endless"), 90, "a checkpoint")
    for pid in children_of(stopped.popen.pid):
        os.kill(pid, signal.SIGTERM)
    stopped.succeed()
    step = report_of_any(runs, "endless")["steps"]
    assert checkpoints(runs, "endless")[-1].name == f"step-{step:08d}"

    cnn = {"name": "cnn", "batch_norm": True, "hidden": 16, "channels": [4]}
    norm = run_file(tmp_path, stream, "norm", student=cnn)
    refused = distillog.torchrun(2, "runs", "start", norm, "--folder", runs, "--quiet", restarts=3)
    assert refused.wait() != 0  # and nothing was started again
    assert refused.stderr.count("error: [student] cnn: 1 is a batch norm") == 1
    assert not (runs / "norm").exists()


def report_of_any(runs: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / name / "report.json").read_text())
    return found


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(each.split("=", 1) for each in entries if "=" in each)
