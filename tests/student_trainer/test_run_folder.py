"""A run's folder on a disk that refuses: one clear line, nothing left of a start that failed, nothing lost of a run."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.processes import one_error
from train_runs import digits_run, run

import student_trainer.launch  # what `distillog runs` loads, before rights are given up
import student_trainer.run.summary  # noqa: F401
from pipeline.cli import main
from pipeline.processes import DISTILLOG
from schemas.errors import BadSamples, ConfigError, DataUnavailable, RunLocked, Starved
from student_trainer.run.folder import RunFolder, read_run
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource

NOBODY = 65534


def distillog(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def run_file(folder: Path, **sections: dict[str, Any]) -> Path:
    path = folder / "r.toml"
    path.write_text(digits_run(**sections).as_toml())
    return path


def limited(num_bytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that may write no file longer than this: a disk that is full at that place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return subprocess.run(
        [str(DISTILLOG), *map(str, arguments)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def on_a_small_disk(disk: Path, room: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where `disk` has so many bytes left; its mount ends with it, however it ends.

    In the script `$DISTILLOG` is the command, and `disk/filler` what fills the disk.
    """
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=256k tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount")
    full = f"head -c 512k /dev/zero > {disk}/filler 2>/dev/null; truncate -s -{room} {disk}/filler"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && {{ {full}\n{script}\n}}"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DISTILLOG": str(DISTILLOG)},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("whole") / "r", digits_run()).weights_sha256


def test_metrics_that_do_not_fit_are_one_line_and_the_run_goes_on_later(tmp_path: Path, whole: str) -> None:
    file = run_file(tmp_path, train={"log_every": 1}, checkpoint={"every": 0})
    done = limited(2000, "runs", "start", file, "--folder", tmp_path / "runs", "--quiet")
    assert done.returncode == 1
    one_error(done.stderr, "runs/r/metrics.jsonl: cannot be written: File too large; make room there and try again")
    assert len(done.stderr.splitlines()) == 1
    assert read_run(tmp_path / "runs/r")["state"] == "failed"
    result = distillog("runs", "resume", "r", "--folder", tmp_path / "runs", "--quiet")
    assert result.exit_code == 0, result.output
    assert whole[:16] in result.stdout


def test_a_checkpoint_that_does_not_fit_is_one_line_and_the_one_before_stays(tmp_path: Path, whole: str) -> None:
    runs = tmp_path / "runs"
    stop = digits_run(train={"steps": 5}, checkpoint={"every": 5})
    run(runs / "r", stop)
    done = limited(2500, "runs", "resume", "r", "--folder", runs, "--set", "train.steps=12", "--quiet")
    assert done.returncode == 1
    words = "checkpoints/step-00000010: cannot be written: File too large; make room there and try again"
    one_error(done.stderr, words)
    assert [each.name for each in (runs / "r/checkpoints").iterdir()] == ["step-00000005"]
    assert read_run(runs / "r")["state"] == "failed"


@pytest.mark.faults
def test_a_run_that_filled_its_disk_goes_on_once_there_is_room(tmp_path: Path, whole: str) -> None:
    disk, file = tmp_path / "disk", run_file(tmp_path)
    script = f"""
        $DISTILLOG runs start {file} --folder {disk} --quiet; echo "exit $?"
        cd {disk}/r; ls -A . checkpoints; rm {disk}/filler
        $DISTILLOG runs resume r --folder {disk} --quiet
    """
    done = on_a_small_disk(disk, 24 * 1024, script)
    assert done.returncode == 0, done.stderr
    said = one_error(done.stderr.splitlines()[0], "r/checkpoints/step-", "cannot be written: No space left on device")
    assert said.endswith("; make room there and try again")
    first, _, resumed = done.stdout.rpartition(f"{disk}/r: finished")
    assert first.split() == ["exit", "1", ".:", *FILES, "checkpoints:"]
    assert whole[:16] in resumed


FILES = ["checkpoints", "lock", "metrics.jsonl", "origin.json", "run.json", "run.toml"]


@pytest.mark.parametrize("room", [0, 4096, 8192])
def test_a_start_on_a_full_disk_leaves_nothing(tmp_path: Path, room: int) -> None:
    disk, file = tmp_path / "disk", run_file(tmp_path)
    script = f"""$DISTILLOG runs start {file} --folder {disk} --quiet; echo "exit $?"; ls -A {disk}"""
    done = on_a_small_disk(disk, room, script)
    one_error(done.stderr, f"{disk}/r", "cannot be written: No space left on device; make room there and try again")
    assert done.stdout.split() == ["exit", "1", "filler"]


@contextmanager
def no_room_for(name: str) -> Iterator[None]:
    """A disk that has no room for what a file of that name is to hold."""
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/.new-{name}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield


