"""A chain that ended between two of its stages: what it goes on with, what it refuses, and when it goes no further."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from test_chain_file import written
from train_runs import digits_run

from pipeline import stop_signals
from pipeline.cli import runs_chain
from schemas.errors import CheckpointError
from student_trainer.run.finished import check_begun
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import run_settings
from student_trainer.trained import load_student


@pytest.fixture(autouse=True)
def _no_signal() -> Any:
    stop_signals.forget()
    yield
    stop_signals.forget()


def test_a_run_that_was_killed_before_its_report_was_written_gets_one(tmp_path: Path) -> None:
    settings = digits_run()
    runs_chain._train(settings, tmp_path, quiet=True)
    report = tmp_path / "r" / "report.json"
    before = json.loads(report.read_bytes())
    report.unlink()
    runs_chain._train(settings, tmp_path, quiet=True)
    assert json.loads(report.read_bytes())["weights_sha256"] == before["weights_sha256"]


def test_a_run_without_a_checkpoint_is_held_against_the_file_that_it_began_with(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "r", digits_run().placed()) as run:
        run.keep()
    with pytest.raises(CheckpointError, match=r"began with other settings: optimizer.lr was 0.1, is 0.3; remove"):
        runs_chain._train(digits_run(optimizer={"lr": 0.3}), tmp_path, quiet=True)
    runs_chain._train(digits_run(train={"log_every": 1}), tmp_path, quiet=True)
    assert load_student(tmp_path / "r").step == 12


def test_a_run_goes_on_with_the_first_weights_that_it_began_with(tmp_path: Path) -> None:
    document = digits_run().as_dict()
    document["student"]["weights"] = {"path": str(tmp_path / "first.safetensors")}
    asked = run_settings(document)
    document["student"]["weights"]["sha256"] = "ab" * 32
    began = run_settings(document)
    with RunFolder.create(tmp_path / "r", began.placed()) as run:
        run.keep()
    assert check_begun(tmp_path / "r", asked).student == began.student


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_in_the_last_evaluation_ends_the_chain_before_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def trained(*given: Any) -> Any:
        stop_signals._came.add(number)
        return type("Result", (), {"finished": True})

    monkeypatch.setattr("pipeline.cli.runs_chain.train_run", trained)
    with click.Context(runs_chain.chain), pytest.raises(click.exceptions.Exit) as left:
        runs_chain._train(digits_run(), tmp_path, quiet=True)
    assert left.value.exit_code == code


def test_json_is_all_that_comes_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*given: Any) -> list[dict[str, Any]]:
        click.echo("what a part says")
        return [{"name": "a", "onnx": tmp_path / "student.onnx"}]

    monkeypatch.setattr(runs_chain, "_rows", rows)
    file = written(tmp_path, '[[chain]]\nname = "a"\n')
    done = CliRunner().invoke(runs_chain.chain, [str(file), "--json"])
    assert json.loads(done.stdout) == [{"name": "a", "onnx": str(tmp_path / "student.onnx")}]
    assert "what a part says" in done.stderr
