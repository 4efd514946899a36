"""A run's folder: `run.toml`, `origin.json`, `run.json`, `checkpoints/`, `*.jsonl`, `student.onnx`, `report.json`."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.whole_files import write_whole, writing
from schemas.errors import CannotWrite, CheckpointError, ConfigError, RunLocked, RunRemoved
from student_trainer.run.settings import RunSettings, load_run

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_NAME = re.compile(r"step-\d{8,}")
"""Of a checkpoint's folder."""
_WRITTEN = ("run.toml", "run.json", "origin.json")
OWN = (*_WRITTEN, "lock", "report.json", "metrics.jsonl", "trace.jsonl", "checkpoints")
"""What is not to be written over; not so `student.onnx`."""
_LOOK_EVERY = 0.5
"""Seconds between two looks at whether the folder is still there."""


class RunFolder:
    """A locked run folder. Use as a context manager; the lock ends with the process, however it ends.

    A run that is made and fails before it has learned anything leaves nothing behind, so that its name is free again.
    """

    def __init__(self, path: Path, lock: IO[str], run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        """Random, new with each run made: two runs of one name are told apart by it."""
        self._lock = lock
        self._looked = time.monotonic()
        self._made: list[Path] = []
        """What goes with a start that fails, in this order: nothing that lay there before."""

    @classmethod
    def create(cls, path: Path, settings: RunSettings, origin: Mapping[str, Any] | None = None) -> RunFolder:
        """Make a run's folder, with its settings and where they came from (`origin_of`), and lock it.

        Raises:
            ConfigError: there is a run already, or what is left of one.
            RunLocked: and it is training.
            CannotWrite: the disk refuses.
        """
        own = [each for each in (path / "lock", path) if not each.exists()]
        folder = cls(path, _locked(path, make=True), secrets.token_hex(8))
        folder._made = own
        try:
            if (path / "run.toml").exists():
                raise ConfigError(f"{path}: there is a run of this name; resume it, or give another name")
            if folder.metrics.exists() or folder.trace.exists() or any(folder.checkpoints.glob("step-*")):
                raise ConfigError(
                    f"{path}: holds checkpoints, metrics or a trace, but no run.toml; put that of their run back and "
                    "resume it, or give another name"
                )
            files = (folder.checkpoints, folder.metrics, folder.trace, *(path / name for name in _WRITTEN))
            folder._made = [each for each in files if not each.exists()] + own
            _sign(path, folder._lock)
            folder.set_state("created")
            if origin is not None:
                write_whole(path / "origin.json", json.dumps(origin, indent=1) + "\n")
            write_whole(path / "run.toml", settings.as_toml())  # last: without it this is no run yet
        except BaseException:
            folder.close(failed=True)
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Lock the folder of a run that exists.

        Raises:
            ConfigError: there is none.
            RunLocked: another process trains in it.
            CannotWrite: it belongs to somebody else.
        """
        read_run(path)
        lock = _locked(path)
        _sign(path, lock)
        return cls(path, lock, read_run(path)["run_id"] or secrets.token_hex(8))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, CannotWrite):  # a file of it, in the moment in which the folder was taken away
                self.refuse_removed(now=True)
        finally:
            self.close(failed=error is not None)

    def keep(self) -> None:
        """Take note that the run has learned something, or saved a place to go on from."""
        self._made = []

    def close(self, failed: bool = False) -> None:
        """Give the lock back; remove what a run made that failed before it was worth keeping."""
        if failed and self._is_there():  # else they are those of another run
            for each in self._made:
                with suppress(OSError):  # what ended the run matters more; and a folder may hold what is not ours
                    each.rmdir() if each.is_dir() else each.unlink()
        self._lock.close()

    def delete(self) -> None:
        """Remove the folder and all that is in it; the lock keeps everybody else from training in it meanwhile.

        Raises:
            ConfigError: it lies elsewhere.
            CannotWrite: it cannot be removed, or not all of it.
        """
        if self.path.is_symlink():
            raise ConfigError(f"{self.path}: is a link to {self.path.resolve()}; remove both by hand")
        aside = self.path.with_name(f".{self.path.name}.deleted-{self.run_id}")
        with writing(self.path):
            self.path.rename(aside)  # at one blow: half a run would look like one that was damaged
            shutil.rmtree(aside)

    def refuse_removed(self, *, now: bool = False) -> None:
        """Look, twice a second at most unless `now`, whether the folder is still the one that was locked.

        Where it is not, nothing may be written any more: it would be half a run, or into another one.

        Raises:
            RunRemoved: it, or its lock, was removed, moved or replaced.
        """
        if not now and time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        if not self._is_there():
            raise RunRemoved(
                f"{self.path}: the run's folder, or the lock in it, was removed, moved or replaced while the run "
                "trained; nothing more was written: put the folder back and resume the run, or start it anew"
            )

    def refuse_emptied(self) -> None:
        """Look whether a run without checkpoints must have had some: it would throw away what it measured, and begin.

        Raises:
            CheckpointError: they were removed.
        """
        state = read_run(self.path)["state"]
        if state in ("done", "stopped"):
            raise CheckpointError(
                f"{self.checkpoints}: the run is {state}, but its checkpoints were removed; put them back, or remove "
                "the run's folder and start it anew"
            )

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), (self.path / "lock").stat())
        except OSError as error:
            return error.errno not in _GONE  # storage that fails says nothing of the folder

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The JSON lines that the training loop writes."""
        return self.path / "metrics.jsonl"

    @property
    def trace(self) -> Path:
        """What each step trained on, where the run writes it."""
        return self.path / "trace.jsonl"

    @property
    def student(self) -> Path:
        """The exported student."""
        return self.path / "student.onnx"

    def pin(self, settings: RunSettings) -> None:
        """Write settings that say what the run begins with, for a start after a kill; raises as `set_state`."""
        self.refuse_removed(now=True)
        write_whole(self.path / "run.toml", settings.as_toml())

    def set_state(self, state: str) -> None:
        """Write `run.json`, what `runs list` shows: one of RUN_STATES; that of a killed run still says "training".

        Raises:
            CannotWrite: the disk refuses.
            RunRemoved: there is no place for it any more.
        """
        self.refuse_removed(now=True)
        write_whole(self.path / "run.json", json.dumps({"run_id": self.run_id, "state": state}) + "\n")

    def write_report(self, report: dict[str, Any]) -> None:
        """Write `report.json`; raises as `set_state`."""
        self.refuse_removed(now=True)
        write_whole(self.path / "report.json", json.dumps(report, indent=2) + "\n")


def newest_first(checkpoints: Path) -> list[Path]:
    """Return the folders of all checkpoints, whole or not, the newest first."""
    # Whatever else lies there, such as a copy under another name, is the user's.
    ours = [place for place in checkpoints.glob("step-*") if _NAME.fullmatch(place.name) and place.is_dir()]
    return sorted(ours, key=step_of, reverse=True)


def checkpoint_of(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint after so many steps, whether there is one or not."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def read_run(path: Path) -> dict[str, str]:
    """Return a run's `run.json` (run_id, state); needs no lock.

    Where that is damaged the ID is empty and the state "unknown": a run goes on from its checkpoints without it.

    Raises:
        ConfigError: there is no run in this folder, or it may not be read.
    """
    try:
        if not (path / "run.toml").exists():
            raise ConfigError(f"{path}: there is no run; `distillog runs list` shows those there are")
        info = json.loads((path / "run.json").read_bytes())
        return {key: str(info[key]) for key in ("run_id", "state")}
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read by user {os.geteuid()}: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {"run_id": "", "state": "unknown"}


def read_settings(path: Path) -> RunSettings:
    """Return a run's settings."""
    read_run(path)
    return load_run(path / "run.toml")


def _locked(path: Path, make: bool = False) -> IO[str]:
    """Lock a run's folder, and make it first where it may be made."""
    place = path / "lock"
    while True:
        with writing(path):
            if make:
                path.mkdir(parents=True, exist_ok=True)
            lock = place.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            lock.close()
            raise RunLocked(f"{path}: process {pid} trains in this run folder; stop it, or give another name") from None
        # A start that fails removes its folder with the lock that it holds: what was opened just before is no lock of
        # whoever comes next.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), place.stat()):
                break
        lock.close()
    return lock


def _sign(path: Path, lock: IO[str]) -> None:
    with writing(path):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
