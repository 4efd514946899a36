"""A run file that is changed while its run is under way: a resume says what it takes of it, and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from train_runs import digits_run

from pipeline.cli import main
from student_trainer.run.edits import edits
from student_trainer.run.folder import read_settings


def distillog(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


def written(path: Path, **sections: dict[str, Any]) -> Path:
    path.write_text(digits_run(**sections).as_toml())
    return path


def test_what_says_how_a_run_works_may_change_and_what_it_learns_may_not() -> None:
    before = digits_run().as_dict()
    after = digits_run(
        data={"dataset": "digits?split=test", "seed": 4},
        optimizer={"lr": 0.2},
        train={"steps": 20, "seed": 1},
        checkpoint={"keep": 2},
        starve={"timeout": 30.0},
        evaluation={"view": {"name": "none"}},
    ).as_dict()
    assert edits(before, before) == []
    found = edits(before, after)
    assert {each.key: each.allowed for each in found} == {
        "checkpoint.keep": True,
        "data.dataset": True,
        "data.seed": False,
        "evaluation.view.name": True,
        "optimizer.lr": False,
        "starve.timeout": True,
        "train.seed": False,
        "train.steps": True,
    }
    assert [str(each) for each in found if each.key.startswith(("evaluation", "checkpoint"))] == [
        "checkpoint.keep was 9, is 2",
        "evaluation.view.name was None, is 'none'",
    ]


def test_where_captured_files_lie_may_change_and_a_stream_may_be_named_that_was_not() -> None:
    """Whether it is the same stream is seen by what the sources hold."""
    teachers = [{"name": "t"}]
    files = {"source": "files", "data": {"files": "labels", "stream": ""}, "teachers": teachers}
    moved = {"source": "files", "data": {"files": "moved", "stream": "birds"}, "teachers": teachers}
    stream = {"source": "stream", "data": {"files": "moved", "stream": "trees"}, "teachers": teachers}
    assert [(each.key, each.allowed) for each in edits(files, moved)] == [("data.files", True), ("data.stream", True)]
    assert [(each.key, each.allowed) for each in edits(moved, stream)] == [("data.stream", False), ("source", True)]


def test_an_edit_of_another_teacher_or_loss_is_named_by_its_place() -> None:
    before = digits_run().as_dict()
    after = {**before, "losses": [{**before["losses"][0], "weight": 0.5}, {"name": "x"}]}
    assert [each.key for each in edits(before, after)] == ["losses.0.weight", "losses.1.name"]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The file of a run that took 12 steps, two of them more than the file says."""
    file = written(tmp_path / "r.toml", train={"steps": 10})
    done = distillog("start", file, "--set", "train.steps=12", "--folder", tmp_path, "--quiet")
    assert done.exit_code == 0, done.output
    return file


def resumed(file: Path, *arguments: str) -> Result:
    return distillog("resume", "r", "--folder", file.parent, "--quiet", *arguments)


def test_a_resume_takes_what_may_change_and_names_what_it_leaves_out(stopped: Path) -> None:
    written(stopped, train={"steps": 10, "log_every": 1}, checkpoint={"every": 2, "keep": 1}, optimizer={"lr": 0.5})
    text = stopped.read_text()
    stopped.write_text(text + '\n[evaluation.view]\nname = "none"\n')
    result = resumed(stopped, "--set", "train.steps=16")
    assert result.exit_code == 0, result.output
    began = f"warning: {stopped} was changed since the run began; "
    taken, left_out = [line for line in result.stderr.splitlines() if line.startswith(began)]
    assert taken == began + (
        "taken: checkpoint.every was 5, is 2; checkpoint.keep was 9, is 1; evaluation.view.name was None, is 'none'; "
        "train.log_every was 3, is 1"
    )
    assert left_out == began + (
        "not taken, since the run would learn something else: optimizer.lr was 0.1, is 0.5; start another run for that"
    )
    run = stopped.with_name("r")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 12, 13, 14, 15, 16]
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["step-00000016"]


def test_what_other_weights_may_come_of_is_taken_when_it_is_asked_for_and_not_by_itself(stopped: Path) -> None:
    written(stopped, train={"passes": 2, "threads": 2})
    result = resumed(stopped)
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        f"warning: {stopped} was changed since the run began; not taken, since other weights may come of it: "
        "train.passes was 1, is 2; train.threads was 1, is 2; to go on with it, give --set train.passes=2 "
        "--set train.threads=2\n"
    )
    result = resumed(stopped, "--set", "train.passes=1", "--set", "train.threads=1")
    assert result.exit_code == 0, result.output
    assert str(stopped) not in result.stderr


