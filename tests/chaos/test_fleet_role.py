from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Distillog

from chaos.fleet import Fleet
from chaos.roles import Events
from pipeline.kafka.settings import KafkaSettings
from pipeline.wait import Deadline

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """One whose supervisor is gone."""
    events = Events(tmp_path / "events.jsonl")
    distillog = Distillog(KafkaSettings("localhost:1"), tmp_path)
    yield Fleet("f", tuple, distillog, "", events, workers=("f-1", "f-2"), model=tmp_path / "model.onnx")
    events.close()


def worker(name: str, model: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--worker", name, model]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = Deadline(10.0)
    while name.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():  # empty while it is being executed
        assert not deadline.over
        time.sleep(0.01)
    return process


def test_workers_that_outlive_their_supervisor_are_a_problem(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.fleet.GONE", 0.3)
    with worker("f-1", tmp_path / "another.onnx") as others, worker("f-3", tmp_path / "model.onnx") as plain:
        fleet.kill()
        fleet.end()
        others.kill()
        plain.kill()
    with worker("f-2", tmp_path / "model.onnx") as left:
        with pytest.raises(AssertionError, match=str(left.pid)):
            fleet.kill()
        with pytest.raises(AssertionError, match=str(left.pid)):
            fleet.end()
        fleet.close()
        assert left.wait(10) == -signal.SIGKILL


def test_a_killed_worker_is_mended_when_another_process_runs_in_its_place(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.fleet.THERE", 0.3)
    struck = fleet.workers["f-1"]
    with worker("f-1", tmp_path / "model.onnx") as first:
        struck.freeze()
        struck.thaw()
        struck.kill()
        assert first.wait(10) == -signal.SIGKILL
    with pytest.raises(AssertionError, match="not one process runs as f-1"):
        struck.start()
    with worker("f-1", tmp_path / "model.onnx") as second:
        struck.start()
        second.kill()
    assert struck.kills == 1
