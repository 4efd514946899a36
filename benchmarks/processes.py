"""One run on two processes against two runs of one process each at the same time, in samples/s together.

All have one thread of PyTorch and one core; the run on two processes takes batches of both, half of which each learns
from, so that every process has the same rows a step in both. What the ratio leaves of 1 is what agreeing, dealing rows
out and summing gradients cost, and that the slower of two processes is waited for. The log was filled beforehand; views
are made by each process for its own rows. Timed are the lines of metrics behind the first ones, in which PyTorch warms
up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.pairs import Pairs, Spread, interleave
from benchmarks.streams import Bench
from benchmarks.student import LARGE, STREAM, fill

ROWS = 512
"""Of a process in a step, which then takes some 60 ms."""
NUM_STEPS, LOG_EVERY, WARMING = 60, 5, 3
TIMEOUT = 300.0
"""Seconds that a run may take."""
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


class Started:
    """Runs as users start them, each with files of its own."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._folder = bench.folder / "several"
        self._numbers = count()
        servers = bench.kafka.bootstrap_servers
        self._environment = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": servers, "OMP_NUM_THREADS": "1"}

    def start(self, batch_size: int, *by: str) -> tuple[str, subprocess.Popen[str]]:
        """Start a run, by itself or by another command."""
        name = f"several-{next(self._numbers)}"
        document: dict[str, Any] = {
            "name": name,
            "data": {"stream": STREAM},
            "teachers": [{"name": "cheap"}],
            "student": LARGE,
            "losses": [{"name": "forward_kl"}],
            "train": {
                "batch_size": batch_size,
                "steps": NUM_STEPS,
                "passes": 1 + batch_size * NUM_STEPS // (1_500 * 256),
                "threads": 1,
                "device": "cpu",
                "log_every": LOG_EVERY,
            },
            "checkpoint": {"every": 0},
        }
        self._folder.mkdir(exist_ok=True)
        file = self._folder / f"{name}.toml"
        file.write_text(tomli_w.dumps(document), encoding="utf-8")
        distillog = str(Path(sys.executable).with_name("distillog"))
        command = [*by, distillog, "runs", "start", str(file), "--folder", str(self._folder), "--quiet"]
        started = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, text=True)
        return name, started

    def samples_per_s(self, name: str, started: subprocess.Popen[str]) -> float:
        """Wait for a run, and return the median of its lines."""
        _, errors = started.communicate(timeout=TIMEOUT)
        assert started.returncode == 0, errors
        lines = map(json.loads, Path(self._folder / name / "metrics.jsonl").read_text().splitlines())
        speeds = [line["timing"]["samples_per_s"] for line in lines if "loss" in line]
        return Spread.of(speeds[WARMING:]).median


def run(bench: Bench) -> dict[str, Any]:
    """Measure one run on two processes."""
    if not (bench.folder / "filler.onnx").exists():  # the student's part made the stream
        fill(bench)
    runs = Started(bench)

    def two_runs() -> float:
        return sum([runs.samples_per_s(*each) for each in [runs.start(ROWS), runs.start(ROWS)]])

    def one_run_on_two() -> float:
        return runs.samples_per_s(*runs.start(2 * ROWS, *_TORCHRUN, "--no-python"))

    def ddp() -> float:
        command = (*_TORCHRUN, "-m", "benchmarks.ddp_loop", str(ROWS), str(NUM_STEPS), json.dumps(LARGE))
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert done.returncode == 0, done.stderr
        return 2 * ROWS / float(done.stdout)

    two_runs()
    pairs, barest = interleave(bench.pairs, two_runs, one_run_on_two, ddp)
    return {
        "ratios": {"student_two_processes": _figures(pairs)},
        "more_ratios": {"bare, DistributedDataParallel": _figures(barest)},
    }


def _figures(pairs: Pairs) -> dict[str, Any]:
    bare = Spread.of(pairs.bare).median
    speeds = {"samples_per_s": Spread.of(pairs.ours).median, "bare_samples_per_s": bare}
    return pairs.as_dict() | speeds | {"bare_ms_per_step": 1000 * 2 * ROWS / bare}