def test_a_run_that_has_taken_more_steps_than_are_asked_for_now_is_refused(stopped: Path) -> None:
    result = resumed(stopped, "--set", "train.steps=11")
    assert result.exit_code == 1
    assert "has taken 12 steps, more than the 11 that [train] steps asks for now" in result.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [("student.inputs", ["m2"]), ("student.name", "support.students:none"), ("losses.0.name", "forward_kl")],
)
def test_what_differs_is_said_before_a_student_is_built_of_it(stopped: Path, key: str, value: Any) -> None:
    result = resumed(stopped, "--set", f"{key}={json.dumps(value)}")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert f"r: cannot resume a run that differs: {key} was " in error
    assert f", is {value!r}; remove that run to train anew" in error


def test_a_key_that_nobody_has_decided_on_may_not_change() -> None:
    assert [each.allowed for each in edits({}, {"train": {"new": 1}, "new": {"key": 1}, "checkpoint": {"new": 1}})] == [
        True,
        False,
        False,
    ]


def test_a_file_that_is_as_it_was_says_nothing_whatever_was_set_at_the_start(stopped: Path) -> None:
    assert resumed(stopped).stderr == ""
    stopped.write_text("# a remark\n" + stopped.read_text())
    assert resumed(stopped).stderr == ""


def test_a_run_goes_on_without_its_file_or_with_one_that_is_no_run_file_or_is_anothers(stopped: Path) -> None:
    stopped.write_text(
        stopped.read_text().replace('name = "r"', 'name = "s"').replace("log_every = 3", "log_every = 1")
    )
    assert resumed(stopped).stderr == ""
    stopped.write_text("name = ")
    result = resumed(stopped)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {stopped}: is not TOML: ")
    assert result.stderr.endswith("; the run goes on with what it was started with\n")
    stopped.unlink()
    assert resumed(stopped).stderr == ""
    origin = stopped.with_name("r") / "origin.json"
    origin.write_text(
        json.dumps({**json.loads(origin.read_text()), "run_file": f"/{'x' * 300}"})
    )  # cannot be asked for
    assert resumed(stopped).stderr == ""


@pytest.mark.parametrize("damage", [{"set": [3]}, {"settings": {"train": "x"}}, {"run_file": None}, None])
def test_a_run_whose_origin_is_damaged_says_so_and_goes_on(stopped: Path, damage: dict[str, Any] | None) -> None:
    origin = stopped.with_name("r") / "origin.json"
    origin.write_text("{" if damage is None else json.dumps({**json.loads(origin.read_text()), **damage}))
    written(stopped, checkpoint={"keep": 1})
    result = resumed(stopped)
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"warning: {origin}: cannot be read (")
    assert line.endswith("): what was changed in the run file is not known")


def test_a_run_pointed_at_other_data_is_told_to_be_pointed_back(stopped: Path) -> None:
    written(stopped, data={"dataset": "digits?split=test"})
    result = resumed(stopped)
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert "cannot resume a run that differs: data.dataset was 'digits?split=train', is 'digits?split=test'" in error
    assert "; these are other data: set data.dataset to where the run's own data lie; or else remove that run" in error
    assert "fingerprint" not in error


def test_a_run_keeps_where_its_data_lie_whoever_goes_on_with_it_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "data").mkdir(parents=True)
    elsewhere.mkdir()
    np.save(here / "data/image.npy", np.random.default_rng(0).random((60, 1, 8, 8), np.float32))
    np.save(here / "data/labels.npy", np.arange(60) % 3)
    monkeypatch.chdir(here)
    data = {"dataset": "npy:./data", "view": {"name": "none"}}
    file = written(here / "r.toml", data=data, evaluation={"dataset": "npy:data"})
    done = distillog("start", "r.toml", "--folder", tmp_path, "--quiet")
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(elsewhere)
    result = distillog("resume", "r", "--folder", tmp_path, "--quiet", "--set", "train.steps=14")
    assert result.exit_code == 0, result.output
    assert f"{file} was changed" not in result.stderr
    settings = read_settings(tmp_path / "r")
    assert settings.data.dataset == settings.evaluation.dataset == f"npy:{here}/data"
    assert distillog("evaluate", "r", "--folder", tmp_path).exit_code == 0
