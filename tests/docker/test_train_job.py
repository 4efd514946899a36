"""docker/train.py ends with 0 only for the student that is asked for now, and else says what is in its way."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier
from support.processes import Distillog
from support.small_runs import run_file, weights
from support.streams import num_orders, publish, stream_with_teacher

pytestmark = pytest.mark.kafka

TRAIN = Path(__file__).parents[2] / "docker" / "train.py"


def test_a_finished_run_is_not_taken_for_that_of_another_stream_or_run_file(
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, model = fresh_name("job"), classifier(tmp_path / "teacher.onnx")
    settings = distillog.settings
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", settings.bootstrap_servers)
    monkeypatch.chdir(tmp_path)

    def asked(**sections: Any) -> Path:
        return run_file(tmp_path, name, evaluation={"dataset": "digits?split=test"}, **sections)

    def labelled() -> str:
        stream = stream_with_teacher(settings, name, model)
        publish(settings, stream, range(num_orders(stream)))
        distillog.succeed("teach", name, model, "--until-idle", "--threads", 1)
        return stream.manifest.stream_id

    def train(code: int) -> str:
        """Call the script in this process: its last line, as a shell shows it."""
        monkeypatch.setattr(sys, "argv", [str(TRAIN), str(file)])
        capsys.readouterr()
        if code == 0:
            runpy.run_path(str(TRAIN), run_name="__main__")
            return capsys.readouterr().out.splitlines()[-1]
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TRAIN), run_name="__main__")
        return str(end.value)  # what `sys.exit` says before it ends with 1

    first = labelled()
    file = asked()
    train(0)
    trained = weights(tmp_path / "runs")
    assert (tmp_path / "runs" / "student" / "student.onnx").exists()
    assert train(0) == "runs/student: is trained; remove it to train again"

    way_on = "remove that run to train anew (`rm -r runs/student`), or give the run another name"
    file = asked(starve={"warning": 6.0})
    changed = f"{file} was changed since, too late for it: starve.warning was 5.0, is 6.0"
    assert train(0) == f"runs/student: is trained; remove it to train again ({changed})"
    file = asked(optimizer={"lr": 0.1}, train={"steps": 7})
    other = "optimizer.lr was 0.05, is 0.1; train.steps was 0, is 7"
    assert train(1) == f"error: runs/student: is trained, but with other settings: {other}; {way_on}"

    file = asked()
    distillog.succeed("topics", "delete", name, "--yes")
    assert train(0) == "runs/student: is trained; remove it to train again"  # a student outlives its labels
    second = labelled()
    another = f"another stream {name!r} ({first}) than there is now ({second})"
    refused = f"error: runs/student: is trained, but on {another}; {way_on}"
    assert train(1) == refused
    whole = subprocess.run([sys.executable, TRAIN, file], capture_output=True, text=True, timeout=110)
    assert (whole.returncode, whole.stderr) == (1, f"{refused}\n")
    assert weights(tmp_path / "runs") == trained
