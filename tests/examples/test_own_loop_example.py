"""The example of a loop of one's own, as a user runs it: a real Kafka, a worker, a kill in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import classifier
from support.processes import Distillog

import distillog as library
from pipeline.streams import delete_stream

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "own_loop" / "train.py"
STEPS = 1297 * 20 // 64


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 60


def test_it_learns_and_a_kill_leaves_no_trace_in_its_weights(
    distillog: Distillog, tmp_path: Path, eventually: Any
) -> None:
    model, address = classifier(tmp_path / "teacher.onnx"), distillog.settings.bootstrap_servers
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KAFKA_BOOTSTRAP_SERVERS": address, "OMP_NUM_THREADS": "1"}

    def started(folder: str) -> subprocess.Popen[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        command = [sys.executable, SCRIPT, model]
        return subprocess.Popen(
            command, cwd=tmp_path / folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def saved(folder: str) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(tmp_path / folder / "own-digits.pt", weights_only=True)
        return found

    def finished(process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
        assert f"step {STEPS} of {STEPS}: loss" in out
        assert "Traceback" not in err

    killed = started("killed")
    worker = None
    try:
        described = ("topics", "describe", "own-digits", "--json")
        eventually(lambda: '"name": "teacher"' in distillog.call(*described).stdout, 60, "the teacher")
        worker = distillog.start("teach", "own-digits", model)
        assert killed.stdout is not None
        assert killed.stdout.readline().startswith("step 50 of")
        eventually((tmp_path / "killed" / "own-digits.pt").exists, 30)
        killed.kill()
        killed.communicate()
        assert saved("killed")["step"] < STEPS
        finished(started("killed"))
        finished(started("whole"))  # replays the log
        worker.terminate()
        worker.succeed()
        (run,) = library.status("own-digits", bootstrap_servers=address)["runs"]
        assert (run["name"], run["state"]) == ("own", "done")
        first, second = saved("killed"), saved("whole")
        assert first["step"] == second["step"] == STEPS
        assert first["labels"] == second["labels"]
        assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    finally:
        killed.kill()
        killed.communicate()
        delete_stream(distillog.settings, "own-digits")