def test_a_report_that_does_not_fit_is_one_line_and_can_be_had_later(tmp_path: Path) -> None:
    run(tmp_path / "runs/r", digits_run())
    resume = ("runs", "resume", "r", "--folder", tmp_path / "runs", "--quiet")
    with no_room_for("report.json"):
        result = distillog(*resume)
    assert result.exit_code == 1
    one_error(result.stderr, "r/report.json: cannot be written: No space left on device")
    assert distillog(*resume).exit_code == 0
    assert json.loads((tmp_path / "runs/r/report.json").read_text())["steps"] == 12


@pytest.mark.faults
def test_a_student_that_cannot_be_exported_for_want_of_room_is_one_line(tmp_path: Path) -> None:
    run(tmp_path / "runs/r", digits_run())
    done = limited(1000, "runs", "export", "r", "--folder", tmp_path / "runs")
    assert done.returncode == 1
    one_error(done.stderr, "r/student.onnx: cannot be written: File too large")
    assert [each.name for each in (tmp_path / "runs/r").iterdir() if "onnx" in each.name] == []


def test_the_last_state_that_cannot_be_written_hides_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = ExitStack()

    def fail(line: dict[str, Any]) -> None:
        full.enter_context(no_room_for("run.json"))
        raise ConfigError("what really happened")

    with full, pytest.raises(ConfigError, match="what really happened"):
        run(tmp_path / "r", digits_run(), progress=fail)
    assert "run.json: cannot be written: No space left on device" in caplog.text


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def without_rights() -> Iterator[int]:
    """Be a user whom modes hold back, as root is not."""
    if os.geteuid():
        yield os.geteuid()
        return
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)


def closed(path: Path) -> None:
    """Let nobody write below a folder."""
    for each in [path, *path.rglob("*")]:
        each.chmod(0o555 if each.is_dir() else 0o444)


@contextmanager
def closed_for_a_while(path: Path) -> Iterator[None]:
    closed(path)
    try:
        yield
    finally:
        for each in [path, *path.rglob("*")]:
            each.chmod(0o755)


def one_line_without_rights(path: Path, *arguments: object) -> str:
    with closed_for_a_while(path), without_rights() as user:
        result = distillog(*arguments)
    assert result.exit_code == 1
    return one_error(result.stderr, f"Permission denied; let user {user} write there, or write elsewhere")


def test_a_start_in_a_folder_of_somebody_else_is_one_line(open_folder: Path, tmp_path: Path) -> None:
    file = shutil.copy(run_file(tmp_path), open_folder / "r.toml")
    runs = open_folder / "runs"
    runs.mkdir()
    assert f"error: {runs}/r: cannot be written" in one_line_without_rights(
        open_folder, "runs", "start", file, "--folder", runs
    )
    assert list(runs.iterdir()) == []
    assert f"error: {open_folder}/new/r: cannot be written" in one_line_without_rights(
        open_folder, "runs", "start", file, "--folder", open_folder / "new"
    )


def test_a_run_of_somebody_else_is_not_resumed_nor_exported_but_can_be_looked_at(open_folder: Path) -> None:
    run(open_folder / "runs/r", digits_run())
    with tempfile.TemporaryDirectory() as path:  # whoever has no rights may not read Python's own files either
        assert distillog("runs", "export", "r", "--folder", open_folder / "runs", "--onnx", f"{path}/s").exit_code == 0
    where = ("r", "--folder", open_folder / "runs")
    assert f"error: {open_folder}/runs/r: cannot be written" in one_line_without_rights(
        open_folder, "runs", "resume", *where
    )
    assert "student.onnx: cannot be written" in one_line_without_rights(open_folder, "runs", "export", *where)
    with closed_for_a_while(open_folder), without_rights():
        assert distillog("runs", "show", *where).exit_code == 0
    # Its lock may be there to be opened, and the rest not.
    with closed_for_a_while(open_folder):
        (open_folder / "runs/r/lock").chmod(0o666)
        with without_rights():
            result = distillog("runs", "resume", *where)
        assert result.exit_code == 1
        one_error(result.stderr, f"error: {open_folder}/runs/r/", "cannot be written: Permission denied")


def test_a_run_that_may_not_be_read_is_not_said_to_be_missing(open_folder: Path) -> None:
    run(open_folder / "runs/r", digits_run())
    (open_folder / "runs/r").chmod(0o700 if os.geteuid() == 0 else 0o000)
    with without_rights():
        result = distillog("runs", "show", "r", "--folder", open_folder / "runs")
    (open_folder / "runs/r").chmod(0o755)
    one_error(result.stderr, f"{open_folder}/runs/r: cannot be read by user", "Permission denied")


