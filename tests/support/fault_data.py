"""A dataset and a view that tests steer while other processes use them, by files in a folder and by the environment.

`support.fault_data:steered?folder=/tmp/x&count=400&broken=101`: files in the folder
* `gone`: every read fails with an OSError, as on a mount that went away;
* `hold`: the process that finds it first takes it away, writes `held` with its PID, and stays in the middle of its read
  until `held` is removed.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

HOLD_AT_MOST = 120.0


class Steered:
    """[1, 8, 8] float32 in [0, 1], labels 0 to 9."""

    num_classes = 10

    def __init__(self, folder: Path, count: int, broken: int) -> None:
        self._pixels = np.random.default_rng(3).random((count, 1, 8, 8), np.float32)
        self.labels = np.arange(count) % 10
        self._folder = folder
        self._broken = broken

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        if (self._folder / "gone").exists():
            raise OSError(errno.ENOTCONN, "transport endpoint is not connected")
        self._hold()
        if self._broken and sample_id % self._broken == 5:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"pixels": self._pixels[sample_id]}

    def _hold(self) -> None:
        held = self._folder / "held"
        try:
            (self._folder / "hold").rename(held.with_name(f"held.{os.getpid()}"))
        except FileNotFoundError:
            return
        held.with_name(f"held.{os.getpid()}").write_text(str(os.getpid()))
        held.with_name(f"held.{os.getpid()}").rename(held)
        began = time.monotonic()
        while held.exists() and time.monotonic() - began < HOLD_AT_MOST:
            time.sleep(0.01)


def steered(folder: str, count: str = "400", broken: str = "0") -> Steered:
    """Samples that can be read, until a file in `folder` says otherwise."""
    return Steered(Path(folder), int(count), int(broken))


def brightened(sample: dict[str, Any], rng: np.random.Generator, by: float = 0.1) -> dict[str, Any]:
    """A user's view, whose next version does something else (BRIGHTENED_VERSION=2)."""
    factor = rng.uniform(1 - by, 1 + by)
    if os.environ.get("BRIGHTENED_VERSION") == "2":
        factor = factor**2
    return {name: values * np.float32(factor) for name, values in sample.items()}
