"""The folder that an example writes into: held by one call at a time, cleared of what the example itself put there."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from schemas.errors import ConfigError, RunLocked


def take(folder: Path, marker_name: str) -> TextIO:
    """Hold the folder until what is returned is closed; a file of that name marks it as the example's.

    Raises:
        ConfigError: it holds something, and is not the example's own.
        RunLocked: the example runs in it.
    """
    marker = folder / marker_name
    if folder.exists() and not marker.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} was not made by this example: remove it, or name another folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = marker.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RunLocked(f"{folder}: the example runs in it already; wait for it, or give --folder") from None
    return lock


def clear(folder: Path, entries: Iterable[str]) -> None:
    """Remove what an earlier call left under these names."""
    for name in entries:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