FAILING: dict[str, dict[str, Any]] = {
    "dataset": {"data": {"dataset": "digitz?split=train"}},
    "view": {"data": {"view": {"name": "afine"}}},
    "student": {"student": {"name": "mpl"}},
    "loss": {"losses.": {}},
    "optimizer": {"optimizer": {"name": "sdg"}},
    "device": {"train": {"device": "cpu", "precision": "fp16"}},
    "evaluation": {"evaluation": {"dataset": "digits?split=tset"}},
    "length": {"data": {"epochs": 1}, "train": {"steps": 99}},
    "a size beyond memory": {"student": {"size": [60_000, 60_000]}},
    "layers beyond memory": {"student": {"hidden": [10**12]}},
    "a student of one's own": {"student": {"name": "test_run_folder:wrong_shape"}},
}


def wrong_shape(input_shape: tuple[int, ...], num_classes: int, **params: Any) -> Any:
    from torch import nn

    return nn.Linear(7, num_classes)  # fails at its first batch


@pytest.mark.parametrize("what", FAILING)
def test_a_start_that_fails_leaves_nothing_and_the_corrected_file_starts(tmp_path: Path, what: str, whole: str) -> None:
    sections = {key: values for key, values in FAILING[what].items() if values}
    settings = digits_run(**sections)
    text = settings.as_toml()
    if what == "loss":
        text = text.replace("cross_entropy", "cross_entrpy")
    file = tmp_path / "r.toml"
    file.write_text(text)
    start = ("runs", "start", file, "--folder", tmp_path / "runs", "--quiet")
    result = distillog(*start)
    assert result.exit_code == 1
    if "one's own" not in what:  # whose own errors are shown in full
        one_error(result.stderr)
    assert list((tmp_path / "runs").iterdir()) == []
    run_file(tmp_path)
    result = distillog(*start)
    assert result.exit_code == 0, result.output
    assert whole[:16] in result.stdout


def test_a_run_that_has_learned_something_is_never_removed(tmp_path: Path, whole: str) -> None:
    """Not even what failed before its first checkpoint, in a way that nobody foresaw."""

    def fail(line: dict[str, Any]) -> None:
        raise ZeroDivisionError

    settings = digits_run(train={"log_every": 1})
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "r", settings, progress=fail)
    assert read_run(tmp_path / "r")["state"] == "failed"
    with pytest.raises(ConfigError, match="there is a run of this name"):
        RunFolder.create(tmp_path / "r", settings)
    assert read_run(tmp_path / "r")["state"] == "failed"
    assert run(tmp_path / "r", settings).weights_sha256 == whole
    with pytest.raises(ZeroDivisionError), RunFolder.open(tmp_path / "r"):
        raise ZeroDivisionError
    assert read_run(tmp_path / "r")["state"] == "done"


def make_and_fail(path: Path, settings: RunSettings) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder.create(path, settings):
        raise ZeroDivisionError


class Failing(DatasetSource):
    """Has an order or two, and then an error."""

    def __init__(self, settings: RunSettings, error: Exception, num_orders: int = 0) -> None:
        super().__init__(settings)
        self._error, self._num_orders = error, num_orders

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        yield from islice(super().orders(cursor), self._num_orders)
        raise self._error


@pytest.mark.parametrize("text", ["", "{", '{"run_id": 3}', "[1]", "\xff", None])
def test_a_run_goes_on_from_its_checkpoints_whatever_became_of_its_state(
    tmp_path: Path, text: str | None, whole: str
) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(Starved):
        run(runs / "r", digits_run(), Failing(digits_run(), Starved("later"), num_orders=2))
    if text is None:
        (runs / "r/run.json").unlink()
    else:
        (runs / "r/run.json").write_bytes(text.encode("latin-1"))
    (shown,) = json.loads(distillog("runs", "list", "--folder", runs, "--json").stdout)
    assert (shown["name"], shown["state"]) == ("r", "unknown")
    result = distillog("runs", "resume", "r", "--folder", runs, "--quiet")
    assert result.exit_code == 0, result.output
    assert whole[:16] in result.stdout
    assert read_run(runs / "r")["state"] == "done"
    assert read_run(runs / "r")["run_id"]


def test_one_run_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run(tmp_path / name, digits_run())
    (tmp_path / "a/run.toml").write_text("name = ")
    (tmp_path / "c/metrics.jsonl").unlink()
    (tmp_path / "c/metrics.jsonl").mkdir()
    result = distillog("runs", "list", "--folder", tmp_path, "--json")
    assert (result.exit_code, len(json.loads(result.stdout))) == (0, 1)
    warned = result.stderr.splitlines()
    assert len(warned) == 2
    assert warned[0].startswith(f"warning: {tmp_path}/a/run.toml: is not TOML")
    assert warned[1].startswith(f"warning: {tmp_path}/c/metrics.jsonl: cannot be read: Is a directory")
    result = distillog("runs", "show", "c", "--folder", tmp_path)
    assert result.exit_code == 1
    one_error(result.stderr, "c/metrics.jsonl: cannot be read: Is a directory")


