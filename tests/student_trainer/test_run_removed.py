"""A run's folder, or a part of it, that is taken away: while the run trains, and between two processes of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.processes import one_error
from train_runs import digits_run, run

from pipeline.cli import main
from pipeline.views.patience import fetch_patiently
from schemas.errors import DataUnavailable, RunRemoved, Starved
from student_trainer import checkpoint
from student_trainer.checkpoint import has_checkpoints
from student_trainer.run.folder import RunFolder, read_run
from student_trainer.sources.base import BRING_BACK, Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource

SETTINGS = digits_run(train={"log_every": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("whole") / "r", SETTINGS).weights_sha256


def resume(path: Path) -> Result:
    return CliRunner().invoke(main, ["runs", "resume", path.name, "--folder", str(path.parent), "--quiet"])


def at_step(number: int, do: Callable[[], object]) -> Callable[[dict[str, Any]], None]:
    def progress(line: dict[str, Any]) -> None:
        if line["step"] == number:
            do()

    return progress


def test_a_run_whose_folder_is_removed_ends_and_makes_none_of_it_again(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with pytest.raises(RunRemoved, match=f"{path}: the run's folder, or the lock in it, was removed"):
        run(path, SETTINGS, progress=at_step(3, lambda: shutil.rmtree(path)))
    assert not path.exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_whose_folder_is_removed_while_it_writes_a_checkpoint_says_so(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flush = tmp_path / "r", checkpoint._flush_folder

    def flush_and_remove(folder: Path) -> None:
        flush(folder)
        if not whole or folder == path / "checkpoints":  # the last thing that is flushed
            shutil.rmtree(path)

    monkeypatch.setattr(checkpoint, "_flush_folder", flush_and_remove)
    with pytest.raises(RunRemoved, match=f"{path}: the run's folder, or the lock in it, was removed"):
        run(path, SETTINGS)
    assert not path.exists()


def test_a_run_whose_folder_is_moved_goes_on_when_it_is_back(tmp_path: Path, whole: str) -> None:
    path, away = tmp_path / "r", tmp_path / "away"
    with pytest.raises(RunRemoved, match="put the folder back and resume the run"):
        run(path, SETTINGS, progress=at_step(7, lambda: path.rename(away)))
    assert not path.exists()
    away.rename(path)
    assert run(path, SETTINGS).weights_sha256 == whole


def test_a_run_whose_folder_became_another_runs_leaves_that_alone(tmp_path: Path) -> None:
    path = tmp_path / "r"

    def replace() -> None:
        shutil.rmtree(path)
        RunFolder.create(path, SETTINGS).close()

    with pytest.raises(RunRemoved):
        run(path, SETTINGS, progress=at_step(3, replace))
    assert sorted(each.name for each in path.iterdir()) == ["lock", "run.json", "run.toml"]
    assert read_run(path)["state"] == "created"


def test_a_start_whose_folder_became_another_runs_before_its_first_step_leaves_that_alone(tmp_path: Path) -> None:
    path = tmp_path / "r"
    first = RunFolder.create(path, SETTINGS)
    shutil.rmtree(path)
    RunFolder.create(path, SETTINGS).close()
    first.close(failed=True)
    assert read_run(path)["state"] == "created"


def test_a_run_whose_lock_is_removed_ends_since_another_process_might_train_there(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "r"
    with pytest.raises(RunRemoved):
        run(path, SETTINGS, progress=at_step(7, (path / "lock").unlink))
    assert run(path, SETTINGS).weights_sha256 == whole


def test_a_removal_in_the_last_step_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with pytest.raises(RunRemoved):
        run(path, SETTINGS, progress=at_step(12, lambda: shutil.rmtree(path)))
    assert not path.exists()


class Waiting(DatasetSource):
    """Has one order, and no other until it is closed."""

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        yield next(super().orders(cursor))
        self._closed.wait(60.0)
        raise Starved("no label came")


def test_a_run_that_waits_for_labels_notices_too(tmp_path: Path) -> None:
    path = tmp_path / "r"
    remover = threading.Timer(1.0, shutil.rmtree, [path])
    remover.start()
    with pytest.raises(RunRemoved):
        run(path, SETTINGS, Waiting(SETTINGS))
    assert not path.exists()


@pytest.mark.parametrize("what", ["checkpoints", "checkpoints/step-00000005"])
def test_checkpoints_removed_while_it_trains_cost_nothing(tmp_path: Path, what: str, whole: str) -> None:
    path = tmp_path / "r"
    assert run(path, SETTINGS, progress=at_step(7, lambda: shutil.rmtree(path / what))).weights_sha256 == whole
    assert has_checkpoints(path / "checkpoints")


def stopped_at(path: Path, step: int) -> None:
    """A run that was killed behind its checkpoint of step 5."""
    with suppress(ZeroDivisionError):
        run(path, SETTINGS, progress=at_step(step, lambda: 1 // 0))


def test_a_run_goes_on_without_its_newest_checkpoint(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "r"
    stopped_at(path, 11)
    shutil.rmtree(path / "checkpoints/step-00000010")
    assert resume(path).exit_code == 0
    assert whole[:16] in resume(path).stdout


def test_a_run_whose_checkpoints_were_all_removed_begins_again_and_says_so(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "r"
    stopped_at(path, 11)
    shutil.rmtree(path / "checkpoints")
    result = resume(path)
    assert result.stderr == f"warning: {path}: there is no checkpoint; the run begins at step 0\n"
    assert whole[:16] in result.stdout


def test_a_run_that_is_done_and_whose_checkpoints_were_removed_is_not_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "r"
    run(path, SETTINGS)
    shutil.rmtree(path / "checkpoints")
    before = (path / "metrics.jsonl").read_bytes()
    result = resume(path)
    assert result.exit_code == 1
    one_error(result.stderr, f"{path}/checkpoints: the run is done, but its checkpoints were removed; put them back")
    assert (path / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_removed_between_two_processes_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r"
    run(path, SETTINGS)
    shutil.rmtree(path)
    result = resume(path)
    assert result.exit_code == 1
    one_error(result.stderr, f"{path}: there is no run", "distillog runs list")
    assert not path.exists()


class Away(DatasetSource):
    """Its storage is away; from which order on, the test says."""

    def __init__(self, first: int) -> None:
        super().__init__(SETTINGS)
        fetch, self._fetches = self.fetcher.fetch, 0

        def fetched(*arguments: Any) -> Any:
            self._fetches += 1
            if self._fetches > first:
                raise OSError(5, "Input/output error")
            return fetch(*arguments)

        self.fetcher.fetch = fetched  # type: ignore[method-assign]


@pytest.mark.parametrize("first", [0, 1], ids=["before it begins", "at its first order"])
def test_storage_that_is_away_at_the_start_says_resume_only_where_the_run_stays(
    tmp_path: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetch_patiently.__kwdefaults__, "seconds", 0.0)
    path = tmp_path / "r"
    with pytest.raises(DataUnavailable) as caught:
        run(path, SETTINGS, Away(first))
    assert path.exists() == (BRING_BACK in str(caught.value)) == (first == 1)
