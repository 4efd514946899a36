"""Runs of a second or two over small streams, and what they came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from student_trainer.run.settings import run_settings


def run_file(folder: Path, stream: str, name: str = "student", **sections: Any) -> Path:
    """Write a run file: batches of 12, a checkpoint every 5, once over the stream; sections change single keys."""
    document: dict[str, Any] = {
        "name": name,
        "source": "stream",
        "data": {"stream": stream},
        "student": {"name": "mlp", "hidden": [16], "dropout": 0.1},
        "teachers": [{"name": "t"}],
        "losses": [{"name": "forward_kl", "temperature": 2.0}],
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"batch_size": 12, "log_every": 5},
        "checkpoint": {"every": 5, "keep": 3},
        "starve": {"warning": 5.0, "timeout": 90.0},
    }
    for section, values in sections.items():
        if section in ("teachers", "losses", "peers"):
            document[section] = values if isinstance(values, list) else [values]
        elif isinstance(values, str):
            document[section] = values
        else:
            document[section] = document.get(section, {}) | values
    path = folder / f"{name}.toml"
    path.write_text(run_settings(document).as_toml())
    return path


def report(runs: Path, name: str = "student") -> dict[str, Any]:
    """A finished run's `report.json`."""
    found = json.loads((runs / name / "report.json").read_text())
    assert found["finished"]
    return found  # type: ignore[no-any-return]


def weights(runs: Path, name: str = "student") -> str:
    """SHA-256 of the final weights."""
    return str(report(runs, name)["weights_sha256"])


def checkpoints(runs: Path, name: str = "student") -> list[Path]:
    """Oldest first."""
    return sorted((runs / name / "checkpoints").glob("step-*"))