@pytest.mark.parametrize("num_bytes", [0, 10, -3, None])
def test_a_run_goes_on_though_its_metrics_were_cut(tmp_path: Path, num_bytes: int | None, whole: str) -> None:
    runs, metrics = tmp_path / "runs", tmp_path / "runs/r/metrics.jsonl"
    settings = digits_run(train={"log_every": 1})
    with pytest.raises(Starved):
        run(runs / "r", settings, Failing(settings, Starved("later"), num_orders=4))
    before = metrics.read_bytes()
    metrics.unlink() if num_bytes is None else metrics.write_bytes(before[:num_bytes])
    result = distillog("runs", "resume", "r", "--folder", runs, "--quiet")
    assert result.exit_code == 0, result.output
    assert "metrics.jsonl: was cut or replaced" in result.stderr
    assert whole[:16] in result.stdout
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][-1] == 12


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_a_start_that_fails_removes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "r/checkpoints").mkdir(parents=True)
    (tmp_path / "r/notes.txt").write_text("mine")
    make_and_fail(tmp_path / "r", digits_run())
    assert sorted(each.name for each in (tmp_path / "r").iterdir()) == ["checkpoints", "notes.txt"]
    (tmp_path / "empty").mkdir()
    make_and_fail(tmp_path / "empty", digits_run())
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "left", [["metrics.jsonl", "run.json"], ["trace.jsonl"], ["checkpoints/step-00000005", "run.json"]]
)
def test_a_start_refuses_what_is_left_of_another_run_and_touches_none_of_it(
    tmp_path: Path, left: list[str], whole: str
) -> None:
    runs, path = tmp_path / "runs", tmp_path / "runs/r"
    run(path, digits_run(train={"steps": 6, "trace": True}))
    (path / "run.toml").rename(tmp_path / "kept.toml")
    for each in list(path.iterdir()):
        if not any(name.startswith(each.name) for name in left):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    before = contents(path)
    result = distillog("runs", "start", run_file(tmp_path), "--folder", runs, "--quiet")
    assert result.exit_code == 1
    one_error(result.stderr, f"{path}: holds checkpoints, metrics or a trace, but no run.toml", "or give another name")
    assert contents(path) == before


def test_a_run_whose_run_file_was_away_goes_on_when_it_is_back(tmp_path: Path, whole: str) -> None:
    runs, file = tmp_path / "runs", run_file(tmp_path)
    with pytest.raises(Starved):
        run(runs / "r", digits_run(), Failing(digits_run(), Starved("later"), num_orders=2))
    (runs / "r/run.toml").unlink()
    assert distillog("runs", "start", file, "--folder", runs, "--quiet").exit_code == 1
    (runs / "r/run.toml").write_text(digits_run().as_toml())
    result = distillog("runs", "resume", "r", "--folder", runs, "--quiet")
    assert result.exit_code == 0, result.output
    assert whole[:16] in result.stdout


@pytest.mark.parametrize("error", [ConfigError("no such view"), BadSamples("too many"), ZeroDivisionError()])
def test_a_run_that_fails_before_its_first_step_burns_no_name(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        run(tmp_path / "r", digits_run(), Failing(digits_run(), error))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [Starved("no label came"), DataUnavailable("bring it back and resume the run")])
def test_a_run_that_can_go_on_stays_though_nothing_was_learned(tmp_path: Path, error: Exception, whole: str) -> None:
    with pytest.raises(type(error)):
        run(tmp_path / "r", digits_run(), Failing(digits_run(), error))
    assert not (tmp_path / "r/checkpoints").exists()
    assert run(tmp_path / "r", digits_run()).weights_sha256 == whole


def test_what_was_learned_is_saved_whatever_fails(tmp_path: Path, whole: str) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path / "r", digits_run(), Failing(digits_run(), ConfigError("later"), num_orders=2))
    assert [each.name for each in (tmp_path / "r/checkpoints").iterdir()] == ["step-00000002"]
    assert run(tmp_path / "r", digits_run()).weights_sha256 == whole


def test_a_lock_that_was_removed_with_a_failed_start_locks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that had opened the lock file just before takes the next one, and is seen by whoever comes then."""
    import fcntl

    flock: Callable[[Any, int], None] = fcntl.flock
    first = RunFolder.create(tmp_path / "r", digits_run())

    def late(file: Any, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.close(failed=True)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunFolder.create(tmp_path / "r", digits_run()), pytest.raises(RunLocked):
        RunFolder.create(tmp_path / "r", digits_run())
