"""A run's folder: `run.toml`, `run.json`, `checkpoints/`, `metrics.jsonl`, `student.onnx`, `report.json`, `lock`."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from schemas.errors import CheckpointError, ConfigError, RunLocked
from student_trainer.settings import RunSettings, load_run


class RunFolder:
    """A locked run folder. Use as a context manager; the lock ends with the process, however it ends."""

    def __init__(self, path: Path, lock: IO[str], run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        """Random, new with each run made: two runs of one name are told apart by it."""
        self._lock = lock

    @classmethod
    def create(cls, path: Path, settings: RunSettings) -> RunFolder:
        """Make a run's folder, with its settings, and lock it.

        Raises:
            ConfigError: there is a run already.
            RunLocked: and it is training.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
        if (path / "run.toml").exists():
            lock.close()
            raise ConfigError(f"{path}: there is a run of this name; resume it, or give another name")
        run_id = secrets.token_hex(8)
        folder = cls(path, lock, run_id)
        folder.set_state("created")
        write_whole(path / "run.toml", settings.as_toml())  # last: without it this is no run yet
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Lock the folder of a run that exists.

        Raises:
            ConfigError: there is none.
            RunLocked: another process trains in it.
        """
        info = read_run(path)
        return cls(path, _locked(path), str(info["run_id"]))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The JSON lines that the training loop writes."""
        return self.path / "metrics.jsonl"

    @property
    def student(self) -> Path:
        """The exported student."""
        return self.path / "student.onnx"

    def set_state(self, state: str) -> None:
        """Write `run.json`, what `runs list` shows: one of RUN_STATES; that of a killed run still says "training"."""
        write_whole(self.path / "run.json", json.dumps({"run_id": self.run_id, "state": state}) + "\n")

    def write_report(self, report: dict[str, Any]) -> None:
        """Write `report.json`."""
        write_whole(self.path / "report.json", json.dumps(report, indent=2) + "\n")


def read_run(path: Path) -> dict[str, Any]:
    """Return a run's `run.json` (run_id, state); needs no lock.

    Raises:
        ConfigError: there is no run in this folder.
    """
    try:
        if not (path / "run.toml").exists():
            raise FileNotFoundError
        info = json.loads((path / "run.json").read_bytes())
    except (OSError, ValueError):
        raise ConfigError(f"{path}: there is no run; `distillog runs list` shows those there are") from None
    assert isinstance(info, dict)
    return info


def read_settings(path: Path, overrides: tuple[str, ...] = ()) -> RunSettings:
    """Return a run's settings, overridden as by `load_run`."""
    read_run(path)
    return load_run(path / "run.toml", overrides)


def write_whole(path: Path, text: str) -> None:
    """Replace a small file in one step, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file under another name, then rename it into place."""
    fresh = path.with_name(f".new-{path.name}")
    try:
        write(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    # Never removed: whoever unlinks a lock file lets two processes lock two files of one name.
    lock = (path / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        raise RunLocked(f"{path}: process {pid} trains in this run folder; stop it, or give another name") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


class Metrics:
    """`metrics.jsonl`, one JSON object a line; what depends on the clock stands under the key "timing" alone."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Open it, cut back to the length that the checkpoint knows; later lines are of steps taken again.

        Raises:
            CheckpointError: it is shorter than that.
        """
        self._file = path.open("ab")
        if self._file.seek(0, os.SEEK_END) < num_bytes:
            self._file.close()
            raise CheckpointError(f"{path}: is shorter than the checkpoint says; it was cut or replaced")
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring all lines to disk and return the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
