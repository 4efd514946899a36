"""Runs that begin with the weights of a file or of another run: once, and never another one's."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor
from train_runs import digits_run, run

from pipeline.cli import main
from pipeline.datasets import open_dataset
from schemas.errors import CheckpointError, ConfigError, DataUnavailable
from student_trainer.checkpoint import has_checkpoints, load_checkpoint
from student_trainer.learning.weights import tensors_sha256
from student_trainer.run.finished import check_finished
from student_trainer.run.folder import RunFolder, read_settings
from student_trainer.run.settings import RunSettings
from student_trainer.run.summary import summary
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource
from student_trainer.train import train


def written(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: values.clone() for name, values in tensors.items()}, path)
    return str(path)


class Away(DatasetSource):
    """Data that cannot be read once the run has begun."""

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        raise DataUnavailable("away")
        yield


class Backwards:
    """The digits, named the other way round."""

    class_names = tuple("9876543210")

    def __init__(self) -> None:
        self._digits = open_dataset("digits?split=train")

    def __len__(self) -> int:
        return self._digits.num_samples

    def __getitem__(self, sample_id: int) -> tuple[dict[str, Any], int]:
        samples, label = self._digits.read(np.array([sample_id])), self._digits.labels(np.array([sample_id]))
        return {"image": samples.fields["image"][0]}, 9 - int(label[0])


backwards = Backwards


def begun_run(weights: object, **sections: dict[str, Any]) -> RunSettings:
    return digits_run(student={"weights": weights}, **sections)


def state(run: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_checkpoint(run / "checkpoints")[1]["model"]
    return tensors


def test_a_run_begins_with_the_newest_checkpoint_of_another_and_goes_on_without_it(tmp_path: Path) -> None:
    first = run(tmp_path / "first", digits_run())
    settings = begun_run(str(tmp_path / "first"), optimizer={"name": "sgd", "lr": 1e-30, "momentum": 0.0})
    short = replace(settings, train=replace(settings.train, steps=6))
    assert run(tmp_path / "r", short).weights_sha256 == first.weights_sha256
    assert summary(tmp_path / "r")["began_with"] == f"{tmp_path}/first ({first.weights_sha256[:16]})"
    saved = load_checkpoint(tmp_path / "r/checkpoints")[0].settings["student"]["weights"]
    assert (saved["path"], saved["sha256"]) == (str(tmp_path / "first"), first.weights_sha256)

    (tmp_path / "first").rename(tmp_path / "gone")
    assert run(tmp_path / "r", settings).step == 12


def test_a_run_that_begins_anew_takes_no_other_file_than_it_was_started_with(tmp_path: Path) -> None:
    torch.manual_seed(9)
    trained = run(tmp_path / "first", digits_run()).model
    path = written(tmp_path / "w.safetensors", dict(trained.state_dict()))
    settings = begun_run(path)
    with pytest.raises(DataUnavailable):
        run(tmp_path / "r", settings, Away(settings))
    assert not has_checkpoints(tmp_path / "r/checkpoints")
    written(tmp_path / "w.safetensors", {name: values + 1 for name, values in trained.state_dict().items()})
    kept = read_settings(tmp_path / "r")
    with pytest.raises(ConfigError, match="is not what the run was to begin with"):
        run(tmp_path / "r", kept)
    written(tmp_path / "w.safetensors", dict(trained.state_dict()))
    assert run(tmp_path / "r", kept).weights_sha256 == run(tmp_path / "other", settings).weights_sha256
    with pytest.raises(ConfigError, match="is not what the run was to begin with"):
        run(tmp_path / "none", begun_run({"path": path, "sha256": "0" * 64}))
    assert not (tmp_path / "none").exists()


def test_a_run_begins_with_what_another_that_trains_has_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digits_run()
    run(tmp_path / "first", replace(first, train=replace(first.train, steps=6)))

    class Later(DatasetSource):
        """Opened while the other run goes on."""

        def __init__(self, settings: RunSettings) -> None:
            run(tmp_path / "first", first)
            super().__init__(settings)

    monkeypatch.setattr("student_trainer.launch.DatasetSource", Later)
    (tmp_path / "r.toml").write_text(begun_run(str(tmp_path / "first")).as_toml())
    started = CliRunner().invoke(
        main, ["runs", "start", str(tmp_path / "r.toml"), "--folder", str(tmp_path), "--quiet"]
    )
    assert started.exit_code == 0, started.output
    weights = read_settings(tmp_path / "r").student.weights
    assert weights is not None
    assert weights.sha256 == tensors_sha256(state(tmp_path / "first"))


def test_another_runs_rows_of_classes_are_of_the_same_classes(tmp_path: Path) -> None:
    run(tmp_path / "first", digits_run())
    first, data = str(tmp_path / "first"), {"dataset": f"{__name__}:backwards", "view": {"name": "none"}}
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "r", begun_run(first, data=data))
    assert str(refused.value) == (
        f"[student.weights] {first}: learned other classes: number 0 is '0' there, '9' here, and 4.weight (and 1 more) "
        "has a row for each: name them in fresh, or, where they are of no classes, give the weights as a safetensors "
        "file"
    )
    run(tmp_path / "r", begun_run({"path": first, "fresh": ["4"]}, data=data))
    path = written(tmp_path / "w.safetensors", state(tmp_path / "first"))
    run(tmp_path / "of a file", begun_run(path, data=data))


def test_first_weights_leave_all_else_of_a_run_as_the_seed_has_it(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", digits_run(train={"steps": 1}, checkpoint={"every": 0}))
    seeds = written(tmp_path / "w.safetensors", dict(load_checkpoint(tmp_path / "plain/checkpoints")[1]["model"]))
    settings = begun_run(seeds, train={"steps": 3})
    assert run(tmp_path / "r", settings).weights_sha256 == run(tmp_path / "again", settings).weights_sha256
    assert plain.weights_sha256 != run(tmp_path / "r", settings).weights_sha256


def test_a_resume_from_other_first_weights_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "first", digits_run())
    settings = begun_run(str(tmp_path / "first"))
    run(tmp_path / "r", settings)
    with pytest.raises(CheckpointError, match=r"student\.weights\.partial was False, is True"):
        run(tmp_path / "r", begun_run({"path": str(tmp_path / "first"), "partial": True}))


def test_a_finished_run_is_still_itself_when_its_first_weights_are_gone(tmp_path: Path) -> None:
    run(tmp_path / "first", digits_run())
    run(tmp_path / "r", begun_run(str(tmp_path / "first")))
    (tmp_path / "first").rename(tmp_path / "gone")

    def asked(path: str) -> RunSettings:
        return digits_run(student={"weights": path})

    assert check_finished(tmp_path / "r", asked(str(tmp_path / "first")), lambda: pytest.fail("no stream")) == []
    with pytest.raises(CheckpointError, match=r"student\.weights\.path"):
        check_finished(tmp_path / "r", asked(str(tmp_path / "other")), lambda: pytest.fail("no stream"))


def test_a_run_says_what_it_begins_with(tmp_path: Path) -> None:
    run(tmp_path / "first", digits_run())
    said: list[str] = []
    settings = digits_run(student={"weights": str(tmp_path / "first")})
    with RunFolder.create(tmp_path / "r", settings) as folder:
        train(settings, folder, DatasetSource(settings), say=said.append)
    assert said[1] == f"mlp begins with 4 of 4 tensors from {tmp_path}/first"
