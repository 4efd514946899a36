"""A dataset whose samples know their numbers, and a view that some of them end or hang, as files say.

`support.fatal_data:numbered?count=400` under the view `support.fatal_data:fatal` with `folder=/tmp/x`. The view is not
seen by fingerprints, and a file may come at any time:
* `12.SIGSEGV`: sample 12 ends its process by that signal;
* `12.hang`: it never comes back; `12.exit`: it ends its process by itself; `12.memory`: as C++ does without memory;
* `12.once`: it aborts, and takes the file away first; `12.unreadable`: it cannot be decoded;
* `12.with-13`: it aborts a process that has seen sample 13;
* `slow`: every sample takes 10 ms.
Every sample that is fatal leaves its process's number in `12.died`, a line each.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from teacher_service import watchdog

_SCALE = 1024.0
_seen: set[int] = set()


class Numbered:
    """[1, 8, 8] float32 in [0, 1), the first pixel of each is its number / 1024; labels 0 to 9."""

    num_classes = 10

    def __init__(self, count: int) -> None:
        self._pixels = np.random.default_rng(5).random((count, 1, 8, 8), np.float32)
        self._pixels[:, 0, 0, 0] = np.arange(count) / _SCALE
        self.labels = np.arange(count) % 10

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"pixels": self._pixels[sample_id]}


def numbered(count: str = "400", hang: str = "") -> Numbered:
    """At most 1024 samples; `hang` is the number of seconds after which whoever reads them hangs."""
    if hang:
        watchdog.MIN_DEADLINE = watchdog.COLD_DEADLINE = float(hang)
        watchdog.FIRST_DEADLINE = 20.0
    return Numbered(int(count))


def fatal(sample: dict[str, Any], rng: np.random.Generator, folder: str = "") -> dict[str, Any]:
    """The sample as it is, unless a file of its number is there."""
    number = round(float(sample["pixels"].flat[0]) * _SCALE)
    _seen.add(number)
    if Path(folder, "slow").exists():
        time.sleep(0.01)
    for file in Path(folder).glob(f"{number}.*"):
        _end(number, file)
    return sample


def _end(number: int, file: Path) -> None:
    how = file.suffix[1:]
    if how == "died":
        return
    if how == "unreadable":
        raise ValueError(f"sample {number} is cut short")
    if how.startswith("with-") and int(how.removeprefix("with-")) not in _seen:
        return
    with file.with_suffix(".died").open("a") as died:
        died.write(f"{os.getpid()}\n")
    if how == "hang":
        time.sleep(600.0)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
    elif how == "once":
        file.unlink()
    elif how == "SIGSEGV":
        ctypes.string_at(0)
    elif how in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[how])
    os.abort()
