"""`metrics.jsonl`, one JSON object a line; what depends on the clock stands under the key "timing" alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError

Curve = list[tuple[int, float]]
"""(step, value), as they were written"""
Curves = dict[str, Curve]
"""`loss`, and each score of the evaluations -> its curve"""


def last_figures(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last line of a step and the last line of an evaluation; {} where there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    step: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    for line in _lines(path):
        if isinstance(line.get("evaluation"), dict):
            evaluation = line
        elif isinstance(line.get("timing"), dict):
            step = line
    return step, evaluation


def curves(path: Path) -> Curves:
    """Return what was written of a run's losses and scores, step by step; counts of samples are no curves.

    Raises:
        ConfigError: the file cannot be read.
    """
    found: Curves = {}
    for line in _lines(path):
        scores = line.get("evaluation")
        figures = scores if isinstance(scores, dict) else {"loss": line.get("loss")}
        for name, value in figures.items():
            if isinstance(value, int | float) and not name.rpartition(".")[2].startswith("num_"):
                found.setdefault(name, []).append((line["step"], float(value)))
    return found


PACES = {
    "batches_ready": "batches that lay ready (lead)",
    "waited_s": "seconds waited for batches so far (lag)",
    "samples_per_s": "samples/s",
}
"""Keys of "timing" -> what they are."""


def paces(path: Path) -> Curves:
    """Return how far the run's reader was ahead of its training, and how long that waited, step by step; by the clock.

    Raises:
        ConfigError: the file cannot be read.
    """
    found: Curves = {}
    for line in _lines(path):
        timing = line.get("timing")
        for key, title in PACES.items():
            value = timing.get(key) if isinstance(timing, dict) else None
            if isinstance(value, int | float):
                found.setdefault(title, []).append((line["step"], float(value)))
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; look what lies there") from None
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the line that is being written, did not fit on the disk, or was damaged there
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield line
