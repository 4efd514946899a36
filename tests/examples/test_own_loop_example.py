"""The example of a loop of one's own: what it learns, and that nothing which stops it leaves a trace."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.models import classifier
from support.processes import Distillog

import distillog as library
from pipeline.streams import delete_stream

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "own_loop" / "train.py"
STEPS = 1297 * 20 // 64


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 60


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "own-digits.pt", weights_only=True)
    return found


def assert_equal(first: dict[str, Any], second: dict[str, Any], steps: int) -> None:
    assert first["step"] == second["step"] == steps
    assert first["labels"] == second["labels"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


class Passes:
    """The library with three passes where the example asks for twenty; `losses` may end it."""

    def __init__(self) -> None:
        self.losses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(library, name)

    def create_stream(self, *arguments: Any, **options: Any) -> Any:
        return library.create_stream(*arguments, **options | {"epochs": 3})

    def forward_kl(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.losses -= 1
        if not self.losses:
            raise KeyboardInterrupt
        return library.forward_kl(*arguments, **options)


@pytest.fixture
def example(
    distillog: Distillog, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, Passes]:
    """Its module, and what it takes for the library."""
    specification = importlib.util.spec_from_file_location("own_loop_example", SCRIPT)
    assert specification
    assert specification.loader
    module, passes = importlib.util.module_from_spec(specification), Passes()
    specification.loader.exec_module(module)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", distillog.settings.bootstrap_servers)
    monkeypatch.setattr(module, "STREAM", fresh_name("own"))
    monkeypatch.setattr(module, "distillog", passes)
    return module, passes


def test_it_learns_and_an_interruption_leaves_no_trace_in_its_weights(
    distillog: Distillog, example: tuple[ModuleType, Passes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module, passes), model = example, classifier(tmp_path / "teacher.onnx")
    # As the example does it, which finds all there, so that all labels can be made at once.
    passes.create_stream(module.STREAM, "digits?split=train", view="affine", order_size=64, partitions=8)
    library.add_teacher(module.STREAM, "teacher", model)
    library.feed(module.STREAM)
    distillog.succeed("teach", module.STREAM, model, "--threads", 1, "--until-idle")

    def run(folder: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        module.main(str(model))

    passes.losses = 55
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    assert saved(tmp_path / "stopped")["step"] == 50
    run("stopped")
    run("whole")
    assert_equal(saved(tmp_path / "stopped"), saved(tmp_path / "whole"), 1297 * 3 // 64)
    (last,) = library.status(module.STREAM)["runs"]
    assert (last["name"], last["state"]) == ("own", "done")


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_kill_of_the_script_that_a_user_runs_leaves_no_trace_in_its_weights(
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
        assert saved(tmp_path / "killed")["step"] < STEPS
        finished(started("killed"))
        finished(started("whole"))  # replays the log
        worker.terminate()
        worker.succeed()
        assert_equal(saved(tmp_path / "killed"), saved(tmp_path / "whole"), STEPS)
    finally:
        killed.kill()
        killed.communicate()
        delete_stream(distillog.settings, "own-digits")
