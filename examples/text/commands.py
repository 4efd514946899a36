"""The `distillog` commands of the example, as a user would type them; what is done already is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.processes import DISTILLOG, Process, stop
from schemas.errors import DistillogError
from student_trainer.run.settings import run_settings

HERE = Path(__file__).parent
_OFTEN = 0.2
"""Seconds between two looks at what runs."""


class Commands:
    """Commands on one folder, `at_once` of them beside one another."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once = folder, at_once
        self.runs, self._logs = folder / "runs", folder / "logs"
        self._began = time.monotonic()
        self._logs.mkdir(parents=True, exist_ok=True)
        # Each run has one thread, and is told where the metric of unigram.py lies.
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
        self.environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def say(self, text: str) -> None:
        """Print a line, with the seconds since the beginning of this call."""
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", flush=True)

    def run(self, name: str, *arguments: str | Path) -> str:
        """Run one command to its end, and return what it printed. Raises DistillogError with its last words."""
        done = subprocess.run(
            [DISTILLOG, *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        (self._logs / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["said nothing"]
            raise DistillogError(f"distillog {arguments[0]} ({name}) ended with {done.returncode}: {said[0]}")
        return done.stdout

    def train(self, documents: Sequence[dict[str, Any]]) -> None:
        """Train runs that are not done, from where they stopped. Raises DistillogError for one that fails."""
        waiting = [each for each in documents if not self.is_done(each["name"])]
        running: list[tuple[str, Process]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    document = waiting.pop(0)
                    running.append((document["name"], self._start(document)))
                for name, process in [each for each in running if not each[1].running]:
                    running.remove((name, process))
                    if process.popen.returncode or not self.is_done(name):
                        raise DistillogError(
                            f"run {name} ended with {process.popen.returncode}: {process.last_words()}"
                        )
                    self.say(f"{name}: {_shown(self.report(name)['evaluation'])}")
                time.sleep(_OFTEN)
        finally:
            stop(
                process for _, process in running
            )  # those that were begun save a checkpoint, and go on from it next time

    def is_done(self, name: str) -> bool:
        """Whether a run was trained to its end."""
        try:
            return bool(self.report(name)["finished"])
        except (OSError, ValueError, KeyError):
            return False

    def report(self, name: str) -> dict[str, Any]:
        """A run's report.json."""
        found: dict[str, Any] = json.loads((self.runs / name / "report.json").read_bytes())
        return found

    def _start(self, document: dict[str, Any]) -> Process:
        name = document["name"]
        if any((self.runs / name / "checkpoints").glob("*")):
            arguments: list[str | Path] = ["runs", "resume", name]
        else:
            if (self.runs / name).exists():  # killed before its first checkpoint
                self.run(f"delete-{name}", "runs", "delete", name, "--yes", "--folder", self.runs)
            run_file = self._logs / f"{name}.toml"
            run_file.write_text(run_settings(document).as_toml(), encoding="utf-8")
            arguments = ["runs", "start", run_file]
        command = [DISTILLOG, *arguments, "--folder", self.runs, "--quiet"]
        return Process(name, command, self._logs / f"{name}.log", environment=self.environment)


def _shown(scores: dict[str, Any]) -> str:
    names = {"position_nll": "nats", "unigram_nll": "nats by the unigram model", "accuracy": "right"}
    return ", ".join(f"{scores[name]:.3f} {text}" for name, text in names.items() if name in scores)
