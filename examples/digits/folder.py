"""The demo's folder: begun anew each time, but only where it is the demo's own, and only what the demo put there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

from schemas.errors import ConfigError, RunLocked

MARKER = "made-by-demo.json"
ENTRIES = ("broker", "runs", "logs", "teacher.onnx", "student.onnx", "report.json")
"""All that the demo writes, beside the marker and the lock in it."""


class DemoFolder:
    """Holds the folder against a second demo until it is closed.

    Raises:
        ConfigError: the folder holds something and was not made by the demo, or cannot be written.
        RunLocked: a demo runs in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        marker = path / MARKER
        try:
            if path.exists() and not marker.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(f"{path} was not made by the demo: remove it, or name another folder with --folder")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = marker.open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}; name another folder with --folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunLocked(f"{path}: another demo runs in it; wait for it, or give --folder") from None
        self._lock.truncate(0)
        self._lock.write(json.dumps({"made_by": "examples/digits/demo.py", "pid": os.getpid()}) + "\n")
        self._lock.flush()

    def close(self) -> None:
        """Let another demo have it."""
        self._lock.close()

    def clear(self) -> None:
        """Remove what an earlier demo left, and nothing else.

        Raises:
            ConfigError: something cannot be removed.
        """
        for name in ENTRIES:
            entry = self.path / name
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"{entry} cannot be removed: {error.strerror}; remove it by hand") from error
        for name in ("runs", "logs"):
            (self.path / name).mkdir()
